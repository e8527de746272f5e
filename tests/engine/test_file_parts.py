"""UNets and whole checkpoints in single files as parts of a model, and files without some components."""

from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.loaders import single_file_utils
from transformers import CLIPTextConfig, CLIPTextModel

from img2img.domain.conditioning import InpaintRegion, Padding
from img2img.domain.model_config import UpscalerSource
from img2img.domain.parameters import Scheduler, Task
from img2img.domain.spec import JobSpec
from img2img.worker.engine.engine import Engine
from img2img.worker.images.inputs import Inputs
from img2img.worker.pipelines.loading.checkpoint_layout import CLIP, OPENCLIP
from img2img.worker.pipelines.loading.checkpoint_layouts import LAYOUTS
from img2img.worker.pipelines.loading.checkpoint_weights import unet_channels
from img2img.worker.pipelines.model import Model
from tests.engine.test_tiling import job, noise
from tests.engine.test_upscale import pixels, run_jobs, upscaling
from tests.support.engines import random_tensor, run_on
from tests.support.models.load_failures import load_failure
from tests.support.models.model_files import layout_of, load, part, write
from tests.support.models.single_files import (
    original_weights,
    text_encoder_file_weights,
    unet_weights,
    vae_weights,
    write_checkpoint,
)
from tests.support.models.tiny_models import autoencoder, tiny_unet, tiny_x4_upscaler
from tests.support.specs import make_spec

INPAINT = diffusers.StableDiffusionInpaintPipeline
REGION = InpaintRegion(mask="1" * 64, blur=0, margins=Padding(), canvas=(32, 32), box=(0, 0, 32, 32))
EDIT = diffusers.StableDiffusionInstructPix2PixPipeline


@pytest.fixture(autouse=True)
def _tiny_layouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take files of a tiny model for Stable Diffusion 1."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    pipeline = tiny(4)
    for kind in ("v1", "inpainting", "instruct-pix2pix"):
        monkeypatch.setitem(LAYOUTS, kind, layout_of(pipeline, kind))


