"""Response bodies: jobs, models, uploaded images and health."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Self

from pydantic import BaseModel, Field

from img2img.domain.job import ImageInfo, JobFailure, JobRecord, JobStatus, Priority
from img2img.domain.model_card import ModelCard, WorkerThroughput
from img2img.domain.model_status import Batching, ModelState, ModelStatus
from img2img.domain.spec import JobSpec
from img2img.domain.webhook import Delivery, DeliveryStatus, Event
from img2img.printable import without_paths
from img2img.redis.fair_queue import QueuePosition

from .model_details import ModelDetails

EXAMPLE_JOB_ID = "3f0c9a52d7e84b6ea1c5f2b8d9036e71"
EXAMPLE_SHA256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"

JobId = Annotated[str, Field(examples=[EXAMPLE_JOB_ID])]
Moment = Annotated[datetime, Field(examples=["2026-01-31T12:00:00Z"])]
ResolvedSpec = Annotated[
    JobSpec,
    Field(description="The parameters, with every default resolved. Input images are given by their SHA-256."),
]
EtaS = Annotated[
    float | None,
    Field(
        description="Estimated seconds until the job ends, from the work ahead of it and the throughput of the "
        "workers; null if the throughput is not known yet.",
        examples=[14.5],
    ),
]


@dataclass(frozen=True)
class QueueEstimate:
    """Position of a queued job, and seconds until it ends (None: no live worker has reported its throughput)."""

    queue_position: int
    eta_s: float | None

    @classmethod
    def from_position(
        cls,
        position: QueuePosition,
        cost: float,
        workers: Iterable[WorkerThroughput],
        priority: Priority = Priority.NORMAL,
        *,
        has_deadline: bool = False,
    ) -> Self:
        """Return the estimate for a job of this cost, if these workers serve its model."""
        per_second, work = 0.0, position.cost_ahead + cost
        for worker in workers:
            per_second += worker.per_second or 0.0
            work += worker.left_before(priority, has_deadline=has_deadline)
        return cls(position.position, round(work / per_second, 1) if per_second else None)


class UploadedImage(BaseModel):
    """An uploaded image that jobs can refer to."""

    sha256: Annotated[
        str,
        Field(description="SHA-256 of the uploaded bytes; an `image` of `POST /img2img`.", examples=[EXAMPLE_SHA256]),
    ]
    width: Annotated[int, Field(description="Width after applying the EXIF orientation.", examples=[1600])]
    height: Annotated[int, Field(examples=[1200])]


class Upload(BaseModel):
    """An upload to make: send the file with `PUT` to `url`, with these headers and no others of the service."""

    image: Annotated[
        str,
        Field(
            description="The `image` of requests that use it.",
            examples=[f"/uploads/67890abc0123456789abcdef01234567-{EXAMPLE_SHA256}-524288-1600x1200"],
        ),
    ]
    url: Annotated[str, Field(description="Signed URL of the bucket. It takes this one file, once.")]
    headers: Annotated[dict[str, str], Field(description="Headers that the request has to have.")]
    expires_at: Annotated[Moment, Field(description="Until when the request can be made.")]


class ImageFormat(StrEnum):
    """File format of a downloaded image."""

    PNG = "png"
    WEBP = "webp"
    JPEG = "jpeg"


class JobImage(ImageInfo):
    """A result image."""

    url: Annotated[str, Field(examples=[f"/jobs/{EXAMPLE_JOB_ID}/images/0"])]


class JobProgress(BaseModel):
    """Denoising steps, summed over the job's images."""

    step: Annotated[int, Field(examples=[12])]
    steps: Annotated[int, Field(description="Steps to run in total; 0 at strength 0.", examples=[24])]
    fraction: Annotated[float, Field(ge=0, le=1, examples=[0.5])]

    @classmethod
    def from_record(cls, record: JobRecord) -> Self:
        if record.status is JobStatus.SUCCEEDED:
            fraction = 1.0
        else:
            fraction = min(record.step / record.steps, 1.0) if record.steps else 0.0
        return cls(step=record.step, steps=record.steps, fraction=round(fraction, 4))


class WebhookDelivery(BaseModel):
    """Delivery status of a webhook."""

    status: Annotated[DeliveryStatus, Field(description="`failed`: there are no more attempts.")]
    attempts: int
    last_attempt_at: Moment | None
    next_attempt_at: Annotated[Moment | None, Field(description="Set after a failed attempt.")]
    last_status: Annotated[int | None, Field(description="HTTP status of the receiver's last response.")]
    last_error: Annotated[str | None, Field(description="Why the last attempt failed.")]

    @classmethod
    def from_delivery(cls, delivery: Delivery) -> Self:
        moments = ("last_attempt_at", "next_attempt_at")
        return cls(
            **delivery.model_dump(exclude=set(moments)),
            **{name: _datetime_or_none(getattr(delivery, name)) for name in moments},
        )


