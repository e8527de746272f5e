"""The table of supported model families: pipelines, defaults, capabilities and hooks of each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import diffusers
from diffusers import DiffusionPipeline
from diffusers.pipelines.flux.pipeline_flux_kontext import PREFERRED_KONTEXT_RESOLUTIONS

from img2img.domain.conditioning import MAX_REFERENCE_IMAGES
from img2img.domain.parameters import DIFFUSION_SCHEDULERS, FLOW_SCHEDULERS, Scheduler, Task
from img2img.domain.spec import DenoisingSpec

from ..engine.task import Half
from . import pipeline_arguments
from .conditioning.controlled_transformers import (
    ControlledTransformer,
    FluxTransformer,
    QwenTransformer,
    SD3Transformer,
    ZImageTransformer,
)
from .gates import Forward, ListInputsGate, gate_rows
from .image_processors import image_only_processor
from .pipeline_arguments import Arguments

Pipelines = Mapping[Task, type[DiffusionPipeline]]

# Pipelines of FLUX, Qwen-Image and Z-Image pass `sigmas` to their scheduler; the flow Heun scheduler takes none.
SIGMAS_SCHEDULERS = (Scheduler.FLOW_EULER, Scheduler.FLOW_EULER_BETA)


@dataclass(frozen=True, kw_only=True)
class Family:
    """A model family: everything that depends on the kind of a model and not on one model."""

    name: str
    # Values of `_class_name` in the model_index.json of its models.
    class_names: tuple[str, ...]
    # Pipelines that need no components beyond those of the model itself, by task.
    pipelines: Pipelines
    # Classes of the ControlNets.
    controlnet_classes: tuple[str, ...] = ("ControlNetModel", "ControlNetUnionModel")
    # Pipelines for jobs with controls; empty if ControlNets are not supported.
    controlnet_pipelines: Pipelines = field(default_factory=dict)
    # Runs ControlNets before the transformer; None if `controlnet_pipelines` run them.
    controlled_transformer: type[ControlledTransformer] | None = None
    # Pipelines with perturbed-attention guidance.
    pag_pipelines: Pipelines = field(default_factory=dict)
    # Whether image-to-image can inpaint softly: its latents have the shape of those of the image in every step.
    soft_inpainting: bool = False
    # Pipeline for an InstructPix2Pix UNet (8 input channels for 4 latent channels).
    instruct_pix2pix: type[DiffusionPipeline] | None = None
    # Whether a x4 upscaler can be given as a UNet that works with the model's VAE and text encoder.
    unet_upscalers: bool = False
    schedulers: tuple[Scheduler, ...] = DIFFUSION_SCHEDULERS
    cuda_dtype: str = "float16"
    # Side of the square of latents that the denoiser reads as one token.
    patch_size: int = 1
    # Trained (width, height) pairs; empty for the size buckets around the native size.
    sizes: tuple[tuple[int, int], ...] = ()
    # Defaults of requests.
    steps: int = 30
    guidance_scale: float = 7.5
    negative_prompt: bool = True
    # Whether CLIP embeddings are the only text conditioning: prompts can then be long and weighted.
    clip_prompts: bool = False
    # Whether edits take `image_guidance_scale` (InstructPix2Pix).
    image_guidance: bool = True
    # Largest number of images of an edit.
    max_images: int = 1
    # Whether a loaded model supports guidance.
    has_guidance: Callable[[DiffusionPipeline], bool] = lambda _pipeline: True
    # Rows of a denoiser call with guidance; 1 if the guidance scale is an input of the denoiser.
    guidance_rows: int = 2
    # Half of the rows of a denoiser call with guidance that has the prompt; None if a call has one of the two only.
    conditional: Half | None = "last"
    # Whether the VAE is a video VAE: its tensors are (batch, channels, frames, height, width).
    video_vae: bool = False
    # Denoiser arguments without a batch dimension, such as position ids.
    unbatched: tuple[str, ...] = ()
    # Replaces the forward of the denoiser: (forward, unbatched) -> gated forward.
    denoiser_gate: Callable[[Forward, tuple[str, ...]], Forward] = gate_rows
    # Whether the shapes of denoiser calls depend on the size of the image only, and not on the prompt: see `compile`.
    fixed_shapes: bool = True
    # Extra components to pass to `from_pretrained`: folder of the model -> components by name.
    load_components: Callable[[str], Mapping[str, Any]] = lambda _folder: {}
    # Converts the arguments of a Stable Diffusion pipeline to those of this family.
    adapt: Callable[[DenoisingSpec, Arguments], Arguments] = lambda _spec, arguments: arguments
    # Whether it was made by `generic_family`: nothing is known about the components.
    is_generic: bool = False
    # Whether only one job at a time can run, because pipelines change the modules that jobs share.
    runs_alone: bool = False
    # Tasks whose pipelines always start from pure noise.
    full_strength: tuple[Task, ...] = ()

    def gate_denoiser(self, forward: Forward) -> Forward:
        """Return the gated forward of a denoiser of this family."""
        return self.denoiser_gate(forward, self.unbatched)


def _is_guidance_distilled(pipeline: DiffusionPipeline) -> bool:
    return bool(pipeline.transformer.config.guidance_embeds)


_SD_PIPELINES = {
    Task.IMG2IMG: diffusers.StableDiffusionImg2ImgPipeline,
    Task.INPAINT: diffusers.StableDiffusionInpaintPipeline,
}
_SD = {
    "name": "stable-diffusion",
    "controlnet_pipelines": {
        Task.IMG2IMG: diffusers.StableDiffusionControlNetImg2ImgPipeline,
        Task.INPAINT: diffusers.StableDiffusionControlNetInpaintPipeline,
        Task.CONTROL: diffusers.StableDiffusionControlNetPipeline,
    },
    "pag_pipelines": {
        Task.IMG2IMG: diffusers.StableDiffusionPAGImg2ImgPipeline,
        Task.INPAINT: diffusers.StableDiffusionPAGInpaintPipeline,
    },
    "soft_inpainting": True,
    "instruct_pix2pix": diffusers.StableDiffusionInstructPix2PixPipeline,
    "unet_upscalers": True,
    "clip_prompts": True,
}
_SDXL = {
    "name": "stable-diffusion-xl",
    "controlnet_pipelines": {
        Task.IMG2IMG: diffusers.StableDiffusionXLControlNetImg2ImgPipeline,
        Task.INPAINT: diffusers.StableDiffusionXLControlNetInpaintPipeline,
        Task.CONTROL: diffusers.StableDiffusionXLControlNetPipeline,
    },
    "pag_pipelines": {
        Task.IMG2IMG: diffusers.StableDiffusionXLPAGImg2ImgPipeline,
        Task.INPAINT: diffusers.StableDiffusionXLPAGInpaintPipeline,
    },
    "soft_inpainting": True,
    "instruct_pix2pix": diffusers.StableDiffusionXLInstructPix2PixPipeline,
    "clip_prompts": True,
}
_FLUX = {
    "schedulers": SIGMAS_SCHEDULERS,
    "cuda_dtype": "bfloat16",
    "patch_size": 2,
    "steps": 28,
    "guidance_scale": 3.5,
    # The guidance scale is an input of the transformer. Negative prompts would need a second row with
    # `true_cfg_scale`, and the published weights were not trained for that.
    "negative_prompt": False,
    "image_guidance": False,
    "has_guidance": _is_guidance_distilled,
    "guidance_rows": 1,
    "conditional": None,
    "unbatched": ("img_ids", "txt_ids"),
}
_QWEN = {
    "schedulers": SIGMAS_SCHEDULERS,
    "cuda_dtype": "bfloat16",
    "patch_size": 2,
    "steps": 50,
    "guidance_scale": 4.0,
    "conditional": None,
    "fixed_shapes": False,
    "video_vae": True,
}
_QWEN_EDIT = {
    **_QWEN,
    "name": "qwen-image-edit",
    "image_guidance": False,
    "load_components": image_only_processor,
    "adapt": pipeline_arguments.qwen_edit,
}

FAMILIES = (
    Family(
        class_names=("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline"),
        pipelines=_SD_PIPELINES,
        **_SD,
    ),
    Family(
        class_names=("StableDiffusionInstructPix2PixPipeline",),
        pipelines={Task.EDIT: diffusers.StableDiffusionInstructPix2PixPipeline},
        **_SD,
    ),
    Family(
        class_names=("StableDiffusionXLInstructPix2PixPipeline",),
        pipelines={Task.EDIT: diffusers.StableDiffusionXLInstructPix2PixPipeline},
        **_SDXL,
    ),
    Family(
        name="latent-consistency",
        class_names=("LatentConsistencyModelPipeline", "LatentConsistencyModelImg2ImgPipeline"),
        pipelines=_SD_PIPELINES,
        clip_prompts=True,
        schedulers=(Scheduler.LCM,),
        steps=8,
        guidance_scale=8.5,
        # The guidance scale is an input of the UNet.
        negative_prompt=False,
        guidance_rows=1,
        conditional=None,
    ),
    Family(
        class_names=("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline"),
        pipelines={
            Task.IMG2IMG: diffusers.StableDiffusionXLImg2ImgPipeline,
            Task.INPAINT: diffusers.StableDiffusionXLInpaintPipeline,
        },
        **_SDXL,
    ),
    Family(
        name="stable-diffusion-3",
        class_names=("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline"),
        pipelines={
            Task.IMG2IMG: diffusers.StableDiffusion3Img2ImgPipeline,
            Task.INPAINT: diffusers.StableDiffusion3InpaintPipeline,
        },
        controlnet_classes=("SD3ControlNetModel",),
        controlnet_pipelines={
            Task.IMG2IMG: diffusers.StableDiffusion3Img2ImgPipeline,
            Task.INPAINT: diffusers.StableDiffusion3InpaintPipeline,
            Task.CONTROL: diffusers.StableDiffusion3Pipeline,
        },
        controlled_transformer=SD3Transformer,
        pag_pipelines={Task.IMG2IMG: diffusers.StableDiffusion3PAGImg2ImgPipeline},
        soft_inpainting=True,
        schedulers=FLOW_SCHEDULERS,
        patch_size=2,
        steps=28,
        guidance_scale=7.0,
        adapt=pipeline_arguments.add_size,
    ),
    Family(
        name="flux",
        class_names=("FluxPipeline", "FluxImg2ImgPipeline"),
        pipelines={Task.IMG2IMG: diffusers.FluxImg2ImgPipeline, Task.INPAINT: diffusers.FluxInpaintPipeline},
        controlnet_classes=("FluxControlNetModel",),
        controlnet_pipelines={
            Task.IMG2IMG: diffusers.FluxImg2ImgPipeline,
            Task.INPAINT: diffusers.FluxInpaintPipeline,
            Task.CONTROL: diffusers.FluxPipeline,
        },
        controlled_transformer=FluxTransformer,
        adapt=pipeline_arguments.flux,
        **_FLUX,  # type: ignore[arg-type]
    ),
    Family(
        name="flux-kontext",
        class_names=("FluxKontextPipeline",),
        pipelines={Task.EDIT: diffusers.FluxKontextPipeline, Task.INPAINT: diffusers.FluxKontextInpaintPipeline},
        sizes=tuple(PREFERRED_KONTEXT_RESOLUTIONS),
        max_images=4,
        adapt=pipeline_arguments.flux_kontext,
        **_FLUX,  # type: ignore[arg-type]
    ),
    Family(
        name="flux-fill",
        class_names=("FluxFillPipeline",),
        pipelines={Task.INPAINT: diffusers.FluxFillPipeline},
        adapt=pipeline_arguments.flux,
        **{**_FLUX, "steps": 50, "guidance_scale": 30.0},  # type: ignore[arg-type]
    ),
    Family(
        name="flux-2",
        class_names=("Flux2Pipeline",),
        pipelines={Task.EDIT: diffusers.Flux2Pipeline},
        max_images=10,
        adapt=pipeline_arguments.flux2,
        **{**_FLUX, "steps": 50, "guidance_scale": 4.0},  # type: ignore[arg-type]
    ),
    Family(
        name="flux-2-klein",
        class_names=("Flux2KleinPipeline",),
        pipelines={Task.EDIT: diffusers.Flux2KleinPipeline, Task.INPAINT: diffusers.Flux2KleinInpaintPipeline},
        max_images=10,
        schedulers=SIGMAS_SCHEDULERS,
        cuda_dtype="bfloat16",
        patch_size=2,
        steps=4,
        guidance_scale=4.0,
        negative_prompt=False,
        image_guidance=False,
        has_guidance=lambda pipeline: not pipeline.config.is_distilled,
        conditional=None,
        # They have a batch dimension, but the transformer reads the first row only.
        unbatched=("img_ids", "txt_ids"),
        adapt=pipeline_arguments.flux2,
    ),
    Family(
        name="qwen-image",
        class_names=("QwenImagePipeline", "QwenImageImg2ImgPipeline"),
        pipelines={
            Task.IMG2IMG: diffusers.QwenImageImg2ImgPipeline,
            Task.INPAINT: diffusers.QwenImageInpaintPipeline,
        },
        controlnet_classes=("QwenImageControlNetModel",),
        controlnet_pipelines={
            Task.IMG2IMG: diffusers.QwenImageImg2ImgPipeline,
            Task.INPAINT: diffusers.QwenImageInpaintPipeline,
            Task.CONTROL: diffusers.QwenImagePipeline,
        },
        controlled_transformer=QwenTransformer,
        adapt=pipeline_arguments.qwen,
        **_QWEN,  # type: ignore[arg-type]
    ),
    Family(
        class_names=("QwenImageEditPipeline",),
        pipelines={
            Task.EDIT: diffusers.QwenImageEditPipeline,
            Task.INPAINT: diffusers.QwenImageEditInpaintPipeline,
        },
        **_QWEN_EDIT,  # type: ignore[arg-type]
    ),
    Family(
        class_names=("QwenImageEditPlusPipeline",),
        pipelines={Task.EDIT: diffusers.QwenImageEditPlusPipeline},
        max_images=MAX_REFERENCE_IMAGES,
        **{**_QWEN_EDIT, "steps": 40, "adapt": pipeline_arguments.qwen_edit_plus},  # type: ignore[arg-type]
    ),
    Family(
        name="z-image",
        class_names=("ZImagePipeline", "ZImageImg2ImgPipeline"),
        pipelines={Task.IMG2IMG: diffusers.ZImageImg2ImgPipeline, Task.INPAINT: diffusers.ZImageInpaintPipeline},
        controlnet_classes=("ZImageControlNetModel",),
        controlnet_pipelines={
            Task.IMG2IMG: diffusers.ZImageImg2ImgPipeline,
            Task.INPAINT: diffusers.ZImageInpaintPipeline,
            Task.CONTROL: diffusers.ZImagePipeline,
        },
        controlled_transformer=ZImageTransformer,
        schedulers=SIGMAS_SCHEDULERS,
        cuda_dtype="bfloat16",
        patch_size=2,
        steps=30,
        guidance_scale=5.0,
        conditional="first",
        denoiser_gate=ListInputsGate,
        fixed_shapes=False,
        adapt=pipeline_arguments.z_image,
    ),
)


def family_of(class_name: str) -> Family | None:
    """Return the family of a pipeline class, or None if the class is not supported."""
    for family in FAMILIES:
        if class_name in family.class_names or class_name in (kind.__name__ for kind in family.pipelines.values()):
            return family
    return None
