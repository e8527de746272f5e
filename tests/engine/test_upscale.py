"""Upscaling: tiles equal those of the stock pipelines, are batched, and join without seams."""

import io
from collections.abc import Sequence
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from img2img.domain.conditioning import Sha256
from img2img.domain.model_config import ModelConfig
from img2img.domain.parameters import Scheduler, Task
from img2img.domain.spec import JobSpec
from img2img.domain.tiling import Tiling
from img2img.errors import Cancelled
from img2img.worker.engine.engine import Engine
from img2img.worker.errors import StartupError
from img2img.worker.images.inputs import to_tensor
from img2img.worker.pipelines.denoise import encode_decode
from img2img.worker.pipelines.model import Model, load_model
from img2img.worker.runner import JobRunner, Rendering, to_pixels
from tests.engine.test_tiling import job, noise
from tests.support.models.tiny_models import (
    autoencoder,
    tiny_sd,
    tiny_unet,
    tiny_x2_upscaler,
    tiny_x4_unet,
    tiny_x4_upscaler,
)

IMAGE: Sha256 = "0" * 64


class Served:
    """A tiny model with two upscalers, and the stock pipelines of all three."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.img2img = load_stock(diffusers.StableDiffusionImg2ImgPipeline, tiny_sd(folder / "base"))
        self.x4 = load_stock(diffusers.StableDiffusionUpscalePipeline, tiny_x4_upscaler(folder / "x4"))
        self.x2 = load_stock(diffusers.StableDiffusionLatentUpscalePipeline, tiny_x2_upscaler(folder / "x2"))
        self.plain: Model = load_model(ModelConfig(name="tiny", source=str(folder / "base")), device="cpu")
        upscale = {2: str(folder / "x2"), 4: str(folder / "x4")}
        config = ModelConfig(name="tiny", source=str(folder / "base"), upscale=upscale)  # type: ignore[arg-type]
        self.model: Model = load_model(config, device="cpu")


def load_stock(kind: type[diffusers.DiffusionPipeline], folder: Path) -> diffusers.DiffusionPipeline:
    pipeline = kind.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return Served(tmp_path_factory.mktemp("models"))


def upscaling(model: Model, times: int) -> Tiling:
    card = model.card.upscaler(times)
    assert card is not None
    return Tiling(upscaler=True, side=card.native_size, overlap=card.size_multiple, multiple=card.size_multiple)


def start_jobs(engine: Engine, model: Model, jobs: Sequence[tuple[JobSpec, Image.Image]]) -> list[Rendering]:
    runner = JobRunner(engine)
    running = []
    for spec, image in jobs:
        file = io.BytesIO()
        image.save(file, "PNG")
        running.append(runner.prepare(spec, {IMAGE: file.getvalue()}, range(spec.num_images), model))
        running[-1].start(lambda: None)
    return running


def run_jobs(model: Model, *jobs: tuple[JobSpec, Image.Image], slots: int = 32) -> tuple[Engine, list[Rendering]]:
    """Run jobs in one engine; return the engine and the finished jobs."""
    engine = Engine(slots=slots)
    running = start_jobs(engine, model, jobs)
    engine.shut_down()
    engine.run()
    return engine, running


def pixels(running: Rendering, index: int = 0) -> np.ndarray:
    with Image.open(io.BytesIO(running.render()[index].png)) as image:
        return np.asarray(image).astype(int)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_upscaler_gives_stock_pixels_for_one_tile(served: Served) -> None:
    for times, pipeline, side in ((4, served.x4, 16), (2, served.x2, 32)):
        image, tiling = noise(side, side), upscaling(served.model, times)
        scheduler = Scheduler.DDIM if times == 4 else Scheduler.EULER
        common = {"times": times, "tiling": tiling, "scheduler": scheduler, "strength": 1.0, "num_inference_steps": 3}
        specs = [
            job(side, side, prompt="a cat", guidance_scale=4.0, **common),
            job(side, side, prompt="a dog", negative_prompt="fog", guidance_scale=2.0, seed=8, **common),
            job(side, side, **common),
        ]
        img2img = job(64, 64, task=Task.IMG2IMG, times=None, tiling=None)
        _, together = run_jobs(served.model, *[(spec, image) for spec in specs], (img2img, noise(64, 64)))
        for spec, running in zip(specs, together, strict=False):
            expected = pipeline(
                prompt=spec.prompt,
                negative_prompt=spec.negative_prompt or None,
                image=image,
                num_inference_steps=spec.num_inference_steps,
                guidance_scale=spec.guidance_scale,
                generator=generator(spec.seed),
            ).images[0]
            assert np.abs(pixels(running) - np.asarray(expected)).max() <= 1
            assert running.steps_done == spec.total_steps == 3
        _, [alone] = run_jobs(served.model, (specs[0], image))
        assert np.abs(pixels(alone) - pixels(together[0])).max() <= 1


class ServedUnet:
    """A tiny model with a VAE scale factor of 4 and an upscaler that is only a UNet."""

    def __init__(self, folder: Path, *, low_res: diffusers.DDPMScheduler | None = None) -> None:
        self.base = tiny_sd(folder / "base", prediction_type="v_prediction", vae=autoencoder(widths=(32, 32, 64)))
        unet = tiny_x4_unet()
        unet.save_pretrained(folder / "unet")
        if low_res:
            low_res.save_pretrained(folder / "unet" / "low_res_scheduler")
        source = {"source": str(folder / "unet"), "steps": 5, "guidance_scale": 2.0}
        self.config = ModelConfig(name="tiny", source=str(self.base), upscale={4: source})  # type: ignore[arg-type]
        self.model: Model = load_model(self.config, device="cpu")
        self.img2img = load_stock(diffusers.StableDiffusionImg2ImgPipeline, self.base)
        base = load_stock(diffusers.StableDiffusionPipeline, self.base)
        vae = diffusers.AutoencoderKL.from_pretrained(self.base, subfolder="vae")
        self.scaling_factor = vae.config.scaling_factor
        noise = low_res or diffusers.DDPMScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="scaled_linear")
        self.x4 = diffusers.StableDiffusionUpscalePipeline(
            vae, base.text_encoder, base.tokenizer, unet, noise, base.scheduler
        )
        vae.register_to_config(scaling_factor=self.scaling_factor)
        self.x4.set_progress_bar_config(disable=True)

    def reference(self, spec: JobSpec, image: Image.Image) -> np.ndarray:
        return np.asarray(
            self.x4(
                prompt=spec.prompt,
                image=image,
                num_inference_steps=spec.num_inference_steps,
                guidance_scale=spec.guidance_scale,
                generator=generator(spec.seed),
            ).images[0]
        )


@pytest.mark.parametrize("low_res", [None, diffusers.DDPMScheduler(beta_end=0.5)], ids=["default", "from folder"])
# The stock pipeline warns about the scaling factor of the VAE.
@pytest.mark.filterwarnings("ignore:.*scaling_factor:FutureWarning")
def test_unet_upscaler_gives_stock_pixels(
    served: Served, tmp_path: Path, low_res: diffusers.DDPMScheduler | None
) -> None:
    tiny = ServedUnet(tmp_path, low_res=low_res)
    card = tiny.model.card.upscaler(4)
    assert card is not None
    assert (card.native_size, card.size_multiple, card.default_steps, card.default_guidance_scale) == (64, 16, 5, 2.0)
    tiling, image = upscaling(tiny.model, 4), noise(16, 16)
    common = {"times": 4, "tiling": tiling, "scheduler": Scheduler.DDIM, "strength": 1.0, "num_inference_steps": 3}
    specs = [job(16, 16, prompt="a cat", guidance_scale=3.0, **common), job(16, 16, seed=8, **common)]
    img2img = job(64, 64, task=Task.IMG2IMG, times=None, tiling=None)
    engine, [*upscaled, plain] = run_jobs(tiny.model, *[(spec, image) for spec in specs], (img2img, noise(64, 64)))
    assert engine.calls_run["denoise"] == 3 + 3, "the two upscaling jobs share calls"
    for spec, running in zip(specs, upscaled, strict=True):
        assert np.abs(pixels(running) - tiny.reference(spec, image)).max() <= 1
    assert tiny.model.vae.config.scaling_factor == tiny.scaling_factor, "the VAE of the model must not change"
    expected = tiny.img2img(
        prompt="",
        image=noise(64, 64),
        strength=img2img.strength,
        num_inference_steps=img2img.num_inference_steps,
        guidance_scale=1.0,
        generator=generator(img2img.seed),
    ).images[0]
    assert np.abs(pixels(plain) - np.asarray(expected)).max() <= 1
    large = job(37, 21, **common)
    _, [tiled] = run_jobs(tiny.model, (large, noise(37, 21)))
    assert large.passes > 1
    assert pixels(tiled).shape == (84, 148, 3)


def test_load_model_rejects_unet_that_is_no_upscaler(served: Served, tmp_path: Path) -> None:
    tiny_unet(in_channels=8).save_pretrained(tmp_path / "edit")
    tiny_x4_unet().save_pretrained(tmp_path / "x4")
    for folder, message in (
        ("edit", "it needs `in_channels` 7 and `num_class_embeds` over 20, not 8 and None"),
        ("x4", "upscale.4: the pipeline upscales by 2"),
        ("none", "cannot load"),
    ):
        upscale = {4: str(tmp_path / folder)}
        with pytest.raises(StartupError, match=message):
            load_model(ModelConfig(source=str(served.folder / "base"), upscale=upscale), device="cpu")  # type: ignore[arg-type]


def test_tiled_img2img_of_one_tile_is_stock_img2img_of_the_resized_image(served: Served) -> None:
    spec, image = job(32, 32, prompt="a house", guidance_scale=3.0), noise(32, 32)
    expected = served.img2img(
        prompt=spec.prompt,
        image=image.resize((64, 64), Image.Resampling.LANCZOS),
        strength=spec.strength,
        num_inference_steps=spec.num_inference_steps,
        guidance_scale=spec.guidance_scale,
        generator=generator(spec.seed),
    ).images[0]
    _, [running] = run_jobs(served.plain, (spec, image))
    assert np.abs(pixels(running) - np.asarray(expected)).max() <= 1


def test_tiles_are_stock_img2img_with_a_crop_of_shared_noise(served: Served) -> None:
    # No side is a multiple of 8.
    spec, image = job(50, 41, num_images=2), noise(50, 41)
    engine, [running] = run_jobs(served.plain, (spec, image))
    grid = spec.grid
    assert grid is not None
    assert len(grid) == 4
    assert grid.canvas == (104, 88)
    assert pixels(running).shape == (82, 100, 3)
    assert engine.calls_run["denoise"] == spec.steps_run == 3, "all tiles of both images share each call"
    resized = np.asarray(image.resize((100, 82), Image.Resampling.LANCZOS))
    canvas = Image.fromarray(np.pad(resized, ((0, 6), (0, 4), (0, 0)), mode="symmetric"))
    tile_generator = generator(spec.seed + 1)
    whole = torch.randn((1, 4, 44, 52), generator=tile_generator)
    seeds = torch.randint(2**63 - 1, (4,), generator=tile_generator).tolist()
    for number, (left, top, right, bottom) in enumerate(grid.boxes):
        part = whole[:, :, top // 2 : bottom // 2, left // 2 : right // 2]

        class GivenNoise(diffusers.DDIMScheduler):
            noise = part

            def add_noise(self, latents, drawn, timesteps):  # type: ignore[no-untyped-def]
                return super().add_noise(latents, self.noise, timesteps)

        served.img2img.scheduler = GivenNoise.from_config(served.img2img.scheduler.config)
        expected = served.img2img(
            prompt="",
            image=canvas.crop((left, top, right, bottom)),
            strength=spec.strength,
            num_inference_steps=spec.num_inference_steps,
            guidance_scale=1.0,
            generator=generator(seeds[number]),
        ).images[0]
        result = running.tasks[4 + number].result
        assert np.abs(result.astype(int) - np.asarray(expected)).max() <= 1
    served.img2img.scheduler = diffusers.DDIMScheduler.from_config(served.img2img.scheduler.config)
    _, [sequential] = run_jobs(served.plain, (spec, image), slots=3)
    assert np.abs(pixels(sequential, 1) - pixels(running, 1)).max() <= 1


def test_upscaler_splits_large_images_into_tiles(served: Served) -> None:
    for times, size in ((4, (21, 37)), (2, (45, 50))):
        scheduler = Scheduler.DDIM if times == 4 else Scheduler.EULER
        tiling = upscaling(served.model, times)
        spec = job(*size, times=times, tiling=tiling, strength=1.0, num_inference_steps=2, scheduler=scheduler)
        _, [running] = run_jobs(served.model, (spec, noise(*size)))
        assert pixels(running).shape == (size[1] * times, size[0] * times, 3)
        assert running.steps_done == spec.total_steps
        assert spec.passes > 1


def test_tiles_join_without_seams(served: Served) -> None:
    """Compare tiles with the whole image in one VAE call.

    Group norms make each tile slightly lighter or darker. The difference must not jump at the edges of tiles.
    """
    image = noise(20, 15).resize((80, 60), Image.Resampling.BICUBIC)
    spec = job(80, 60, strength=0.0)
    engine, [running] = run_jobs(served.plain, (spec, image))
    assert engine.calls_run["denoise"] == spec.total_steps == 0
    resized = image.resize(spec.result_size, Image.Resampling.LANCZOS)
    with torch.inference_mode():
        whole = to_pixels(encode_decode(served.plain, to_tensor(resized), fast_vae=False)).astype(int)
    grid = spec.grid
    assert grid is not None
    pasted = np.zeros_like(whole)
    for task, (left, top, right, bottom) in zip(running.tasks, grid.boxes, strict=True):
        pasted[top:bottom, left:right] = task.result[: 120 - top, : 160 - left]
    edges = [left - 1 for left in grid.lefts[1:]] + [left + grid.tile[0] - 1 for left in grid.lefts[:-1]]

    def seam(result: np.ndarray) -> float:
        """Return the change of the error across tile edges, relative to the median change elsewhere."""
        changes = np.abs(np.diff(result - whole, axis=1)).mean(axis=(0, 2))
        return float(changes[edges].max() / np.median(np.delete(changes, edges)))

    assert seam(pixels(running)) < 1.5 < seam(pasted)


def test_stop_frees_all_rows_at_once(served: Served) -> None:
    engine = Engine(slots=4)
    spec = job(120, 120, num_inference_steps=100, num_images=2)
    assert spec.passes > 4 * 4
    with torch.inference_mode():
        [running] = start_jobs(engine, served.plain, [(spec, noise(120, 120))])
        while running.steps_done < 8:
            engine.step()
        assert 0 < running.steps_done < spec.total_steps
        assert running.remaining == spec.passes
        running.stop()
        for _ in range(spec.passes):
            engine.step()
    assert running.remaining == 0
    assert engine.free_slots == engine.slots
    assert engine.calls_run["denoise"] < 8, "waiting tiles must not start"
    with pytest.raises(Cancelled):
        running.render()


def test_card_lists_factors_and_upscalers(served: Served, tmp_path: Path) -> None:
    plain, both = served.plain.card, served.model.card
    assert plain.upscales == both.upscales == (2, 4)
    assert Task.UPSCALE in plain.tasks
    assert plain.upscalers == ()
    assert [(card.times, card.native_size, card.size_multiple) for card in both.upscalers] == [(2, 64, 16), (4, 64, 16)]
    wrong = ModelConfig(source=str(served.folder / "base"), upscale={2: str(served.folder / "x4")})  # type: ignore[arg-type]
    with pytest.raises(StartupError, match=r"upscale\.2: StableDiffusionUpscalePipeline does not upscale by 2"):
        load_model(wrong, device="cpu")
