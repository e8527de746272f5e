"""`extra-single-image` and `extra-batch-images`: enlarge images by interpolation or by the model."""

from io import BytesIO
from typing import Annotated, Any, Literal

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from img2img.domain.parameters import MAX_IMAGES, MAX_SIDE, Resize
from img2img.errors import ParameterError
from img2img.imaging.decode import encode_png, fit

from ...http.request_body import read_json, validated
from ...schemas.requests import Img2ImgRequest
from ..blocking_jobs import BlockingJobs, BlockingJobsDep
from .errors import web_ui_fields
from .images import encoded, parse_web_image
from .neutral import check_unknown
from .options import chosen_model
from .request import WebUIModel
from .upscalers import RESAMPLING, upscalers_of

NONE = "None"
# What these endpoints do not read: `model` names one that describes images, for another endpoint of the same clients.
IGNORED = frozenset(("show_extras_results", "upscale_first", "codeformer_weight", "upscaler_2", "model"))

Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
Size = tuple[int, int]

router = APIRouter()


class ExtrasRequest(WebUIModel):
    """What is done with each image."""

    # By `upscaling_resize`, or to a size.
    resize_mode: Literal[0, 1] = 0
    upscaling_resize: Annotated[float, Field(ge=1, le=8)] = 2.0
    upscaling_resize_w: Side = 512
    upscaling_resize_h: Side = 512
    upscaling_crop: bool = True
    upscaler_1: str = NONE

    def size_of(self, image: Size) -> Size:
        """Return the size of the result for an image."""
        width, height = image
        if self.resize_mode == 0:
            return round(width * self.upscaling_resize), round(height * self.upscaling_resize)
        wanted = self.upscaling_resize_w, self.upscaling_resize_h
        if self.upscaling_crop:
            return wanted
        scale = max(wanted[0] / width, wanted[1] / height)
        return round(width * scale), round(height * scale)


class SingleRequest(ExtrasRequest):
    """The body of `extra-single-image`."""

    image: str


class NamedImage(BaseModel):
    """One image of several."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    data: str
    name: str = ""


class BatchRequest(ExtrasRequest):
    """The body of `extra-batch-images`."""

    images: Annotated[list[NamedImage], Field(alias="imageList", min_length=1, max_length=MAX_IMAGES)]


@router.post("/extra-single-image")
async def extra_single_image(request: Request, jobs: BlockingJobsDep) -> dict[str, Any]:
    """Enlarges an image."""
    body = await read_json(request, SingleRequest, strict=False)
    with web_ui_fields():
        image = await _enlarge(body, parse_web_image("image", body.image), jobs)
    return {"html_info": "", "image": await run_sync(encoded, image)}


@router.post("/extra-batch-images")
async def extra_batch_images(request: Request, jobs: BlockingJobsDep) -> dict[str, Any]:
    """Enlarges several images, one after the other."""
    body = await read_json(request, BatchRequest, strict=False)
    images = []
    with web_ui_fields():
        for index, item in enumerate(body.images):
            image = parse_web_image(f"imageList.{index}.data", item.data)
            images.append(await run_sync(encoded, await _enlarge(body, image, jobs, index)))
    return {"html_info": "", "images": images}


async def _enlarge(body: ExtrasRequest, image: bytes, jobs: BlockingJobs, part: int = 0) -> bytes:
    check_unknown({name: value for name, value in body.unknown.items() if name not in IGNORED})
    if body.upscaler_1 in RESAMPLING:
        return await jobs.decoders.run(_resample, body, image, jobs, images=[image])
    name = await run_sync(chosen_model, jobs)
    card = await run_sync(jobs.submitter.model_card, name)
    factors = upscalers_of(card)
    if body.upscaler_1 not in factors:
        message = f"Input should be one of: {', '.join((*RESAMPLING, *factors))}"
        raise ParameterError("upscaler_1", message, got=body.upscaler_1)
    factor = factors[body.upscaler_1]
    size = await jobs.decoders.run(_target, body, image, factor, jobs, images=[image])
    fields = {"image": image, "upscale": factor, "model": card.name}
    record = await jobs.end((await jobs.start(validated(Img2ImgRequest, fields), part)).id)
    [enlarged, *_] = await jobs.pngs(record)
    return await jobs.decoders.convert(_fitted, enlarged, size)


def _resample(body: ExtrasRequest, image: bytes, jobs: BlockingJobs) -> bytes:
    """Enlarge an image by interpolation; without an upscaler it keeps its size, as in the web UI."""
    with jobs.decoders.open(image) as opened:
        size = _checked(body.size_of(opened.size), jobs)
        pixels = opened.rgb()
    if body.upscaler_1 == NONE:
        return encode_png(pixels)
    return encode_png(fit(pixels, *size, Resize.CROP, RESAMPLING[body.upscaler_1]))


def _target(body: ExtrasRequest, image: bytes, factor: int, jobs: BlockingJobs) -> Size:
    """Return the size of the result. Raises ParameterError if the upscaler does not reach it."""
    with jobs.decoders.open(image) as opened:
        size = _checked(body.size_of(opened.size), jobs)
        if size[0] > factor * opened.size[0] or size[1] > factor * opened.size[1]:
            field = "upscaling_resize" if body.resize_mode == 0 else "upscaling_resize_w"
            raise ParameterError(field, f"This upscaler enlarges {factor} times at most", got=body.upscaler_1)
    return size


def _checked(size: Size, jobs: BlockingJobs) -> Size:
    most = jobs.settings.max_pixels
    if size[0] * size[1] > most:
        message = f"The result would have {size[0]} x {size[1]} pixels; at most {most:,} are made"
        raise ParameterError("upscaling_resize", message)
    return size


def _fitted(png: bytes, size: Size) -> bytes:
    with Image.open(BytesIO(png), formats=("PNG",)) as image:
        return png if image.size == size else encode_png(fit(image.convert("RGB"), *size, Resize.CROP))