class JobBatch(BaseModel):
    """The batch to which a job belongs."""

    id: Annotated[str, Field(description="Id of the batch, see `GET /batches/{id}`.")]
    index: Annotated[int, Field(description="Position of the job in the batch, from 0.")]
    name: Annotated[str | None, Field(description="Name that the request gave the job.")] = None


class JobWebhook(BaseModel):
    """The webhook of a job and its delivery status."""

    url: str
    events: list[Event]
    delivery: Annotated[WebhookDelivery | None, Field(description="Null until there is an event to deliver.")]

    @classmethod
    def from_record(cls, record: JobRecord) -> Self | None:
        if record.webhook is None:
            return None
        delivery = WebhookDelivery.from_delivery(record.delivery) if record.delivery else None
        return cls(url=str(record.webhook.url), events=record.webhook.events, delivery=delivery)


class Job(BaseModel):
    """A job."""

    id: JobId
    status: JobStatus
    priority: Priority
    created_at: Moment
    started_at: Moment | None
    finished_at: Moment | None
    deadline_at: Annotated[Moment | None, Field(description="When it should have ended.")]
    deadline_missed: Annotated[
        bool | None, Field(description="Whether it did not end by its deadline; null without a deadline.")
    ] = None
    expires_at: Annotated[
        Moment | None,
        Field(
            description="When the job and its images are deleted; null until it has ended, and for a job of a batch, "
            "which is deleted with the batch."
        ),
    ]
    queue_position: Annotated[
        int | None,
        Field(
            description="Jobs ahead of it, including those of other clients whose turn comes first; null once it has "
            "left the queue.",
        ),
    ]
    eta_s: EtaS
    progress: JobProgress
    request: ResolvedSpec
    images: Annotated[list[JobImage], Field(description="The images, except for those in `withheld`.")]
    withheld: Annotated[
        list[int],
        Field(description="Indices of images that were flagged and are not delivered. If all are, the job fails."),
    ] = []
    error: JobFailure | None
    timings: Annotated[
        dict[str, float],
        Field(
            description="Seconds: `queued`, `run`, then the stages of the run. `skipped_calls` is the number of "
            "denoiser calls that `speed` saved.",
            examples=[{"queued": 2.0, "run": 3.0}],
        ),
    ]
    worker: Annotated[str | None, Field(examples=["gpu-1-4711-5be0"])]
    webhook: JobWebhook | None = None
    batch: Annotated[JobBatch | None, Field(description="Null for a job that was submitted alone.")] = None
    reused_from: Annotated[
        str | None, Field(description="Id of the earlier job whose images were copied, because of `reuse`.")
    ] = None

    @classmethod
    def from_record(cls, record: JobRecord, estimate: QueueEstimate | None = None) -> Self:
        """Build the response from a job record; `estimate` is for queued jobs."""
        return cls(
            id=record.id,
            status=record.status,
            priority=record.priority,
            queue_position=estimate.queue_position if estimate else None,
            eta_s=estimate.eta_s if estimate else None,
            created_at=_datetime(record.created_at),
            started_at=_datetime_or_none(record.started_at),
            finished_at=_datetime_or_none(record.finished_at),
            deadline_at=_datetime_or_none(record.deadline_at),
            deadline_missed=None if record.deadline_at is None else record.has_missed_deadline,
            expires_at=_datetime_or_none(record.expires_at),
            progress=JobProgress.from_record(record),
            request=record.spec,
            images=[
                JobImage(url=f"/jobs/{record.id}/images/{image.index}", **image.model_dump()) for image in record.images
            ],
            withheld=list(record.withheld),
            error=record.error,
            timings=_timings(record),
            worker=record.worker,
            webhook=JobWebhook.from_record(record),
            batch=JobBatch(**record.batch.model_dump()) if record.batch else None,
            reused_from=record.reused_from,
        )


