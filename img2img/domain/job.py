"""A job's states, the table of legal moves, and the record that clients and workers read."""

from dataclasses import dataclass
from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from img2img.domain.spec import JobSpec
from img2img.domain.webhook import Delivery, Webhook


class JobStatus(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        return not TRANSITIONS[self]


# Every legal move. `running -> queued` is a worker handing a job back, or a sweeper taking it from a dead one; another
# worker can start it only then, so one at a time runs it.
TRANSITIONS: dict[JobStatus, frozenset[JobStatus]] = {
    JobStatus.QUEUED: frozenset({JobStatus.RUNNING, JobStatus.CANCELLED, JobStatus.FAILED}),
    JobStatus.RUNNING: frozenset({JobStatus.QUEUED, JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED}),
    JobStatus.SUCCEEDED: frozenset(),
    JobStatus.FAILED: frozenset(),
    JobStatus.CANCELLED: frozenset(),
}


class Priority(StrEnum):
    """Which jobs go first. Lowest first here."""

    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"


RESULT_TTL_S = 24 * 3600.0  # unless the front end is told otherwise


@dataclass(frozen=True)
class JobOptions:
    """What holds for a job beside what it is to make: equal specs on other terms give the same pictures."""

    result_ttl_s: float = RESULT_TTL_S  # how long the job is kept after its end
    deadline_s: float | None = None  # from now; cancelled if it has not ended by then
    owner: str = ""  # id of the API key that sent it; "" where keys are off
    priority: Priority = Priority.NORMAL
    webhook: Webhook | None = None  # where its end is told
    traceparent: str | None = None  # of the trace in which it was submitted, as W3C Trace Context writes it


class ImageInfo(BaseModel):
    """One result picture, as stored."""

    model_config = ConfigDict(frozen=True)

    index: int
    seed: int
    width: int
    height: int
    sha256: str
    bytes: int


class JobFailure(BaseModel):
    """Why a job failed: a stable code and a sentence."""

    model_config = ConfigDict(frozen=True)

    code: str
    message: str


class JobRecord(BaseModel):
    """Everything known of a job. Times are seconds since the epoch, durations seconds."""

    model_config = ConfigDict(frozen=True)

    id: str
    status: JobStatus
    spec: JobSpec
    owner: str = ""
    priority: Priority = Priority.NORMAL
    created_at: float
    started_at: float | None = None
    finished_at: float | None = None
    execution: str | None = None  # who may finish this job: the RQ execution id of the latest claim
    worker: str | None = None
    attempts: int = 0
    step: int = 0
    steps: int = 0
    images: tuple[ImageInfo, ...] = ()
    error: JobFailure | None = None
    timings: dict[str, float] = {}
    revision: int = 1  # grows with every change
    result_ttl_s: float = RESULT_TTL_S  # how long the job is kept after its end
    expires_at: float | None = None  # set at its end
    deadline_at: float | None = None  # cancelled if it has not ended by then
    webhook: Webhook | None = None  # where its end is told
    traceparent: str | None = None  # of the trace in which it was submitted
    delivery: Delivery | None = None  # how that stands, once there is something to tell; no change of the job itself
