"""What clients see: the job, its events, the models, the problem."""

import reprlib
from base64 import b64encode
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field

from img2img.domain.job import ImageInfo, JobFailure, JobRecord, JobStatus, Priority
from img2img.domain.model_card import ModelCard
from img2img.domain.spec import JobSpec
from img2img.domain.webhook import Delivery, DeliveryStatus, Event
from img2img.redis.previews import Preview

from ..progress.eta import QueueEstimate


class UploadedImage(BaseModel):
    """A picture that jobs can refer to."""

    sha256: Annotated[str, Field(description="Of the bytes as they were sent; an `image` of `POST /img2img`.")]
    width: Annotated[int, Field(description="Of the upright picture.")]
    height: int


class ImageFormat(StrEnum):
    """How a result is delivered."""

    PNG = "png"
    WEBP = "webp"
    JPEG = "jpeg"


EtaS = Annotated[
    float | None,
    Field(description="Seconds until it is done, by the work ahead and the workers' pace; null where that is unknown."),
]


class JobImage(ImageInfo):
    """One result picture."""

    url: str


class JobProgress(BaseModel):
    """Denoising steps, summed over the job's images."""

    step: int
    steps: Annotated[int, Field(description="Steps that are really run; 0 at strength 0.")]
    fraction: Annotated[float, Field(ge=0, le=1)]


class WebhookDelivery(BaseModel):
    """How the delivery of a webhook stands."""

    status: Annotated[DeliveryStatus, Field(description="`failed`: it is not tried again.")]
    attempts: int
    last_attempt_at: datetime | None
    next_attempt_at: Annotated[datetime | None, Field(description="Known once an attempt has failed.")]
    last_status: Annotated[int | None, Field(description="What the receiver answered last.")]
    last_error: Annotated[str | None, Field(description="Why the last attempt was none that counts.")]

    @classmethod
    def of(cls, delivery: Delivery) -> Self:
        moments = ("last_attempt_at", "next_attempt_at")
        return cls(
            **delivery.model_dump(exclude=set(moments)),
            **{name: _moment_or_none(getattr(delivery, name)) for name in moments},
        )


class JobWebhook(BaseModel):
    """Where the end of a job is told, and how that stands."""

    url: str
    events: list[Event]
    delivery: Annotated[WebhookDelivery | None, Field(description="Null as long as there is nothing to tell.")]

    @classmethod
    def of(cls, record: JobRecord) -> Self | None:
        if record.webhook is None:
            return None
        delivery = WebhookDelivery.of(record.delivery) if record.delivery else None
        return cls(url=str(record.webhook.url), events=record.webhook.events, delivery=delivery)


class Job(BaseModel):
    """A job as clients see it."""

    id: str
    status: JobStatus
    priority: Priority
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    deadline_at: Annotated[datetime | None, Field(description="When it is cancelled if it has not ended.")]
    expires_at: Annotated[
        datetime | None, Field(description="When the job and its pictures are deleted; known once it has ended.")
    ]
    queue_position: Annotated[
        int | None,
        Field(description="Jobs ahead of it, those of other clients' turns included; null once it has left the queue."),
    ]
    eta_s: EtaS
    progress: JobProgress
    request: Annotated[JobSpec, Field(description="Every parameter as resolved; the pictures as their sha256.")]
    images: list[JobImage]
    error: JobFailure | None
    timings: Annotated[dict[str, float], Field(description="Seconds: `queued`, `run`, then the stages of the run.")]
    worker: str | None
    webhook: JobWebhook | None = None

    @classmethod
    def of(cls, record: JobRecord, forecast: QueueEstimate | None = None) -> Self:
        return cls(
            id=record.id,
            status=record.status,
            priority=record.priority,
            queue_position=forecast.queue_position if forecast else None,
            eta_s=forecast.eta_s if forecast else None,
            created_at=_moment(record.created_at),
            started_at=_moment_or_none(record.started_at),
            finished_at=_moment_or_none(record.finished_at),
            deadline_at=_moment_or_none(record.deadline_at),
            expires_at=_moment_or_none(record.expires_at),
            progress=_progress(record),
            request=record.spec,
            images=[
                JobImage(url=f"/jobs/{record.id}/images/{image.index}", **image.model_dump()) for image in record.images
            ],
            error=record.error,
            timings=_timings(record),
            worker=record.worker,
            webhook=JobWebhook.of(record),
        )


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _moment_or_none(seconds: float | None) -> datetime | None:
    return _moment(seconds) if seconds else None


def _progress(record: JobRecord) -> JobProgress:
    if record.status is JobStatus.SUCCEEDED:
        fraction = 1.0
    else:
        fraction = min(record.step / record.steps, 1.0) if record.steps else 0.0
    return JobProgress(step=record.step, steps=record.steps, fraction=round(fraction, 4))


