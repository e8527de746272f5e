"""Tiling and slicing of the VAE: pixels of stock diffusers with the same settings, and less memory."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from img2img.domain.model_config import ModelConfig
from img2img.domain.parameters import Scheduler
from img2img.domain.spec import JobSpec
from img2img.worker.images.inputs import Inputs
from img2img.worker.pipelines import vae_memory
from img2img.worker.pipelines.model import Model, load_model
from tests.support.engines import run_together
from tests.support.images import largest_difference
from tests.support.models.load_failures import load_failure
from tests.support.models.tiny_models import autoencoder, tiny_sd, tiny_sdxl, tiny_x4_upscaler
from tests.support.specs import make_spec

# The VAEs of the tests have tiles of 64 pixels.
SIZE = (96, 160)
IMAGE = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (1, 3, SIZE[1], SIZE[0]), np.uint8)).float() / 255
STOCK = {
    tiny_sd: (diffusers.StableDiffusionImg2ImgPipeline, Scheduler.DDIM),
    tiny_sdxl: (diffusers.StableDiffusionXLImg2ImgPipeline, Scheduler.EULER),
}


def load(folder: Path, **keys: Any) -> Model:
    return load_model(ModelConfig.model_validate({"name": "photo", "source": str(folder), **keys}), device="cpu")


def job(scheduler: Scheduler, seed: int) -> tuple[JobSpec, Inputs]:
    spec = make_spec(scheduler=scheduler, strength=0.6, num_inference_steps=4, seed=seed, width=SIZE[0], height=SIZE[1])
    return spec, Inputs(IMAGE)


@pytest.mark.parametrize("make", STOCK)
@pytest.mark.parametrize("setting", [True, "auto"])
def test_pixels_are_those_of_stock_tiles(
    make: Any, setting: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vae_memory, "AUTO_PIXELS", SIZE[0] * SIZE[1] - 1)
    kind, scheduler = STOCK[make]
    model = load(make(tmp_path), vae_tiling=setting, vae_slicing=True)
    stock = kind.from_pretrained(tmp_path)
    stock.set_progress_bar_config(disable=True)
    stock.vae.enable_tiling()
    stock.vae.enable_slicing()
    several = [job(scheduler, seed) for seed in range(3)]
    untiled = run_together(load(tmp_path), several)
    for (spec, inputs), pixels, other in zip(several, run_together(model, several), untiled, strict=True):
        [alone] = run_together(model, [(spec, inputs)])
        stock.scheduler = type(stock.scheduler).from_config(stock.scheduler.config)
        expected = np.asarray(
            stock(
                prompt=spec.prompt,
                image=diffusers.image_processor.VaeImageProcessor.numpy_to_pil(IMAGE.permute(0, 2, 3, 1).numpy()),
                strength=spec.strength,
                num_inference_steps=spec.num_inference_steps,
                guidance_scale=spec.guidance_scale,
                generator=torch.Generator().manual_seed(spec.seed),
            ).images[0]
        )
        assert largest_difference(alone, expected) <= 1
        assert largest_difference(pixels, expected) <= 1
        assert largest_difference(pixels, other) > 1, "tiles change pixels"


def test_auto_leaves_smaller_images_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vae_memory, "AUTO_PIXELS", SIZE[0] * SIZE[1])
    model = load(tiny_sd(tmp_path), vae_tiling="auto")
    one = [job(Scheduler.DDIM, 1)]
    assert largest_difference(run_together(model, one)[0], run_together(load(tmp_path), one)[0]) == 0


def test_slices_change_no_pixels(tmp_path: Path) -> None:
    model, plain = load(tiny_sd(tmp_path), vae_slicing=True), load(tmp_path)
    several = [job(Scheduler.DDIM, seed) for seed in range(3)]
    for a, b in zip(run_together(model, several), run_together(plain, several), strict=True):
        assert largest_difference(a, b) <= 1


def test_vaes_of_parts_are_tiled_too(tmp_path: Path) -> None:
    upscaler = tiny_x4_upscaler(tmp_path / "x4")
    model = load(tiny_sd(tmp_path / "model"), upscale={4: str(upscaler)}, vae_tiling=True)
    assert model.upscalers[4].vae is not model.vae
    assert model.upscalers[4].vae.use_tiling
    assert model.vae.use_tiling


def test_vae_without_tiles_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_sd(tmp_path)

    def no_tiles(self: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(diffusers.AutoencoderKL, "enable_tiling", no_tiles)
    message = load_failure(lambda: load(folder, vae_tiling=True))
    assert "do not work with AutoencoderKL, the VAE of this model; remove them" in message


# Without tiles of 64 pixels, the VAE needs several times the memory for this image, of 640 x 640.
PEAK = """
import sys
import torch
from img2img.domain.model_config import ModelConfig
from img2img.worker.pipelines.model import load_model
from img2img.worker.runtime.memory_meter import CpuMeter
from img2img.worker.runtime.allocator import configure_malloc
configure_malloc()
torch.set_num_threads(1)
model = load_model(ModelConfig(name="a", source=sys.argv[1], vae_tiling=sys.argv[2] == "tiles"), device="cpu")
with torch.inference_mode():
    latents = torch.zeros(1, 4, 320, 320)
    print(CpuMeter().measure(lambda: model.vae.decode(latents))[1])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_tiles_bound_the_memory_of_a_large_image(tmp_path: Path) -> None:
    # Attention would take minutes without tiles.
    folder = tiny_sd(tmp_path, vae=autoencoder(mid_block_add_attention=False))

    def peak(what: str) -> int:
        command = [sys.executable, "-c", PEAK, str(folder), what]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert peak("tiles") < peak("whole") / 4
