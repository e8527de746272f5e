"""Tiny safety checkers with random weights, whose threshold a test chooses."""

from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPImageProcessor

from .tiny_models import tiny_sd

# Cosine similarities are from -1 to 1.
FLAG_ALL, FLAG_NONE = -2.0, 2.0
WEIGHTS = Path("safety_checker", "model.safetensors")


def tiny_sd_with_checker(folder: Path, *, threshold: float) -> Path:
    """`tiny_sd` with a safety checker, as in published folders of Stable Diffusion 1."""
    pipeline = DiffusionPipeline.from_pretrained(tiny_sd(folder), safety_checker=None)
    pipeline.register_modules(
        safety_checker=tiny_safety_checker(threshold=threshold), feature_extractor=image_processor()
    )
    pipeline.register_to_config(requires_safety_checker=True)
    pipeline.save_pretrained(folder)
    return folder


def tiny_safety_checker(*, threshold: float) -> StableDiffusionSafetyChecker:
    """Return a checker that flags images whose similarity to a concept is above the threshold."""
    torch.manual_seed(5)
    widths = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=widths, vision_config={**widths, "image_size": 32, "patch_size": 8}, projection_dim=16
    )
    checker = StableDiffusionSafetyChecker(config)
    with torch.no_grad():
        checker.concept_embeds.normal_()
        checker.concept_embeds_weights.fill_(FLAG_NONE)
        checker.concept_embeds_weights[0] = threshold
        # No image is close to those that lower the threshold of the others.
        checker.special_care_embeds_weights.fill_(FLAG_NONE)
    return checker


def image_processor() -> CLIPImageProcessor:
    return CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


def set_threshold(folder: Path, threshold: float) -> None:
    """Change the threshold of the safety checker of a model."""
    weights = load_file(folder / WEIGHTS)
    weights["concept_embeds_weights"][0] = threshold
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
