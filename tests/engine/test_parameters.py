"""Optional parameters give exactly the pixels of the stock pipeline, alone and in a batch.

The stock pipeline gets its image as a tensor. From a PIL image it makes a tensor with channels last, whose convolutions
round differently. So do matrix products of a batch: results of a batch may differ by the last bits of fp32.
"""

import inspect
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from img2img.domain.model_config import ModelConfig
from img2img.domain.parameters import Scheduler, Task
from img2img.domain.tiling import Tiling
from img2img.worker.engine.engine import Engine
from img2img.worker.errors import StartupError
from img2img.worker.images.inputs import Inputs, to_tensor
from img2img.worker.pipelines.conditioning.prompt_embeddings import add_text_model
from img2img.worker.pipelines.model import load_model
from img2img.worker.pipelines.parameters import PARAMETERS
from tests.support.engines import run_functions, run_tasks
from tests.support.models.tiny_models import tiny_fast_vae, tiny_sd, tiny_sdxl, tiny_x4_upscaler
from tests.support.parameter_models import BATCH_TOLERANCE, REGION, STOCK, Served, check_exact, job
from tests.support.specs import make_spec
from tests.support.stock import guidance_off_after


@pytest.fixture(scope="module", params=[tiny_sd, tiny_sdxl], ids=["sd", "sdxl"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    return Served(request.param(tmp_path_factory.mktemp("model")), STOCK[request.param])


def test_defaults_are_those_of_the_pipelines(served: Served) -> None:
    for name, tasks in served.model.card.parameters.items():
        if name in PARAMETERS and not name.startswith("pag_"):
            default = type(job()).model_fields[name].default
            for task in set(tasks) & set(served.stock):
                stock_default = inspect.signature(served.stock[task].__call__).parameters[name].default
                assert stock_default in (default, None), (name, task)
    others = {"subseed", "subseed_strength", "freeu", "soft_inpainting", "seamless_tiling"}
    assert set(served.model.card.parameters) <= {*PARAMETERS, *others}


@pytest.mark.parametrize("scheduler", [Scheduler.DDIM, Scheduler.TCD])
def test_eta_is_exact(served: Served, scheduler: Scheduler) -> None:
    assert served.tasks_with("eta") == (Task.IMG2IMG, Task.INPAINT)
    assert served.model.card.scheduler_parameters["eta"] == (Scheduler.DDIM, Scheduler.TCD)
    check_exact(served, "eta", [0.4, 1.0], scheduler=scheduler)


def test_guidance_rescale_is_exact(served: Served) -> None:
    is_xl = served.model.card.family == "stable-diffusion-xl"
    assert served.tasks_with("guidance_rescale") == ((Task.IMG2IMG, Task.INPAINT) if is_xl else ())
    if is_xl:
        check_exact(served, "guidance_rescale", [0.3, 0.7])


def test_guidance_until_is_exact(served: Served) -> None:
    assert served.model.card.guidance_until
    shares = {0.2: 1, 0.75: 3, 0.8: 4}
    specs = [
        job(task=task, region=REGION, guidance_until=share, negative_prompt="blurry")
        for task in served.stock
        for share in shares
    ]
    assert [spec.guided_steps for spec in specs[:3]] == list(shares.values())
    plain = job(negative_prompt="blurry")
    batch = served.run(*specs, plain)
    for spec, batched in zip(specs, batch, strict=False):
        turning_off = guidance_off_after(spec.guided_steps, served.stock[spec.task])
        expected = served.reference(spec, **turning_off)
        [alone] = served.run(spec)
        assert torch.equal(alone, expected), spec
        torch.testing.assert_close(batched, expected, rtol=0, atol=BATCH_TOLERANCE)
    torch.testing.assert_close(batch[-1], served.reference(plain), rtol=0, atol=BATCH_TOLERANCE)
    assert len({image.numpy().tobytes() for image in batch}) == len(batch) - 1, "a share of 0.8 is all 4 steps"


def test_guidance_until_frees_a_row(served: Served) -> None:
    engine, spec = Engine(slots=1), job(guidance_until=0.5)
    run_tasks(served.model, [(spec, Inputs(to_tensor(served.image)))], engine)
    assert (engine.batches_run["denoise", 2], engine.batches_run["denoise", 1]) == (2, 2)
    assert spec.cost == pytest.approx(job().cost * 1.5 / 2)


def test_fast_vae_is_exact(served: Served) -> None:
    assert served.model.card.fast_vae
    specs = [
        job(task=task, region=REGION, fast_vae=fast, strength=strength)
        for task in served.stock
        for strength in (0.6, 1.0)
        for fast in (True, False)
    ]
    batch = served.run(*specs, job(strength=0.0, fast_vae=True), job(strength=0.0))
    for spec, batched in zip(specs, batch, strict=False):
        expected = served.reference(spec)
        [alone] = served.run(spec)
        assert torch.equal(alone, expected), spec
        torch.testing.assert_close(batched, expected, rtol=0, atol=BATCH_TOLERANCE)
    with torch.inference_mode():
        latents = served.fast_vae.encode(2 * to_tensor(served.image) - 1).latents
        expected = (served.fast_vae.decode(latents).sample / 2 + 0.5).clamp(0, 1)
    assert torch.equal(batch[-2], expected)
    assert len({image.numpy().tobytes() for image in batch}) == len(batch)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent_channels": 8}, "its latents have 8 channels and are 2 times smaller than the image"),
        ({"name": "vae"}, "is of the class AutoencoderKL, not AutoencoderTiny"),
    ],
)
def test_fast_vae_of_another_model_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = tiny_sd(tmp_path / "base")
    fast = folder / "vae" if "name" in changes else tiny_fast_vae(tmp_path / "fast", **changes)
    with pytest.raises(StartupError, match=f"`fast_vae`: .*{message}"):
        load_model(ModelConfig(name="tiny", source=str(folder), fast_vae=str(fast)), device="cpu")


