"""Regional prompts equal a plain loop of stock diffusers that mixes predictions, alone and in company."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from img2img.domain.conditioning import FreeU
from img2img.domain.model_config import ModelConfig
from img2img.domain.parameters import Task
from img2img.domain.spec import JobSpec
from img2img.worker.engine.engine import Engine
from img2img.worker.images.inputs import Inputs
from img2img.worker.pipelines.model import Model, load_model
from tests.support.engines import one_thread, random_tensor, run_on, run_together  # noqa: F401
from tests.support.images import largest_difference
from tests.support.models.tiny_families import tiny_flux
from tests.support.models.tiny_models import tiny_sd, tiny_sdxl
from tests.support.specs import make_spec

SIDE = 64
IMAGE = random_tensor(1, SIDE, SIDE)
# Left, right with a soft edge, and a part that overlaps both.
MASKS = [torch.zeros(1, 1, SIDE, SIDE) for _ in range(3)]
MASKS[0][..., :32] = 1
MASKS[1][..., 40:] = 1
MASKS[1][..., 28:40] = 0.5
MASKS[2][..., 20:44, 10:50] = 1
REGIONS = [
    {"mask": None, "prompt": "a blue cat", "weight": 1.0},
    {"mask": None, "prompt": "green water", "weight": 0.6},
    {"mask": None, "prompt": "the sun at night", "weight": 0.9},
]
FREEU = FreeU(b1=1.3, b2=1.4, s1=0.9, s2=0.2)
STOCK = {
    tiny_sd: diffusers.StableDiffusionImg2ImgPipeline,
    tiny_sdxl: diffusers.StableDiffusionXLImg2ImgPipeline,
}


def job(seed: int, count: int, **changes: Any) -> tuple[JobSpec, Inputs]:
    fields = {"scheduler": "ddim", "strength": 0.7, "num_inference_steps": 4, "width": SIDE, "height": SIDE}
    fields |= {"negative_prompt": "blurry", "seed": seed, "regions": REGIONS[:count]}
    return make_spec(**{**fields, **changes}), Inputs(IMAGE, regions=tuple(MASKS[:count]))


def jobs() -> list[tuple[JobSpec, Inputs]]:
    return [
        job(1, 1),
        job(2, 3),
        job(3, 2, guidance_scale=1.0, negative_prompt=""),
        job(4, 0),
        job(5, 3, guidance_scale=3.0, prompt="a mountain"),
        job(6, 2, freeu=FREEU),
        job(7, 1, seamless_tiling=True),
    ]


def load(folder: Path, **keys: Any) -> Model:
    return load_model(ModelConfig.model_validate({"name": "tiny", "source": str(folder), **keys}), device="cpu")


@torch.no_grad()
def plain_loop(pipeline: Any, spec: JobSpec) -> np.ndarray:
    """Image-to-image with regions, written out with the parts of a stock pipeline."""
    generator = torch.Generator().manual_seed(spec.seed)
    layers = [layer for part in (pipeline.unet, pipeline.vae) for layer in part.modules()]
    for layer in layers:
        if isinstance(layer, torch.nn.Conv2d):
            layer.padding_mode = "circular" if spec.seamless_tiling else "zeros"
    pipeline.disable_freeu()
    if spec.freeu:
        pipeline.enable_freeu(**spec.freeu.model_dump())
    scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.scheduler = scheduler
    is_xl = hasattr(pipeline, "text_encoder_2")
    negative = spec.negative_prompt or None

    def encode(prompt: str) -> list[Any]:
        options = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": True}
        return list(pipeline.encode_prompt(prompt=prompt, negative_prompt=negative, **options))

    prompts = [encode(prompt) for prompt in (spec.prompt, *(region.prompt for region in spec.regions))]
    scheduler.set_timesteps(spec.num_inference_steps)
    timesteps, _ = pipeline.get_timesteps(spec.num_inference_steps, spec.strength, "cpu")
    pixels = pipeline.image_processor.preprocess(IMAGE)
    latents = pipeline.vae.encode(pixels).latent_dist.sample(generator) * pipeline.vae.config.scaling_factor
    noise = diffusers.utils.torch_utils.randn_tensor(latents.shape, generator=generator)
    latents = scheduler.add_noise(latents, noise, timesteps[:1])

    shares = [mask * region.weight for mask, region in zip(MASKS, spec.regions, strict=False)]
    shares = [interpolate(share, latents.shape[-2:], mode="area") for share in shares]
    total = sum(shares) if shares else torch.zeros(1, 1, *latents.shape[-2:])
    shares = [share / total.clamp(min=1) for share in shares]
    shares = [1 - sum(shares), *shares] if shares else [torch.ones_like(total)]

    def predict(embeds: torch.Tensor, pooled: torch.Tensor | None, timestep: Any) -> torch.Tensor:
        added = None
        if is_xl:
            added = {"text_embeds": pooled, "time_ids": torch.tensor([[SIDE, SIDE, 0, 0, SIDE, SIDE]]).float()}
        sample: torch.Tensor = pipeline.unet(
            scheduler.scale_model_input(latents, timestep),
            timestep,
            encoder_hidden_states=embeds,
            added_cond_kwargs=added,
        ).sample
        return sample

    for timestep in timesteps:
        predicted = torch.zeros_like(latents)
        for share, encoded in zip(shares, prompts, strict=True):
            one = predict(encoded[0], encoded[2] if is_xl else None, timestep)
            if spec.guidance_scale > 1:
                without = predict(encoded[1], encoded[3] if is_xl else None, timestep)
                one = without + spec.guidance_scale * (one - without)
            predicted = predicted + share * one
        latents = scheduler.step(predicted, timestep, latents).prev_sample
    decoded = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    return (pipeline.image_processor.postprocess(decoded, output_type="np")[0] * 255).round().astype(np.uint8)


@pytest.mark.parametrize("make", STOCK)
def test_regions_equal_a_plain_loop(make: Callable[[Path], Path], tmp_path: Path) -> None:
    model = load(make(tmp_path))
    stock = STOCK[make].from_pretrained(tmp_path)
    assert model.card.regions
    engine = Engine(slots=16)
    together = run_on(engine, model, jobs())
    assert any(rows > 4 for name, rows in engine.batches_run if name == "denoise"), "calls of jobs are merged"
    for (spec, inputs), in_company in zip(jobs(), together, strict=True):
        [alone] = run_together(model, [(spec, inputs)])
        assert largest_difference(alone, plain_loop(stock, spec)) <= 1, spec
        assert largest_difference(alone, in_company) <= 1, spec


def test_each_region_follows_its_own_prompt(tmp_path: Path) -> None:
    model = load(tiny_sd(tmp_path))
    [one] = run_together(model, [job(1, 1)])
    spec, inputs = job(1, 1, regions=[{**REGIONS[0], "prompt": "something else"}])
    [other] = run_together(model, [(spec, inputs)])
    difference = np.abs(one.astype(int) - other).sum(axis=2)
    assert difference[:, :24].mean() > 2 * difference[:, 48:].mean()
    # A region with the prompt of the job changes nothing but the last bits.
    [plain] = run_together(model, [job(1, 0)])
    spec, inputs = job(1, 2, regions=[{**region, "prompt": "a red house"} for region in REGIONS[:2]])
    [same] = run_together(model, [(spec, inputs)])
    assert largest_difference(plain, same) <= 1


def test_long_and_weighted_prompts_of_regions(tmp_path: Path) -> None:
    model = load(tiny_sd(tmp_path))
    long = "a house by a lake, " * 40
    images = []
    for changes in (
        {"regions": [{**REGIONS[0], "prompt": long}]},
        {"regions": [{**REGIONS[0], "prompt": f"{long} at night"}]},
        {"regions": [{**REGIONS[0], "prompt": "a (blue:1.4) cat"}], "prompt_weighting": True},
        {"regions": [{**REGIONS[0], "prompt": "a blue cat"}], "prompt_weighting": True},
        {"clip_skip": 1},
    ):
        images += run_together(model, [job(1, 1, **changes)])
    assert len({image.tobytes() for image in images}) == len(images)


def test_families_without_clip_have_no_regions(tmp_path: Path) -> None:
    card = load(tiny_flux(tmp_path)).card
    assert Task.IMG2IMG in card.tasks
    assert not card.regions
