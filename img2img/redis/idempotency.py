"""Idempotency keys: a client that repeats a request with the same key gets the job of the first one."""

from dataclasses import dataclass
from hashlib import sha256

from img2img.errors import IdempotencyKeyReused
from img2img.redis.decode import decode
from img2img.redis.keys import IDEMPOTENT_REQUEST

KEPT_S = 24 * 3600


@dataclass(frozen=True)
class IdempotencyKey:
    """A client's idempotency key.

    Attributes:
        key: The key as the client sent it.
        fingerprint: Digest of the request that came with it.
        owner: Id of the API key, as in `JobOptions`: two owners may choose the same key.
    """

    key: str
    fingerprint: str
    owner: str = ""

    @property
    def redis_key(self) -> str:
        return IDEMPOTENT_REQUEST.format(owner=self.owner, digest=sha256(self.key.encode()).hexdigest())

    def job_id(self, stored: object) -> str:
        """Return the id of the job that was submitted with this key.

        Args:
            stored: The value at `redis_key`.

        Raises:
            IdempotencyKeyReused: The key came with another request before.
        """
        fingerprint, _, job_id = decode(stored).partition(" ")
        if fingerprint != self.fingerprint:
            raise IdempotencyKeyReused(
                "Idempotency-Key", "It came with another request before; a new request needs a new key"
            )
        return job_id
