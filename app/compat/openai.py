"""OpenAI's Images API: `POST /v1/images/edits` and `/v1/images/variations`, for unmodified clients.

https://platform.openai.com/docs/api-reference/images/createEdit. With a mask, its transparent part is regenerated.
Without a mask, a model with the task `edit` follows the prompt as an instruction; other models do image-to-image.
Fields of `POST /img2img` (`seed`, `strength`, ...) can be sent as extra fields.
"""

import asyncio
import json
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import suppress
from http import HTTPStatus
from io import BytesIO
from typing import Annotated, Any, Literal

import anyio
from anyio.to_thread import run_sync
from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, StreamingResponse

from img2img.domain.job import JobRecord
from img2img.domain.model_card import ModelCard
from img2img.domain.parameters import MAX_IMAGES, Task
from img2img.errors import Img2ImgError, NotFound, ParameterError
from img2img.redis.previews import Preview

from ..dependencies import PreviewsDep
from ..http.errors import FlaggedRequest, UnsupportedMedia
from ..http.open_requests import ERROR_EVENT
from ..http.problem_details import status_of
from ..http.request_body import media_type_of, read_form, read_json, validated
from ..imaging.decode import encode_png
from ..imaging.decoder_share import DecoderShare
from ..progress.image_formats import convert_image
from ..schemas.problems import FieldProblem
from ..schemas.request_fields import ALPHA, parse_image, parse_json_field
from ..schemas.requests import Img2ImgRequest
from ..schemas.responses import ImageFormat
from ..submission.spec_builder import error_field
from .blocking_jobs import DISCONNECT_POLL_S, BlockingJobs, BlockingJobsDep

NO_TOKENS = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
USAGE = NO_TOKENS | {"input_tokens_details": {"image_tokens": 0, "text_tokens": 0}}
OWN_FIELDS = frozenset(Img2ImgRequest.model_fields) - {"image", "mask", "model", "prompt", "num_images"}


class Variation(BaseModel):
    """The fields of a variation that are not images. Empty text and null count as not given."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, fields: Any) -> Any:
        return {name: value for name, value in fields.items() if name == "prompt" or value not in ("", None)}

    model: str | None = None
    n: Annotated[int, Field(ge=1, le=MAX_IMAGES)] = 1
    size: Annotated[str, Field(pattern=r"^(auto|[1-9][0-9]{1,4}x[1-9][0-9]{1,4})$")] = "auto"
    response_format: Literal["b64_json", "url"] = "b64_json"
    # Ignored.
    user: str | None = None


class Edit(Variation):
    """The fields of an edit that are not images. Their types exclude unsupported values."""

    prompt: str
    background: Literal["auto", "opaque"] = "auto"
    # Hints for OpenAI's models. `num_inference_steps` and `strength` set here what they ask for.
    quality: Literal["auto", "low", "medium", "high", "standard", "hd"] = "auto"
    input_fidelity: Literal["low", "high"] | None = None
    moderation: Literal["auto", "low"] = "auto"
    output_format: ImageFormat = ImageFormat.PNG
    output_compression: Annotated[int | None, Field(ge=1, le=100)] = None
    stream: bool = False
    partial_images: Annotated[int, Field(ge=0, le=3)] = 0


class OpenAIRoute(APIRoute):
    """Responds with errors in OpenAI's format."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_errors(request: Request) -> Response:
            try:
                return await handle(request)
            except RequestValidationError as error:
                first = FieldProblem.from_pydantic(error.errors()[0])
                body = _error(422, f"{first.field}: {first.message}", first.field, ParameterError.code)
                return _error_response(422, body)
            except Img2ImgError as error:
                return _error_response(*_status_and_error(error))

        return handle_errors


router = APIRouter(prefix="/v1", route_class=OpenAIRoute, include_in_schema=False)


@router.post("/images/edits")
async def edit_image(request: Request, jobs: BlockingJobsDep, previews: PreviewsDep) -> Response:
    """Edits an image by a prompt, within a mask if there is one."""
    body, record = await _start_edit(request, jobs)
    jobs.release_body()
    if body.stream:
        setattr(request.state, ERROR_EVENT, _error_event)
        return StreamingResponse(_events(jobs, record, body, previews), media_type="text/event-stream")
    return await _respond(jobs, record, body.response_format, body.output_format, body.output_compression)


async def _start_edit(request: Request, jobs: BlockingJobs) -> tuple[Edit, JobRecord]:
    """Submit the job. The images of the request are not kept while it runs."""
    fields, own, files = await _read(request, jobs)
    body = validated(Edit, fields)
    image, mask = _one_image(files), files.get("mask", [None])[0]
    card = await run_sync(jobs.submitter.model_card, body.model)
    job_request = await jobs.decoders.run(_edit_request, body, own, image, mask, card, jobs, images=[image, mask])
    return body, await jobs.start(job_request)


@router.post("/images/variations")
async def vary_image(request: Request, jobs: BlockingJobsDep) -> Response:
    """Makes variations of an image without a prompt."""
    body, record = await _start_variation(request, jobs)
    jobs.release_body()
    return await _respond(jobs, record, body.response_format, ImageFormat.PNG, None)


