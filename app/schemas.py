"""What clients send and see: the request, the job, and the problem."""

import base64
import binascii
import reprlib
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from hashlib import sha256
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema

from app.contract.job import ImageInfo, JobFailure, JobRecord, JobStatus
from app.contract.models import ModelCard
from app.contract.spec import MAX_IMAGES, MAX_SEED, JobSpec, Resize, Scheduler
from app.forecast import Forecast
from app.references import Reference, parse_reference

MAX_TEXT = 10_000  # characters
MAX_DEADLINE_S = 7 * 24 * 3600


def picture_bytes(value: object) -> bytes:
    """A picture: bytes from a form, base64 or a data: URI from JSON."""
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise ValueError("Input should be a picture in base64 or as a data: URI")
    if value[:5].lower() == "data:":
        header, _, value = value.partition(",")
        if not header.lower().endswith(";base64"):
            raise ValueError("A data: URI should have the form data:image/png;base64,...")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"Input should be valid base64: {error}") from None


Picture = Annotated[
    bytes,
    PlainValidator(picture_bytes),
    WithJsonSchema({"type": "string", "description": "The picture (PNG, JPEG or WebP) as base64 or a data: URI."}),
]


def picture_or_reference(value: object) -> bytes | Reference:
    """The picture of a request, or what it is called here."""
    reference = parse_reference(value) if isinstance(value, str) else None
    return reference or picture_bytes(value)


PictureOrReference = Annotated[
    bytes | Reference,
    PlainValidator(picture_or_reference),
    WithJsonSchema(
        {
            "type": "string",
            "description": "The picture (PNG, JPEG or WebP) as base64 or a data: URI; or the sha256 of one that was "
            "sent before; or the path of a result, `/jobs/{id}/images/0`.",
        }
    ),
]
Text = Annotated[str, Field(max_length=MAX_TEXT, pattern=r"^[^\x00]*$")]
Name = Annotated[str, Field(max_length=200)]


class Img2ImgRequest(BaseModel):
    """A picture and what to make of it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    image: PictureOrReference
    prompt: Annotated[Text, Field(description="What to show; may be empty.", examples=["a watercolor painting"])] = ""
    negative_prompt: Annotated[Text, Field(description="What not to show.")] = ""
    strength: Annotated[
        float, Field(ge=0, le=1, description="0 keeps the picture as it is, 1 starts from (almost) pure noise.")
    ] = 0.8
    guidance_scale: Annotated[
        float, Field(ge=1, description="How strongly to follow the prompt; 1 is off and halves the work.")
    ] = 7.5
    num_inference_steps: Annotated[
        int, Field(ge=1, le=150, description="Steps of the whole schedule; about strength times as many are run.")
    ] = 30
    scheduler: Annotated[Scheduler | None, Field(description="The sampler; absent: the model's default.")] = None
    seed: Annotated[
        int | None, Field(ge=0, le=MAX_SEED, description="Image i uses seed + i; absent: drawn, and reported.")
    ] = None
    num_images: Annotated[int, Field(ge=1, le=MAX_IMAGES, description="How many variants to make.")] = 1
    width: Annotated[
        int | None, Field(ge=1, description="Absent: follows from the height, or the model's size nearest in shape.")
    ] = None
    height: Annotated[
        int | None, Field(ge=1, description="Absent: follows from the width, or the model's size nearest in shape.")
    ] = None
    resize: Annotated[
        Resize, Field(description="How the picture is brought to that size: `pad` keeps all of it, with black bars.")
    ] = Resize.CROP
    model: Annotated[Name | None, Field(description="One of `GET /models`; absent: the service's default.")] = None
    deadline_s: Annotated[
        float | None,
        Field(ge=1, le=MAX_DEADLINE_S, description="Seconds from now; a job that has not ended by then is cancelled."),
    ] = None

    def fingerprint(self) -> str:
        """Equal for equal requests, however they are written and whatever the defaults of later versions add."""
        fields = self.model_dump_json(exclude={"image"}, exclude_defaults=True)
        picture = self.image if isinstance(self.image, bytes) else repr(self.image).encode()
        return sha256(sha256(picture).digest() + fields.encode()).hexdigest()


class ImageRequest(BaseModel):
    """A picture to keep."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image: Picture


