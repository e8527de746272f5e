"""Small pictures of a job as it forms: made only while somebody watches, kept for seconds."""

from collections.abc import Sequence
from dataclasses import dataclass

from redis import Redis

from img2img.redis.job_store import CHANGES

WATCHED = "i2i:watched:{id}"  # string with a time to live: somebody wants previews of this job
PREVIEW = "i2i:preview:{id}"  # hash with a time to live: `step` and `jpeg` of the latest

WATCH_S = 10  # a wish for previews holds for so long; say it again before it is over
KEPT_S = 30


@dataclass(frozen=True)
class Preview:
    """What a job looked like after a denoising step."""

    step: int
    jpeg: bytes


class Previews:
    """The previews of one Redis."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def request(self, job_id: str) -> None:
        """Says that somebody wants previews of this job for the next WATCH_S seconds."""
        self._redis.set(WATCHED.format(id=job_id), 1, ex=WATCH_S)

    def requested(self, job_ids: Sequence[str]) -> list[str]:
        """Those of the jobs that somebody watches."""
        if not job_ids:
            return []
        flags = self._redis.mget([WATCHED.format(id=job_id) for job_id in job_ids])
        return [job_id for job_id, flag in zip(job_ids, flags, strict=True) if flag]

    def publish(self, job_id: str, preview: Preview) -> None:
        """Shows a preview to all who watch the job."""
        key = PREVIEW.format(id=job_id)
        with self._redis.pipeline() as pipe:
            pipe.hset(key, mapping={"step": preview.step, "jpeg": preview.jpeg})
            pipe.expire(key, KEPT_S)
            pipe.publish(CHANGES, job_id)
            pipe.execute()

    def latest(self, job_id: str) -> Preview | None:
        """The latest preview, None where there is none (yet)."""
        step, jpeg = self._redis.hmget(PREVIEW.format(id=job_id), ["step", "jpeg"])
        return Preview(int(step), jpeg) if step and isinstance(jpeg, bytes) else None
