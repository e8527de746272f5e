"""Jobs: their states and transitions, options and records."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from img2img.domain.job_batch import BatchMember
from img2img.domain.reuse import ReusedResult
from img2img.domain.spec import JobSpec
from img2img.domain.webhook import Delivery, PredictionWebhook, Webhook


class JobStatus(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        return not TRANSITIONS[self]


# All legal transitions. A running job becomes queued again when its worker or, if that died, the reaper requeues it.
# Only a queued job can be started, so at most one worker runs it.
TRANSITIONS: dict[JobStatus, frozenset[JobStatus]] = {
    JobStatus.QUEUED: frozenset({JobStatus.RUNNING, JobStatus.CANCELLED, JobStatus.FAILED}),
    JobStatus.RUNNING: frozenset({JobStatus.QUEUED, JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED}),
    JobStatus.SUCCEEDED: frozenset(),
    JobStatus.FAILED: frozenset(),
    JobStatus.CANCELLED: frozenset(),
}


class Priority(StrEnum):
    """The priority of a job in its queue. Lowest first."""

    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"


class DeadlinePolicy(StrEnum):
    """What happens to a job that misses its deadline."""

    CANCEL = "cancel"
    BEST_EFFORT = "best_effort"
    REJECT = "reject"


# Default of the API server's setting.
RESULT_TTL_S = 24 * 3600.0


@dataclass(frozen=True)
class JobOptions:
    """Options of a job that do not affect its images.

    Attributes:
        result_ttl_s: How long the job is kept after its end.
        deadline_s: Time after which the job should have ended.
        deadline_policy: What happens if it has not.
        unknown_fields: Fields of the spec that a later version has written. This version can show the job without them,
            but not run it.
        owner: Owner of the job, see `owner_of`; empty without authentication.
        key_id: Id of the API key that submitted the job; empty without authentication.
        priority: Priority in the queue.
        webhook: Where to send the event of the job's end.
        traceparent: Trace of the request, in the format of W3C Trace Context.
        batch: The batch to which the job belongs, and its place in it.
        reuses: The result of an earlier job, with which this one ends at once.
    """

    result_ttl_s: float = RESULT_TTL_S
    deadline_s: float | None = None
    deadline_policy: DeadlinePolicy = DeadlinePolicy.CANCEL
    owner: str = ""
    key_id: str = ""
    priority: Priority = Priority.NORMAL
    webhook: Webhook | None = None
    traceparent: str | None = None
    batch: BatchMember | None = None
    reuses: ReusedResult | None = None


class ImageInfo(BaseModel):
    """One result image, as stored."""

    model_config = ConfigDict(frozen=True)

    index: int
    seed: int
    width: int
    height: int
    sha256: str
    bytes: int
    flagged: Annotated[
        bool,
        Field(description="Whether the safety checker flagged it, where the model's `safety_checker` is `report`."),
    ] = False


class JobFailure(BaseModel):
    """Why a job failed: a stable code and a sentence."""

    model_config = ConfigDict(frozen=True)

    code: str
    message: str


class JobRecord(BaseModel):
    """The state of a job. Times are seconds since the epoch, durations seconds.

    Attributes:
        owner: Owner of the job, see `owner_of`; empty without authentication.
        key_id: Id of the API key that submitted the job; empty without authentication.
        execution: Id of the RQ execution that may finish the job: the latest one that started it.
        worker: Name of the worker of that execution.
        attempts: How many executions have started the job.
        step: Denoising steps done, summed over the images.
        steps: Denoising steps in all.
        images: The images of a job that has succeeded, except for those in `withheld`.
        withheld: Indices of images that were flagged and are not delivered.
        timings: Seconds by stage of the execution.
        revision: Number of changes of the record.
        result_ttl_s: How long the job is kept after its end.
        expires_at: When it is deleted; set at its end, except for a job of a batch, which is deleted with it.
        deadline_at: When it should have ended.
        deadline_policy: What happens if it has not.
        deadline_missed: Whether it had not.
        traceparent: Trace of the request that submitted the job.
        delivery: State of the webhook's delivery, once the job has ended. Its changes do not count as revisions.
        batch: The batch to which the job belongs, and its place in it.
        reused_from: Id of the earlier job whose images this one has.
        result_digest: Digest of everything that its images depend on, see `result_digest`; of a job that has succeeded.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    status: JobStatus
    spec: JobSpec
    unknown_fields: tuple[str, ...] = ()
    owner: str = ""
    key_id: str = ""
    priority: Priority = Priority.NORMAL
    created_at: float
    started_at: float | None = None
    finished_at: float | None = None
    execution: str | None = None
    worker: str | None = None
    attempts: int = 0
    step: int = 0
    steps: int = 0
    images: tuple[ImageInfo, ...] = ()
    withheld: tuple[int, ...] = ()
    error: JobFailure | None = None
    timings: dict[str, float] = {}
    revision: int = 1
    result_ttl_s: float = RESULT_TTL_S
    expires_at: float | None = None
    deadline_at: float | None = None
    deadline_policy: DeadlinePolicy = DeadlinePolicy.CANCEL
    deadline_missed: bool = False
    webhook: PredictionWebhook | Webhook | None = None
    traceparent: str | None = None
    delivery: Delivery | None = None
    batch: BatchMember | None = None
    reused_from: str | None = None
    result_digest: str | None = None

    @property
    def has_missed_deadline(self) -> bool:
        """Whether the job ended after its deadline, or had not ended by then as far as the record says."""
        ended_at, deadline_at = self.finished_at, self.deadline_at
        return self.deadline_missed or (ended_at is not None and deadline_at is not None and ended_at > deadline_at)

    def image(self, index: int) -> ImageInfo | None:
        """Return the result image with this index, or None if there is none, or if it was withheld."""
        return next((image for image in self.images if image.index == index), None)
