"""From a request to a JobSpec: the task chosen, every default made explicit, its pictures as the worker takes them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from PIL import Image

from img2img.domain.conditioning import Control, ControlWeight, ImagePrompt, InpaintRegion, Padding
from img2img.domain.model_card import ModelCard
from img2img.domain.parameters import GenerationParameters, Resize, Task
from img2img.domain.spec import ControlSpec, EditSpec, Img2ImgSpec, InpaintSpec, JobSpec, UpscaleSpec
from img2img.domain.tiling import Tiling
from img2img.errors import ParameterError

from ..http.errors import ImageError, UnsupportedMedia
from ..imaging.decode import encode_png
from ..imaging.sandbox_pool import SandboxedImage
from ..schemas.image_references import ImageReference
from ..schemas.requests import ALPHA, Img2ImgRequest
from .defaults import resolve_scheduler, resolve_seed, resolve_size, resolve_steps
from .geometry import Box, padded, strips, union, working_size
from .task_selection import check_model, check_resolved, choose_task

DEFAULT_STRENGTH = 0.8
DEFAULT_INPAINT_STRENGTH = 1.0
DEFAULT_UPSCALE_STRENGTH = 0.3
DEFAULT_IMAGE_GUIDANCE_SCALE = 1.5
MASK_BLUR = 4
TILE_OVERLAP = 8  # tiles overlap by at least an eighth of their side
MAX_PROMPT_SIDE = 1024  # of an image prompt; its encoder sees a few hundred pixels

Open = Callable[[str, bytes | ImageReference], SandboxedImage]  # a picture of the request, by its field


@contextmanager
def error_field(name: str) -> Iterator[None]:
    """Says of a picture that is refused which field it came in."""
    try:
        yield
    except (ImageError, UnsupportedMedia) as error:
        error.field = name
        raise


@dataclass
class SpecBuilder:
    """Builds the spec of one request and collects the blobs that it refers to."""

    request: Img2ImgRequest
    card: ModelCard
    open: Open
    max_pixels: int
    # PNGs by their sha256.
    blobs: dict[str, bytes] = field(default_factory=dict)

    def plan(self) -> JobSpec:
        """Return the spec. Raises ParameterError, ImageError or UnsupportedMedia."""
        task = choose_task(self.request)
        check_model(self.request, task, self.card)
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
        image, width, height = self._fitted_image()
        return Img2ImgSpec(
            image=image,
            **self._strength(DEFAULT_STRENGTH),
            **self._controls((width, height)),
            **self._generation(width, height, self.card),
        )

    def _control(self) -> ControlSpec:
        request = self.request
        first = self._open("controls.0.image", request.controls[0].image)
        width, height = resolve_size(request.width, request.height, first.size, self.card)
        return ControlSpec(
            prompt=request.prompt, **self._controls((width, height)), **self._generation(width, height, self.card)
        )

    def _edit(self) -> EditSpec:
        image, width, height = self._fitted_image()
        guidance = self.request.image_guidance_scale or DEFAULT_IMAGE_GUIDANCE_SCALE
        return EditSpec(
            image=image,
            instruction=self.request.instruction,
            image_guidance_scale=guidance if self.card.image_guidance else None,
            resize=self.request.resize,
            **self._generation(width, height, self.card),
        )

    def _upscale(self) -> UpscaleSpec:
        upload = self._open("image", self.request.image)
        (width, height), times = upload.size, self.request.upscale or 1
        if width * height * times**2 > self.max_pixels:
            raise ParameterError("upscale", self._too_large(width * times, height * times), got=times)
        upscaler = self.card.upscaler(times)
        side, multiple = (upscaler or self.card).native_size, (upscaler or self.card).size_multiple
        overlap = min(multiple * -(-side // TILE_OVERLAP // multiple), side - multiple)
        work = upscaler.work if upscaler else 1.0
        tiling = Tiling(upscaler=upscaler is not None, side=side, overlap=overlap, multiple=multiple, work=work)
        is_tiled = len(tiling.grid((width * times, height * times))) > 1
        # An upscaler model starts from pure noise.
        return UpscaleSpec(
            image=self._keep(upload.rgb()),
            upscale=times,
            tiling=tiling,
            **self._strength(1.0 if upscaler else DEFAULT_UPSCALE_STRENGTH),
            **self._generation(width, height, self.card.for_upscale(times), is_tiled=is_tiled),
        )

    def _inpaint(self) -> InpaintSpec:
        request, upload = self.request, self._open("image", self.request.image)
        margins, size = request.outpaint or Padding(), upload.size
        canvas = (size[0] + margins.left + margins.right, size[1] + margins.top + margins.bottom)
        if canvas[0] * canvas[1] > self.max_pixels:
            raise ParameterError("outpaint", self._too_large(*canvas))
        mask = self._mask(upload) if request.mask is not None else None
        box = self._box(mask, margins, canvas)
        width, height = working_size(box, self.card)
        if request.width is not None or request.height is not None:
            shape = (box[2] - box[0], box[3] - box[1])
            width, height = resolve_size(request.width, request.height, shape, self.card)
        region = InpaintRegion(
            mask=self._keep(mask) if mask else None,
            blur=MASK_BLUR if request.mask_blur is None else request.mask_blur,
            margins=margins,
            canvas=canvas,
            box=box,
        )
        return InpaintSpec(
            image=self._keep(upload.rgb()),
            region=region,
            **self._strength(DEFAULT_INPAINT_STRENGTH),
            **self._controls(canvas, image_size=size),
            **self._generation(width, height, self.card),
        )

    def _generation(self, width: int, height: int, card: ModelCard, *, is_tiled: bool = False) -> dict[str, Any]:
        """Return the fields that all generating tasks share."""
        request = self.request
        scheduler = resolve_scheduler(request, card, is_tiled=is_tiled)
        guidance_scale = request.guidance_scale or (card.default_guidance_scale if card.guidance else 1.0)
        check_resolved(request, card, guidance_scale, scheduler)
        return {
            **{name: getattr(request, name) for name in GenerationParameters.model_fields},
            "model": card.name,
            "width": width,
            "height": height,
            "guidance_scale": guidance_scale,
            "guidance_rows": card.guidance_rows,
            "num_inference_steps": resolve_steps(request.num_inference_steps, scheduler, card),
            "scheduler": scheduler,
            "seed": resolve_seed(request.seed, request.num_images),
            "image_prompts": self._image_prompts(),
        }

    def _strength(self, default: float) -> dict[str, Any]:
        request = self.request
        # With `denoising_start` the strength has no effect.
        resolved = 1.0 if request.denoising_start is not None else default
        return {"prompt": request.prompt, "strength": resolved if request.strength is None else request.strength}

    def _fitted_image(self) -> tuple[str, int, int]:
        """Return the image brought to the size of the result, and that size."""
        request, upload = self.request, self._open("image", self.request.image)
        width, height = resolve_size(request.width, request.height, upload.size, self.card)
        return self._keep(upload.fit(width, height, request.resize)), width, height

    def _too_large(self, width: int, height: int) -> str:
        return f"The result would have {width} x {height} pixels; at most {self.max_pixels:,} are made"

    def _mask(self, upload: SandboxedImage) -> Image.Image:
        sent_as = self.request.mask
        if sent_as == ALPHA:
            mask = upload.transparency()
            nothing = "`image` is not transparent anywhere; send a mask"
        else:
            sent = self._open("mask", sent_as)
            if sent.size != upload.size:
                message = "The mask has {} x {} pixels and the image {} x {}: they should be of one size"
                raise ParameterError("mask", message.format(*sent.size, *upload.size))
            with error_field("mask"):
                mask = sent.luminance()
            nothing = "The mask is black all over; white is what is painted anew"
        if not any(mask.histogram()[128:]):
            raise ParameterError("mask", nothing)
        return mask

    def _box(self, mask: Image.Image | None, margins: Padding, canvas: tuple[int, int]) -> Box:
        whole = (0, 0, *canvas)
        padding = self.request.mask_padding
        if padding is None:
            return whole
        boxes = strips(margins, canvas)
        masked = mask.getbbox() if mask else None
        if masked:
            left, top, right, bottom = masked
            boxes.append((left + margins.left, top + margins.top, right + margins.left, bottom + margins.top))
        return padded(union(boxes), padding, canvas, self.card)

    def _controls(self, size: tuple[int, int], image_size: tuple[int, int] | None = None) -> dict[str, Any]:
        """Return the controls and how their images are resized.

        Args:
            size: Size of the result, to which the images of controls are brought.
            image_size: Size of the inpainted image; a control image of this size gets the same margins.
        """
        controls = []
        for index, control in enumerate(self.request.controls):
            blob = None
            if control.image is not None:
                name = f"controls.{index}.image"
                upload = self._open(name, control.image)
                with error_field(name):
                    blob = self._keep(
                        upload.fit(*(size if upload.size != image_size else upload.size), self.request.resize)
                    )
            weight = control.model_dump(include=set(ControlWeight.model_fields))
            controls.append(Control(type=control.type, image=blob, preprocess=control.preprocess, **weight))
        return {"controls": tuple(controls), "resize": self.request.resize}

    def _image_prompts(self) -> tuple[ImagePrompt, ...]:
        prompts = []
        for index, prompt in enumerate(self.request.image_prompts):
            name = f"image_prompts.{index}.image"
            upload = self._open(name, prompt.image)
            share = min(1.0, MAX_PROMPT_SIDE / max(upload.size))
            width, height = (max(1, round(side * share)) for side in upload.size)
            with error_field(name):
                prompts.append(
                    ImagePrompt(image=self._keep(upload.fit(width, height, Resize.STRETCH)), scale=prompt.scale)
                )
        return tuple(prompts)

    def _open(self, name: str, picture: bytes | ImageReference | str | None) -> SandboxedImage:
        assert picture is not None
        assert not isinstance(picture, str)
        with error_field(name):
            return self.open(name, picture)

    def _keep(self, picture: Image.Image) -> str:
        data = encode_png(picture)
        digest = sha256(data).hexdigest()
        self.blobs[digest] = data
        return digest