def test_clip_skip_is_exact(served: Served) -> None:
    assert served.tasks_with("clip_skip") == (Task.IMG2IMG, Task.INPAINT)
    check_exact(served, "clip_skip", [1, 2] if served.model.card.family == "stable-diffusion" else [1])


def test_clip_skip_with_prompt_weighting_is_exact(served: Served) -> None:
    """A prompt without weights has the embeddings of the stock pipeline, by way of compel."""
    plain = job(clip_skip=1, negative_prompt="blurry")
    weighted = job(clip_skip=1, negative_prompt="blurry", prompt="a (red:1.0) house", prompt_weighting=True)
    without, emphasized = (
        job(prompt_weighting=True),
        job(clip_skip=1, prompt="a (red:1.4) house", prompt_weighting=True),
    )
    [expected] = served.run(plain)
    batch = served.run(weighted, without, emphasized)
    assert torch.equal(served.run(weighted)[0], expected)
    torch.testing.assert_close(batch[0], expected, rtol=0, atol=BATCH_TOLERANCE)
    assert len({image.numpy().tobytes() for image in batch}) == len(batch)


def test_clip_skip_of_an_upscaler_is_exact(tmp_path: Path) -> None:
    folder = tiny_sd(tmp_path / "base")
    entry = ModelConfig(name="tiny", source=str(folder), upscale={4: str(tiny_x4_upscaler(tmp_path / "x4"))})
    model = load_model(entry, device="cpu")
    card = model.card.upscaler(4)
    assert card is not None
    assert card.parameters == ("clip_skip",)
    tiling = Tiling(upscaler=True, side=card.native_size, overlap=card.size_multiple, multiple=card.size_multiple)
    image = to_tensor(Image.fromarray(np.random.default_rng(1).integers(0, 256, (16, 16, 3), np.uint8)))
    stock = diffusers.StableDiffusionUpscalePipeline.from_pretrained(tmp_path / "x4")
    stock.set_progress_bar_config(disable=True)
    add_text_model(stock)
    results = []
    for clip_skip in (0, 1):
        size = {"width": 16, "height": 16, "upscale": 4, "tiling": tiling}
        spec = make_spec(Task.UPSCALE, clip_skip=clip_skip, num_inference_steps=4, **size)
        stock.scheduler = diffusers.DDIMScheduler.from_config(stock.scheduler.config)
        [expected] = stock(
            prompt=spec.prompt,
            image=image,
            num_inference_steps=4,
            guidance_scale=spec.guidance_scale,
            generator=torch.Generator().manual_seed(spec.seed),
            output_type="pt",
            clip_skip=clip_skip or None,
        ).images
        upscale = partial(model.upscalers[4].upscale, spec, Inputs(image), spec.seed)
        results += run_functions([upscale], Engine(slots=4))
        assert torch.equal(results[-1][0], expected)
    assert not torch.equal(*results)
