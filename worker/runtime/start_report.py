"""StartReport: logs and publishes the progress of a worker that loads its models."""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

from redis import Redis
from redis.exceptions import RedisError

from img2img.redis.worker_starts import WorkerStart, WorkerStarts

log = logging.getLogger(__name__)

PUBLISH_S = 1.0
LOG_S = 10.0


class StartReport:
    """Context of the start of a worker. An exception that leaves it is published as the reason why it cannot start.

    Args:
        redis: Client of the Redis with the queues.
        worker: Name of the host and id of the process.
        downloads: Returns the downloaded and the total bytes.

    Attributes:
        percent: Returns which part of the weights of the model that is being loaded was read; None if that is unknown.
    """

    def __init__(self, redis: Redis, worker: str, downloads: Callable[[], tuple[int, int]]) -> None:
        self.percent: Callable[[], int | None] = lambda: None
        self._starts = WorkerStarts(redis)
        self._worker = worker
        self._downloads = downloads
        self._started_at = time.monotonic()
        self._stage = "starting"
        self._was_killed = False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._publish, name="start-report", daemon=True)

    def __enter__(self) -> Self:
        """Start to publish."""
        with suppress(RedisError):
            last = self._starts.find(self._worker)
            self._was_killed = last is not None and last.error is None
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Publish the error, or that the worker has started."""
        self._stopped.set()
        self._thread.join()
        with suppress(RedisError):
            if isinstance(error, Exception):
                self._starts.report(self._worker, self._state(_first_line(error)))
            else:
                self._starts.finish(self._worker)

    def stage(self, stage: str) -> None:
        """Set and log the present activity of the worker."""
        self._stage, self._started_at = stage, time.monotonic()
        log.info("%s", stage)

    def _publish(self) -> None:
        logged_at = time.monotonic()
        while True:
            state = self._state()
            # Without Redis there is no readiness check that could read it.
            with suppress(RedisError):
                self._starts.report(self._worker, state)
            if time.monotonic() - logged_at >= LOG_S:
                log.info("%s", state.describe())
                logged_at = time.monotonic()
            if self._stopped.wait(PUBLISH_S):
                return

    def _state(self, error: str | None = None) -> WorkerStart:
        downloaded, size = self._downloads()
        return WorkerStart(
            stage=self._stage,
            seconds=int(time.monotonic() - self._started_at),
            downloaded=downloaded,
            download_size=size,
            percent=self.percent(),
            error=error,
            was_killed=self._was_killed,
        )


def _first_line(error: Exception) -> str:
    """Return the first line of an error, at most 300 characters."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
