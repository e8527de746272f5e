"""Publishes previews of running jobs that a client watches. Previews are skipped when there is no time for them."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from redis import Redis
from redis.exceptions import RedisError

from img2img.redis.previews import Preview, Previews

from .execution import JobExecution

PREVIEW_INTERVAL_S = 0.5

log = logging.getLogger(__name__)


class PreviewPublisher:
    """Encodes and publishes previews on one thread."""

    def __init__(self, redis: Redis) -> None:
        self._previews = Previews(redis)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="preview")
        self._pending: Future[None] | None = None
        self._published: dict[str, int] = {}  # step of the last preview, by job id
        self._started_at = 0.0

    def publish(self, running: Sequence[JobExecution]) -> None:
        """Start a round of previews if one is due and the last one is finished."""
        if time.monotonic() - self._started_at < PREVIEW_INTERVAL_S or (self._pending and not self._pending.done()):
            return
        self._started_at = time.monotonic()
        executions = {execution.job_id: execution for execution in running}
        self._published = {job_id: step for job_id, step in self._published.items() if job_id in executions}
        if executions:
            self._pending = self._thread.submit(self._publish, executions)

    def close(self) -> None:
        self._thread.shutdown()

    def _publish(self, executions: dict[str, JobExecution]) -> None:
        try:
            for job_id in self._previews.requested(list(executions)):
                step = executions[job_id].step
                jpeg = executions[job_id].preview() if step > self._published.get(job_id, 0) else None
                if jpeg:
                    self._previews.publish(job_id, Preview(step, jpeg))
                    self._published[job_id] = step
        except RedisError as error:
            log.warning("Redis is unavailable, previews are skipped: %s", error)
        except Exception:
            log.exception("the previews could not be published")
