"""Transformers in single files, with and without other components, give the pixels of diffusers with the same files."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.loaders import single_file_utils
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from img2img.domain.parameters import Scheduler, Task
from img2img.domain.spec import JobSpec
from img2img.worker.engine.engine import Engine
from img2img.worker.images.inputs import Inputs
from img2img.worker.pipelines.loading.checkpoint_layout import CLIP, OPENCLIP, T5, Layout
from img2img.worker.pipelines.loading.checkpoint_layouts import LAYOUTS
from img2img.worker.pipelines.loading.t5_tokenizer import t5_tokenizer
from img2img.worker.pipelines.model import Model
from tests.support.engines import random_tensor, run_on
from tests.support.models.load_failures import load_failure
from tests.support.models.model_files import layout_of, load, part, write
from tests.support.models.single_files import (
    empty_pipeline,
    text_encoder_file_weights,
    text_encoder_weights,
    vae_weights,
    write_checkpoint,
)
from tests.support.models.tiny_families import (
    amplify,
    shifted_autoencoder,
    tiny_klein,
    tiny_qwen_image,
    tiny_sd3,
    tiny_z_image,
)
from tests.support.models.transformer_files import FLUX2, Z_IMAGE, Weights, flux_weights, sd3_weights
from tests.support.specs import make_spec

# The least that FLUX.2 takes.
SIDE = 64
FULL_WIDTH = pytest.mark.skipif("TEST_CHECKPOINTS" not in os.environ, reason="set TEST_CHECKPOINTS=1 (minutes)")
Arguments = Callable[[JobSpec], Mapping[str, Any]]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def prefixed(prefix: str, weights: Weights) -> Weights:
    return {prefix + key: tensor for key, tensor in weights.items()}


def jobs(task: Task = Task.IMG2IMG, **fields: Any) -> list[JobSpec]:
    return [
        make_spec(
            task,
            scheduler=Scheduler.FLOW_EULER,
            strength=0.6,
            num_inference_steps=4,
            seed=seed,
            prompt=prompt,
            width=SIDE,
            height=SIDE,
            **fields,
        )
        for seed, prompt in enumerate(("a red house", "old oil paint, 12 dogs", "the sea"))
    ]


def check(
    model: Model, stock: DiffusionPipeline, arguments: Arguments, task: Task = Task.IMG2IMG, **fields: Any
) -> None:
    """Compare jobs with the stock pipeline, alone and in company.

    Args:
        fields: of the jobs.
    """
    stock.set_progress_bar_config(disable=True)
    image, specs = random_tensor(1, SIDE, SIDE), jobs(task, **fields)
    together = run_on(Engine(slots=8), model, [(spec, Inputs(image)) for spec in specs])
    for spec, batched in zip(specs, together, strict=True):
        pixels = np.asarray(
            stock(
                prompt=getattr(spec, "instruction", None) or spec.prompt,
                image=diffusers.image_processor.VaeImageProcessor.numpy_to_pil(image.permute(0, 2, 3, 1).numpy()),
                num_inference_steps=spec.num_inference_steps,
                generator=torch.Generator().manual_seed(spec.seed),
                **arguments(spec),
            ).images[0]
        )
        (alone,) = run_on(Engine(slots=1), model, [(spec, Inputs(image))])
        assert np.abs(alone.astype(int) - pixels).max() <= 1
        assert np.abs(batched.astype(int) - pixels).max() <= 1
    assert len({image.tobytes() for image in together}) == len(together)


def img2img(spec: JobSpec) -> Mapping[str, Any]:
    return {"strength": spec.strength, "guidance_scale": spec.guidance_scale}


def sized(spec: JobSpec) -> Mapping[str, Any]:
    return {**img2img(spec), "width": spec.width, "height": spec.height}


def clip(kind: type, width: int) -> torch.nn.Module:
    config = {"intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 49408}
    # The first CLIP text encoder of Stable Diffusion 3 is used without its projection.
    return kind(CLIPTextConfig(hidden_size=width, projection_dim=width, eos_token_id=2, **config))  # type: ignore[no-any-return]


def t5(width: int) -> T5EncoderModel:
    return T5EncoderModel(T5Config(vocab_size=32128, d_model=width, d_kv=8, d_ff=37, num_layers=2, num_heads=4))


def stock_folder(layout: Layout, folder: Path, **how: Any) -> Path:
    """Write the configurations and the tokenizers of a layout for diffusers."""
    layout.write(folder, in_channels=0, **how)
    for name, tokenizer in layout.tokenizers.items():
        if json.loads((folder / "model_index.json").read_text())[name][0] is not None:
            tokenizer.make().save_pretrained(folder / name)
    return folder


def complete_t5(encoder: T5EncoderModel) -> None:
    """Mend a T5 of diffusers: files have its embeddings once, and it is in training mode, with dropout."""
    encoder.encoder.embed_tokens = encoder.shared
    encoder.eval()


@pytest.fixture
def sd3(monkeypatch: pytest.MonkeyPatch) -> DiffusionPipeline:
    """Stable Diffusion 3.5 in miniature, whose files are taken for those of the published size."""
    torch.manual_seed(3)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=32,
        patch_size=2,
        in_channels=16,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        caption_projection_dim=32,
        joint_attention_dim=128,
        pooled_projection_dim=96,
        out_channels=16,
        pos_embed_max_size=32,
        dual_attention_layers=(0, 1),
        qk_norm="rms_norm",
    )
    pipeline = diffusers.StableDiffusion3Img2ImgPipeline(
        transformer=amplify(transformer),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=shifted_autoencoder(16),
        text_encoder=clip(CLIPTextModelWithProjection, 32),
        tokenizer=CLIP.make(),
        text_encoder_2=clip(CLIPTextModelWithProjection, 64),
        tokenizer_2=OPENCLIP.make(),
        text_encoder_3=t5(128),
        tokenizer_3=T5.make(),
    )
    monkeypatch.setattr(single_file_utils, "infer_diffusers_model_type", lambda _weights: "sd35_medium")
    monkeypatch.setitem(LAYOUTS, "sd35_medium", layout_of(pipeline, "sd35_medium"))
    return pipeline


def test_stable_diffusion_3_with_all_text_encoders(sd3: DiffusionPipeline, tmp_path: Path) -> None:
    file = write_checkpoint(sd3, tmp_path / "sd3.5_medium_incl_clips_t5xxl.safetensors")
    folder = stock_folder(LAYOUTS["sd35_medium"], tmp_path / "stock")
    stock = type(sd3).from_single_file(str(file), config=str(folder), local_files_only=True)
    complete_t5(stock.text_encoder_3)
    check(load(file), stock, sized)


def test_stable_diffusion_3_without_t5(
    sd3: DiffusionPipeline, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = prefixed("model.diffusion_model.", sd3_weights(sd3.transformer))
    file = write(weights | prefixed("first_stage_model.", vae_weights(sd3.vae)), tmp_path / "sd3_medium.safetensors")
    message = load_failure(lambda: load(file))
    assert "has no weights of the text_encoder and text_encoder_2; set `text_encoders` to their files, or" in message
    encoders = [
        write(text_encoder_file_weights(encoder), tmp_path / name)
        for name, encoder in (("clip_g.safetensors", sd3.text_encoder_2), ("clip_l.safetensors", sd3.text_encoder))
    ]
    with caplog.at_level("INFO", "img2img.worker"):
        model = load(file, text_encoders=[part(encoder) for encoder in encoders])
    assert "sd3_medium.safetensors has no weights of the text_encoder_3" in caplog.text
    sd3.text_encoder.text_projection.weight.data = torch.eye(32)
    stock = diffusers.StableDiffusion3Img2ImgPipeline(**{**sd3.components, "text_encoder_3": None, "tokenizer_3": None})
    check(model, stock, sized)


def qwen(spec: JobSpec) -> Mapping[str, Any]:
    return {"strength": spec.strength, "true_cfg_scale": spec.guidance_scale, "negative_prompt": " ", **size(spec)}


def size(spec: JobSpec) -> Mapping[str, Any]:
    return {"width": spec.width, "height": spec.height}


def klein(spec: JobSpec) -> Mapping[str, Any]:
    return {"guidance_scale": spec.guidance_scale, **size(spec)}


def diffusers_keys(transformer: torch.nn.Module) -> Weights:
    return transformer.state_dict()


@dataclass
class Case:
    """A family whose transformer is in a file, and whose other components come from `config`."""

    make: Callable[[Path], Path]
    stock: type
    arguments: Arguments
    weights: Callable[[torch.nn.Module], Weights]
    task: Task = Task.IMG2IMG


CASES = {
    "z-image": Case(tiny_z_image, diffusers.ZImageImg2ImgPipeline, img2img, Z_IMAGE.weights),
    "qwen-image": Case(tiny_qwen_image, diffusers.QwenImageImg2ImgPipeline, qwen, diffusers_keys),
    "flux-2-klein": Case(tiny_klein, diffusers.Flux2KleinPipeline, klein, FLUX2.weights, Task.EDIT),
    "sd3": Case(tiny_sd3, diffusers.StableDiffusion3Img2ImgPipeline, sized, sd3_weights),
}


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("family", CASES)
def test_transformer_with_config(family: str, prefix: str, tmp_path: Path) -> None:
    case = CASES[family]
    folder = case.make(tmp_path / "whole")
    whole = case.stock.from_pretrained(folder)
    file = write(prefixed(prefix, case.weights(whole.transformer)), tmp_path / "transformer.safetensors")
    # diffusers expects the keys of FLUX.2 and Qwen-Image without the prefix.
    plain = write(case.weights(whole.transformer), tmp_path / "plain.safetensors")
    loaded = type(whole.transformer).from_single_file(
        str(plain), config=str(folder), subfolder="transformer", local_files_only=True
    )
    shutil.rmtree(folder / "transformer", ignore_errors=True)
    whole.transformer.save_config(folder / "transformer")
    check(
        load(file, config=part(folder)),
        case.stock(**{**whole.components, "transformer": loaded}),
        case.arguments,
        case.task,
    )


def float8(weights: Weights) -> Weights:
    return {key: tensor.to(torch.float8_e4m3fn) for key, tensor in weights.items()}


def test_weights_in_8_bits(tmp_path: Path) -> None:
    folder = tiny_z_image(tmp_path / "whole")
    whole = diffusers.ZImageImg2ImgPipeline.from_pretrained(folder)
    file = write(float8(Z_IMAGE.weights(whole.transformer)), tmp_path / "z_image_fp8_e4m3fn.safetensors")
    loaded = type(whole.transformer).from_single_file(
        str(file), config=str(folder), subfolder="transformer", local_files_only=True, dtype=torch.float32
    )
    model = load(file, config=part(folder))
    assert model.card.dtype == "float32"
    check(model, diffusers.ZImageImg2ImgPipeline(**{**whole.components, "transformer": loaded}), img2img)


@pytest.mark.parametrize(("scale", "hints"), [("scale_weight", ("scaled_fp8",)), ("weight_scale", ())])
def test_weights_in_8_bits_with_a_scale(scale: str, hints: tuple[str, ...], tmp_path: Path) -> None:
    """ComfyUI's files: each large weight has a factor."""
    folder = tiny_z_image(tmp_path / "whole")
    whole = diffusers.ZImageImg2ImgPipeline.from_pretrained(folder)
    weights = Z_IMAGE.weights(whole.transformer)
    scaled, expected = dict(weights), dict(weights)
    for number, (key, tensor) in enumerate(weights.items()):
        if key.startswith("layers.") and tensor.ndim == 2:
            factor = torch.tensor(0.01 * (1 + number))
            scaled[key] = (tensor / factor).to(torch.float8_e4m3fn)
            scaled[key.replace("weight", scale)] = factor
            expected[key] = scaled[key].float() * factor
    scaled |= {key: torch.zeros(2).to(torch.float8_e4m3fn) for key in hints}
    file = write(scaled, tmp_path / "scaled.safetensors")
    plain = write(expected, tmp_path / "plain.safetensors")
    loaded = type(whole.transformer).from_single_file(
        str(plain), config=str(folder), subfolder="transformer", local_files_only=True
    )
    check(load(file, config=part(folder)), type(whole)(**{**whole.components, "transformer": loaded}), img2img)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"x.weight_scale": torch.ones(4, 4)}, "has scales per block (x.weight_scale), which are not supported"),
        (
            {"x.comfy_quant": torch.tensor(list(b'{"format": "nvfp4"}'), dtype=torch.uint8)},
            "is quantised in the format nvfp4, which is not supported",
        ),
        ({"x.weight.quant_state.bitsandbytes__nf4": torch.zeros(1)}, "is quantised for bitsandbytes, which is not"),
        ({"x.wscales": torch.zeros(1)}, "is quantised for Nunchaku or GPTQ, which is not supported in single files"),
    ],
)
def test_other_quantisation_is_refused(extra: Weights, message: str, tmp_path: Path) -> None:
    folder = tiny_z_image(tmp_path / "whole")
    weights = Z_IMAGE.weights(diffusers.ZImageImg2ImgPipeline.from_pretrained(folder).transformer)
    file = write({**weights, "x.weight": torch.zeros(4, 4), **extra}, tmp_path / "z.safetensors")
    assert message in load_failure(lambda: load(file, config=part(folder)))


