"""Safe retries: a client that sends the same key and request again gets the job that it made the first time."""

from dataclasses import dataclass
from hashlib import sha256

from redis.client import Pipeline
from redis.typing import ResponseT
from rq.utils import as_text

from img2img.errors import IdempotencyKeyReused

KEPT = "i2i:once:{digest}"  # string with a time to live: fingerprint of the request and id of its job
KEPT_S = 24 * 3600


@dataclass(frozen=True)
class IdempotencyKey:
    """A client's idempotency key, the fingerprint of the request that it came with, and whose it is."""

    key: str
    fingerprint: str
    owner: str = ""  # as in Terms: two owners may choose the same key

    @property
    def redis_key(self) -> str:
        return KEPT.format(digest=sha256(f"{self.owner} {self.key}".encode()).hexdigest())

    def keep(self, pipe: Pipeline, job_id: str) -> None:
        """Writes down which job the request made, in the transaction that makes it."""
        pipe.set(self.redis_key, f"{self.fingerprint} {job_id}", ex=KEPT_S)

    def job_id(self, kept: ResponseT) -> str | None:
        """The job that the key stands for, by what Redis has under `redis_key`. Raises KeyReused."""
        if kept is None:
            return None
        fingerprint, _, job_id = str(as_text(kept)).partition(" ")  # type: ignore[arg-type]
        if fingerprint != self.fingerprint:
            raise IdempotencyKeyReused(
                "Idempotency-Key", "It came with another request before; a new request needs a new key"
            )
        return job_id
