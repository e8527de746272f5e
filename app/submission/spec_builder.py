"""Builds the job spec of a request: resolves defaults, decodes the images and encodes them as the worker reads them."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from PIL import Image

from img2img.domain.conditioning import (
    Control,
    ControlType,
    ControlWeight,
    ImagePrompt,
    InpaintRegion,
    Padding,
    ReferenceImage,
    Region,
)
from img2img.domain.generation_parameters import GenerationParameters
from img2img.domain.geometry import visible_box, working_size
from img2img.domain.model_card import ModelCard
from img2img.domain.parameters import Background, Resize, Task
from img2img.domain.presigned_upload import PresignedUpload
from img2img.domain.spec import (
    ControlMapSpec,
    ControlSpec,
    EditSpec,
    Img2ImgSpec,
    InpaintSpec,
    JobSpec,
    UpscaleSpec,
    schedule_of_steps,
)
from img2img.domain.tiling import Tiling
from img2img.errors import ParameterError
from img2img.imaging.decode import to_binary

from ..schemas.image_references import ImageReference
from ..schemas.request_fields import ALPHA, BackgroundPrompt, MaskObject
from ..schemas.requests import ControlMapRequest, Img2ImgRequest
from .defaults import check_schedule, resolve_generation, resolve_size
from .image_reader import ImageReader
from .masks import check_mask_query, mask_blur
from .task_selection import choose_task

Size = tuple[int, int]

DEFAULT_STRENGTH = 0.8
DEFAULT_INPAINT_STRENGTH = 1.0
DEFAULT_UPSCALE_STRENGTH = 0.3
DEFAULT_IMAGE_GUIDANCE_SCALE = 1.5
EMPTY_ALPHA = "`image` is not transparent anywhere; send a mask"
EMPTY_MASK = "The mask is black all over; white pixels are regenerated, and transparent pixels count as black"
FLAT_MAP = "The control map has one colour all over, so there is nothing to follow; transparent pixels count as black"
FLAT_IMAGE = "The image has one colour all over, so no map can be made of it; transparent pixels count as white"
# Controls whose map has a meaning by its contours only, so that a map of one colour has none.
NEVER_FLAT = frozenset(
    (ControlType.CANNY, ControlType.SCRIBBLE, ControlType.LINEART, ControlType.SOFTEDGE, ControlType.MLSD)
) | {ControlType.DEPTH, ControlType.NORMAL, ControlType.POSE}
# Tiles overlap by at least this part of their side.
TILE_OVERLAP = 8
# FLUX.2 takes no reference images with a shorter side, or of another aspect ratio.
MIN_REFERENCE_SIDE = 64
MAX_REFERENCE_RATIO = 8
# Pixels along a side of an image prompt. Its encoder sees a few hundred pixels.
MAX_PROMPT_SIDE = 1024


@dataclass(frozen=True)
class SpecBuilder:
    """Builds the spec of a request whose fields go together and are supported by the model."""

    request: Img2ImgRequest
    card: ModelCard
    reader: ImageReader
    max_pixels: int
    # The fields that need no image, by `resolve_generation`. Upscaling resolves them itself.
    resolved: Mapping[str, Any]

    def build(self, task: Task) -> JobSpec:
        """Return the spec. Raises ParameterError, ImageError or UnsupportedMedia."""
        spec = self._spec(task)
        check_schedule(spec)
        return spec

    def _spec(self, task: Task) -> JobSpec:
        match task:
            case Task.CONTROL:
                return self._control()
            case Task.INPAINT:
                return self._inpaint()
            case Task.EDIT:
                return self._edit()
            case Task.UPSCALE:
                return self._upscale()
        return self._img2img()

    def _img2img(self) -> Img2ImgSpec:
        request, upload = self.request, None
        if _is_deferred(request, self.reader):
            upload = cast(PresignedUpload, request.image)
            image, size = upload.sha256, resolve_size(request.width, request.height, upload.size or (1, 1), self.card)
        else:
            image, size = _fit_image(request, self.card, self.reader)
        strength, controls = self._strength(DEFAULT_STRENGTH), self._controls(size)
        refined = self._refined(strength["strength"])
        return Img2ImgSpec(
            image=image,
            regions=tuple(self._regions(size)),
            upload=upload.id if upload else None,
            **strength,
            **refined,
            **controls,
            **self._generation(size),
        )

    def _regions(self, size: Size) -> Iterator[Region]:
        for index, region in enumerate(self.request.regions):
            name = f"regions.{index}.mask"
            with self.reader.open(name, region.mask) as opened:
                mask = opened.fit(*size, self.request.resize, is_map=True).convert("L")
            if not mask.getbbox():
                raise ParameterError(name, "The mask is black all over; the prompt acts where it is white")
            yield Region(mask=self.reader.add_blob(mask), prompt=region.prompt, weight=region.weight)

    def _control(self) -> ControlSpec:
        request = self.request
        control = request.controls[0]
        with self.reader.open("controls.0.image", control.image) as first:
            size = resolve_size(request.width, request.height, first.size, self.card)
            fitted = first.fit(*size, request.resize, is_map=not control.preprocess)
        controls = self._controls(size, first=fitted)
        return ControlSpec(prompt=request.prompt, **controls, **self._generation(size))

    def _edit(self) -> EditSpec:
        request = self.request
        images = [(f"images.{index}", image) for index, image in enumerate(request.images)]
        first, *others = [("image", request.image), *images] if request.image is not None else images
        image, size = _fit_image(request, self.card, self.reader, *first)
        guidance = request.image_guidance_scale or DEFAULT_IMAGE_GUIDANCE_SCALE
        return EditSpec(
            image=image,
            references=tuple(self._reference(*other) for other in others),
            instruction=request.instruction,
            image_guidance_scale=guidance if self.card.image_guidance else None,
            resize=request.resize,
            **self._generation(size),
        )

    def _reference(self, name: str, image: bytes | ImageReference) -> ReferenceImage:
        """Return a reference image in its aspect ratio, with at most as many pixels as the model was trained on."""
        with self.reader.open(name, image) as opened:
            if max(opened.size) > MAX_REFERENCE_RATIO * min(opened.size):
                message = f"It is more than {MAX_REFERENCE_RATIO} times as long as wide; crop it"
                raise ParameterError(name, message)
            scale = min(1.0, self.card.native_size / math.sqrt(opened.size[0] * opened.size[1]))
            scale = max(scale, MIN_REFERENCE_SIDE / min(opened.size))
            width, height = (max(1, round(side * scale)) for side in opened.size)
            fitted = opened.fit(width, height, Resize.STRETCH)
        return ReferenceImage(image=self.reader.add_blob(fitted), width=width, height=height)

    def _upscale(self) -> UpscaleSpec:
        factor = self.request.upscale or 1
        with self.reader.open("image", self.request.image) as image:
            result_size = (image.size[0] * factor, image.size[1] * factor)
            if result_size[0] * result_size[1] > self.max_pixels:
                raise ParameterError("upscale", self._too_large(result_size), got=factor)
            size, pixels = image.size, image.rgb()
        upscaler = self.card.upscaler(factor)
        side, multiple = (upscaler or self.card).native_size, (upscaler or self.card).size_multiple
        overlap = min(multiple * -(-side // TILE_OVERLAP // multiple), side - multiple)
        work = upscaler.work if upscaler else 1.0
        tiling = Tiling(upscaler=upscaler is not None, side=side, overlap=overlap, multiple=multiple, work=work)
        is_tiled = len(tiling.grid(result_size)) > 1
        return UpscaleSpec(
            image=self.reader.add_blob(pixels),
            upscale=factor,
            tiling=tiling,
            # An upscaler model starts from pure noise.
            **self._strength(1.0 if upscaler else DEFAULT_UPSCALE_STRENGTH),
            **self._generation(size, self.card.for_upscale(factor), is_tiled=is_tiled),
        )

    def _inpaint(self) -> InpaintSpec:
        request, margins = self.request, self.request.outpaint or Padding()
        mask = None
        with self.reader.open("image", request.image) as image:
            size = image.size
            canvas = (size[0] + margins.left + margins.right, size[1] + margins.top + margins.bottom)
            if canvas[0] * canvas[1] > self.max_pixels:
                raise ParameterError("outpaint", self._too_large(canvas))
            if request.mask == ALPHA:
                mask = image.transparency()
            pixels = image.rgb()
        given = request.mask
        find = given if isinstance(given, MaskObject) else None
        if isinstance(given, MaskObject):
            check_mask_query(given, self.card, size, "mask")
        elif given is not None and given != ALPHA:
            with self.reader.open("mask", given) as opened:
                if opened.size != size:
                    message = "The mask has {} x {} pixels and the image {} x {}: they should be of one size"
                    raise ParameterError("mask", message.format(*opened.size, *size))
                mask = opened.luminance()
        if mask is not None:
            mask = mask if request.soft_inpainting else to_binary(mask)
            if not mask.getbbox():
                raise ParameterError("mask", EMPTY_ALPHA if request.mask == ALPHA else EMPTY_MASK)
        # The worker chooses the box of a mask that it finds.
        padding = None if find else request.mask_padding
        box = visible_box(mask.getbbox() if mask else None, margins, canvas, padding, self.card)
        model_size = working_size(box, self.card)
        if request.width is not None or request.height is not None:
            model_size = resolve_size(request.width, request.height, (box[2] - box[0], box[3] - box[1]), self.card)
        strength, controls = self._strength(DEFAULT_INPAINT_STRENGTH), self._controls(canvas, image_size=size)
        generation = self._generation(model_size)
        region = InpaintRegion(
            mask=self.reader.add_blob(mask) if mask else None,
            background=isinstance(request.background, BackgroundPrompt),
            find=find.query if find else None,
            blur=mask_blur(request),
            content=request.mask_content,
            is_soft=request.soft_inpainting,
            margins=margins,
            canvas=canvas,
            box=box,
            padding=request.mask_padding,
        )
        image_digest = self.reader.add_blob(pixels)
        refined = self._refined(strength["strength"])
        return InpaintSpec(image=image_digest, region=region, **strength, **refined, **controls, **generation)

    def _too_large(self, size: Size) -> str:
        return f"The result would have {size[0]} x {size[1]} pixels; at most {self.max_pixels:,} are made"

    def _generation(self, size: Size, card: ModelCard | None = None, *, is_tiled: bool = False) -> dict[str, Any]:
        """Return the fields that all generating tasks share.

        Args:
            card: The card with the defaults, if they are not those of the model.
        """
        request = self.request
        resolved = self.resolved if card is None else resolve_generation(request, card, is_tiled=is_tiled)
        parameters = {name: getattr(request, name) for name in GenerationParameters.model_fields}
        width, height = size
        if isinstance(request.background, BackgroundPrompt):
            # It is made by inpainting, and the result is opaque.
            parameters["background"] = Background.KEEP
        image_prompts = self._image_prompts()
        return {
            **parameters,
            **resolved,
            "model": self.card.name,
            "width": width,
            "height": height,
            "image_prompts": image_prompts,
        }

    def _strength(self, default: float) -> dict[str, Any]:
        request = self.request
        # With `denoising_start` the strength has no effect.
        resolved = 1.0 if request.denoising_start is not None else default
        new_background = request.background if isinstance(request.background, BackgroundPrompt) else None
        prompt = new_background.prompt if new_background else request.prompt
        return {"prompt": prompt, "strength": resolved if request.strength is None else request.strength}

    def _refined(self, strength: float) -> dict[str, Any]:
        """Return where the refiner takes over. ControlNets and regions work without it."""
        request, end = self.request, self.request.denoising_end
        others = request.controls or request.regions or request.soft_inpainting
        if not self.card.refiner or others or end == 1:
            return {}
        end = end or self.card.default_denoising_end
        steps = self.resolved["num_inference_steps"]
        if request.exact_steps and strength > 0:
            steps = schedule_of_steps(steps, strength, self.resolved["scheduler"])
        # Pipelines run whole steps only.
        start = 1 - int(steps * strength) / steps if request.denoising_start is None else request.denoising_start
        base_only = [name for name in ("loras", "image_prompts") if getattr(request, name)]
        if end is not None and strength > 0 and start >= end and base_only:
            message = "All steps are after `denoising_end`, and the refiner that runs them takes none: give "
            raise ParameterError(base_only[0], message + "a higher strength, or `denoising_end` 1 for no refiner")
        return {"denoising_end": end}

    def _controls(
        self, size: Size, *, image_size: Size | None = None, first: Image.Image | None = None
    ) -> dict[str, Any]:
        """Return the controls and how their images are resized.

        Args:
            size: Size of the result, to which the images of controls are brought.
            image_size: Size of the inpainted image; a control image of this size gets the same margins.
            first: The image of the first control, if it is decoded already.
        """
        resize, controls = self.request.resize, []
        for index, control in enumerate(self.request.controls):
            fitted = first if index == 0 else None
            if control.image is not None and fitted is None:
                with self.reader.open(f"controls.{index}.image", control.image) as image:
                    fitted_size = image.size if image.size == image_size else size
                    fitted = image.fit(*fitted_size, resize, is_map=not control.preprocess)
            if fitted is not None and control.type in NEVER_FLAT and _is_flat(fitted):
                raise ParameterError(f"controls.{index}.image", FLAT_MAP if not control.preprocess else FLAT_IMAGE)
            blob = self.reader.add_blob(fitted) if fitted is not None else None
            weight = control.model_dump(include=set(ControlWeight.model_fields))
            controls.append(Control(type=control.type, image=blob, preprocess=control.preprocess, **weight))
        return {"controls": tuple(controls), "resize": resize, "refine": self.request.refine}

    def _image_prompts(self) -> tuple[ImagePrompt, ...]:
        prompts = []
        for index, prompt in enumerate(self.request.image_prompts):
            with self.reader.open(f"image_prompts.{index}.image", prompt.image) as image:
                scale = min(1.0, MAX_PROMPT_SIDE / max(image.size))
                width, height = (max(1, round(side * scale)) for side in image.size)
                fitted = image.fit(width, height, Resize.STRETCH)
            prompts.append(ImagePrompt(image=self.reader.add_blob(fitted), scale=prompt.scale, blocks=prompt.blocks))
        return tuple(prompts)


def build_control_map_spec(request: ControlMapRequest, card: ModelCard, reader: ImageReader) -> ControlMapSpec:
    """Return the spec of a control map. It has the size that an image-to-image job with this image would have.

    Raises:
        ParameterError, ImageError, UnsupportedMedia: The request cannot be served.
    """
    if request.type not in card.preprocessors:
        message = f"The model {card.name} can make maps of these types: {', '.join(card.preprocessors) or 'none'}"
        raise ParameterError("type", message, got=request.type)
    image, (width, height) = _fit_image(request, card, reader)
    return ControlMapSpec(
        model=card.name, image=image, type=request.type, width=width, height=height, resize=request.resize
    )


def needs_decoder(request: Img2ImgRequest) -> bool:
    """Return whether an image of a request is decoded by the API server, unless `ImageReader.may_defer` is false."""
    controls, prompts = (control.image for control in request.controls), (one.image for one in request.image_prompts)
    regions = (region.mask for region in request.regions)
    others = (request.mask, *request.images, *controls, *prompts, *regions)
    return any(image is not None for image in others) or not _can_be_deferred(request)


def _can_be_deferred(request: Img2ImgRequest) -> bool:
    """Return whether the size of the result is known without looking at the image, which was sent to the bucket."""
    image = request.image
    if not isinstance(image, PresignedUpload) or choose_task(request) is not Task.IMG2IMG:
        return False
    return image.size is not None or (request.width is not None and request.height is not None)


def _is_deferred(request: Img2ImgRequest, reader: ImageReader) -> bool:
    image = request.image
    return isinstance(image, PresignedUpload) and _can_be_deferred(request) and reader.defer("image", image)


def _fit_image(
    request: Img2ImgRequest | ControlMapRequest,
    card: ModelCard,
    reader: ImageReader,
    name: str = "image",
    image: bytes | ImageReference | None = None,
) -> tuple[str, Size]:
    """Bring an image, by default that of the request, to the size of the result. Returns its sha256 and that size.

    Args:
        name: Its field.
    """
    with reader.open(name, image or request.image) as opened:
        size = resolve_size(request.width, request.height, opened.size, card)
        fitted = opened.fit(*size, request.resize)
    return reader.add_blob(fitted), size


def _is_flat(image: Image.Image) -> bool:
    return image.getcolors(maxcolors=1) is not None