def flux(*, is_tiny: bool) -> DiffusionPipeline:
    """Return FLUX.1-dev in miniature, or with one block of each kind in the published width."""
    torch.manual_seed(4)
    width = {"attention_head_dim": 16, "num_attention_heads": 2, "axes_dims_rope": (4, 4, 8)} if is_tiny else {}
    transformer = diffusers.FluxTransformer2DModel(
        num_layers=1,
        num_single_layers=1,
        joint_attention_dim=64,
        pooled_projection_dim=32,
        guidance_embeds=True,
        **width,
    )
    return diffusers.FluxImg2ImgPipeline(
        transformer=amplify(transformer) if is_tiny else transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=shifted_autoencoder(16),
        text_encoder=clip(CLIPTextModel, 32),
        tokenizer=CLIP.make(),
        text_encoder_2=t5(64),
        tokenizer_2=T5.make(),
    )


@pytest.mark.parametrize(
    "is_tiny",
    [
        True,
        # diffusers converts the keys of FLUX.1 at the published width only: 0.5 billion weights.
        pytest.param(
            False, marks=pytest.mark.skipif("TEST_CHECKPOINTS" not in os.environ, reason="TEST_CHECKPOINTS=1")
        ),
    ],
)
def test_flux_with_all_components_in_8_bits(is_tiny: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ComfyUI's flux1-dev-fp8."""
    pipeline = flux(is_tiny=is_tiny)
    monkeypatch.setitem(LAYOUTS, "flux-dev", layout_of(pipeline, "flux-dev"))
    weights = text_encoder_weights(pipeline) | prefixed("vae.", vae_weights(pipeline.vae))
    if is_tiny:
        monkeypatch.setattr(single_file_utils, "infer_diffusers_model_type", lambda _weights: "flux-dev")
        # The keys of diffusers, which it does not convert.
        denoiser = pipeline.transformer.state_dict()
    else:
        denoiser = prefixed("model.diffusion_model.", flux_weights(pipeline.transformer))
    file = write(float8(weights | denoiser), tmp_path / "flux1-dev-fp8.safetensors")
    folder = stock_folder(LAYOUTS["flux-dev"], tmp_path / "stock")
    transformer = diffusers.FluxTransformer2DModel.from_single_file(
        str(write(float8(denoiser), tmp_path / "transformer.safetensors")),
        config=str(folder),
        subfolder="transformer",
        local_files_only=True,
        dtype=torch.float32,
    )
    stock = diffusers.FluxImg2ImgPipeline.from_single_file(
        str(file), config=str(folder), local_files_only=True, dtype=torch.float32, transformer=transformer
    )
    complete_t5(stock.text_encoder_2)
    check(load(file), stock, sized)
    assert load(file, pipeline="FluxKontextPipeline").card.tasks == (Task.EDIT, Task.INPAINT)


def test_keys_of_flux_are_converted(tmp_path: Path) -> None:
    """Check names and shapes at full size, without values."""
    pipeline = empty_pipeline("flux-dev", tmp_path)
    converted = single_file_utils.convert_flux_transformer_checkpoint_to_diffusers(flux_weights(pipeline.transformer))
    expected = {key: tensor.shape for key, tensor in pipeline.transformer.state_dict().items()}
    assert {key: tensor.shape for key, tensor in converted.items()} == expected


def test_tokenizer_of_t5() -> None:
    """Tokens of the published tokenizer."""
    tokenizer = t5_tokenizer()
    assert tokenizer("A red house, by the sea!").input_ids == [71, 1131, 629, 6, 57, 8, 2805, 55, 1]
    # A ligature, a fraction and a circled digit are normalised, characters out of the vocabulary are token 2.
    assert tokenizer("\ufb01ve \u00bd \u6f22\u5b57 \u2460").input_ids == [874, 209, 2, 357, 3, 2, 209, 1]
    padded = tokenizer("x", padding="max_length", truncation=True, max_length=16).input_ids
    assert padded == [3, 226, 1] + 13 * [0]
    assert len(tokenizer) == 32100