def _datetime(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _datetime_or_none(seconds: float | None) -> datetime | None:
    return _datetime(seconds) if seconds else None


def _timings(record: JobRecord) -> dict[str, float]:
    timings = {}
    left_queue_at = record.started_at or record.finished_at
    if left_queue_at:
        timings["queued"] = left_queue_at - record.created_at
    if record.started_at and record.finished_at:
        timings["run"] = record.finished_at - record.started_at
    return {stage: round(max(seconds, 0.0), 6) for stage, seconds in timings.items()} | record.timings


class JobList(BaseModel):
    """One page of jobs, newest first."""

    jobs: list[Job]
    next_cursor: Annotated[str | None, Field(description="`cursor` of the next page; null on the last page.")]


class DryRunResult(BaseModel):
    """The job that a submit would create."""

    request: ResolvedSpec
    priority: Priority
    cost: Annotated[
        float, Field(description="Work in megapixel-steps; a step with guidance counts twice.", examples=[13.1])
    ]
    queue_position: Annotated[int, Field(description="Jobs that would be ahead of it.", examples=[2])]
    eta_s: EtaS


class WorkerModel(BaseModel):
    """A model in one worker."""

    worker: Annotated[str, Field(examples=["gpu-1-4711-5be0"])]
    state: Annotated[
        ModelState,
        Field(description="`loaded`: jobs start at once. `unloaded`: its weights are loaded when jobs need them."),
    ]
    percent: Annotated[
        int | None,
        Field(description="While it is `loading`: part of the weights that was read or downloaded.", examples=[43]),
    ] = None
    disk_bytes: Annotated[int | None, Field(description="Size of its weight files.")] = None
    memory_bytes: Annotated[int | None, Field(description="Memory that its weights take, or will take.")] = None
    batching: Annotated[
        dict[str, Batching],
        Field(
            description="How calls of its modules by several jobs are merged, while it is loaded: `exact` to the bit, "
            "`rounding` with other last bits, `alone` not, `unknown` before the first such call.",
            examples=[{"unet": "rounding", "vae": "alone"}],
        ),
    ] = {}
    error: Annotated[
        str | None,
        Field(description="Why it could not be loaded. Paths are left out unless the caller may see all jobs."),
    ] = None

    @classmethod
    def from_status(cls, worker: str, status: ModelStatus, *, with_paths: bool) -> Self:
        """Return the state of a model in a worker."""
        error = status.error if with_paths or status.error is None else without_paths(status.error)
        return cls(worker=worker, **status.model_dump(exclude={"error"}), error=error)


class ModelAvailability(BaseModel):
    """Where a model is loaded."""

    state: Annotated[ModelState, Field(description="The best state in any worker.")]
    statuses: Annotated[list[WorkerModel], Field(description="The state in each live worker.")]

    @staticmethod
    def best_of(states: Iterable[ModelState]) -> ModelState:
        """Return the state that serves jobs soonest."""
        return min(states, key=_BY_READINESS.index, default=ModelState.UNLOADED)


_BY_READINESS = (ModelState.LOADED, ModelState.LOADING, ModelState.UNLOADED, ModelState.FAILED)


def by_model(states: Mapping[str, Mapping[str, ModelStatus]], *, with_paths: bool) -> dict[str, list[WorkerModel]]:
    """Return the states of models in workers, by model.

    Args:
        states: By worker and model.
    """
    found: dict[str, list[WorkerModel]] = {}
    for worker, statuses in states.items():
        for name, status in statuses.items():
            found.setdefault(name, []).append(WorkerModel.from_status(worker, status, with_paths=with_paths))
    return found


class ServedModel(ModelAvailability, ModelCard):
    """A model that a live worker serves, or without any live worker one that was served last."""

    workers: Annotated[list[str], Field(description="Live workers that serve it.", examples=[["gpu-1-4711-5be0"]])]
    queued: Annotated[int, Field(description="Jobs waiting for this model.", examples=[2])]
    default: Annotated[bool, Field(description="Whether it is used by requests that name no model.")]


class ModelList(BaseModel):
    """The models that live workers serve (without workers: served last), and those that they do not serve yet."""

    models: list[ServedModel]
    pending: Annotated[
        list[ModelDetails],
        Field(
            description="Models that no live worker serves as they are defined now: they are being loaded or failed."
        ),
    ] = []
    notices: Annotated[
        list[str],
        Field(
            description="Model files of workers that are invalid since their last change, and therefore ignored; LoRAs "
            "that could not be loaded."
        ),
    ] = []


class Liveness(BaseModel):
    """The API server process responds."""

    status: str = "alive"


class DependencyStatus(BaseModel):
    """Whether a dependency of the service is available."""

    ok: bool
    detail: Annotated[str, Field(examples=["responds"])]


class NamedModel(ModelAvailability):
    """A model by its name, and where it is loaded."""

    name: str


class Readiness(BaseModel):
    """Whether a job submitted now would be run."""

    ready: bool
    redis: DependencyStatus
    store: DependencyStatus
    workers: Annotated[
        DependencyStatus,
        Field(description="Whether a worker is live, and the default model is loaded or can be loaded."),
    ]
    models: Annotated[
        list[NamedModel], Field(description="The models of live workers, also those that could not be loaded.")
    ] = []
    webhooks: Annotated[
        DependencyStatus | None,
        Field(
            description="Whether a webhook dispatcher is running; null if webhooks are not configured. Without a "
            "dispatcher, jobs still run and their webhooks stay pending, so this does not affect `ready`."
        ),
    ] = None
    cells: Annotated[
        dict[str, bool] | None, Field(description="Whether each cell is ready, by name; null without cells.")
    ] = None