def _timings(record: JobRecord) -> dict[str, float]:
    timings = {}
    left_queue_at = record.started_at or record.finished_at
    if left_queue_at:
        timings["queued"] = left_queue_at - record.created_at
    if record.started_at and record.finished_at:
        timings["run"] = record.finished_at - record.started_at
    return {stage: round(max(seconds, 0.0), 6) for stage, seconds in timings.items()} | record.timings


class QueuedEvent(BaseModel):
    """The job waits. Sent first, and again whenever its place has changed."""

    id: str
    status: Literal[JobStatus.QUEUED] = JobStatus.QUEUED
    queue_position: Annotated[int, Field(description="Jobs ahead of it in the queue of its model.")]
    eta_s: EtaS


class ProgressEvent(BaseModel):
    """The job runs."""

    id: str
    status: Literal[JobStatus.RUNNING] = JobStatus.RUNNING
    progress: JobProgress

    @classmethod
    def of(cls, record: JobRecord) -> Self:
        return cls(id=record.id, progress=_progress(record))


class PreviewEvent(BaseModel):
    """The picture as it forms. Comes only where it was asked for, and while the worker has time for it."""

    id: str
    step: Annotated[int, Field(description="Denoising steps that were done by then.")]
    image: Annotated[str, Field(description="A small JPEG, as a data: URI.")]

    @classmethod
    def of(cls, job_id: str, preview: Preview) -> Self:
        return cls(id=job_id, step=preview.step, image=f"data:image/jpeg;base64,{b64encode(preview.jpeg).decode()}")


class GoneEvent(BaseModel):
    """The job was deleted while it was followed."""

    id: str
    code: str
    message: str


class JobEvent(BaseModel):
    """What a webhook gets: how a job ended. The same at every attempt."""

    type: Event
    timestamp: Annotated[datetime, Field(description="When the job ended.")]
    data: Annotated[
        Job,
        Field(description="The job, as `GET /jobs/{id}` shows it, but null for the sha256 of every picture sent."),
    ]

    @classmethod
    def of(cls, record: JobRecord) -> Self:
        job = Job.of(record.model_copy(update={"spec": record.spec.without_inputs()}))
        return cls.model_validate({"type": f"job.{record.status}", "timestamp": record.finished_at, "data": job})


class JobList(BaseModel):
    """One page of jobs, newest first."""

    jobs: list[Job]
    next_cursor: Annotated[str | None, Field(description="`cursor` of the next page; null on the last.")]


class DryRunResult(BaseModel):
    """What a submit would have made."""

    request: Annotated[JobSpec, Field(description="Every parameter as it would be resolved.")]
    priority: Priority
    cost: Annotated[float, Field(description="Work in megapixel-steps; with guidance a step counts twice.")]
    queue_position: Annotated[int, Field(description="Jobs that would be ahead of it.")]
    eta_s: EtaS


class ServedModel(ModelCard):
    """A model that live workers serve."""

    workers: list[str]
    queued: Annotated[int, Field(description="Jobs that wait for it.")]
    default: Annotated[bool, Field(description="Taken where a request names no model.")]


class ModelList(BaseModel):
    """The models that live workers serve."""

    models: list[ServedModel]


class Liveness(BaseModel):
    """The process answers."""

    status: str = "alive"


class DependencyStatus(BaseModel):
    """Whether one thing that the service needs is there."""

    ok: bool
    detail: str


class Readiness(BaseModel):
    """Whether a job submitted now would be worked on."""

    ready: bool
    redis: DependencyStatus
    store: DependencyStatus
    workers: DependencyStatus
    webhooks: Annotated[
        DependencyStatus | None,
        Field(
            description="Whether a webhook dispatcher is running; null if webhooks are not configured. Without a "
            "dispatcher, jobs still run and their webhooks stay pending, so this does not affect `ready`."
        ),
    ] = None


class FieldProblem(BaseModel):
    """One field that was refused: what it takes and what it got."""

    field: str
    message: str
    got: str | None = None

    @classmethod
    def of(cls, error: Mapping[str, Any]) -> Self:
        """From an entry of a pydantic error list."""
        place = error["loc"][:1] in (("body",), ("path",), ("query",), ("header",))
        loc = error["loc"][1:] if place else error["loc"]
        field = ".".join(map(str, loc))[:80] or "body"
        if error["type"] == "missing":
            return cls(field=field, message="Field required")
        return cls(field=field, message=error["msg"].removeprefix("Value error, "), got=truncate(error["input"]))


class Problem(BaseModel):
    """What went wrong (RFC 9457). `code` is stable; `detail` is for people."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    code: str
    errors: Annotated[list[FieldProblem] | None, Field(description="The fields that were refused.")] = None
    job_status: Annotated[JobStatus | None, Field(description="The job's status, where it is the reason.")] = None
    error: Annotated[JobFailure | None, Field(description="Why the job failed.")] = None


def truncate(value: object) -> str | None:
    """A value for an error message: short whatever it is, and always text that JSON can carry."""
    if value is None:
        return None
    text = value[:80] + "…" * (len(value) > 80) if isinstance(value, str) else reprlib.repr(value)
    return text.encode("utf-8", "replace").decode()
