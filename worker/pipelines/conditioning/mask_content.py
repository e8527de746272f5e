"""What the masked part of an image holds before noise is added: latents of noise, or of zeros."""

import torch
from diffusers import DiffusionPipeline
from torch.nn.functional import interpolate

from img2img.domain.conditioning import MaskContent


def replace_masked_latents(pipeline: DiffusionPipeline, content: MaskContent, mask: torch.Tensor, seed: int) -> None:
    """Make a job's pipeline object replace the masked latents of its image.

    Args:
        pipeline: an inpainting pipeline of Stable Diffusion or SDXL, which encodes first the image, if its strength is
            below 1, and then the image without its masked part.
        mask: (1, 1, height, width) of pixels, 1 where the image is regenerated.
        seed: of the noise. It is that of the job, as in the AUTOMATIC1111 web UI.
    """
    encode = pipeline._encode_vae_image

    def encode_first(image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        pipeline._encode_vae_image = encode
        latents: torch.Tensor = encode(image=image, generator=generator)
        # As pipelines resize the mask.
        masked = interpolate(mask, size=latents.shape[-2:]).to(latents) > 0.5
        if content is MaskContent.NOTHING:
            return latents.masked_fill(masked, 0)
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed), dtype=latents.dtype)
        return torch.where(masked, noise.to(latents.device), latents)

    pipeline._encode_vae_image = encode_first
