"""API keys. Redis has only the SHA-256 of a key; the key itself is shown once, when it is created."""

import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from hmac import compare_digest
from itertools import chain
from typing import TypeVar

from pydantic import ValidationError
from redis import Redis
from redis.client import Pipeline
from redis.exceptions import WatchError

from img2img.domain.api_key import PREFIX, SECRET, ApiKey, Scope, owner_of
from img2img.errors import ExpiredApiKey, InvalidApiKey
from img2img.redis import scripts
from img2img.redis.audit import MAX_ENTRIES, AuditEvent, audit_in, fields_of, log_entry
from img2img.redis.clock import redis_clock
from img2img.redis.decode import decode
from img2img.redis.keys import API_KEY_USES, API_KEYS

SECRET_BYTES = 32
# Hex digits of the SHA-256 that identify a key. 64 bits of 256 are of no use for finding the key.
ID_LENGTH = 16
# How long a key that has expired is listed, and rejected as expired and not as unknown.
EXPIRED_KEPT_S = 30 * 24 * 3600.0

T = TypeVar("T")


class ApiKeys:
    """The API keys of the service.

    Args:
        redis: The Redis server.
        actor: Who makes changes, for the audit log.
    """

    def __init__(self, redis: Redis, actor: str = "service") -> None:
        self._redis = redis
        self._actor = actor
        self._clock = redis_clock(redis)
        self._revoke = scripts.register(redis, "revoke_key")
        self._record_use = scripts.register(redis, "record_key_use")

    def create(self, name: str, scopes: Iterable[Scope], expires_at: float | None = None) -> tuple[str, ApiKey]:
        """Create a key of a new owner. Returns the secret, which is not stored, and the stored data."""

        def add(pipe: Pipeline) -> tuple[str, ApiKey]:
            secret, key = self._new_key(name, frozenset(scopes), expires_at)
            pipe.multi()
            pipe.hset(API_KEYS, key.id, key.model_dump_json())
            audit_in(pipe, AuditEvent.KEY_CREATED, actor=self._actor, **_details(key))
            return secret, key

        return self._change(add)

    def rotate(
        self, key_id: str, overlap_s: float, scopes: Iterable[Scope] = (), expires_at: float | None = None
    ) -> tuple[str, ApiKey] | None:
        """Create another key of the same owner, and let this one expire.

        Args:
            key_id: Id of the key to replace.
            overlap_s: Seconds for which the key to replace remains valid, unless it expires earlier.
            scopes: Scopes of the new key; none: those of the replaced one.
            expires_at: When the new key expires. None: after as long a time as the replaced one, if that expires.

        Returns:
            The secret and the data of the new key, or None if there is no such key or it has expired.
        """
        now = self._clock.now()

        def replace(pipe: Pipeline) -> tuple[str, ApiKey] | None:
            old = _parse(pipe.hget(API_KEYS, key_id))
            if old is None or old.has_expired(now):
                return None
            lifetime_s = old.expires_at - old.created_at if old.expires_at is not None else None
            until = now + lifetime_s if expires_at is None and lifetime_s is not None else expires_at
            secret, key = self._new_key(old.name, frozenset(scopes) or old.scopes, until, owner_of(old))
            ends_at = min(now + overlap_s, old.expires_at or float("inf"))
            pipe.multi()
            pipe.hset(API_KEYS, key.id, key.model_dump_json())
            pipe.hset(API_KEYS, old.id, old.model_copy(update={"expires_at": ends_at}).model_dump_json())
            audit_in(
                pipe, AuditEvent.KEY_ROTATED, actor=self._actor, **_details(key), replaces=old.id, until=_time(ends_at)
            )
            return secret, key

        return self._change(replace)

    def revoke(self, key_id: str) -> ApiKey | None:
        """Delete a key, also in a Redis without memory. Its jobs remain.

        Returns:
            Its data, or None if there is no such key.
        """

        while (stored := self._redis.hget(API_KEYS, key_id)) is not None and (key := _parse(stored)) is not None:
            fields = fields_of(AuditEvent.KEY_REVOKED, self._actor, _details(key))
            entry = chain.from_iterable(fields.items())
            if self._revoke(args=[key_id, stored, MAX_ENTRIES, *entry]):
                log_entry(fields)
                return key
        return None

    def record_expiries(self) -> None:
        """Record newly expired keys in the audit log, once each, and delete those that expired a while ago."""
        now = self._clock.now()
        for found in self.all():
            if found.has_expired(now) and not found.expiry_recorded:
                self._record_expiry(found.id)
            elif found.has_expired(now - EXPIRED_KEPT_S):
                with self._redis.pipeline() as pipe:
                    pipe.hdel(API_KEYS, found.id)
                    pipe.hdel(API_KEY_USES, found.id)
                    pipe.execute()

    def _record_expiry(self, key_id: str) -> None:
        def record(pipe: Pipeline) -> None:
            key = _parse(pipe.hget(API_KEYS, key_id))
            pipe.multi()
            if key is not None and not key.expiry_recorded:
                pipe.hset(API_KEYS, key.id, key.model_copy(update={"expiry_recorded": True}).model_dump_json())
                audit_in(pipe, AuditEvent.KEY_EXPIRED, actor=self._actor, **_details(key))

        self._change(record)

    def find(self, secret: str) -> ApiKey | None:
        """Return the key with this secret, or None if it is unknown or revoked. It may have expired."""
        if not SECRET.fullmatch(secret):
            return None
        digest = _digest(secret)
        # For the expiry of the key.
        self._clock.now()
        key = _parse(self._redis.hget(API_KEYS, digest[:ID_LENGTH]))
        return key if key is not None and compare_digest(key.sha256, digest) else None

    def get(self, key_ids: Sequence[str]) -> Mapping[str, ApiKey]:
        """Return those of the keys that exist, by id, in one read."""
        self._clock.now()
        keys = map(_parse, self._redis.hmget(API_KEYS, list(key_ids)))
        return {key.id: key for key in keys if key is not None}

    def all(self) -> list[ApiKey]:
        """Return all keys, oldest first."""
        keys = map(_parse, self._redis.hvals(API_KEYS))
        return sorted((key for key in keys if key is not None), key=lambda key: key.created_at)

    def any(self) -> bool:
        """Return whether there is any key that has not expired."""
        return any(not key.has_expired(self._clock.now()) for key in self.all())

    def owner_of(self, key_id: str) -> str:
        """Return the owner of a key. An id of no key counts as that of an owner whose keys were revoked."""
        key = self.get([key_id]).get(key_id)
        return key_id if key is None else owner_of(key)

    def error(self, key: ApiKey | None) -> InvalidApiKey | None:
        """Return why a key is rejected now, or None if it is valid. Needs no request."""
        if key is None:
            return InvalidApiKey()
        return ExpiredApiKey() if self.has_expired(key) else None

    def has_expired(self, key: ApiKey) -> bool:
        """Return whether a key has expired by the clock of Redis. Needs no request."""
        return key.has_expired(self._clock.estimate())

    def record_use(self, key_id: str) -> None:
        """Record that the key is used now."""
        self._record_use(args=[key_id, int(self._clock.now())])

    def last_uses(self) -> dict[str, float]:
        """Return the time of the last recorded use of each key, in seconds since the epoch, by id."""
        return {decode(key_id): float(at) for key_id, at in self._redis.hgetall(API_KEY_USES).items()}

    def _new_key(
        self, name: str, scopes: frozenset[Scope], expires_at: float | None, owner: str = ""
    ) -> tuple[str, ApiKey]:
        secret = PREFIX + secrets.token_urlsafe(SECRET_BYTES)
        digest = _digest(secret)
        return secret, ApiKey(
            id=digest[:ID_LENGTH],
            name=name,
            sha256=digest,
            scopes=scopes,
            created_at=self._clock.now(),
            owner=owner,
            expires_at=expires_at,
        )

    def _change(self, change: Callable[[Pipeline], T]) -> T:
        """Run a change of keys, again if another process changes keys at the same time."""
        with self._redis.pipeline() as pipe:
            while True:
                try:
                    pipe.watch(API_KEYS)  # type: ignore[no-untyped-call]
                    result = change(pipe)
                    pipe.execute()
                    return result
                except WatchError:
                    continue


def _parse(stored: bytes | str | None) -> ApiKey | None:
    """Return a stored key; None if there is none, or if another version has written it with an unknown scope."""
    try:
        return None if stored is None else ApiKey.model_validate_json(stored)
    except ValidationError:
        return None


def _details(key: ApiKey) -> dict[str, str]:
    details = {"key": key.id, "owner": owner_of(key), "name": key.name, "scopes": ",".join(sorted(key.scopes))}
    return details if key.expires_at is None else {**details, "expires": _time(key.expires_at)}


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def id_of(secret: str) -> str:
    """Return the id of the key with this secret."""
    return _digest(secret)[:ID_LENGTH]


def _digest(secret: str) -> str:
    return sha256(secret.encode()).hexdigest()
