"""Shows watched jobs as they form: the one thing in a worker that may be left out when there is no time for it."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from redis import Redis
from redis.exceptions import RedisError

from img2img.redis.previews import Preview, Previews

if TYPE_CHECKING:
    from ..runner import RunningJob

PREVIEW_S = 0.5  # between two looks

log = logging.getLogger(__name__)


class PreviewPublisher:
    """Makes previews on one thread of its own; while it is busy, none are asked of it."""

    def __init__(self, redis: Redis) -> None:
        self._previews = Previews(redis)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="preview")
        self._working: Future[None] | None = None
        self._shown: dict[str, int] = {}  # step of the last preview, by job
        self._last_look = 0.0

    def tick(self, running: Mapping[str, RunningJob]) -> None:
        """Looks, now and then, at the jobs in the engine, by id."""
        if time.monotonic() - self._last_look < PREVIEW_S or (self._working and not self._working.done()):
            return
        self._last_look = time.monotonic()
        self._shown = {job_id: step for job_id, step in self._shown.items() if job_id in running}
        if running:
            self._working = self._thread.submit(self._show, dict(running))

    def close(self) -> None:
        self._thread.shutdown()

    def _show(self, running: Mapping[str, RunningJob]) -> None:
        try:
            for job_id in self._previews.requested(list(running)):
                step = running[job_id].step
                jpeg = running[job_id].preview() if step > self._shown.get(job_id, 0) else None
                if jpeg:
                    self._previews.publish(job_id, Preview(step, jpeg))
                    self._shown[job_id] = step
        except RedisError as error:
            log.warning("Redis: %s", error)
        except Exception:
            log.exception("previews")
