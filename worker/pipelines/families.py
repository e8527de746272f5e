"""The kinds of models that are served: the stock pipelines of their tasks, and how a job becomes their arguments."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.flux.pipeline_flux_kontext import PREFERRED_KONTEXT_RESOLUTIONS
from PIL import Image

from img2img.domain.parameters import DIFFUSION_SCHEDULERS, FLOW_SCHEDULERS, Scheduler, Task
from img2img.domain.spec import DenoisingSpec

from .image_processors import image_only_processor

Arguments = dict[str, Any]
# FLUX and its kin hand their scheduler the noise levels; the Heun scheduler makes its own and takes none.
GIVEN_SIGMAS = (Scheduler.FLOW_EULER, Scheduler.FLOW_EULER_BETA)


@dataclass(frozen=True, kw_only=True)
class Family:
    """A kind of model."""

    name: str
    sources: tuple[str, ...]  # what `_class_name` in a model_index.json says
    pipelines: Mapping[Task, type[DiffusionPipeline]]  # of each task that the model's own parts are enough for
    schedulers: tuple[Scheduler, ...] = DIFFUSION_SCHEDULERS
    cuda_dtype: str = "float16"
    patch: int = 1  # latent pixels along a side of what the denoiser takes for one
    sizes: tuple[tuple[int, int], ...] = ()  # (width, height) that it was trained on; empty: our own buckets
    steps: int = 30  # defaults of requests
    guidance_scale: float = 7.5
    negative_prompt: bool = True
    clip_prompts: bool = False  # conditioned by CLIP's embeddings alone: prompts can be long, and have weights
    image_guidance: bool = True  # an edit can be guided by the picture, too (InstructPix2Pix)
    guidance: Callable[[DiffusionPipeline], bool] = lambda _pipeline: True  # whether this model takes any
    guidance_rows: int = 2  # of a pass with guidance; 1: it is an input of the denoiser
    # Arguments of the denoiser without rows of their own.
    shared: tuple[str, ...] = ()
    # Modules that are loaded in a way of their own, by the model's source and revision.
    modules: Callable[[str, str | None], Mapping[str, Any]] = lambda _source, _revision: {}
    # From the arguments of Stable Diffusion to those of this family.
    adapt: Callable[[DenoisingSpec, Arguments], Arguments] = lambda _spec, arguments: arguments


def _takes_sizes(spec: DenoisingSpec, arguments: Arguments) -> Arguments:
    return {**arguments, "width": spec.width, "height": spec.height}


def _flux(spec: DenoisingSpec, arguments: Arguments) -> Arguments:
    without = {name: value for name, value in arguments.items() if name != "negative_prompt"}
    return _takes_sizes(spec, without)


def _kontext(spec: DenoisingSpec, arguments: Arguments) -> Arguments:
    # The picture comes in its size already, by default one of those that the pipeline would choose itself.
    given = _by_instruction(arguments) if spec.task is Task.EDIT else arguments
    return {**_flux(spec, given), "max_area": spec.width * spec.height, "_auto_resize": False}


def _flux2(spec: DenoisingSpec, arguments: Arguments) -> Arguments:
    return {**_flux(spec, _by_instruction(arguments)), "image": [_as_picture(arguments["image"])]}


def _as_picture(image: torch.Tensor) -> Image.Image:
    picture: Image.Image
    [picture] = VaeImageProcessor.numpy_to_pil(image.permute(0, 2, 3, 1).numpy())
    return picture


def _qwen(spec: DenoisingSpec, arguments: Arguments) -> Arguments:
    given = {name: value for name, value in arguments.items() if name not in ("guidance_scale", "negative_prompt")}
    # An empty negative prompt guides as well; without any, the pipeline does not guide at all.
    guided = {"true_cfg_scale": spec.guidance_scale, "negative_prompt": spec.negative_prompt or " "}
    return _takes_sizes(spec, given | (guided if spec.guidance_scale > 1 else {}))


def _qwen_edit(spec: DenoisingSpec, arguments: Arguments) -> Arguments:
    return {**_qwen(spec, _by_instruction(arguments)), "image": _as_picture(arguments["image"])}


def _z_image(spec: DenoisingSpec, arguments: Arguments) -> Arguments:
    # Here no guidance is 0: the scale counts from the prompt's own prediction.
    scale = spec.guidance_scale if spec.guidance_scale > 1 else 0.0
    return _takes_sizes(spec, {**arguments, "guidance_scale": scale})


def _by_instruction(arguments: Arguments) -> Arguments:
    return {name: value for name, value in arguments.items() if name not in ("strength", "image_guidance_scale")}


def _is_guidance_distilled(pipeline: DiffusionPipeline) -> bool:
    return bool(pipeline.transformer.config.guidance_embeds)


_SD = {Task.IMG2IMG: diffusers.StableDiffusionImg2ImgPipeline, Task.INPAINT: diffusers.StableDiffusionInpaintPipeline}
_FLUX = {
    "schedulers": GIVEN_SIGMAS,
    "cuda_dtype": "bfloat16",
    "patch": 2,
    "steps": 28,
    "guidance_scale": 3.5,
    # Its guidance is an input of the transformer, not a second row. (Negative prompts would need that second row, and
    # the published weights were not trained for it.)
    "negative_prompt": False,
    "image_guidance": False,
    "guidance": _is_guidance_distilled,
    "guidance_rows": 1,
    "shared": ("img_ids", "txt_ids"),
}
_QWEN = {
    "schedulers": GIVEN_SIGMAS,
    "cuda_dtype": "bfloat16",
    "patch": 2,
    "steps": 50,
    "guidance_scale": 4.0,
}
_QWEN_EDIT = {**_QWEN, "image_guidance": False, "modules": image_only_processor, "adapt": _qwen_edit}

FAMILIES = (
    Family(
        name="stable-diffusion",
        sources=("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline"),
        pipelines=_SD,
        clip_prompts=True,
    ),
    Family(
        name="stable-diffusion",
        sources=("StableDiffusionInstructPix2PixPipeline",),
        pipelines={Task.EDIT: diffusers.StableDiffusionInstructPix2PixPipeline},
        clip_prompts=True,
    ),
    Family(
        name="stable-diffusion-xl",
        sources=("StableDiffusionXLInstructPix2PixPipeline",),
        pipelines={Task.EDIT: diffusers.StableDiffusionXLInstructPix2PixPipeline},
        clip_prompts=True,
    ),
    Family(
        name="latent-consistency",
        sources=("LatentConsistencyModelPipeline", "LatentConsistencyModelImg2ImgPipeline"),
        pipelines=_SD,
        clip_prompts=True,
        schedulers=(Scheduler.LCM,),
        steps=8,
        guidance_scale=8.5,
        negative_prompt=False,  # the guidance is an input of the UNet
        guidance_rows=1,
    ),
    Family(
        name="stable-diffusion-xl",
        sources=("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline"),
        pipelines={
            Task.IMG2IMG: diffusers.StableDiffusionXLImg2ImgPipeline,
            Task.INPAINT: diffusers.StableDiffusionXLInpaintPipeline,
        },
        clip_prompts=True,
    ),
    Family(
        name="stable-diffusion-3",
        sources=("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline"),
        pipelines={
            Task.IMG2IMG: diffusers.StableDiffusion3Img2ImgPipeline,
            Task.INPAINT: diffusers.StableDiffusion3InpaintPipeline,
        },
        schedulers=FLOW_SCHEDULERS,
        patch=2,
        steps=28,
        guidance_scale=7.0,
        adapt=_takes_sizes,
    ),
    Family(
        name="flux",
        sources=("FluxPipeline", "FluxImg2ImgPipeline"),
        pipelines={Task.IMG2IMG: diffusers.FluxImg2ImgPipeline, Task.INPAINT: diffusers.FluxInpaintPipeline},
        adapt=_flux,
        **_FLUX,  # type: ignore[arg-type]
    ),
    Family(
        name="flux-kontext",
        sources=("FluxKontextPipeline",),
        pipelines={Task.EDIT: diffusers.FluxKontextPipeline, Task.INPAINT: diffusers.FluxKontextInpaintPipeline},
        sizes=tuple(PREFERRED_KONTEXT_RESOLUTIONS),
        adapt=_kontext,
        **_FLUX,  # type: ignore[arg-type]
    ),
    Family(
        name="flux-fill",
        sources=("FluxFillPipeline",),
        pipelines={Task.INPAINT: diffusers.FluxFillPipeline},
        adapt=_flux,
        **{**_FLUX, "steps": 50, "guidance_scale": 30.0},  # type: ignore[arg-type]
    ),
    Family(
        name="flux-2",
        sources=("Flux2Pipeline",),
        pipelines={Task.EDIT: diffusers.Flux2Pipeline},
        adapt=_flux2,
        **{**_FLUX, "steps": 50, "guidance_scale": 4.0},  # type: ignore[arg-type]
    ),
    Family(
        name="flux-2-klein",
        sources=("Flux2KleinPipeline",),
        pipelines={Task.EDIT: diffusers.Flux2KleinPipeline},
        schedulers=GIVEN_SIGMAS,
        cuda_dtype="bfloat16",
        patch=2,
        steps=4,
        guidance_scale=4.0,
        negative_prompt=False,
        image_guidance=False,
        guidance=lambda pipeline: not pipeline.config.is_distilled,
        # They have rows, but the transformer reads the first one's only.
        shared=("img_ids", "txt_ids"),
        adapt=_flux2,
    ),
    Family(
        name="qwen-image",
        sources=("QwenImagePipeline", "QwenImageImg2ImgPipeline"),
        pipelines={
            Task.IMG2IMG: diffusers.QwenImageImg2ImgPipeline,
            Task.INPAINT: diffusers.QwenImageInpaintPipeline,
        },
        adapt=_qwen,
        **_QWEN,  # type: ignore[arg-type]
    ),
    Family(
        name="qwen-image-edit",
        sources=("QwenImageEditPipeline",),
        pipelines={Task.EDIT: diffusers.QwenImageEditPipeline},
        **_QWEN_EDIT,  # type: ignore[arg-type]
    ),
    Family(
        name="qwen-image-edit",
        sources=("QwenImageEditPlusPipeline",),
        pipelines={Task.EDIT: diffusers.QwenImageEditPlusPipeline},
        **{**_QWEN_EDIT, "steps": 40},  # type: ignore[arg-type]
    ),
    Family(
        name="z-image",
        sources=("ZImagePipeline", "ZImageImg2ImgPipeline"),
        pipelines={Task.IMG2IMG: diffusers.ZImageImg2ImgPipeline, Task.INPAINT: diffusers.ZImageInpaintPipeline},
        schedulers=GIVEN_SIGMAS,
        cuda_dtype="bfloat16",
        patch=2,
        steps=30,
        guidance_scale=5.0,
        adapt=_z_image,
    ),
)


def family_of(class_name: str) -> Family | None:
    """The family of a pipeline, by the name of its class; None for one that is not served."""
    for family in FAMILIES:
        if class_name in family.sources or class_name in (kind.__name__ for kind in family.pipelines.values()):
            return family
    return None
