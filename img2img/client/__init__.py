"""Client of an img2img service: `Client` blocks, `AsyncClient` is for asyncio; both have the same methods.

    from img2img import Client

    with Client("http://127.0.0.1:8000") as client:
        job = client.submit(image="photo.jpg", prompt="a watercolor painting", strength=0.6)
        job = client.wait(job).raise_for_status()
        png = client.download(job)

Every error that the client raises is a `ClientError`, except `OSError` for image files that cannot be read.
"""

from .async_client import AsyncClient
from .errors import (
    ApiError,
    AuthenticationError,
    ClientError,
    FieldError,
    InvalidArgument,
    InvalidRequest,
    InvalidResponse,
    JobFailed,
    JobGone,
    JobNotFound,
    PermissionDenied,
    ResultNotReady,
    ServerError,
    ServiceUnavailable,
    ServiceUnreachable,
    TooManyRequests,
    WaitTimeout,
)
from .events import BatchStreamEvent, Event
from .fields import (
    BatchItemFields,
    ControlFields,
    ControlMapFields,
    FindMaskFields,
    ImagePromptFields,
    InpaintFields,
    LoraFields,
    MaskFields,
    OutpaintFields,
    PaddingFields,
    RefineFields,
    SubmitFields,
    TaskFields,
    WebhookFields,
)
from .images import ImageInput, is_image_reference
from .models import (
    Batch,
    BatchCounts,
    BatchProgressEvent,
    DryRun,
    Job,
    JobBatch,
    JobError,
    JobImage,
    JobProgress,
    Model,
    ModelDetails,
    ModelPage,
    PreviewEvent,
    ProgressEvent,
    QueuedEvent,
    Upload,
    UploadedImage,
    WorkerModel,
)
from .sync_client import Client

__all__ = [
    "ApiError",
    "AsyncClient",
    "AuthenticationError",
    "Batch",
    "BatchCounts",
    "BatchItemFields",
    "BatchProgressEvent",
    "BatchStreamEvent",
    "Client",
    "ClientError",
    "ControlFields",
    "ControlMapFields",
    "DryRun",
    "Event",
    "FieldError",
    "FindMaskFields",
    "ImageInput",
    "ImagePromptFields",
    "InpaintFields",
    "InvalidArgument",
    "InvalidRequest",
    "InvalidResponse",
    "Job",
    "JobBatch",
    "JobError",
    "JobFailed",
    "JobGone",
    "JobImage",
    "JobNotFound",
    "JobProgress",
    "LoraFields",
    "MaskFields",
    "Model",
    "ModelDetails",
    "ModelPage",
    "OutpaintFields",
    "PaddingFields",
    "PermissionDenied",
    "PreviewEvent",
    "ProgressEvent",
    "QueuedEvent",
    "RefineFields",
    "ResultNotReady",
    "ServerError",
    "ServiceUnavailable",
    "ServiceUnreachable",
    "SubmitFields",
    "TaskFields",
    "TooManyRequests",
    "Upload",
    "UploadedImage",
    "WaitTimeout",
    "WebhookFields",
    "WorkerModel",
    "is_image_reference",
]
