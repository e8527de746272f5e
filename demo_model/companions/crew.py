"""The demo model with its companions in the stock diffusers pipelines, many pictures at a time."""

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

from ..artist import STEPS, Artist
from ..dataset import SIZE, Pictures
from .image_prompts import ADAPTER_FILE, ENCODER_FOLDER
from .masks import Mask
from .upscaler import low_res_schedule

GUIDANCE = 4.0
INPAINT_GUIDANCE = 2.0
"""What is painted into a picture has that picture to follow, too."""
NETS = {
    ControlType.CANNY: "lines",
    ControlType.SCRIBBLE: "lines",
    ControlType.LINEART: "lines",
    ControlType.SOFTEDGE: "lines",
    ControlType.DEPTH: "depth",
    ControlType.SEGMENTATION: "segmentation",
}


class Crew:
    """Picture i of every call starts from noise seed i, so that ways can be compared."""

    def __init__(self, artist: Artist, folder: Path) -> None:
        self.artist = artist
        self._folder = folder
        self._parts = {
            name: part
            for name, part in artist.pipeline.components.items()
            if name not in ("safety_checker", "feature_extractor", "image_encoder")
        }

    def from_noise(self, prompts: list[str]) -> Pictures:
        """(n, 128, 128, 3): from the prompt alone."""
        pipeline = self._build(diffusers.StableDiffusionPipeline)
        return _drawn(pipeline, len(prompts), {"prompt": prompts}, guidance_scale=GUIDANCE, height=SIZE, width=SIZE)

    def controlled(self, prompts: list[str], maps: Mapping[ControlType, Pictures]) -> Pictures:
        """(n, 128, 128, 3): from noise, steered by the maps."""
        nets = [self._net(ControlNetModel, NETS[kind]) for kind in maps]
        own = MultiControlNetModel(nets) if len(nets) > 1 else nets[0]
        pipeline = self._build(diffusers.StableDiffusionControlNetPipeline, controlnet=own)
        pictures = [torch.from_numpy(some).permute(0, 3, 1, 2).float() / 255 for some in maps.values()]
        each: dict[str, Any] = {"prompt": prompts, "image": pictures if len(nets) > 1 else pictures[0]}
        return _drawn(pipeline, len(prompts), each, guidance_scale=GUIDANCE, nested=("image",) * (len(nets) > 1))

    def edited(self, pictures: Pictures, instructions: list[str], guidance: float, image_guidance: float) -> Pictures:
        """(n, 128, 128, 3): as instructed."""
        unet = self._net(UNet2DConditionModel, "edit")
        pipeline = self._build(diffusers.StableDiffusionInstructPix2PixPipeline, unet=unet)
        each = {"prompt": instructions, "image": _images(pictures)}
        scales = {"guidance_scale": guidance, "image_guidance_scale": image_guidance}
        return _drawn(pipeline, len(pictures), each, **scales)

    def inpainted(self, pictures: Pictures, masks: list[Mask], prompts: list[str], nine_channels: bool) -> Pictures:
        """(n, 128, 128, 3): masked parts painted anew at strength 1, all else put back as it was."""
        unet = self._net(UNet2DConditionModel, "inpaint") if nine_channels else self._parts["unet"]
        pipeline = self._build(diffusers.StableDiffusionInpaintPipeline, unet=unet)
        each = {"prompt": prompts, "image": _images(pictures), "mask_image": [Image.fromarray(mask) for mask in masks]}
        size = {"height": SIZE, "width": SIZE}
        painted = _drawn(pipeline, len(pictures), each, guidance_scale=INPAINT_GUIDANCE, strength=1.0, **size)
        return np.where(np.stack(masks)[..., None], painted, pictures)

    def enlarged(self, pictures: Pictures, prompts: list[str], noise_level: int = 20) -> Pictures:
        """(n, 4 height, 4 width, 3)."""
        vae = copy.copy(self._parts["vae"])
        pipeline = self._build(
            diffusers.StableDiffusionUpscalePipeline,
            unet=self._net(UNet2DConditionModel, "upscaler"),
            vae=vae,
            low_res_scheduler=low_res_schedule(),
        )
        vae.register_to_config(scaling_factor=self._parts["vae"].config.scaling_factor)  # which the pipeline changed
        each = {"prompt": prompts, "image": _images(pictures)}
        return _drawn(pipeline, len(pictures), each, batch=2, guidance_scale=1.0, noise_level=noise_level)

    def prompted_by(self, examples: Pictures, pictures: Pictures, prompts: list[str], strength: float) -> Pictures:
        """(n, 128, 128, 3): image-to-image with an example of how it should look beside each prompt."""
        folder = self._folder / "image_prompt"
        encoder = CLIPVisionModelWithProjection.from_pretrained(folder / ENCODER_FOLDER, dtype=torch.float32).eval()
        pipeline = self._build(
            diffusers.StableDiffusionImg2ImgPipeline,
            unet=UNet2DConditionModel.from_config(self._parts["unet"].config),
            image_encoder=encoder,
        )
        pipeline.unet.load_state_dict(self._parts["unet"].state_dict())
        pipeline.load_ip_adapter(str(folder), subfolder="", weight_name=ADAPTER_FILE, image_encoder_folder=None)
        each = {"prompt": prompts, "image": _images(pictures), "ip_adapter_image": [_images(examples)]}
        return _drawn(
            pipeline, len(prompts), each, nested=("ip_adapter_image",), guidance_scale=GUIDANCE, strength=strength
        )

    def _net(self, kind: Callable[..., Any], name: str) -> Any:
        return kind.from_pretrained(self._folder / name, torch_dtype=torch.float32).eval()  # type: ignore[attr-defined]

    def _build(self, kind: type[DiffusionPipeline], **other: Any) -> DiffusionPipeline:
        lacking = {"safety_checker": None, "feature_extractor": None}
        pipeline = kind(**{**self._parts, **lacking, **other})
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def _images(pictures: Pictures) -> list[Image.Image]:
    return [Image.fromarray(picture) for picture in pictures]


def _drawn(
    pipeline: DiffusionPipeline,
    count: int,
    each: Mapping[str, Sequence[Any] | torch.Tensor],
    batch: int = 16,
    nested: tuple[str, ...] = (),
    **common: Any,
) -> Pictures:
    """`each` holds a value per picture; `nested` names those of them that hold lists of such values."""
    done = []
    for start in range(0, count, batch):
        cut = slice(start, min(start + batch, count))
        now = {name: [some[cut] for some in value] if name in nested else value[cut] for name, value in each.items()}
        generators = [torch.Generator().manual_seed(seed) for seed in range(cut.start, cut.stop)]
        made = pipeline(**now, num_inference_steps=STEPS, generator=generators, output_type="np", **common)
        done.append(made.images)
    return np.round(np.concatenate(done) * 255).astype(np.uint8)
