"""Runs the demo model and its companions in the stock diffusers pipelines on batches of images."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import ControlNetModel, DiffusionPipeline, MultiControlNetModel, UNet2DConditionModel
from PIL import Image
from transformers import CLIPVisionModelWithProjection

from img2img.domain.conditioning import ControlType

from ..batch_pipeline import STEPS, BatchPipeline
from ..dataset import SIZE, Images
from .image_prompts import ADAPTER_FILE, ENCODER_FOLDER
from .masks import Mask
from .upscaler import low_res_schedule

GUIDANCE = 4.0
INPAINT_GUIDANCE = 2.0
"""Lower than elsewhere, because inpainting is also guided by the rest of the image."""
NETS = {
    ControlType.CANNY: "lines",
    ControlType.SCRIBBLE: "lines",
    ControlType.LINEART: "lines",
    ControlType.SOFTEDGE: "lines",
    ControlType.DEPTH: "depth",
    ControlType.SEGMENTATION: "segmentation",
}


class CompanionPipelines:
    """Pipelines of all companions. Image i of every call has seed i, so that results can be compared."""

    def __init__(self, pipeline: BatchPipeline, folder: Path) -> None:
        self.pipeline = pipeline
        self._folder = folder
        self._parts = {
            name: part
            for name, part in pipeline.pipeline.components.items()
            if name not in ("safety_checker", "feature_extractor", "image_encoder")
        }

    def from_noise(self, prompts: list[str]) -> Images:
        """Generate from prompts alone. Returns (n, 128, 128, 3)."""
        pipeline = self._build(diffusers.StableDiffusionPipeline)
        return _run_batches(
            pipeline, len(prompts), {"prompt": prompts}, guidance_scale=GUIDANCE, height=SIZE, width=SIZE
        )

    def controlled(self, prompts: list[str], maps: Mapping[ControlType, Images]) -> Images:
        """Generate from noise with control maps. Returns (n, 128, 128, 3)."""
        nets = [self._net(ControlNetModel, NETS[kind]) for kind in maps]
        own = MultiControlNetModel(nets) if len(nets) > 1 else nets[0]
        pipeline = self._build(diffusers.StableDiffusionControlNetPipeline, controlnet=own)
        images = [torch.from_numpy(some).permute(0, 3, 1, 2).float() / 255 for some in maps.values()]
        each: dict[str, Any] = {"prompt": prompts, "image": images if len(nets) > 1 else images[0]}
        return _run_batches(pipeline, len(prompts), each, guidance_scale=GUIDANCE, nested=("image",) * (len(nets) > 1))

    def edited(self, images: Images, instructions: list[str], guidance: float, image_guidance: float) -> Images:
        """Edit images by instructions. Returns (n, 128, 128, 3)."""
        unet = self._net(UNet2DConditionModel, "edit")
        pipeline = self._build(diffusers.StableDiffusionInstructPix2PixPipeline, unet=unet)
        each = {"prompt": instructions, "image": _images(images)}
        scales = {"guidance_scale": guidance, "image_guidance_scale": image_guidance}
        return _run_batches(pipeline, len(images), each, **scales)

    def inpainted(self, images: Images, masks: list[Mask], prompts: list[str], nine_channels: bool) -> Images:
        """Regenerate masked pixels at strength 1 and keep all others. Returns (n, 128, 128, 3)."""
        unet = self._net(UNet2DConditionModel, "inpaint") if nine_channels else self._parts["unet"]
        pipeline = self._build(diffusers.StableDiffusionInpaintPipeline, unet=unet)
        each = {"prompt": prompts, "image": _images(images), "mask_image": [Image.fromarray(mask) for mask in masks]}
        size = {"height": SIZE, "width": SIZE}
        painted = _run_batches(pipeline, len(images), each, guidance_scale=INPAINT_GUIDANCE, strength=1.0, **size)
        return np.where(np.stack(masks)[..., None], painted, images)

    def enlarged(self, images: Images, prompts: list[str], noise_level: int = 20) -> Images:
        """Upscale by 4. Returns (n, 4 height, 4 width, 3)."""
        vae = copy.copy(self._parts["vae"])
        pipeline = self._build(
            diffusers.StableDiffusionUpscalePipeline,
            unet=self._net(UNet2DConditionModel, "upscaler"),
            vae=vae,
            low_res_scheduler=low_res_schedule(),
        )
        # The pipeline has overwritten it.
        vae.register_to_config(scaling_factor=self._parts["vae"].config.scaling_factor)
        each = {"prompt": prompts, "image": _images(images)}
        return _run_batches(pipeline, len(images), each, batch=2, guidance_scale=1.0, noise_level=noise_level)

    def prompted_by(self, examples: Images, images: Images, prompts: list[str], strength: float) -> Images:
        """Run image-to-image with an image prompt beside each prompt. Returns (n, 128, 128, 3)."""
        folder = self._folder / "image_prompt"
        encoder = CLIPVisionModelWithProjection.from_pretrained(folder / ENCODER_FOLDER, dtype=torch.float32).eval()
        pipeline = self._build(
            diffusers.StableDiffusionImg2ImgPipeline,
            unet=UNet2DConditionModel.from_config(self._parts["unet"].config),
            image_encoder=encoder,
        )
        pipeline.unet.load_state_dict(self._parts["unet"].state_dict())
        pipeline.load_ip_adapter(str(folder), subfolder="", weight_name=ADAPTER_FILE, image_encoder_folder=None)
        each = {"prompt": prompts, "image": _images(images), "ip_adapter_image": [_images(examples)]}
        return _run_batches(
            pipeline, len(prompts), each, nested=("ip_adapter_image",), guidance_scale=GUIDANCE, strength=strength
        )

    def _net(self, kind: Callable[..., Any], name: str) -> Any:
        return kind.from_pretrained(self._folder / name, torch_dtype=torch.float32).eval()  # type: ignore[attr-defined]

    def _build(self, kind: type[DiffusionPipeline], **other: Any) -> DiffusionPipeline:
        lacking = {"safety_checker": None, "feature_extractor": None}
        pipeline = kind(**{**self._parts, **lacking, **other})
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def _images(images: Images) -> list[Image.Image]:
    return [Image.fromarray(image) for image in images]


def _run_batches(
    pipeline: DiffusionPipeline,
    count: int,
    each: Mapping[str, Sequence[Any] | torch.Tensor],
    batch: int = 16,
    nested: tuple[str, ...] = (),
    **common: Any,
) -> Images:
    """Run a pipeline in batches.

    Args:
        each: arguments with one value per image.
        nested: names of the arguments that are lists of such values.
    """
    done = []
    for start in range(0, count, batch):
        cut = slice(start, min(start + batch, count))
        now = {name: [some[cut] for some in value] if name in nested else value[cut] for name, value in each.items()}
        generators = [torch.Generator().manual_seed(seed) for seed in range(cut.start, cut.stop)]
        made = pipeline(**now, num_inference_steps=STEPS, generator=generators, output_type="np", **common)
        done.append(made.images)
    return np.round(np.concatenate(done) * 255).astype(np.uint8)