async def _start_variation(request: Request, jobs: BlockingJobs) -> tuple[Variation, JobRecord]:
    fields, own, files = await _read(request, jobs)
    body = validated(Variation, fields)
    fields = {**own, **_size(body.size, own), "image": _one_image(files), "model": body.model, "num_images": body.n}
    return body, await jobs.start(validated(Img2ImgRequest, fields))


@router.get("/models")
def list_models(jobs: BlockingJobsDep) -> Response:
    """Lists the models in OpenAI's format."""
    return JSONResponse({"object": "list", "data": [_model(name) for name in sorted(jobs.models.live())]})


@router.get("/models/{model:path}")
def get_model(model: str, jobs: BlockingJobsDep) -> Response:
    """Returns a model in OpenAI's format."""
    if model not in jobs.models.live():
        raise NotFound(f"There is no model {model}; there are: {', '.join(sorted(jobs.models.live()))}.")
    return JSONResponse(_model(model))


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "img2img"}


Fields = tuple[dict[str, Any], dict[str, Any], dict[str, list[bytes]]]


async def _read(request: Request, jobs: BlockingJobs) -> Fields:
    """Return OpenAI's fields, ours, and the files, of a form or of JSON."""
    media_type, _ = media_type_of(request)
    if media_type not in ("multipart/form-data", "application/json"):
        raise UnsupportedMedia("The content type should be multipart/form-data or application/json.")
    if media_type == "multipart/form-data":
        return _from_form(await read_form(request, jobs.settings.max_body_bytes))
    return await run_sync(_from_json, await read_json(request, dict[str, Any], strict=False))


def _from_json(fields: dict[str, Any]) -> Fields:
    """Return the fields of a JSON body, in which images are objects: `{"image_url": "data:..."}`."""
    files = {}
    for name, field in (("images", "image"), ("image", "image"), ("mask", "mask")):
        value = fields.pop(name, None)
        if value:
            images = value if isinstance(value, list) else [value]
            files[field] = [_image_from_json(name, image) for image in images[: MAX_IMAGES + 1]]
    own = {name: fields.pop(name) for name in OWN_FIELDS & fields.keys()}
    return fields, {name: value for name, value in own.items() if value is not None}, files


def _image_from_json(name: str, image: Any) -> bytes:
    url = image.get("image_url") if isinstance(image, dict) else image
    url = url.get("url") if isinstance(url, dict) else url
    if isinstance(image, dict) and url is None:
        raise ParameterError(name, "Input should have an `image_url`; files of OpenAI are not known here", got=image)
    try:
        return parse_image(url)
    except ValueError as error:
        raise ParameterError(name, str(error)) from None


def _from_form(form: list[tuple[str, str | bytes]]) -> Fields:
    """Return the fields of a form. Clients may send `image` as `image[]`."""
    fields: dict[str, Any] = {}
    own: dict[str, Any] = {}
    files: dict[str, list[bytes]] = {}
    for name, value in form:
        if isinstance(value, bytes):
            files.setdefault(name.removesuffix("[]"), []).append(value)
        elif value == "" and name != "prompt":
            continue
        elif name in OWN_FIELDS:
            own[name] = parse_json_field(name, value) if name in Img2ImgRequest.FORM_JSON else value
        else:
            fields[name] = value
    return fields, own, files


def _one_image(files: dict[str, list[bytes]]) -> bytes:
    unknown = sorted(set(files) - {"image", "mask"})
    if unknown:
        raise ParameterError(unknown[0], "Unknown file; known are image, mask")
    images = files.get("image", [])
    if len(images) != 1:
        raise ParameterError("image", f"Exactly one image is taken, not {len(images)}")
    return images[0]


def _edit_request(
    body: Edit, own: dict[str, Any], image: bytes, mask: bytes | None, card: ModelCard, jobs: BlockingJobs
) -> Img2ImgRequest:
    size = _size(body.size, own)
    fields: dict[str, Any] = {**own, "image": image, "model": body.model, "num_images": body.n}
    image_size, converted_mask = _convert_mask(image, mask, jobs.decoders)
    if converted_mask is not None:
        if size and (size["width"], size["height"]) != image_size:
            raise ParameterError("size", "With a mask the result has the size of the image: input should be `auto`")
        return validated(Img2ImgRequest, {**fields, "mask": converted_mask, "prompt": body.prompt})
    fields |= size
    if Task.EDIT in card.tasks and "strength" not in own:
        return validated(Img2ImgRequest, {**fields, "instruction": body.prompt})
    return validated(Img2ImgRequest, {**fields, "prompt": body.prompt})


def _convert_mask(
    image: bytes, mask: bytes | None, decoders: DecoderShare
) -> tuple[tuple[int, int], bytes | Literal["alpha"] | None]:
    """Return the size of the image, and our mask: white where theirs, or else the image, is transparent."""
    with decoders.open(image) as opened:
        size = opened.size
        if mask is None:
            return size, ALPHA if opened.transparency().getbbox() else None
    with error_field("mask"), decoders.open(mask) as opened:
        transparent = opened.transparency()
    if not transparent.getbbox():
        raise ParameterError("mask", "The mask should be transparent where the image is to be edited")
    return size, encode_png(transparent)