def tiny(in_channels: int, *, seed: int = 1) -> DiffusionPipeline:
    torch.manual_seed(seed)
    config = {"intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 49408}
    return diffusers.StableDiffusionPipeline(
        unet=tiny_unet(in_channels=in_channels, seed=seed),
        vae=autoencoder(),
        text_encoder=CLIPTextModel(CLIPTextConfig(hidden_size=32, eos_token_id=2, **config)),
        tokenizer=CLIP.make(),
        scheduler=diffusers.PNDMScheduler.from_config(LAYOUTS["v1"].scheduler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def jobs(task: Task) -> list[JobSpec]:
    return [
        make_spec(
            task,
            scheduler=Scheduler.DDIM,
            strength=0.8,
            num_inference_steps=5,
            seed=seed,
            prompt=f"house {seed}",
            image_guidance_scale=1.5,
            region=REGION,
        )
        for seed in range(3)
    ]


def inputs() -> Inputs:
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 8:24, 8:24] = 1
    return Inputs(random_tensor(1, 32, 32), mask=mask)


def as_stock(kind: type, pipeline: DiffusionPipeline) -> DiffusionPipeline:
    return kind(**pipeline.components, requires_safety_checker=False)  # type: ignore[no-any-return]


def check(model: Model, stock: DiffusionPipeline, task: Task) -> None:
    """Compare jobs with the stock pipeline, alone and in company."""
    stock.set_progress_bar_config(disable=True)
    stock.scheduler = diffusers.DDIMScheduler.from_config(stock.scheduler.config, clip_sample=False)
    specs, given = jobs(task), inputs()
    together = run_on(Engine(slots=8), model, [(spec, given) for spec in specs])
    for spec, batched in zip(specs, together, strict=True):
        arguments = {"image_guidance_scale": 1.5} if task is Task.EDIT else {"strength": spec.strength}
        arguments |= {"mask_image": given.mask, "width": 32, "height": 32} if task is Task.INPAINT else {}
        image = stock(
            prompt=spec.instruction if task is Task.EDIT else spec.prompt,
            image=given.image,
            num_inference_steps=spec.num_inference_steps,
            guidance_scale=spec.guidance_scale,
            generator=torch.Generator().manual_seed(spec.seed),
            **arguments,
        ).images[0]
        (alone,) = run_on(Engine(slots=1), model, [(spec, given)])
        assert np.abs(alone.astype(int) - np.asarray(image)).max() <= 1
        assert np.abs(batched.astype(int) - np.asarray(image)).max() <= 1
    assert len({image.tobytes() for image in together}) == len(together)


@pytest.mark.parametrize(
    ("key", "task", "kind", "channels"), [("inpaint", Task.INPAINT, INPAINT, 9), ("edit", Task.EDIT, EDIT, 8)]
)
def test_whole_checkpoint_as_part(key: str, task: Task, kind: type, channels: int, tmp_path: Path) -> None:
    """Its own VAE and text encoder are used."""
    base = write_checkpoint(tiny(4), tmp_path / "base.safetensors")
    other = tiny(channels, seed=2)
    file = write_checkpoint(other, tmp_path / f"{key}.safetensors")
    model = load(base, **{key: part(file)})
    assert {Task.IMG2IMG, task} <= set(model.card.tasks)
    check(model, as_stock(kind, other), task)


@pytest.mark.parametrize("keys", ["original", "diffusers"])
@pytest.mark.parametrize(
    ("key", "task", "kind", "channels"), [("inpaint", Task.INPAINT, INPAINT, 9), ("edit", Task.EDIT, EDIT, 8)]
)
def test_unet_as_part(key: str, task: Task, kind: type, channels: int, keys: str, tmp_path: Path) -> None:
    """The other components are those of the model."""
    base, unet = tiny(4), tiny_unet(in_channels=channels, seed=2)
    weights = unet_weights(unet) if keys == "original" else unet.state_dict()
    file = write(weights, tmp_path / "unet.safetensors")
    model = load(write_checkpoint(base, tmp_path / "base.safetensors"), **{key: part(file)})
    base.register_modules(unet=unet)
    check(model, as_stock(kind, base), task)


def test_part_for_another_task_is_refused(tmp_path: Path) -> None:
    base = write_checkpoint(tiny(4), tmp_path / "base.safetensors")
    file = write_checkpoint(tiny(8, seed=2), tmp_path / "edit.safetensors")
    message = load_failure(lambda: load(base, inpaint=part(file)))
    assert "`inpaint`: the UNet of" in message
    assert "is for `edit`, not for `inpaint`" in message


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_unet_with_files_of_the_other_components(prefix: str, tmp_path: Path) -> None:
    """The folders diffusion_models, text_encoders and vae of ComfyUI."""
    whole = tiny(4)
    unet = write(
        {prefix + key: value for key, value in unet_weights(whole.unet).items()}, tmp_path / "unet.safetensors"
    )
    assert "unet.safetensors has no weights of the vae and text_encoder; set `text_encoders` and `vae`" in load_failure(
        lambda: load(unet)
    )
    encoder = write(text_encoder_file_weights(whole.text_encoder), tmp_path / "clip_l.safetensors")
    vae = write(vae_weights(whole.vae), tmp_path / "vae.safetensors")
    model = load(unet, text_encoders=[part(encoder)], vae=part(vae))
    check(model, as_stock(diffusers.StableDiffusionImg2ImgPipeline, whole), Task.IMG2IMG)
    message = load_failure(lambda: load(unet, text_encoders=[part(vae)], vae=part(vae)))
    assert "`text_encoders`: vae.safetensors is an autoencoder (VAE), not a CLIP or T5 text encoder" in message


def test_components_of_another_file(tmp_path: Path) -> None:
    """`config` is a checkpoint that has the VAE and the text encoder."""
    whole, unet = tiny(4), tiny_unet(in_channels=4, seed=7)
    file = write(unet_weights(unet), tmp_path / "unet.safetensors")
    model = load(file, config=part(write_checkpoint(whole, tmp_path / "whole.safetensors")))
    whole.register_modules(unet=unet)
    check(model, as_stock(diffusers.StableDiffusionImg2ImgPipeline, whole), Task.IMG2IMG)


def test_upscaler_in_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upscaler = DiffusionPipeline.from_pretrained(tiny_x4_upscaler(tmp_path / "x4"))
    base = tiny(4)
    upscaler.register_modules(text_encoder=base.text_encoder, tokenizer=OPENCLIP.make())
    packaged = LAYOUTS["upscale"]
    monkeypatch.setitem(LAYOUTS, "upscale", layout_of(upscaler, "upscale"))
    # diffusers knows the upscaler by the number of its blocks.
    original = single_file_utils.infer_diffusers_model_type
    monkeypatch.setattr(
        single_file_utils,
        "infer_diffusers_model_type",
        lambda weights: "upscale" if unet_channels(weights) == 7 else original(weights),
    )
    file = write(original_weights(upscaler), tmp_path / "x4-upscaler-ema.safetensors")
    source = UpscalerSource(source=str(file), steps=5)
    model = load(write_checkpoint(base, tmp_path / "base.safetensors"), upscale={4: source})
    [card] = model.card.upscalers
    assert (card.times, card.default_steps) == (4, 5)
    upscaler.scheduler = diffusers.DDIMScheduler.from_config({**packaged.scheduler, "prediction_type": "v_prediction"})
    upscaler.low_res_scheduler = diffusers.DDPMScheduler.from_config(packaged.others["low_res_scheduler"])
    upscaler.set_progress_bar_config(disable=True)
    image, common = noise(16, 16), {"times": 4, "scheduler": Scheduler.DDIM, "strength": 1.0, "num_inference_steps": 3}
    specs = [job(16, 16, tiling=upscaling(model, 4), prompt=f"cat {seed}", seed=seed, **common) for seed in range(3)]
    _, together = run_jobs(model, *[(spec, image) for spec in specs])
    for spec, running in zip(specs, together, strict=True):
        expected = upscaler(
            prompt=spec.prompt,
            image=image,
            num_inference_steps=spec.num_inference_steps,
            guidance_scale=spec.guidance_scale,
            generator=torch.Generator().manual_seed(spec.seed),
        ).images[0]
        _, [alone] = run_jobs(model, (spec, image))
        assert np.abs(pixels(running) - np.asarray(expected)).max() <= 1
        assert np.abs(pixels(alone) - np.asarray(expected)).max() <= 1
