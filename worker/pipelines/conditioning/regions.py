"""Regional prompts: each denoising step mixes the predictions for several prompts by masks.

The prediction of a step is `(1 - sum of shares) * prediction for the prompt + sum of share * prediction for a region`,
where the share of a region is its mask, in latents, times its weight. Shares that add up to more than 1 are scaled down
to 1. The prediction without a prompt, which guidance needs, is the same for all of them. Each prediction is a call of
the denoiser by itself, so that it is merged with the calls of other jobs as any other call is.
"""

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch.nn.functional import interpolate
from torch.utils import _pytree as pytree

from img2img.domain.spec import DenoisingSpec, Img2ImgSpec

from ..uploads import upload
from .embeddings import Embeddings
from .prompt_embeddings import embed_prompts


def attach_regions(
    pipeline: DiffusionPipeline,
    spec: DenoisingSpec,
    masks: Sequence[torch.Tensor],
    embeddings: Embeddings,
    *,
    has_long_prompt: bool,
) -> None:
    """Let the pipeline object of a job denoise its regions by their prompts. Call it in an engine task.

    Args:
        pipeline: its components are shared.
        masks: of the regions, (1, 1, height, width) in pixels, 0 to 1.
    """
    if not isinstance(spec, Img2ImgSpec) or not spec.regions:
        return
    scale = pipeline.vae_scale_factor
    shares = torch.cat([mask * region.weight for mask, region in zip(masks, spec.regions, strict=True)])
    shares = interpolate(shares, (spec.height // scale, spec.width // scale), mode="area")
    shares = shares / shares.sum(dim=0, keepdim=True).clamp(min=1)
    unet = copy(pipeline.unet)
    device, dtype = pipeline._execution_device, pipeline.unet.dtype
    prompts = [
        _encoded(pipeline, spec, embeddings.expand(region.prompt), has_long_prompt=has_long_prompt)
        for region in spec.regions
    ]
    unet.forward = RegionalForward(pipeline.unet.forward, upload(shares, device, dtype), prompts)
    pipeline.unet = unet


class RegionalForward:
    """Forward of a UNet for a job with regions.

    Args:
        forward: of the UNet.
        shares: of the regions in each latent, (regions, 1, height, width). They add up to 1 at most.
        prompts: for each region, the arguments that depend on its prompt: `encoder_hidden_states`, and `text_embeds` of
            SDXL, with one row.
    """

    def __init__(
        self, forward: Callable[..., Any], shares: torch.Tensor, prompts: Sequence[dict[str, torch.Tensor]]
    ) -> None:
        self._forward = forward
        self._shares = shares
        self._prompts = prompts

    def __call__(
        self, sample: torch.Tensor, timestep: Any, encoder_hidden_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor]:
        """Return the mixed prediction. With guidance, the last row has the prompt."""
        given = {**kwargs, "return_dict": False}
        [predicted] = self._forward(sample, timestep, encoder_hidden_states, *args, **given)
        rows = len(sample)

        def last_row(value: torch.Tensor) -> torch.Tensor:
            return value[-1:] if value.dim() and len(value) == rows else value

        own, time, others = pytree.tree_map_only(torch.Tensor, last_row, (sample, timestep, (args, given)))
        mixed = predicted[-1:] * (1 - self._shares.sum(dim=0, keepdim=True))
        for share, prompt in zip(self._shares, self._prompts, strict=True):
            arguments = dict(others[1])
            if "text_embeds" in prompt:
                arguments["added_cond_kwargs"] = {
                    **arguments["added_cond_kwargs"],
                    "text_embeds": prompt["text_embeds"],
                }
            [one] = self._forward(own, time, prompt["encoder_hidden_states"], *others[0], **arguments)
            mixed = mixed + share * one
        return (torch.cat([predicted[:-1], mixed]),)


def _encoded(
    pipeline: DiffusionPipeline, spec: DenoisingSpec, prompt: str, *, has_long_prompt: bool
) -> dict[str, torch.Tensor]:
    """Return the arguments of the UNet for a prompt, as the stock pipeline encodes it."""
    arguments = embed_prompts(
        pipeline, spec, {"prompt": prompt, "negative_prompt": None}, has_long_prompt=has_long_prompt
    )
    if "prompt_embeds" in arguments:
        embeds, pooled = arguments["prompt_embeds"], arguments.get("pooled_prompt_embeds")
    else:
        encoded = pipeline.encode_prompt(
            prompt=prompt,
            device=pipeline._execution_device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
            clip_skip=spec.clip_skip or None,
        )
        embeds, pooled = encoded[0], encoded[2] if len(encoded) > 2 else None
    return {"encoder_hidden_states": embeds, **({} if pooled is None else {"text_embeds": pooled})}
