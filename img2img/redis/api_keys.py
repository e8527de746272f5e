"""API keys. Redis has only the SHA-256 of a key; the key itself is shown once, when it is created."""

import re
import secrets
import time
from collections.abc import Iterable
from hashlib import sha256
from hmac import compare_digest

from pydantic import ValidationError
from redis import Redis

from img2img.domain.api_key import ApiKey, Scope
from img2img.redis.decode import decode
from img2img.redis.keys import API_KEYS

# Makes a leaked key recognisable, for people and secret scanners.
PREFIX = "i2i_"
SECRET_BYTES = 32
KEY = re.compile(PREFIX + r"[A-Za-z0-9_-]{43}")
# Hex digits of the SHA-256 that identify a key. 64 bits of 256 are of no use for finding the key.
ID_LENGTH = 16


class ApiKeys:
    """The API keys of the service."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def create(self, name: str, scopes: Iterable[Scope]) -> tuple[str, ApiKey]:
        """Create a key. Returns the secret, which is not stored, and the stored data."""
        while True:
            secret = PREFIX + secrets.token_urlsafe(SECRET_BYTES)
            digest = _digest(secret)
            key = ApiKey(
                id=digest[:ID_LENGTH], name=name, sha256=digest, scopes=frozenset(scopes), created_at=time.time()
            )
            if self._redis.hsetnx(API_KEYS, key.id, key.model_dump_json()):
                return secret, key

    def find(self, secret: str) -> ApiKey | None:
        """Return the key with this secret, or None if it is unknown or revoked."""
        if not KEY.fullmatch(secret):
            return None
        digest = _digest(secret)
        stored = self._redis.hget(API_KEYS, digest[:ID_LENGTH])
        if stored is None:
            return None
        try:
            key = ApiKey.model_validate_json(stored)
        except ValidationError:
            # Another version has written it, with a scope that is unknown here.
            return None
        return key if compare_digest(key.sha256, digest) else None

    def all(self) -> list[ApiKey]:
        """Return all keys, oldest first."""
        stored = map(decode, self._redis.hvals(API_KEYS))
        return sorted(map(ApiKey.model_validate_json, stored), key=lambda key: key.created_at)

    def any(self) -> bool:
        """Return whether there is any key."""
        return bool(self._redis.hlen(API_KEYS))

    def owner_of(self, key_id: str) -> str:
        """Return the owner of everything that a key has sent. The key may have been revoked."""
        return key_id

    def revoke(self, key_id: str) -> bool:
        """Delete a key. Its jobs remain, visible to admins. Returns False if there is no such key."""
        return bool(self._redis.hdel(API_KEYS, key_id))


def _digest(secret: str) -> str:
    return sha256(secret.encode()).hexdigest()
