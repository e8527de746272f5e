"""Methods of the client without I/O, shared by `Client` and `AsyncClient`.

Each method is a generator, like `httpx.Auth.auth_flow`: it yields the calls to send and the pauses to make, receives
the response of each call, and returns the result. The clients run it with their own HTTP client and their own sleep.
"""

import os
import time
from base64 import b64encode
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, TypeAlias, TypeVar
from urllib.parse import quote
from uuid import uuid4

import httpx

from .errors import (
    LOOPBACK,
    ApiError,
    InvalidArgument,
    InvalidRequest,
    InvalidResponse,
    ServiceUnavailable,
    ServiceUnreachable,
    TooManyRequests,
    WaitTimeout,
    error_of,
    unreachable,
)
from .events import Reconnects
from .images import ImageInput, load_image, map_images, media_type, upright_size
from .models import (
    DryRun,
    Job,
    JobImage,
    JobPage,
    Model,
    ModelDetails,
    ModelPage,
    Upload,
    UploadedImage,
    parse_response,
)

LOCAL_URL = "http://127.0.0.1:8000"
# A submission is repeated for this long while the service is busy.
BUSY_S = 120.0
# One long poll of `wait`; the service allows 60 s.
POLL_S = 30.0
# Pause between two looks at a model that is being loaded.
MODEL_POLL_S = 0.5
# The most jobs that a page of `GET /jobs` can have.
PAGE = 100
# Code of the error of a service whose images are in no bucket.
NO_PRESIGNED_UPLOADS = "no_presigned_uploads"

T = TypeVar("T")


@dataclass(frozen=True)
class Call:
    """A request to send. `options` are arguments of `httpx.Client.request`.

    Attributes:
        to_bucket: Whether it goes to the bucket of the service, which must not get the API key.
    """

    method: str
    url: str
    options: dict[str, Any] = field(default_factory=dict)
    to_bucket: bool = False


@dataclass(frozen=True)
class Pause:
    """Time to wait before the next call."""

    seconds: float


Step: TypeAlias = Call | Pause
Answer: TypeAlias = httpx.Response | httpx.TransportError | None
Flow: TypeAlias = Generator[Step, Answer, T]


def http_options(url: str | None, api_key: str | None, timeout_s: float) -> dict[str, Any]:
    """Return the arguments of the HTTP client, with defaults from `IMG2IMG_URL` and `IMG2IMG_API_KEY`."""
    url = url or os.environ.get("IMG2IMG_URL") or LOCAL_URL
    api_key = api_key or os.environ.get("IMG2IMG_API_KEY")
    return {
        "base_url": url,
        "timeout": timeout_s,
        "headers": {"Authorization": f"Bearer {api_key}"} if api_key else {},
        # A proxy from the environment does not lead to this machine.
        "trust_env": httpx.URL(url).host not in LOOPBACK,
    }


def job_id_of(job: Job | str) -> str:
    """Return the id of a job that is given as itself or by its id."""
    return job.id if isinstance(job, Job) else job


def job_path(job: Job | str) -> str:
    """Return the path of a job. An id that is no id is sent as such, so that the service rejects it."""
    return f"/jobs/{quote(job_id_of(job), safe='')}"


def model_path(name: str) -> str:
    """Return the path of a model."""
    return f"/models/{quote(name)}"


def _lora_path(model: str, name: str) -> str:
    return f"{model_path(model)}/loras/{quote(name, safe='')}"


def _definition(definition: Mapping[str, Any] | str) -> dict[str, Any]:
    """Return a definition that is given as a whole, or as its source alone."""
    return {"source": definition} if isinstance(definition, str) else dict(definition)


def _digest_of(image: Job | JobImage | str, index: int) -> str | None:
    """Return the SHA-256 of the PNG, if it is known."""
    if isinstance(image, JobImage):
        return image.sha256
    return (
        next((known.sha256 for known in image.images if known.index == index), None) if isinstance(image, Job) else None
    )


