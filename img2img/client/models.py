"""Responses of the service. Fields that this version does not know are kept as extra attributes."""

from base64 import b64decode
from datetime import datetime
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from img2img.domain.job import JobStatus

from .errors import InvalidResponse, JobFailed

AnyResponse = TypeVar("AnyResponse", bound=BaseModel)


class _Response(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)


class JobImage(_Response):
    """A result image of a job."""

    index: int
    url: str
    seed: int
    width: int
    height: int
    sha256: str
    bytes: int
    flagged: bool = False


class JobProgress(_Response):
    """Denoising steps, summed over the images of the job."""

    step: int = 0
    steps: int = 0
    fraction: float = 0.0


class JobError(_Response):
    """Why a job failed: a stable code and a message."""

    code: str
    message: str


class JobBatch(_Response):
    """The batch to which a job belongs, and its place in it."""

    id: str
    index: int
    name: str | None = None


class Job(_Response):
    """A job at the time of the response. Times are in UTC, durations in seconds."""

    id: str
    status: JobStatus
    priority: str = "normal"
    created_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    deadline_at: datetime | None = None
    deadline_missed: bool | None = None
    expires_at: datetime | None = None
    queue_position: int | None = None
    eta_s: float | None = None
    progress: JobProgress = JobProgress()
    request: dict[str, Any] = {}
    images: tuple[JobImage, ...] = ()
    withheld: tuple[int, ...] = ()
    error: JobError | None = None
    timings: dict[str, float] = {}
    worker: str | None = None
    webhook: dict[str, Any] | None = None
    batch: JobBatch | None = None
    reused_from: str | None = None

    @property
    def has_ended(self) -> bool:
        """Whether the job succeeded, failed or was cancelled."""
        return self.status.is_terminal

    def raise_for_status(self) -> Self:
        """Return the job, or raise `JobFailed` if it failed or was cancelled."""
        if self.status in (JobStatus.FAILED, JobStatus.CANCELLED):
            message = self.error.message if self.error else f"the job was {self.status}"
            raise JobFailed(message, job_id=self.id, code=self.error.code if self.error else self.status)
        return self


class DryRun(_Response):
    """The job that a request would have created."""

    request: dict[str, Any]
    priority: str = "normal"
    cost: float = 0.0
    queue_position: int = 0
    eta_s: float | None = None


class UploadedImage(_Response):
    """An uploaded image; later requests can refer to it by `sha256`."""

    sha256: str
    width: int
    height: int


class Upload(_Response):
    """An image that is sent, or was sent, to the bucket of the service; later requests can refer to it by `image`."""

    image: str
    url: str
    headers: dict[str, str]


class Model(_Response):
    """A model that live workers serve, and its capabilities."""

    name: str
    description: str = ""
    family: str = ""
    default: bool = False
    workers: tuple[str, ...] = ()
    # `loaded`, `loading`, `unloaded` or `failed`: the best state in any worker.
    state: str = "loaded"
    queued: int = 0
    native_size: int = 0
    size_multiple: int = 1
    min_size: int = 0
    max_size: int = 0
    tasks: tuple[str, ...] = ()
    schedulers: tuple[str, ...] = ()
    default_scheduler: str = ""
    default_steps: int = 0
    default_guidance_scale: float = 0.0
    controls: tuple[str, ...] = ()
    preprocessors: tuple[str, ...] = ()
    masks: tuple[str, ...] = ()
    mask_words: tuple[str, ...] = ()
    image_prompts: bool = False
    max_images: int = 1
    loras: tuple[str, ...] = ()
    embeddings: tuple[str, ...] = ()
    upscales: tuple[int, ...] = ()
    safety_checker: str = "off"


class WorkerModel(_Response):
    """A model on one worker."""

    worker: str
    state: str
    detail: str | None = None
    # Why, by name.
    loras_left_out: dict[str, str] = {}


class ModelDetails(_Response):
    """A model, its state on the workers, and how requests have changed it."""

    name: str
    state: str
    detail: str = ""
    default: bool = False
    queued: int = 0
    workers: tuple[WorkerModel, ...] = ()
    card: Model | None = None
    change: dict[str, Any] | None = None

    @property
    def is_served(self) -> bool:
        """Whether workers run jobs of the model as it is defined now."""
        return self.state in ("loaded", "unloaded")


class JobPage(_Response):
    """A page of the job list, newest first."""

    jobs: tuple[Job, ...]
    next_cursor: str | None = None


class ModelPage(_Response):
    """The response of `GET /models`."""

    models: tuple[Model, ...]
    pending: tuple[ModelDetails, ...] = ()
    notices: tuple[str, ...] = ()


class BatchCounts(_Response):
    """Number of the jobs of a batch, by their status."""

    queued: int = 0
    running: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    deleted: int = 0


class Batch(_Response):
    """Jobs that were submitted by one request."""

    id: str
    status: str
    total: int
    counts: BatchCounts = BatchCounts()
    cancelled: bool = False
    created_at: datetime | None = None
    finished_at: datetime | None = None
    expires_at: datetime | None = None
    eta_s: float | None = None
    webhook: dict[str, Any] | None = None

    @property
    def has_ended(self) -> bool:
        """Whether every job has ended."""
        return self.status == "ended"


class BatchPage(_Response):
    """A page of batches, newest first."""

    batches: tuple[Batch, ...]
    next_cursor: str | None = None


class BatchProgressEvent(_Response):
    """How far a batch is. `eta_s` is None when no job is waiting any more."""

    id: str
    status: str
    total: int
    counts: BatchCounts = BatchCounts()
    eta_s: float | None = None


class QueuedEvent(_Response):
    """The job is queued. Sent again when its position or its estimated time changes."""

    id: str
    status: JobStatus = JobStatus.QUEUED
    queue_position: int | None = None
    eta_s: float | None = None


class ProgressEvent(_Response):
    """The job is running."""

    id: str
    status: JobStatus = JobStatus.RUNNING
    progress: JobProgress


class PreviewEvent(_Response):
    """A small preview of the unfinished image."""

    id: str
    step: int
    image: str

    @property
    def jpeg(self) -> bytes:
        """The preview as a JPEG."""
        return b64decode(self.image.partition(",")[2])


def parse_response(model: type[AnyResponse], content: bytes | str) -> AnyResponse:
    """Return the response that `content` holds as JSON.

    Raises:
        InvalidResponse: It does not, for example because a proxy responded instead of the service.
    """
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        raise InvalidResponse(f"the response is no {model.__name__}: {error.errors()[0]['msg']}") from error