def _size(size: str, own: Mapping[str, Any]) -> dict[str, int]:
    """Return the fields for OpenAI's `size`, none for `auto`."""
    if size == "auto":
        return {}
    if own.keys() & {"width", "height"}:
        raise ParameterError("size", "It cannot be combined with `width` and `height`; leave one of them out")
    width, _, height = size.partition("x")
    return {"width": int(width), "height": int(height)}


async def _respond(
    jobs: BlockingJobs, record: JobRecord, response_format: str, output_format: ImageFormat, quality: int | None
) -> Response:
    record = await jobs.end(record.id)
    images = await jobs.pngs(record)
    if response_format == "url":
        base = str(jobs.request.base_url).rstrip("/")
        form = "" if output_format is ImageFormat.PNG else f"?format={output_format}"
        data = [{"url": f"{base}/jobs/{record.id}/images/{image.index}{form}"} for image in record.images]
    else:
        data = [{"b64_json": await jobs.decoders.convert(_encoded, image, output_format, quality)} for image in images]
    return JSONResponse(
        {"created": int(record.created_at), "data": data, "output_format": output_format, "usage": USAGE}
    )


def _encoded(image: bytes, output_format: ImageFormat, quality: int | None) -> str:
    if output_format is not ImageFormat.PNG:
        image = convert_image(image, output_format, quality)
    return b64encode(image).decode()


async def _events(jobs: BlockingJobs, record: JobRecord, body: Edit, previews: PreviewsDep) -> AsyncIterator[bytes]:
    """Yield partial images, then the results, as Server-Sent Events."""
    previous: list[Preview] = []
    ending = asyncio.ensure_future(jobs.end(record.id))
    try:
        with jobs.job_changes.subscribe(record.id) as changed:
            while body.partial_images > len(previous) and not ending.done() and not jobs.job_changes.is_closed:
                await run_sync(previews.request, record.id)
                preview = await run_sync(previews.latest, record.id)
                if preview and preview not in previous:
                    previous.append(preview)
                    image = await jobs.decoders.convert(_from_jpeg, preview.jpeg)
                    index = {"partial_image_index": len(previous) - 1}
                    yield await jobs.decoders.convert(_event, "partial_image", image, body, index)
                with suppress(TimeoutError):
                    async with asyncio.timeout(DISCONNECT_POLL_S):
                        await changed.wait()
                changed.clear()
        for image in await jobs.pngs(await ending):
            yield await jobs.decoders.convert(_event, "completed", image, body, {"usage": USAGE})
    except Img2ImgError as error:
        yield _error_event(error)
    except asyncio.CancelledError:
        # Shielded, because everything that this task awaits is cancelled.
        with anyio.CancelScope(shield=True), suppress(ClientDisconnect):
            await jobs.cancel_if_disconnected(record.id)
        raise
    finally:
        ending.cancel()


def _error_event(error: Img2ImgError) -> bytes:
    data = json.dumps(_status_and_error(error)[1])
    return f"event: error\ndata: {data}\n\n".encode()


def _from_jpeg(jpeg: bytes) -> bytes:
    with Image.open(BytesIO(jpeg), formats=("JPEG",)) as image:
        return encode_png(image.convert("RGB"))


def _event(kind: str, png: bytes, body: Edit, more: dict[str, Any]) -> bytes:
    with Image.open(BytesIO(png), formats=("PNG",)) as opened:
        size = f"{opened.width}x{opened.height}"
    event = {
        "type": f"image_edit.{kind}",
        "b64_json": _encoded(png, body.output_format, body.output_compression),
        "created_at": int(time.time()),
        "size": size,
        "quality": "auto",
        "background": "opaque",
        "output_format": body.output_format,
        **more,
    }
    return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()


def _status_and_error(error: Img2ImgError) -> tuple[int, dict[str, Any]]:
    """Return the status and the body of a response. Flagged content has the ones that clients of OpenAI know."""
    if isinstance(error, FlaggedRequest):
        kind, code = "image_generation_user_error", "moderation_blocked"
        return HTTPStatus.BAD_REQUEST, {"error": {"message": error.message, "type": kind, "param": None, "code": code}}
    status = status_of(error)
    return status, _error(status, error.message, getattr(error, "field", None), error.code)


def _error_response(status: int, body: dict[str, Any]) -> Response:
    headers = {"Cache-Control": "no-store"} if status >= HTTPStatus.INTERNAL_SERVER_ERROR else None
    return JSONResponse(body, status_code=status, headers=headers)


def _error(status: int, message: str, field: str | None, code: str) -> dict[str, Any]:
    kind = "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": field, "code": code}}


@router.api_route("/{path:path}", methods=["GET", "POST"])
def not_supported(path: str) -> None:
    """Names the endpoints that there are."""
    known = ", ".join(route.path for route in router.routes[:-1] if isinstance(route, APIRoute))
    raise NotFound(f"/v1/{path} is not supported. Supported are: {known}.")