class Operations:
    """The methods of the client as flows.

    Args:
        presigned_uploads: Whether images of `submit` are sent to the bucket, where the service has one.
    """

    def __init__(self, url: str, *, presigned_uploads: bool = False) -> None:
        self.url = url
        # Ends when the service has refused one.
        self._presigned_uploads = presigned_uploads

    def submit(self, fields: Mapping[str, Any], idempotency_key: str | None = None) -> Flow[Job]:
        """Create a job. An idempotency key makes it safe to repeat the request after a 503."""
        key = idempotency_key or uuid4().hex
        headers = {"Idempotency-Key": key}
        if self._presigned_uploads and fields.get("image") is not None:
            fields = {**fields, "image": (yield from self._sent(fields["image"], f"{key}-image"))}
        response = yield from self.until_taken(Call("POST", "/img2img", {"headers": headers, **_body(fields)}))
        return parse_response(Job, response.content)

    def submit_task(self, image: ImageInput, name: str, value: Any, fields: Mapping[str, Any]) -> Flow[Job]:
        """Create a job of the task that the field `name` selects. Its value must ask for something."""
        if name == "outpaint" and not any(value.values()):
            raise InvalidArgument("outpaint needs at least one of left, top, right, bottom")
        # The request without it is one for another task.
        if value is None or value == "":
            raise InvalidArgument(f"{name}: it must be given")
        return (yield from self.submit({**fields, "image": image, name: value}))

    def dry_run(self, fields: Mapping[str, Any]) -> Flow[DryRun]:
        response = yield from self.call("POST", "/img2img", params={"dry_run": "true"}, **_body(fields))
        return parse_response(DryRun, response.content)

    def control_map(self, image: ImageInput, kind: str, fields: Mapping[str, Any]) -> Flow[Job]:
        headers = {"Idempotency-Key": uuid4().hex}
        body = _body({"image": image, "type": kind, **fields})
        response = yield from self.until_taken(Call("POST", "/control-maps", {"headers": headers, **body}))
        return parse_response(Job, response.content)

    def find_mask(self, image: ImageInput, fields: Mapping[str, Any]) -> Flow[Job]:
        headers = {"Idempotency-Key": uuid4().hex}
        body = _body({"image": image, **fields})
        response = yield from self.until_taken(Call("POST", "/masks", {"headers": headers, **body}))
        return parse_response(Job, response.content)

    def upload_image(self, image: ImageInput) -> Flow[UploadedImage]:
        response = yield from self.until_taken(Call("POST", "/images", _body({"image": image})))
        return parse_response(UploadedImage, response.content)

    def send_image(self, image: ImageInput, key: str | None = None) -> Flow[Upload]:
        """Send an image to the bucket of the service."""
        data = load_image(image)
        kind = media_type(data) if isinstance(data, bytes) else None
        if not isinstance(data, bytes) or kind is None:
            raise TypeError("an image to send is a PNG, JPEG or WebP file, and not a reference")
        declared: dict[str, Any] = {"sha256": sha256(data).hexdigest(), "bytes": len(data), "content_type": kind}
        if size := upright_size(data):
            declared |= {"width": size[0], "height": size[1]}
        headers = {"Idempotency-Key": key or uuid4().hex}
        call = Call("POST", "/uploads", {"headers": headers, "json": declared})
        upload = parse_response(Upload, (yield from self.until_taken(call)).content)
        answer = yield Call("PUT", upload.url, {"headers": dict(upload.headers), "content": data}, to_bucket=True)
        if isinstance(answer, httpx.TransportError):
            raise ServiceUnreachable(f"the bucket of {self.url} cannot be reached: {answer}") from answer
        assert answer is not None
        # The bucket has the image if an earlier attempt has sent it.
        if not answer.is_success and answer.status_code != httpx.codes.PRECONDITION_FAILED:
            raise ApiError(f"the bucket has refused the image: {answer.text[:500]}", status=answer.status_code)
        return upload

    def _sent(self, image: ImageInput, key: str) -> Flow[ImageInput]:
        """Return the reference to an image after sending it, or the image where that is not possible."""
        data = load_image(image)
        if not isinstance(data, bytes) or media_type(data) is None:
            return data
        try:
            return (yield from self.send_image(data, key))
        except InvalidRequest as error:
            if error.code != NO_PRESIGNED_UPLOADS:
                raise
            self._presigned_uploads = False
            return data

    def get_job(self, job: Job | str) -> Flow[Job]:
        response = yield from self.call("GET", job_path(job))
        return parse_response(Job, response.content)

    def wait(self, job: Job | str, timeout_s: float | None) -> Flow[Job]:
        """Poll until the job has ended; outages of the service are waited out as for event streams."""
        give_up_at = time.monotonic() + timeout_s if timeout_s is not None else float("inf")
        path, reconnects = job_path(job), Reconnects()
        while True:
            poll_s = max(min(POLL_S, give_up_at - time.monotonic()), 0)
            try:
                response = yield from self.call("GET", path, params={"wait": poll_s}, timeout=poll_s + POLL_S)
            except (ServiceUnreachable, ServiceUnavailable) as error:
                yield Pause(reconnects.pause_after(error))
                continue
            reconnects.reset()
            current = parse_response(Job, response.content)
            if current.has_ended:
                return current
            if time.monotonic() >= give_up_at:
                raise WaitTimeout(f"job {current.id} is {current.status} after {timeout_s:g} s")

    def cancel(self, job: Job | str) -> Flow[Job]:
        response = yield from self.call("POST", f"{job_path(job)}/cancel")
        return parse_response(Job, response.content)

    def delete(self, job: Job | str) -> Flow[None]:
        yield from self.call("DELETE", job_path(job))

    def delete_image(self, image: UploadedImage | Upload | str) -> Flow[None]:
        name = load_image(image) if isinstance(image, UploadedImage | Upload) else image
        text = str(name)
        path = text if text.startswith("/uploads/") else f"/images/{quote(text, safe='')}"
        yield from self.call("DELETE", path)

    def list_models(self) -> Flow[list[Model]]:
        response = yield from self.call("GET", "/models")
        return list(parse_response(ModelPage, response.content).models)

    def model_page(self) -> Flow[ModelPage]:
        response = yield from self.call("GET", "/models")
        return parse_response(ModelPage, response.content)

    def get_model(self, name: str) -> Flow[ModelDetails]:
        return (yield from self._model("GET", model_path(name)))

    def put_model(self, name: str, definition: Mapping[str, Any] | str) -> Flow[ModelDetails]:
        return (yield from self._model("PUT", model_path(name), json=_definition(definition)))

    def delete_model(self, name: str) -> Flow[ModelDetails]:
        return (yield from self._model("DELETE", model_path(name)))

    def reset_model(self, name: str) -> Flow[ModelDetails]:
        return (yield from self._model("POST", f"{model_path(name)}/reset"))

    def put_lora(self, model: str, name: str, source: Mapping[str, Any] | str) -> Flow[ModelDetails]:
        return (yield from self._model("PUT", _lora_path(model, name), json=_definition(source)))

    def delete_lora(self, model: str, name: str) -> Flow[ModelDetails]:
        return (yield from self._model("DELETE", _lora_path(model, name)))

    def wait_for_model(self, name: str, timeout_s: float | None) -> Flow[ModelDetails]:
        """Poll until workers serve the model, or could not load it."""
        give_up_at = time.monotonic() + timeout_s if timeout_s is not None else float("inf")
        while True:
            model = yield from self.get_model(name)
            if model.is_served or model.state == "failed":
                return model
            if time.monotonic() >= give_up_at:
                raise WaitTimeout(f"the model {name} is {model.state} after {timeout_s:g} s: {model.detail}")
            yield Pause(MODEL_POLL_S)

    def _model(self, method: str, url: str, **options: Any) -> Flow[ModelDetails]:
        response = yield from self.call(method, url, **options)
        return parse_response(ModelDetails, response.content)

    def download(
        self, image: Job | JobImage | str, index: int = 0, format: str | None = None, quality: int | None = None
    ) -> Flow[bytes]:
        """Download an image. A redirect to the blob store is followed without the API key.

        A PNG is compared with the SHA-256 of the job, if that is given.
        """
        url = image.url if isinstance(image, JobImage) else f"{job_path(image)}/images/{index}"
        params = {"format": format, "quality": quality}
        given = {name: value for name, value in params.items() if value is not None}
        response = yield from self.call("GET", url, params=given, follow_redirects=True)
        digest = _digest_of(image, index)
        if digest and format in (None, "png") and sha256(response.content).hexdigest() != digest:
            raise InvalidResponse(f"{self.url}: the image is damaged: its SHA-256 is not that of the job")
        return response.content

    def download_images(self, job: Job | str) -> Flow[list[bytes]]:
        if isinstance(job, str) or not job.has_ended:
            job = yield from self.get_job(job)
        if not job.images:
            # Raises the error for a job that has not ended, or ended without a result.
            yield from self.download(job)
        images = []
        for image in job.images:
            images.append((yield from self.download(image)))
        return images

    def generate(self, fields: Mapping[str, Any], timeout_s: float | None) -> Flow[list[bytes]]:
        job = yield from self.submit(fields)
        job = yield from self.wait(job, timeout_s)
        return (yield from self.download_images(job.raise_for_status()))

    def list_page(self, pages: "JobPages") -> Flow[tuple[Job, ...]]:
        response = yield from self.call("GET", "/jobs", params=pages.params)
        return pages.add(parse_response(JobPage, response.content))

    def call(self, method: str, url: str, **options: Any) -> Generator[Step, Answer, httpx.Response]:
        """Send a request. Raises ServiceUnreachable, or the error of the response."""
        answer = yield Call(method, url, options)
        if isinstance(answer, httpx.TransportError):
            raise unreachable(self.url, answer) from answer
        assert answer is not None
        if not answer.is_success:
            raise error_of(answer, self.url)
        return answer

    def until_taken(self, call: Call) -> Generator[Step, Answer, httpx.Response]:
        """Send the call; repeat it while the service is busy and its response has a `Retry-After`."""
        give_up_at = time.monotonic() + BUSY_S
        while True:
            try:
                return (yield from self.call(call.method, call.url, **call.options))
            except (TooManyRequests, ServiceUnavailable) as error:
                pause_s = max(error.retry_after_s or 0, 0.1)
                if error.retry_after_s is None or time.monotonic() + pause_s > give_up_at:
                    raise
                yield Pause(pause_s)


