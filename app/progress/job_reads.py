"""Reads of jobs that all clients share who follow the same job."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from cachetools import LRUCache

from img2img.domain.job import JobRecord, JobStatus
from img2img.redis.job_store import JobStore
from img2img.redis.notifications import JobChangeListener
from img2img.redis.previews import Previews

from ..schemas.events import PreviewEvent, ProgressEvent, QueuedEvent
from ..schemas.responses import Job
from .eta import EtaEstimator

# Threads for these reads. They are not those of other requests, which would have to wait.
THREADS = 4
# A read is not used for longer, also if no change was announced: the position of a waiting job may have changed.
MAX_AGE_S = 0.25
MAX_JOBS = 4096

T = TypeVar("T")


@dataclass(frozen=True)
class JobState:
    """The state of a job as an event, and its payload as JSON, which is encoded once for all clients."""

    event: QueuedEvent | ProgressEvent | Job
    data: str
    status: JobStatus
    revision: int

    @property
    def name(self) -> str:
        """`event` on the wire."""
        return "progress" if self.status is JobStatus.RUNNING else self.status.value


class JobReads:
    """Reads each change of a job once, however many clients follow it.

    It reads jobs of all owners: callers check first that the client may see the job.
    """

    def __init__(self, jobs: JobStore, eta: EtaEstimator, previews: Previews, job_changes: JobChangeListener) -> None:
        self._jobs = jobs
        self._eta = eta
        self._previews = previews
        self._limiter = CapacityLimiter(THREADS)
        self._states = _SharedReads(self._read_state, job_changes, self._limiter)
        self._previews_read = _SharedReads(self._read_preview, job_changes, self._limiter)

    async def state(self, job_id: str) -> JobState:
        """Return the state of a job. Raises NotFound, Gone or RedisError."""
        return await self._states.read(job_id)

    async def preview(self, job_id: str) -> str | None:
        """Return the latest preview of a job as the JSON of an event, None if there is none. Raises RedisError."""
        return await self._previews_read.read(job_id)

    async def request_previews(self, job_id: str) -> None:
        """Let workers make previews of a job for some time. Raises RedisError."""
        await run_sync(self._previews.request, job_id, limiter=self._limiter)

    def _read_state(self, job_id: str) -> JobState:
        record = self._jobs.find(job_id)
        event = self._event(record)
        return JobState(event, event.model_dump_json(), record.status, record.revision)

    def _event(self, record: JobRecord) -> QueuedEvent | ProgressEvent | Job:
        if record.status is JobStatus.QUEUED:
            [estimate] = self._eta.estimate([record])
            return QueuedEvent.from_record(record, estimate)
        if record.status is JobStatus.RUNNING:
            return ProgressEvent.from_record(record)
        return Job.from_record(record)

    def _read_preview(self, job_id: str) -> str | None:
        preview = self._previews.latest(job_id)
        return PreviewEvent.from_preview(job_id, preview).model_dump_json() if preview else None


@dataclass(frozen=True)
class _Read(Generic[T]):
    change: tuple[int, int]  # the last one that was announced before the read began
    started_at: float
    result: asyncio.Future[T]


class _SharedReads(Generic[T]):
    """Results of a function by job id. A result is used until the next change of the job is announced."""

    def __init__(self, read: Callable[[str], T], job_changes: JobChangeListener, limiter: CapacityLimiter) -> None:
        self._read = read
        self._job_changes = job_changes
        self._limiter = limiter
        self._latest: LRUCache[str, _Read[T]] = LRUCache(MAX_JOBS)

    async def read(self, job_id: str) -> T:
        """Return the result of a read that began after the last change that was announced. The caller subscribes."""
        change = self._job_changes.latest(job_id), self._job_changes.dequeue_count
        now = time.monotonic()
        latest = self._latest.get(job_id)
        if latest is None or latest.change != change or now - latest.started_at > MAX_AGE_S:
            result = asyncio.ensure_future(run_sync(self._read, job_id, limiter=self._limiter))
            latest = self._latest[job_id] = _Read(change, now, result)
        # A client that disconnects must not end the read of the others.
        return await asyncio.shield(latest.result)