class ImageKept(BaseModel):
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


class ImageView(ImageInfo):
    """One result picture."""

    url: str


class ProgressView(BaseModel):
    """Denoising steps, summed over the job's images."""

    step: int
    steps: Annotated[int, Field(description="Steps that are really run; 0 at strength 0.")]
    fraction: Annotated[float, Field(ge=0, le=1)]


class JobView(BaseModel):
    """A job as clients see it."""

    id: str
    status: JobStatus
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    deadline_at: Annotated[datetime | None, Field(description="When it is cancelled if it has not ended.")]
    expires_at: Annotated[
        datetime | None, Field(description="When the job and its pictures are deleted; known once it has ended.")
    ]
    queue_position: Annotated[int | None, Field(description="Jobs ahead of it; null once it has left the queue.")]
    eta_s: EtaS
    progress: ProgressView
    request: Annotated[JobSpec, Field(description="Every parameter as resolved; the picture as its sha256.")]
    images: list[ImageView]
    error: JobFailure | None
    timings: Annotated[dict[str, float], Field(description="Seconds: `queued`, `run`, then the stages of the run.")]
    worker: str | None

    @classmethod
    def of(cls, record: JobRecord, forecast: Forecast | None = None) -> Self:
        return cls(
            id=record.id,
            status=record.status,
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
                ImageView(url=f"/jobs/{record.id}/images/{image.index}", **image.model_dump())
                for image in record.images
            ],
            error=record.error,
            timings=_timings(record),
            worker=record.worker,
        )


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _moment_or_none(seconds: float | None) -> datetime | None:
    return _moment(seconds) if seconds else None


def _progress(record: JobRecord) -> ProgressView:
    if record.status is JobStatus.SUCCEEDED:
        fraction = 1.0
    else:
        fraction = min(record.step / record.steps, 1.0) if record.steps else 0.0
    return ProgressView(step=record.step, steps=record.steps, fraction=round(fraction, 4))


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
    progress: ProgressView

    @classmethod
    def of(cls, record: JobRecord) -> Self:
        return cls(id=record.id, progress=_progress(record))


class GoneEvent(BaseModel):
    """The job was deleted while it was followed."""

    id: str
    code: str
    message: str


class JobList(BaseModel):
    """One page of jobs, newest first."""

    jobs: list[JobView]
    next_cursor: Annotated[str | None, Field(description="`cursor` of the next page; null on the last.")]


class DryRun(BaseModel):
    """What a submit would have made."""

    request: Annotated[JobSpec, Field(description="Every parameter as it would be resolved.")]
    cost: Annotated[float, Field(description="Work in megapixel-steps; with guidance a step counts twice.")]
    queue_position: Annotated[int, Field(description="Jobs that would be ahead of it.")]
    eta_s: EtaS


class ModelView(ModelCard):
    """A model that live workers serve."""

    workers: list[str]
    queued: Annotated[int, Field(description="Jobs that wait for it.")]
    default: Annotated[bool, Field(description="Taken where a request names no model.")]


class ModelList(BaseModel):
    """The models that live workers serve."""

    models: list[ModelView]


class Alive(BaseModel):
    """The process answers."""

    status: str = "alive"


class Check(BaseModel):
    """Whether one thing that the service needs is there."""

    ok: bool
    detail: str


class Readiness(BaseModel):
    """Whether a job submitted now would be worked on."""

    ready: bool
    redis: Check
    store: Check
    workers: Check


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
        return cls(field=field, message=error["msg"].removeprefix("Value error, "), got=shortened(error["input"]))


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


def shortened(value: object) -> str | None:
    """A value for an error message: short whatever it is, and always text that JSON can carry."""
    if value is None:
        return None
    text = value[:80] + "…" * (len(value) > 80) if isinstance(value, str) else reprlib.repr(value)
    return text.encode("utf-8", "replace").decode()
