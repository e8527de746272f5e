"""Batches of jobs: request bodies, responses and events of `/batches`."""

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from img2img.domain.job_batch import MAX_JOBS, BatchCounts, BatchRecord, BatchStatus
from img2img.domain.webhook import BatchWebhook

from .request_fields import webhook_fields
from .requests import Img2ImgRequest
from .responses import Moment, WebhookDelivery

EXAMPLE_BATCH_ID = "8d1b0f6c2a7e4c93b5f0d4a6e2c81937"

# Names become those of files in an archive, with a number and an ending. File systems allow 255 bytes.
MAX_NAME_BYTES = 240
FILE_NAME = r"^[^\x00-\x1f\x7f/\\.][^\x00-\x1f\x7f/\\]*$"


def _check_file_name(name: str) -> str:
    if not re.fullmatch(FILE_NAME, name):
        raise ValueError("Input should be a file name: not empty, without / and \\, and not with a dot at its begin")
    if len(name.encode()) > MAX_NAME_BYTES:
        raise ValueError(f"Input should have at most {MAX_NAME_BYTES} bytes in UTF-8, as the name of a file")
    return name


BatchId = Annotated[str, Field(examples=[EXAMPLE_BATCH_ID])]
JobName = Annotated[
    str,
    Field(
        max_length=200,
        json_schema_extra={"pattern": FILE_NAME},
        description="Names the images of the job in the archive of the results. Default: the position in the batch.",
        examples=["IMG_0001"],
    ),
    AfterValidator(_check_file_name),
]
Hook = Annotated[
    BatchWebhook | None,
    BeforeValidator(webhook_fields, json_schema_input_type=BatchWebhook | str | None),
    Field(description="URL that is called once, when the last job has ended."),
]


class BatchItem(Img2ImgRequest):
    """A line of a batch: a request, and a name for its images."""

    name: JobName | None = None


class BatchRequest(BaseModel):
    """One request in several variants: a job for each combination of the values in `vary`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    request: Annotated[dict[str, Any], Field(description="A request of `POST /img2img`.")]
    vary: Annotated[
        dict[str, Annotated[list[Any], Field(min_length=1, max_length=MAX_JOBS)]],
        Field(
            description="Values by the name of a field of the request. The last field varies fastest.",
            examples=[{"prompt": ["a watercolor painting", "a pencil sketch"], "strength": [0.3, 0.5, 0.7]}],
        ),
    ] = {}
    webhook: Hook = None


class BatchWebhookState(BaseModel):
    """The webhook of a batch and its delivery status."""

    url: str
    delivery: Annotated[WebhookDelivery | None, Field(description="Null until the batch has ended.")]


class Batch(BaseModel):
    """Jobs that were submitted by one request."""

    id: BatchId
    status: Annotated[
        BatchStatus,
        Field(description="`accepting` while the jobs are being queued, `ended` when every job has ended."),
    ]
    created_at: Moment
    finished_at: Moment | None
    expires_at: Annotated[
        Moment | None, Field(description="When the batch and its jobs are deleted; null until it has ended.")
    ]
    total: Annotated[int, Field(description="Number of jobs.", examples=[200])]
    counts: Annotated[BatchCounts, Field(description="Number of jobs by their status.")]
    cancelled: Annotated[bool, Field(description="Whether the whole batch was cancelled.")]
    eta_s: Annotated[
        float | None,
        Field(
            description="Estimated seconds until the last job ends; null if none is waiting, or the throughput of the "
            "workers is not known yet.",
            examples=[1177.0],
        ),
    ]
    webhook: BatchWebhookState | None = None

    @classmethod
    def from_record(cls, record: BatchRecord, eta_s: float | None = None) -> Self:
        webhook = None
        if record.webhook:
            delivery = WebhookDelivery.from_delivery(record.delivery) if record.delivery else None
            webhook = BatchWebhookState(url=str(record.webhook.url), delivery=delivery)
        return cls(
            id=record.id,
            status=record.status,
            created_at=_datetime(record.created_at),
            finished_at=_datetime(record.finished_at) if record.finished_at else None,
            expires_at=_datetime(record.expires_at) if record.expires_at else None,
            total=record.total,
            counts=record.counts,
            cancelled=record.cancelled,
            eta_s=eta_s,
            webhook=webhook,
        )


class BatchList(BaseModel):
    """A page of batches, newest first."""

    batches: list[Batch]
    next_cursor: Annotated[str | None, Field(description="`cursor` of the next page; null on the last one.")]


class BatchProgressEvent(BaseModel):
    """How far a batch is. Sent first, and when its counts have changed."""

    id: BatchId
    status: BatchStatus
    total: int
    counts: BatchCounts
    eta_s: float | None


class BatchEvent(BaseModel):
    """Body of a webhook: a batch has ended. Identical in every delivery attempt."""

    type: Literal["batch.ended"] = "batch.ended"
    timestamp: Annotated[datetime, Field(description="When the last job ended.")]
    data: Annotated[Batch, Field(description="The batch, as returned by `GET /batches/{id}`.")]

    @classmethod
    def from_record(cls, record: BatchRecord) -> Self:
        data = Batch.from_record(record)
        assert data.finished_at
        return cls(timestamp=data.finished_at, data=data)


def _datetime(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
