"""Previews of running jobs: small JPEGs that a worker makes only while a client wants them."""

from collections.abc import Sequence
from dataclasses import dataclass

from redis import Redis

from img2img.redis import keys

# A request for previews ends after this time; repeat it before.
REQUEST_TTL_S = 10
PREVIEW_TTL_S = 30


@dataclass(frozen=True)
class Preview:
    """The image of a job after a denoising step."""

    step: int
    jpeg: bytes


class Previews:
    """Requests for previews and the latest preview of each job."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def request(self, job_id: str) -> None:
        """Request previews of a job for the next REQUEST_TTL_S seconds."""
        self._redis.set(keys.PREVIEW_REQUEST.format(id=job_id), 1, ex=REQUEST_TTL_S)

    def requested(self, job_ids: Sequence[str]) -> list[str]:
        """Return those of the jobs for which a client wants previews."""
        if not job_ids:
            return []
        flags = self._redis.mget([keys.PREVIEW_REQUEST.format(id=job_id) for job_id in job_ids])
        return [job_id for job_id, flag in zip(job_ids, flags, strict=True) if flag]

    def publish(self, job_id: str, preview: Preview) -> None:
        """Store a preview and notify the clients that follow the job."""
        key = keys.PREVIEW.format(id=job_id)
        with self._redis.pipeline() as pipe:
            pipe.hset(key, mapping={"step": preview.step, "jpeg": preview.jpeg})
            pipe.expire(key, PREVIEW_TTL_S)
            pipe.publish(keys.JOB_CHANGES, job_id)
            pipe.execute()

    def latest(self, job_id: str) -> Preview | None:
        """Return the latest preview, or None if there is none."""
        step, jpeg = self._redis.hmget(keys.PREVIEW.format(id=job_id), ["step", "jpeg"])
        return Preview(int(step), jpeg) if step and isinstance(jpeg, bytes) else None
