"""OpenAI's Images API: `POST /v1/images/edits` and `/v1/images/variations`, for unmodified clients.

https://platform.openai.com/docs/api-reference/images/createEdit. With a mask, its transparent part is regenerated.
Without a mask, a model with the task `edit` follows the prompt as an instruction; other models do image-to-image.
Fields of `POST /img2img` (`seed`, `strength`, ...) can be job_request as extra fields.
"""

import asyncio
import json
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from http import HTTPStatus
from io import BytesIO
from typing import Annotated, Any, Literal

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import UploadFile
from starlette.responses import JSONResponse, StreamingResponse

from img2img.domain.job import JobRecord
from img2img.domain.model_card import ModelCard
from img2img.domain.parameters import MAX_IMAGES, Task
from img2img.errors import Img2ImgError, ParameterError
from img2img.redis.previews import Preview

from ..dependencies import PreviewsDep
from ..http.problem_details import status_of
from ..imaging.decode import encode_png
from ..imaging.decoder_share import DecoderShare
from ..progress.image_formats import convert_image
from ..schemas.problems import FieldProblem
from ..schemas.request_fields import ALPHA, parse_json_field
from ..schemas.requests import Img2ImgRequest
from ..schemas.responses import ImageFormat
from ..submission.spec_builder import error_field
from .blocking_jobs import DISCONNECT_POLL_S, BlockingJobs, BlockingJobsDep
from .validation import validated

MAX_PARTS = 64
MAX_FIELD_BYTES = 64 * 1024
NO_TOKENS = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
USAGE = NO_TOKENS | {"input_tokens_details": {"image_tokens": 0, "text_tokens": 0}}
OWN_FIELDS = frozenset(Img2ImgRequest.model_fields) - {"image", "mask", "model", "prompt", "num_images"}


class Variation(BaseModel):
    """The form fields of a variation that are not files."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = None
    n: Annotated[int, Field(ge=1, le=MAX_IMAGES)] = 1
    size: Annotated[str, Field(pattern=r"^(auto|[1-9][0-9]{1,4}x[1-9][0-9]{1,4})$")] = "auto"
    response_format: Literal["b64_json", "url"] = "b64_json"
    # Ignored.
    user: str | None = None


class Edit(Variation):
    """The form fields of an edit that are not files. Their types exclude unsupported values."""

    prompt: str
    background: Literal["auto", "opaque"] = "auto"
    quality: Literal["auto"] = "auto"
    moderation: Literal["auto"] = "auto"
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
                return _error_response(422, f"{first.field}: {first.message}", first.field, ParameterError.code)
            except Img2ImgError as error:
                field = getattr(error, "field", None)
                return _error_response(status_of(error), error.message, field, error.code)

        return handle_errors


router = APIRouter(prefix="/v1", route_class=OpenAIRoute, include_in_schema=False)


@router.post("/images/edits")
async def edit_image(request: Request, jobs: BlockingJobsDep, previews: PreviewsDep) -> Response:
    """Edits an image by a prompt, within a mask if there is one."""
    fields, own, files = await _form(request)
    body = validated(Edit, fields)
    image, mask = _one_image(files), files.get("mask", [None])[0]
    card = await run_sync(jobs.submitter.model_card, body.model)
    job_request = await jobs.decoders.run(_edit_request, body, own, image, mask, card, jobs, images=[image, mask])
    record = await jobs.start(job_request)
    if body.stream:
        return StreamingResponse(_events(jobs, record, body, previews), media_type="text/event-stream")
    return await _respond(jobs, record, body.response_format, body.output_format, body.output_compression)


@router.post("/images/variations")
async def vary_image(request: Request, jobs: BlockingJobsDep) -> Response:
    """Makes variations of an image without a prompt."""
    fields, own, files = await _form(request)
    body = validated(Variation, fields)
    width, height = _size(body.size)
    job_request = validated(
        Img2ImgRequest,
        {
            **own,
            "image": _one_image(files),
            "model": body.model,
            "num_images": body.n,
            "width": width,
            "height": height,
        },
    )
    return await _respond(jobs, await jobs.start(job_request), body.response_format, ImageFormat.PNG, None)


@router.get("/models")
def list_models(jobs: BlockingJobsDep) -> Response:
    """Lists the models in OpenAI's format."""
    models = [
        {"id": name, "object": "model", "created": 0, "owned_by": "img2img"} for name in sorted(jobs.models.live())
    ]
    return JSONResponse({"object": "list", "data": models})


