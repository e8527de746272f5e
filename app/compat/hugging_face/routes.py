"""`POST /hf/{model}`: an image in, an image out."""

from collections.abc import Mapping
from typing import Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict

from img2img.errors import NotFound, ParameterError

from ...http.query_parameters import refuse_unknown_query
from ...http.request_body import media_type_of, read_bytes, read_json, unsupported_type, validated
from ...schemas.requests import Img2ImgRequest
from ..blocking_jobs import BlockingJobsDep
from ..request_fields import client_names, prompt_field

# Hugging Face's names of fields of `POST /img2img`.
NAMES = {"image": "inputs", "instruction": "prompt"}
SIZE_NAMES = {"width": "target_size", "height": "target_size"}
GIVEN_OTHERWISE = {"image": "`inputs`", "model": "the URL"}

router = APIRouter(prefix="/hf", include_in_schema=False, dependencies=[Depends(refuse_unknown_query)])


class TargetSize(BaseModel):
    """Size of the result in pixels."""

    model_config = ConfigDict(extra="forbid")

    width: int
    height: int


class Parameters(BaseModel):
    """Parameters that are not fields of `POST /img2img`, and those fields."""

    model_config = ConfigDict(extra="allow")

    prompt: str | None = None
    target_size: TargetSize | None = None


class Options(BaseModel):
    """Options of their server: caching, and waiting for the model, which every request here does."""

    model_config = ConfigDict(extra="forbid")

    use_cache: bool | None = None
    use_gpu: bool | None = None
    wait_for_model: bool | None = None


class Body(BaseModel):
    """A JSON body."""

    model_config = ConfigDict(extra="forbid")

    # An image in one of the forms of `image`.
    inputs: Any
    parameters: Parameters = Parameters()
    options: Options = Options()


@router.post("")
async def transform_with_default_model(request: Request, jobs: BlockingJobsDep) -> Response:
    """Transforms an image with the default model."""
    return await transform(request, jobs, None)


@router.post("/{model:path}")
async def transform(request: Request, jobs: BlockingJobsDep, model: str | None) -> Response:
    """Transforms an image and returns the result."""
    media_type, _ = media_type_of(request)
    if media_type == "multipart/form-data":
        raise unsupported_type("Forms are not read: send the image itself as the body, or JSON with `inputs`.")
    if media_type == "application/json":
        body = await read_json(request, Body, strict=False)
    else:
        body = Body.model_construct(inputs=bytes(await read_bytes(request)))
    card = await run_sync(jobs.submitter.model_card, (model or "").rstrip("/") or None)
    fields = _fields(body)
    fields |= prompt_field(body.parameters.prompt or "", card, fields)
    with client_names(NAMES | (SIZE_NAMES if body.parameters.target_size else {})):
        job_request = await run_sync(validated, Img2ImgRequest, {**fields, "model": card.name})
        record = await jobs.start(job_request)
    del body, fields, job_request
    jobs.release_body()
    [image] = await jobs.pngs(await jobs.end(record.id))
    return Response(image, media_type="image/png")


def _fields(body: Body) -> dict[str, Any]:
    """Return the fields of `POST /img2img`, except for model and prompt. Raises ParameterError."""
    given: Mapping[str, Any] = body.parameters.model_extra or {}
    own = {name: value for name, value in given.items() if value not in (None, "")}
    for name, instead in GIVEN_OTHERWISE.items():
        if name in own:
            raise ParameterError(f"parameters.{name}", f"It is given by {instead}; leave it out")
    if own.get("num_images", 1) != 1:
        raise ParameterError("parameters.num_images", "A response has one image: input should be 1")
    if body.parameters.target_size is not None:
        if own.keys() & {"width", "height"}:
            raise ParameterError("parameters.target_size", "It cannot be combined with `width` and `height`")
        own |= body.parameters.target_size.model_dump()
    return {**own, "image": body.inputs}


@router.get("/{path:path}")
def not_supported(path: str) -> None:
    """Names the only endpoint."""
    raise NotFound(f"/hf/{path} is read by nothing here. Supported is: POST /hf/MODEL, for the task image-to-image.")
