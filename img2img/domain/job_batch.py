"""Batches of jobs: jobs that were submitted by one request, and are followed, cancelled and deleted together."""

from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from img2img.domain.cells import derived_id
from img2img.domain.webhook import BatchWebhook, Delivery

# The most jobs of a batch.
MAX_JOBS = 10_000


class BatchStatus(StrEnum):
    """State of a batch.

    ACCEPTING: its jobs are being queued; it is not acknowledged to the client yet.
    RUNNING: all of its jobs are queued; some have not ended.
    ENDED: every job has ended.
    """

    ACCEPTING = "accepting"
    RUNNING = "running"
    ENDED = "ended"


class BatchCounts(BaseModel):
    """Number of the jobs of a batch, by their status."""

    model_config = ConfigDict(frozen=True)

    queued: int = 0
    running: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    deleted: Annotated[int, Field(description="Jobs that were deleted one by one.")] = 0


class BatchRecord(BaseModel):
    """The state of a batch. Times are seconds since the epoch, durations seconds.

    Attributes:
        owner: Owner of the batch and its jobs; empty without authentication.
        total: Number of jobs.
        cancelled: Whether the whole batch was cancelled.
        result_ttl_s: How long the batch and its jobs are kept after the last job has ended.
        expires_at: When they are deleted; set when the batch has ended.
        delivery: State of the webhook's delivery, once the batch has ended.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    status: BatchStatus
    owner: str = ""
    created_at: float
    finished_at: float | None = None
    expires_at: float | None = None
    result_ttl_s: float
    total: int
    counts: BatchCounts = BatchCounts()
    cancelled: bool = False
    webhook: BatchWebhook | None = None
    traceparent: str | None = None
    delivery: Delivery | None = None

    @property
    def has_ended(self) -> bool:
        return self.status is BatchStatus.ENDED


class BatchMember(BaseModel):
    """The place of a job in a batch.

    Attributes:
        index: Position of the job in the request, from 0.
        name: Name that the request gave the job; its images have it in the archive of the results.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    index: int
    name: str | None = None

    @property
    def job_id(self) -> str:
        """The id of the job. A repeated request finds the jobs by it that were queued before an interruption."""
        return derived_id(self.id, f"{self.id} {self.index}")
