"""From a request to a JobSpec: the task chosen, every default made explicit, its pictures as the worker takes them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256

from PIL import Image

from img2img.domain.conditioning import Control, ImagePrompt, InpaintRegion, Padding
from img2img.domain.model_card import ModelCard
from img2img.domain.spec import JobSpec, Resize, Task
from img2img.domain.tiling import Tiling
from img2img.errors import ParameterError

from ..http.errors import ImageError, UnsupportedMedia
from ..imaging.decode import encode_png
from ..imaging.sandbox_pool import SandboxedImage
from ..schemas.image_references import ImageReference
from ..schemas.requests import ALPHA, Img2ImgRequest
from .defaults import resolve_scheduler, resolve_seed, resolve_size, resolve_steps
from .geometry import Box, padded, strips, union, working_size
from .task_selection import card_for, check_model, choose_task

STRENGTHS = {Task.IMG2IMG: 0.8, Task.INPAINT: 1.0, Task.CONTROL: 1.0, Task.EDIT: 1.0, Task.UPSCALE: 0.3}
IMAGE_GUIDANCE_SCALE = 1.5
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
class _Layout:
    """The job's picture, and where the model works on it."""

    blob: str | None
    width: int
    height: int
    control_size: tuple[int, int]  # what a control's own picture is brought to
    repaint: InpaintRegion | None = None
    tiling: Tiling | None = None
    is_tiled: bool = False  # in more than one tile


@dataclass
class SpecBuilder:
    """Makes a spec of one request, and collects the blobs that it names."""

    request: Img2ImgRequest
    card: ModelCard
    open: Open
    max_pixels: int
    blobs: dict[str, bytes] = field(default_factory=dict)  # PNG by sha256

    def plan(self) -> JobSpec:
        """The spec. Raises ParameterError, PictureError or UnsupportedMedia."""
        request = self.request
        task = choose_task(request)
        check_model(request, task, self.card)
        card = card_for(request, self.card)
        seed = resolve_seed(request.seed, request.num_images)
        layout = self._layout(task)
        scheduler = resolve_scheduler(request, card, is_tiled=layout.is_tiled)
        guidance_scale = request.guidance_scale or (card.default_guidance_scale if card.guidance else 1.0)
        for name in ("negative_prompt", "image_guidance_scale"):
            if guidance_scale == 1 and (given := getattr(request, name)):
                message = "Without guidance it does nothing: leave it out, or give a `guidance_scale` above 1"
                raise ParameterError(name, message, got=given)
        by_picture = task is Task.EDIT and card.image_guidance
        return JobSpec(
            task=task,
            model=card.name,
            image=layout.blob,
            prompt=request.instruction or request.prompt,
            negative_prompt=request.negative_prompt,
            prompt_weighting=request.prompt_weighting,
            strength=self._strength(task),
            denoising_start=request.denoising_start,
            guidance_scale=guidance_scale,
            guidance_rows=card.guidance_rows,
            image_guidance_scale=(request.image_guidance_scale or IMAGE_GUIDANCE_SCALE) if by_picture else None,
            num_inference_steps=resolve_steps(request.num_inference_steps, scheduler, card),
            scheduler=scheduler,
            seed=seed,
            num_images=request.num_images,
            width=layout.width,
            height=layout.height,
            resize=request.resize,
            repaint=layout.repaint,
            upscale=request.upscale,
            tiling=layout.tiling,
            controls=self._controls(layout),
            image_prompts=self._image_prompts(),
            loras=request.loras,
        )

    def _strength(self, task: Task) -> float:
        if self.request.strength is not None:
            return self.request.strength
        if self.request.denoising_start is not None:
            return 1.0  # it does not count
        return 1.0 if self.card.upscaler(self.request.upscale) else STRENGTHS[task]

    def _layout(self, task: Task) -> _Layout:
        request = self.request
        if task is Task.CONTROL:
            first = self._open("controls.0.image", request.controls[0].image)
            width, height = resolve_size(request.width, request.height, first.size, self.card)
            return _Layout(None, width, height, (width, height))
        upload = self._open("image", request.image)
        if task is Task.INPAINT:
            return self._inpaint(upload)
        if task is Task.UPSCALE:
            return self._upscale(upload)
        width, height = resolve_size(request.width, request.height, upload.size, self.card)
        return _Layout(self._keep(upload.fit(width, height, request.resize)), width, height, (width, height))

    def _upscale(self, upload: SandboxedImage) -> _Layout:
        (width, height), times = upload.size, self.request.upscale or 1
        if width * height * times**2 > self.max_pixels:
            message = (
                f"The result would have {width * times} x {height * times} pixels; at most {self.max_pixels:,} are made"
            )
            raise ParameterError("upscale", message, got=times)
        upscaler = self.card.upscaler(times)
        side, multiple = (upscaler or self.card).native_size, (upscaler or self.card).size_multiple
        overlap = min(multiple * -(-side // TILE_OVERLAP // multiple), side - multiple)
        work = upscaler.work if upscaler else 1.0
        tiling = Tiling(upscaler=upscaler is not None, side=side, overlap=overlap, multiple=multiple, work=work)
        is_tiled = len(tiling.grid((width * times, height * times))) > 1
        return _Layout(self._keep(upload.rgb()), width, height, (width, height), tiling=tiling, is_tiled=is_tiled)

    def _inpaint(self, upload: SandboxedImage) -> _Layout:
        request, size = self.request, upload.size
        margins = request.outpaint or Padding()
        canvas = (size[0] + margins.left + margins.right, size[1] + margins.top + margins.bottom)
        if canvas[0] * canvas[1] > self.max_pixels:
            raise ParameterError("outpaint", self._too_large(*canvas))
        mask = self._mask(upload) if request.mask is not None else None
        box = self._box(mask, margins, canvas)
        width, height = working_size(box, self.card)
        if request.width is not None or request.height is not None:
            shape = (box[2] - box[0], box[3] - box[1])
            width, height = resolve_size(request.width, request.height, shape, self.card)
        repaint = InpaintRegion(
            mask=self._keep(mask) if mask else None,
            blur=MASK_BLUR if request.mask_blur is None else request.mask_blur,
            margins=margins,
            canvas=canvas,
            box=box,
        )
        return _Layout(self._keep(upload.rgb()), width, height, canvas, repaint)

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

    def _controls(self, layout: _Layout) -> tuple[Control, ...]:
        controls = []
        for index, control in enumerate(self.request.controls):
            blob = None
            if control.image is not None:
                name = f"controls.{index}.image"
                upload = self._open(name, control.image)
                size = layout.control_size
                if layout.repaint and upload.size == layout.repaint.picture_size:
                    size = upload.size  # it lies where the picture lies, and the worker gives it margins, too
                with error_field(name):
                    blob = self._keep(upload.fit(*size, self.request.resize))
            steering = control.model_dump(include={"scale", "start", "end"})
            controls.append(Control(type=control.type, image=blob, preprocess=control.preprocess, **steering))
        return tuple(controls)

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
