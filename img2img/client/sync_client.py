"""The client that blocks. Generated from `async_client.py` by `make client`."""

import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx
from httpx_sse import EventSource

from .batches import BatchOperations
from .core import Answer, Call, Flow, JobPages, Operations, http_options, job_id_of
from .events import Event, EventStream, job_events
from .fields import (
    ControlMapFields,
    FindMaskFields,
    InpaintFields,
    MaskFields,
    OutpaintFields,
    SubmitFields,
    TaskFields,
)
from .images import ImageInput
from .models import DryRun, Job, JobImage, Model, ModelDetails, ModelPage, Upload, UploadedImage
from .sync_batches import Batches

T = TypeVar("T")


class Client:
    """Client of one service. Threads may share it.

    Args:
        url: URL of the service. Default: `IMG2IMG_URL` from the environment, else `http://127.0.0.1:8000`.
        api_key: Sent with every request. Default: `IMG2IMG_API_KEY` from the environment, if set.
        timeout_s: Seconds to wait for the connection and for each part of a response.
        presigned_uploads: Send the `image` of jobs to the bucket of the service, past the API server. A job whose image
            cannot be used then fails, instead of being refused. Without effect where the service has no bucket.

    Attributes:
        batches: Methods for batches of jobs.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        timeout_s: float = 60.0,
        presigned_uploads: bool = False,
    ) -> None:
        options = http_options(url, api_key, timeout_s)
        self._http = httpx.Client(**options)
        # Without the API key.
        self._bucket = httpx.Client(timeout=timeout_s, trust_env=options["trust_env"])
        self._operations = Operations(options["base_url"], presigned_uploads=presigned_uploads)
        self.batches = Batches(self._http, self._run, self._stream, BatchOperations(self._operations))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()
        self._bucket.close()

    def submit(self, *, idempotency_key: str | None = None, **fields: Unpack[SubmitFields]) -> Job:
        """Create a job; its fields select the task. Return it at once, usually queued.

        While the service is busy (429, 503, 507) the request is repeated for up to two minutes.

        Args:
            idempotency_key: The same key and fields within 24 hours return the same job. Default: a random key.
            fields: Fields of `POST /img2img`.

        Raises:
            ApiError: The service rejected the request.
            ServiceUnreachable: The service cannot be reached.
            OSError: An image file cannot be read.
        """
        return self._run(self._operations.submit(fields, idempotency_key))

    def dry_run(self, **fields: Unpack[SubmitFields]) -> DryRun:
        """Validate a request and return the job that it would create, with its cost and estimated time."""
        return self._run(self._operations.dry_run(fields))

    def inpaint(self, image: ImageInput, mask: ImageInput | MaskFields, **fields: Unpack[InpaintFields]) -> Job:
        """Create a job that regenerates the white pixels of `mask`, or the thing that an object names.

        `"alpha"` uses the transparency of `image`, `{"text": "the house"}` lets the model find the mask.
        """
        return self._run(self._operations.submit_task(image, "mask", mask, fields))

    def outpaint(
        self,
        image: ImageInput,
        *,
        left: int = 0,
        top: int = 0,
        right: int = 0,
        bottom: int = 0,
        **fields: Unpack[OutpaintFields],
    ) -> Job:
        """Create a job that adds this many pixels on each side of `image`, on one of them at least."""
        padding = {"left": left, "top": top, "right": right, "bottom": bottom}
        return self._run(self._operations.submit_task(image, "outpaint", padding, fields))

    def edit(self, image: ImageInput, instruction: str, **fields: Unpack[TaskFields]) -> Job:
        """Create a job that edits `image` by an instruction such as "make it night"."""
        return self._run(self._operations.submit_task(image, "instruction", instruction, fields))

    def upscale(self, image: ImageInput, factor: int = 2, **fields: Unpack[TaskFields]) -> Job:
        """Create a job that makes `image` `factor` times wider and higher."""
        return self._run(self._operations.submit_task(image, "upscale", factor, fields))

    def control_map(self, image: ImageInput, type: str, **fields: Unpack[ControlMapFields]) -> Job:
        """Create a job that returns the control map (edges, depth, pose, ...) of `image`."""
        return self._run(self._operations.control_map(image, type, fields))

    def find_mask(self, image: ImageInput, **fields: Unpack[FindMaskFields]) -> Job:
        """Create a job that returns the mask of the thing in `image` that `text`, `points` or `box` names."""
        return self._run(self._operations.find_mask(image, fields))

    def generate(self, *, timeout_s: float | None = None, **fields: Unpack[SubmitFields]) -> list[bytes]:
        """Create a job, wait for its end and return its images as PNG.

        Raises:
            JobFailed: The job failed or was cancelled.
            WaitTimeout: The job did not end within `timeout_s`; it goes on.
        """
        return self._run(self._operations.generate(fields, timeout_s))

    def upload_image(self, image: ImageInput) -> UploadedImage:
        """Upload an image once, as an input of any number of jobs."""
        return self._run(self._operations.upload_image(image))

    def send_image(self, image: ImageInput) -> Upload:
        """Send an image to the bucket of the service, past the API server, as an input of any number of jobs.

        Raises:
            InvalidRequest: The service has no bucket, or does not accept the image.
        """
        return self._run(self._operations.send_image(image))

    def wait(self, job: Job | str, *, timeout_s: float | None = None) -> Job:
        """Return the job after its end: succeeded, failed or cancelled. See `Job.raise_for_status`.

        Raises:
            WaitTimeout: The job did not end within `timeout_s`.
        """
        return self._run(self._operations.wait(job, timeout_s))

    def stream_events(self, job: Job | str, *, preview: bool = False) -> Iterator[Event]:
        """Yield the events of a job until its end; the last one is the `Job`. Reconnects after an interruption.

        Args:
            preview: Also yield previews of the unfinished image.

        Raises:
            JobGone: The job was deleted.
            AuthenticationError: The API key was revoked or has expired.
            ServiceUnreachable: The connection broke and could not be restored.
        """
        yield from self._stream(job_events(self._operations.url, job_id_of(job), preview=preview))

    def get_job(self, job: Job | str) -> Job:
        """Return the current state of a job."""
        return self._run(self._operations.get_job(job))

    def list_jobs(self, *, status: str | None = None, limit: int | None = None) -> Iterator[Job]:
        """Yield jobs, newest first, page by page.

        Args:
            status: Only jobs with this status.
            limit: The most jobs to yield.
        """
        pages = JobPages(status, limit)
        while pages.more:
            yield from self._run(self._operations.list_page(pages))

    def cancel(self, job: Job | str) -> Job:
        """Cancel a job; one that has ended stays as it is."""
        return self._run(self._operations.cancel(job))

    def delete(self, job: Job | str) -> None:
        """Delete a job with its parameters, results and inputs; one that has not ended is cancelled first.

        Uploaded images, and inputs that other jobs need, are kept.
        """
        self._run(self._operations.delete(job))

    def delete_image(self, image: UploadedImage | Upload | str) -> None:
        """Delete an uploaded image. Jobs that use it have their own copies.

        Args:
            image: The upload, or its sha256 or `image`.

        Raises:
            JobNotFound: This API key has no such upload.
        """
        self._run(self._operations.delete_image(image))

    def list_models(self) -> list[Model]:
        """Return the models that live workers serve."""
        return self._run(self._operations.list_models())

    def model_page(self) -> ModelPage:
        """Return the models that live workers serve, those that are being loaded or failed, and notices."""
        return self._run(self._operations.model_page())

    def get_model(self, name: str) -> ModelDetails:
        """Return one model: its state on each worker, its capabilities, and how requests have changed it.

        Raises:
            JobNotFound: There is no such model.
        """
        return self._run(self._operations.get_model(name))

    def put_model(self, name: str, definition: Mapping[str, Any] | str) -> ModelDetails:
        """Add or replace a model. Workers follow within 2 seconds: see `wait_for_model`.

        Args:
            definition: The keys of a model in a model file, or its source alone.

        Raises:
            InvalidRequest: A key is invalid, or a path is not permitted.
            PermissionDenied: The API key lacks the scope `admin`.
        """
        return self._run(self._operations.put_model(name, definition))

    def delete_model(self, name: str) -> ModelDetails:
        """Remove a model from all workers. Its queued and running jobs are finished first."""
        return self._run(self._operations.delete_model(name))

    def reset_model(self, name: str) -> ModelDetails:
        """Forget how requests have changed a model, so that the model files of the workers decide again."""
        return self._run(self._operations.reset_model(name))

    def put_lora(self, model: str, name: str, source: Mapping[str, Any] | str) -> ModelDetails:
        """Add or replace a LoRA of a model.

        Args:
            source: Path or hub id, or a table with `source`, `revision`, `subfolder` and `weight_name`.
        """
        return self._run(self._operations.put_lora(model, name, source))

    def delete_lora(self, model: str, name: str) -> ModelDetails:
        """Remove a LoRA of a model. Running jobs keep it."""
        return self._run(self._operations.delete_lora(model, name))

    def wait_for_model(self, name: str, *, timeout_s: float | None = None) -> ModelDetails:
        """Return a model when workers serve it as it is defined now, or could not load it.

        Raises:
            WaitTimeout: It was still being loaded after `timeout_s`.
        """
        return self._run(self._operations.wait_for_model(name, timeout_s))

    def download(
        self, image: Job | JobImage | str, index: int = 0, *, format: str | None = None, quality: int | None = None
    ) -> bytes:
        """Download a result image.

        Args:
            image: An image of a job, or the job or its id.
            index: Index of the image, if `image` is a job.
            format: `png` (default), `webp` or `jpeg`.
            quality: 1 to 100, for `webp` and `jpeg`.
        """
        return self._run(self._operations.download(image, index, format, quality))

    def download_images(self, job: Job | str) -> list[bytes]:
        """Download all images of a job as PNG."""
        return self._run(self._operations.download_images(job))

    def _stream(self, stream: EventStream[Any]) -> Iterator[Any]:
        """Yield the events of a stream until its last one. Reconnects after an interruption."""
        while True:
            try:
                with self._http.stream(**stream.request) as response:
                    if response.is_success:
                        for sse in EventSource(response).iter_sse():
                            event = stream.parse(sse)
                            if event is not None:
                                yield event
                            if stream.ended:
                                return
                        pause_s = stream.pause_after_end()
                    else:
                        response.read()
                        pause_s = stream.pause_after_response(response)
            except httpx.TransportError as error:
                pause_s = stream.pause_after_transport_error(error)
            time.sleep(pause_s)

    def _run(self, flow: Flow[T]) -> T:
        answer: Answer = None
        while True:
            try:
                step = flow.send(answer)
            except StopIteration as end:
                result: T = end.value
                return result
            answer = None
            if isinstance(step, Call):
                try:
                    http = self._bucket if step.to_bucket else self._http
                    answer = http.request(step.method, step.url, **step.options)
                except httpx.TransportError as error:
                    answer = error
            else:
                time.sleep(step.seconds)