async def _form(request: Request) -> tuple[dict[str, Any], dict[str, Any], dict[str, list[bytes]]]:
    """Return OpenAI's fields, ours, and the files. Clients may send `image` as `image[]`."""
    fields: dict[str, Any] = {}
    own: dict[str, Any] = {}
    files: dict[str, list[bytes]] = {}
    async with request.form(max_files=MAX_PARTS, max_fields=MAX_PARTS, max_part_size=MAX_FIELD_BYTES) as form:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                files.setdefault(name.removesuffix("[]"), []).append(await value.read())
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
    width, height = _size(body.size)
    fields: dict[str, Any] = {**own, "image": image, "model": body.model, "num_images": body.n}
    image_size, converted_mask = _convert_mask(image, mask, jobs.decoders)
    if converted_mask is not None:
        if (width, height) not in ((None, None), image_size):
            raise ParameterError("size", "With a mask the result has the size of the image: input should be `auto`")
        return validated(Img2ImgRequest, {**fields, "mask": converted_mask, "prompt": body.prompt})
    fields |= {"width": width, "height": height}
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


def _size(size: str) -> tuple[int | None, int | None]:
    if size == "auto":
        return None, None
    width, _, height = size.partition("x")
    return int(width), int(height)


async def _respond(
    jobs: BlockingJobs, record: JobRecord, response_format: str, output_format: ImageFormat, quality: int | None
) -> Response:
    record = await jobs.end(record.id)
    images = await run_sync(jobs.pngs, record)
    if response_format == "url":
        base = str(jobs.request.base_url).rstrip("/")
        form = "" if output_format is ImageFormat.PNG else f"?format={output_format}"
        data = [{"url": f"{base}/jobs/{record.id}/images/{image.index}{form}"} for image in record.images]
    else:
        data = [{"b64_json": await run_sync(_encoded, image, output_format, quality)} for image in images]
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
            while body.partial_images > len(previous) and not ending.done():
                await run_sync(previews.request, record.id)
                preview = await run_sync(previews.latest, record.id)
                if preview and preview not in previous:
                    previous.append(preview)
                    image = await run_sync(_from_jpeg, preview.jpeg)
                    yield await run_sync(
                        _event, "partial_image", image, body, {"partial_image_index": len(previous) - 1}
                    )
                with suppress(TimeoutError):
                    async with asyncio.timeout(DISCONNECT_POLL_S):
                        await changed.wait()
                changed.clear()
        for image in await run_sync(jobs.pngs, await ending):
            yield await run_sync(_event, "completed", image, body, {"usage": USAGE})
    except Img2ImgError as error:
        data = json.dumps(_error(status_of(error), error.message, None, error.code))
        yield f"event: error\ndata: {data}\n\n".encode()
    finally:
        # The client has disconnected.
        if not ending.done():
            ending.cancel()
            await run_sync(jobs.queue.cancel, record.id)


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


def _error_response(status: int, message: str, field: str | None, code: str) -> Response:
    headers = {"Cache-Control": "no-store"} if status >= HTTPStatus.INTERNAL_SERVER_ERROR else None
    return JSONResponse(_error(status, message, field, code), status_code=status, headers=headers)


def _error(status: int, message: str, field: str | None, code: str) -> dict[str, Any]:
    kind = "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": field, "code": code}}