class JobPages:
    """Position in the job list."""

    def __init__(self, status: str | None, limit: int | None) -> None:
        self._query: dict[str, str | int] = {"status": status} if status else {}
        self._left = limit
        self.more = limit is None or limit > 0

    @property
    def params(self) -> dict[str, str | int]:
        return self._query | {"limit": PAGE if self._left is None else min(self._left, PAGE)}

    def add(self, page: JobPage) -> tuple[Job, ...]:
        """Return the jobs of the page that are within the limit."""
        jobs = page.jobs[: self._left]
        if self._left is not None:
            self._left -= len(jobs)
        self.more = page.next_cursor is not None and self._left != 0
        self._query["cursor"] = page.next_cursor or ""
        return jobs


def _body(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return a form, which carries images as they are, or JSON if a field has structure or is a data: URI."""
    loaded = loaded_fields(fields)
    if any(isinstance(value, list | tuple | dict) or _is_data_uri(value) for value in loaded.values()):
        return {"json": encoded_fields(loaded)}
    files = {name: (name, value) for name, value in loaded.items() if isinstance(value, bytes)}
    texts = {name: (None, _text(value)) for name, value in loaded.items() if not isinstance(value, bytes)}
    return {"files": files | texts}


def _is_data_uri(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("data:")


def loaded_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that are given, with images as bytes or references.

    Raises the errors of `load_image`.
    """
    return map_images(fields, load_image)


def encoded_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields as JSON, with images as base64."""
    return {name: _encoded(value) for name, value in fields.items()}


def _encoded(value: Any) -> Any:
    """Return `value` with bytes as base64, as JSON carries images."""
    if isinstance(value, bytes):
        return b64encode(value).decode()
    if isinstance(value, list):
        return [_encoded(item) for item in value]
    return {name: _encoded(item) for name, item in value.items()} if isinstance(value, dict) else value


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
