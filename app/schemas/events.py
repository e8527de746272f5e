"""Events: the data of a job's event stream, and the body of a webhook."""

from base64 import b64encode
from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field

from img2img.domain.job import JobRecord, JobStatus
from img2img.domain.webhook import Event
from img2img.redis.previews import Preview

from .responses import EtaS, Job, JobId, JobProgress, QueueEstimate


class QueuedEvent(BaseModel):
    """The job is waiting. Sent first, and again when its queue position or ETA changes."""

    id: JobId
    status: Literal[JobStatus.QUEUED] = JobStatus.QUEUED
    queue_position: Annotated[int, Field(description="Jobs ahead of it in the queue of its model.", examples=[2])]
    eta_s: EtaS

    @classmethod
    def from_record(cls, record: JobRecord, estimate: QueueEstimate | None) -> Self:
        """Build the event from a queued job; `estimate` is None if a worker has just taken the job."""
        if estimate is None:
            return cls(id=record.id, queue_position=0, eta_s=None)
        return cls(id=record.id, queue_position=estimate.queue_position, eta_s=estimate.eta_s)


class ProgressEvent(BaseModel):
    """The job is running."""

    id: JobId
    status: Literal[JobStatus.RUNNING] = JobStatus.RUNNING
    progress: JobProgress

    @classmethod
    def from_record(cls, record: JobRecord) -> Self:
        return cls(id=record.id, progress=JobProgress.from_record(record))


class PreviewEvent(BaseModel):
    """A preview of the image. Sent only if requested, and only while the worker has capacity for it."""

    id: JobId
    step: Annotated[int, Field(description="Denoising steps completed at the time of the preview.", examples=[12])]
    image: Annotated[
        str, Field(description="A small JPEG, as a data: URI.", examples=["data:image/jpeg;base64,/9j/4AAQ"])
    ]

    @classmethod
    def from_preview(cls, job_id: str, preview: Preview) -> Self:
        return cls(id=job_id, step=preview.step, image=f"data:image/jpeg;base64,{b64encode(preview.jpeg).decode()}")


class GoneEvent(BaseModel):
    """The job was deleted or has expired while the stream was open."""

    id: JobId
    code: Annotated[str, Field(examples=["deleted"])]
    message: Annotated[str, Field(examples=["The job was deleted."])]


JobStreamEvent = QueuedEvent | ProgressEvent | PreviewEvent | Job | GoneEvent


class JobEvent(BaseModel):
    """Body of a webhook: how a job ended. Identical in every delivery attempt."""

    type: Event
    timestamp: Annotated[datetime, Field(description="When the job ended.")]
    data: Annotated[
        Job, Field(description="The job, as returned by `GET /jobs/{id}`, but without the SHA-256 of its input images.")
    ]

    @classmethod
    def from_record(cls, record: JobRecord) -> Self:
        job = Job.from_record(record.model_copy(update={"spec": record.spec.without_inputs()}))
        return cls.model_validate({"type": f"job.{record.status}", "timestamp": record.finished_at, "data": job})
