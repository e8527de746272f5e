"""Responses to OpenAI's requests: images as JSON, or as Server-Sent Events with partial images."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import anyio
from anyio.to_thread import run_sync
from fastapi import Response
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse

from img2img.domain.job import JobRecord
from img2img.domain.parameters import Background
from img2img.errors import Img2ImgError
from img2img.redis.previews import Preview

from ...dependencies import PreviewsDep
from ...http.problem_details import problem_response
from ...schemas.responses import ImageFormat
from ..blocking_jobs import DISCONNECT_POLL_S, BlockingJobs
from .images import as_base64, png_of_jpeg, size_of
from .requests import Edit, Variation

NO_TOKENS = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
USAGE = NO_TOKENS | {"input_tokens_details": {"image_tokens": 0, "text_tokens": 0}}


@dataclass(frozen=True)
class SubmittedEdit:
    """A job, and the request for it.

    Attributes:
        not_applied: Fields that were accepted without an effect, with reasons.
    """

    record: JobRecord
    body: Variation
    not_applied: Mapping[str, str]

    @property
    def output_format(self) -> ImageFormat:
        return self.body.output_format if isinstance(self.body, Edit) else ImageFormat.PNG

    @property
    def compression(self) -> int | None:
        return self.body.output_compression if isinstance(self.body, Edit) else None

    def parameters(self) -> dict[str, Any]:
        """Return the parameters that were applied, and those that were not."""
        quality = self.body.quality if isinstance(self.body, Edit) and "quality" not in self.not_applied else "auto"
        not_applied = {"not_applied": dict(self.not_applied)} if self.not_applied else {}
        is_transparent = getattr(self.record.spec, "background", None) is Background.TRANSPARENT
        background = "transparent" if is_transparent else "opaque"
        return {"quality": quality, "background": background, "output_format": self.output_format, **not_applied}


async def respond(jobs: BlockingJobs, edit: SubmittedEdit) -> Response:
    """Wait for the job and return its images."""
    record = await jobs.end(edit.record.id)
    images = await jobs.pngs(record)
    if edit.body.response_format == "url":
        base = str(jobs.request.base_url).rstrip("/")
        form = "" if edit.output_format is ImageFormat.PNG else f"?format={edit.output_format}"
        if form and edit.compression is not None:
            form += f"&quality={max(1, edit.compression)}"
        data = [{"url": f"{base}/jobs/{record.id}/images/{image.index}{form}"} for image in record.images]
    else:
        convert = jobs.decoders.convert
        data = [{"b64_json": await convert(as_base64, png, edit.output_format, edit.compression)} for png in images]
    width, height = record.images[0].width, record.images[0].height
    return JSONResponse(
        {
            "created": int(record.created_at),
            "data": data,
            "size": f"{width}x{height}",
            **edit.parameters(),
            "usage": USAGE,
        }
    )


async def stream(jobs: BlockingJobs, edit: SubmittedEdit, previews: PreviewsDep) -> AsyncIterator[bytes]:
    """Yield partial images, then the results, as Server-Sent Events."""
    partial_images = edit.body.partial_images if isinstance(edit.body, Edit) else 0
    record, previous = edit.record, list[Preview]()
    ending = asyncio.ensure_future(jobs.end(record.id))
    try:
        with jobs.job_changes.subscribe(record.id) as changed:
            while partial_images > len(previous) and not ending.done() and not jobs.job_changes.is_closed:
                await run_sync(previews.request, record.id)
                preview = await run_sync(previews.latest, record.id)
                if preview and preview not in previous:
                    previous.append(preview)
                    image = await jobs.decoders.convert(png_of_jpeg, preview.jpeg)
                    index = {"partial_image_index": len(previous) - 1}
                    yield await jobs.decoders.convert(_event, "partial_image", image, edit, index)
                with suppress(TimeoutError):
                    async with asyncio.timeout(DISCONNECT_POLL_S):
                        await changed.wait()
                changed.clear()
        for image in await jobs.pngs(await ending):
            yield await jobs.decoders.convert(_event, "completed", image, edit, {"usage": USAGE})
    except Img2ImgError as error:
        yield error_event(error)
    except asyncio.CancelledError:
        # Shielded, because everything that this task awaits is cancelled.
        with anyio.CancelScope(shield=True), suppress(ClientDisconnect):
            await jobs.cancel_if_disconnected(record.id)
        raise
    finally:
        ending.cancel()


def error_event(error: Img2ImgError) -> bytes:
    """Return the event that ends a stream with an error."""
    data = bytes(problem_response(error).for_path("/v1/").body)
    return b"event: error\ndata: " + data + b"\n\n"


def _event(kind: str, png: bytes, edit: SubmittedEdit, more: dict[str, Any]) -> bytes:
    event = {
        "type": f"image_edit.{kind}",
        "b64_json": as_base64(png, edit.output_format, edit.compression),
        "created_at": int(time.time()),
        "size": size_of(png),
        **edit.parameters(),
        **more,
    }
    return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()
