"""Routes of OpenAI's Images API."""

from collections.abc import Mapping
from typing import Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from starlette.responses import JSONResponse, StreamingResponse

from img2img.domain.model_card import ModelCard
from img2img.errors import NotFound, ParameterError

from ...dependencies import PreviewsDep
from ...http.open_requests import ERROR_EVENT
from ...http.request_body import validated
from ...schemas.requests import Img2ImgRequest
from ..blocking_jobs import BlockingJobs, BlockingJobsDep
from ..request_fields import client_names, prompt_field
from .answers import SubmittedEdit, error_event, respond, stream
from .hints import hinted_fields
from .images import convert_mask
from .requests import Body, Edit, Variation, read_body

router = APIRouter(prefix="/v1", include_in_schema=False)


@router.post("/images/edits")
async def edit_image(request: Request, jobs: BlockingJobsDep, previews: PreviewsDep) -> Response:
    """Edits an image by a prompt, within a mask if there is one."""
    edit = await _start_edit(request, jobs)
    jobs.release_body()
    if isinstance(edit.body, Edit) and edit.body.stream:
        setattr(request.state, ERROR_EVENT, error_event)
        return StreamingResponse(stream(jobs, edit, previews), media_type="text/event-stream")
    return await respond(jobs, edit)


async def _start_edit(request: Request, jobs: BlockingJobs) -> SubmittedEdit:
    """Submit the job. The images of the request are not kept while it runs."""
    parts = await read_body(request, jobs)
    body = validated(Edit, parts.fields)
    with client_names(parts.client_names()):
        card = await run_sync(jobs.submitter.model_card, body.model)
        images = parts.images(card.max_images, card.name)
        job_request, not_applied = await jobs.decoders.run(
            _edit_request, body, parts, images, card, jobs, images=[images[0], parts.mask()]
        )
        return SubmittedEdit(await jobs.start(job_request), body, not_applied)


@router.post("/images/variations")
async def vary_image(request: Request, jobs: BlockingJobsDep) -> Response:
    """Makes variations of an image without a prompt."""
    edit = await _start_variation(request, jobs)
    jobs.release_body()
    return await respond(jobs, edit)


async def _start_variation(request: Request, jobs: BlockingJobs) -> SubmittedEdit:
    parts = await read_body(request, jobs)
    body = validated(Variation, parts.fields)
    with client_names(parts.client_names()):
        fields = _fields(body, parts, parts.images(1)) | _size(body.size, parts.own)
        return SubmittedEdit(await jobs.start(validated(Img2ImgRequest, fields)), body, {})


def _fields(body: Variation, parts: Body, images: list[bytes]) -> dict[str, Any]:
    given = {"image": images[0]} if len(images) == 1 else {"images": images}
    return {**parts.own, **given, "model": body.model, "num_images": body.n}


def _edit_request(
    body: Edit, parts: Body, images: list[bytes], card: ModelCard, jobs: BlockingJobs
) -> tuple[Img2ImgRequest, dict[str, str]]:
    """Return the request, and the fields that are not applied, with reasons."""
    size, fields = _size(body.size, parts.own), _fields(body, parts, images)
    if len(images) == 1:
        image_size, mask = convert_mask(images[0], parts.mask(), jobs.decoders)
    elif parts.mask() is not None:
        raise ParameterError("mask", "It cannot be combined with several images; leave it out")
    else:
        image_size, mask = None, None
    if mask is None:
        fields |= size
    elif size and (size["width"], size["height"]) != image_size:
        raise ParameterError("size", "With a mask the result has the size of the image: input should be `auto`")
    else:
        fields["mask"] = mask
    fields |= prompt_field(body.prompt, card, fields)
    hinted, not_applied = hinted_fields(body, fields, card)
    return validated(Img2ImgRequest, fields | hinted), not_applied


def _size(size: str, own: Mapping[str, Any]) -> dict[str, int]:
    """Return the fields for OpenAI's `size`, none for `auto`."""
    if size == "auto":
        return {}
    if own.keys() & {"width", "height"}:
        raise ParameterError("size", "It cannot be combined with `width` and `height`; leave one of them out")
    width, _, height = size.partition("x")
    return {"width": int(width), "height": int(height)}


@router.get("/models")
def list_models(jobs: BlockingJobsDep) -> Response:
    """Lists the models and their aliases in OpenAI's format."""
    return JSONResponse({"object": "list", "data": [_model(*names) for names in sorted(_names(jobs).items())]})


@router.get("/models/{model:path}")
def get_model(model: str, jobs: BlockingJobsDep) -> Response:
    """Returns a model in OpenAI's format."""
    names = _names(jobs)
    if model not in names:
        raise NotFound(f"There is no model {model}; there are: {', '.join(sorted(names))}.")
    return JSONResponse(_model(model, names[model]))


def _names(jobs: BlockingJobs) -> dict[str, str]:
    """Return the models that live workers serve, by name and by alias."""
    live, known = jobs.models.live(), jobs.models.known()
    aliases = {alias: name for name in live if name in known for alias in known[name].aliases}
    return aliases | {name: name for name in live}


def _model(id_: str, name: str) -> dict[str, Any]:
    return {"id": id_, "object": "model", "created": 0, "owned_by": "img2img"} | ({"root": name} if id_ != name else {})


@router.api_route("/{path:path}", methods=["GET", "POST"])
def not_supported(path: str) -> None:
    """Names the endpoints that there are."""
    known = ", ".join(route.path for route in router.routes[:-1] if isinstance(route, APIRoute))
    raise NotFound(f"/v1/{path} is not supported. Supported are: {known}.")
