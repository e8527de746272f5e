"""API keys: random secrets of which Redis knows only the SHA-256. A key is shown once, when it is made."""

import re
import secrets
import time
from collections.abc import Iterable
from hashlib import sha256
from hmac import compare_digest

from pydantic import ValidationError
from redis import Redis
from rq.utils import as_text

from img2img.domain.api_key import ApiKey, Scope

KEYS = "i2i:keys"  # hash: id of a key -> ApiKey as JSON

PREFIX = "i2i_"  # so that a key that lies in the wrong place is known for what it is
SECRET_BYTES = 32
KEY = re.compile(PREFIX + r"[A-Za-z0-9_-]{43}")
ID_LENGTH = 16  # hex digits of the SHA-256 that name a key: 64 bits of 256 tell nothing of the key


class ApiKeys:
    """The keys of one Redis."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def create(self, name: str, scopes: Iterable[Scope]) -> tuple[str, ApiKey]:
        """Makes a key: the secret, which is kept nowhere, and what is known of it."""
        while True:
            secret = PREFIX + secrets.token_urlsafe(SECRET_BYTES)
            digest = _digest(secret)
            key = ApiKey(
                id=digest[:ID_LENGTH], name=name, sha256=digest, scopes=frozenset(scopes), created_at=time.time()
            )
            if self._redis.hsetnx(KEYS, key.id, key.model_dump_json()):
                return secret, key

    def find(self, secret: str) -> ApiKey | None:
        """What is known of the key with this secret; None where there is none, or no longer."""
        if not KEY.fullmatch(secret):
            return None
        digest = _digest(secret)
        kept = self._redis.hget(KEYS, digest[:ID_LENGTH])
        if kept is None:
            return None
        try:
            key = ApiKey.model_validate_json(kept)
        except ValidationError:  # another version wrote it, with a scope that is unknown here
            return None
        return key if compare_digest(key.sha256, digest) else None

    def all(self) -> list[ApiKey]:
        """All keys, oldest first."""
        kept = self._redis.hvals(KEYS)
        return sorted((ApiKey.model_validate_json(as_text(key)) for key in kept), key=lambda key: key.created_at)

    def any(self) -> bool:
        """Whether there is a key."""
        return bool(self._redis.hlen(KEYS))

    def revoke(self, key_id: str) -> bool:
        """Forgets a key; of its jobs, admins see what is left. False where there is no such key."""
        return bool(self._redis.hdel(KEYS, key_id))


def _digest(secret: str) -> str:
    return sha256(secret.encode()).hexdigest()
