"""Models in one file give the pixels that diffusers gives with the same file, without a hub."""

import json
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.loaders.single_file_utils import infer_diffusers_model_type
from safetensors.torch import load_file, save_file

from img2img.domain.model_config import ComponentSource, ModelConfig
from img2img.domain.parameters import Scheduler, Task
from img2img.domain.spec import JobSpec
from img2img.worker.engine.engine import Engine
from img2img.worker.images.inputs import Inputs
from img2img.worker.pipelines.loading.checkpoint_layouts import LAYOUTS
from img2img.worker.pipelines.loading.clip_tokenizer import clip_tokenizer
from img2img.worker.pipelines.loading.single_file import find_checkpoint
from img2img.worker.pipelines.model import Model, load_model
from tests.support.engines import random_tensor, run_on
from tests.support.models.load_failures import load_failure
from tests.support.models.single_files import (
    empty_pipeline,
    original_weights,
    vae_weights,
    write_checkpoint,
    write_header,
)
from tests.support.models.tiny_families import tiny_sd3
from tests.support.models.tiny_models import autoencoder, tiny_sd, tiny_sdxl, tiny_unet
from tests.support.models.transformer_files import sd3_weights
from tests.support.specs import make_spec
from tests.support.stock import call_stock


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny Stable Diffusion model: its folder, and its file."""
    return as_file(tiny_sd(tmp_path_factory.mktemp("sd")))


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    # diffusers finds the text encoder of each part of the file by its width.
    return as_file(tiny_sdxl(tmp_path_factory.mktemp("sdxl"), second_width=64))


def as_file(folder: Path) -> tuple[Path, Path]:
    """Write the model of a folder to one file, and remove its weights."""
    pipeline = DiffusionPipeline.from_pretrained(folder)
    file = write_checkpoint(pipeline, folder.with_suffix(".safetensors"))
    for weights in folder.rglob("*.safetensors"):
        weights.unlink()
    return folder, file


def load(file: Path | str, **keys: object) -> Model:
    return load_model(ModelConfig(name="photo", source=str(file), **keys), device="cpu")  # type: ignore[arg-type]


def part(path: Path) -> ComponentSource:
    return ComponentSource(source=str(path))


def failure(file: Path | str, **keys: object) -> str:
    return load_failure(lambda: load(file, **keys))


def run(model: Model, specs: list[JobSpec]) -> list[np.ndarray]:
    return run_on(Engine(slots=8), model, [(spec, Inputs(random_tensor(1, 32, 32))) for spec in specs])


def reference(stock: DiffusionPipeline, spec: JobSpec) -> np.ndarray:
    stock.set_progress_bar_config(disable=True)
    return call_stock(
        stock,
        spec,
        prompt=spec.prompt,
        image=diffusers.image_processor.VaeImageProcessor.numpy_to_pil(
            random_tensor(1, 32, 32).permute(0, 2, 3, 1).numpy()
        ),
        strength=spec.strength,
    )


def jobs(scheduler: Scheduler) -> list[JobSpec]:
    return [
        make_spec(scheduler=scheduler, strength=0.6, num_inference_steps=8, seed=seed, prompt=f"house {seed}")
        for seed in range(4)
    ]


@pytest.mark.parametrize(
    ("model", "stock", "scheduler"),
    [
        ("sd", diffusers.StableDiffusionImg2ImgPipeline, Scheduler.DDIM),
        ("sdxl", diffusers.StableDiffusionXLImg2ImgPipeline, Scheduler.EULER),
    ],
)
def test_file_gives_the_pixels_of_diffusers_alone_and_in_company(
    model: str, stock: type, scheduler: Scheduler, request: pytest.FixtureRequest
) -> None:
    folder, file = request.getfixturevalue(model)
    served = load(file, config=part(folder))
    expected = stock.from_single_file(str(file), config=str(folder), local_files_only=True)
    assert served.card.tasks == (Task.IMG2IMG, Task.INPAINT, Task.UPSCALE)
    specs = jobs(scheduler)
    together = run(served, specs)
    for spec, batched in zip(specs, together, strict=True):
        pixels = reference(expected, spec)
        (alone,) = run(served, [spec])
        assert np.abs(alone.astype(int) - pixels).max() <= 1
        assert np.abs(batched.astype(int) - pixels).max() <= 1
    assert len({image.tobytes() for image in together}) == len(together)


def test_float16_file_and_dtype(sd: tuple[Path, Path], tmp_path: Path) -> None:
    folder, file = sd
    half = tmp_path / "half.safetensors"
    save_file({key: tensor.half() for key, tensor in load_file(file).items()}, half)
    assert load(half, config=part(folder)).card.dtype == "float32"
    assert load(half, config=part(folder), dtype="bfloat16").card.dtype == "bfloat16"


def test_inpainting_file(tmp_path: Path) -> None:
    folder = tiny_sd(tmp_path / "inpaint")
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.register_modules(unet=tiny_unet(in_channels=9))
    pipeline.save_pretrained(folder)
    _, file = as_file(folder)
    assert Task.INPAINT in load(file, config=part(folder)).card.tasks
    assert Task.IMG2IMG not in load(file, config=part(folder)).card.tasks


@pytest.mark.parametrize("kind", ["folder", "file with original keys", "file with diffusers' keys"])
def test_vae_of_a_model_is_replaced(kind: str, sd: tuple[Path, Path], tmp_path: Path) -> None:
    folder, file = sd
    torch.manual_seed(5)
    vae = autoencoder()
    source = tmp_path / "vae"
    if kind == "folder":
        vae.save_pretrained(source)
    else:
        source = tmp_path / "vae.safetensors"
        weights = vae_weights(vae) if kind == "file with original keys" else vae.state_dict()
        save_file({key: tensor.contiguous() for key, tensor in weights.items()}, source)
    whole = tiny_sd(tmp_path / "folder")
    for model in (load(file, config=part(folder), vae=part(source)), load(whole, vae=part(source))):
        loaded = model.vae.state_dict()
        assert all(torch.equal(loaded[key], tensor) for key, tensor in vae.state_dict().items())
        spec = jobs(Scheduler.DDIM)[0]
        stock = diffusers.StableDiffusionImg2ImgPipeline.from_pretrained(whole, vae=vae)
        (pixels,) = run(model, [spec])
        assert np.abs(pixels.astype(int) - reference(stock, spec)).max() <= 1


def test_vae_of_another_class_is_refused(sd: tuple[Path, Path], tmp_path: Path) -> None:
    folder, file = sd
    tiny_unet(in_channels=4).save_pretrained(tmp_path / "unet")
    message = failure(file, config=part(folder), vae=part(tmp_path / "unet"))
    assert "`vae`: " in message
    assert "is of the class UNet2DConditionModel, and the model needs AutoencoderKL" in message
    (tmp_path / "x.safetensors").write_bytes(b"x" * 100)
    assert "`vae`: " in failure(file, config=part(folder), vae=part(tmp_path / "x.safetensors"))


def test_components_that_a_file_lacks_come_from_the_config(sd: tuple[Path, Path], tmp_path: Path) -> None:
    _, file = sd
    weights = load_file(file)
    pruned = tmp_path / "pruned.safetensors"
    save_file({key: tensor for key, tensor in weights.items() if not key.startswith("cond_stage_model.")}, pruned)
    assert "photo': pruned.safetensors" in failure(pruned)
    whole = tiny_sd(tmp_path / "whole")
    spec = jobs(Scheduler.DDIM)[0]
    (pixels,) = run(load(pruned, config=part(whole)), [spec])
    (expected,) = run(load(whole), [spec])
    assert np.array_equal(pixels, expected)


def test_transformer_in_a_file_takes_the_other_components_from_the_config(tmp_path: Path) -> None:
    whole = tiny_sd3(tmp_path / "sd3")
    transformer = diffusers.SD3Transformer2DModel.from_pretrained(whole / "transformer")
    file = tmp_path / "sd3-model.safetensors"
    weights = {f"model.diffusion_model.{key}": value.contiguous() for key, value in sd3_weights(transformer).items()}
    save_file(weights, file)
    assert "set `config` to" in failure(file)
    spec = make_spec(scheduler=Scheduler.FLOW_EULER, strength=0.6, num_inference_steps=4)
    (pixels,) = run(load(file, config=part(whole)), [spec])
    (expected,) = run(load(whole), [spec])
    assert np.array_equal(pixels, expected)


def test_kinds_without_packaged_configurations_are_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "chroma.safetensors"
    save_file({key: torch.zeros(8) for key in ("double_blocks.0.x", "distilled_guidance_layer.in_proj.bias")}, file)
    message = failure(file)
    assert "is a checkpoint of the type chroma, whose configuration and tokenizers are not part" in message
    assert 'such as "lodestones/Chroma1-HD"' in message


def test_prediction_type_of_the_model_file(sd: tuple[Path, Path], tmp_path: Path) -> None:
    folder, file = sd
    for source, keys in ((file, {"config": part(folder)}), (tiny_sd(tmp_path / "whole"), {})):
        model = load(source, prediction_type="v_prediction", **keys)
        for scheduler in model.card.schedulers:
            assert model.pipeline(Task.IMG2IMG, scheduler).scheduler.config.prediction_type == "v_prediction"
    message = failure(tiny_sd3(tmp_path / "sd3"), prediction_type="epsilon")
    assert "`prediction_type` has no meaning for FlowMatchEulerDiscreteScheduler" in message


def test_files_that_are_no_models_are_refused_by_name(sd: tuple[Path, Path], tmp_path: Path) -> None:
    folder, _ = sd

    def file(*keys: str) -> Path:
        path = tmp_path / "other.safetensors"
        save_file({key: torch.zeros(2) for key in keys}, path)
        return path

    assert "is a LoRA, not a whole model; list it in `loras`" in failure(file("lora_unet_a.lora_down.weight"))
    assert "is an autoencoder (VAE), not a whole model; give it as `vae`" in failure(file("encoder.down.0.x"))
    assert "is a ControlNet, not a whole model" in failure(file("control_model.time_embed.0.weight"))
    assert "is not a checkpoint that diffusers knows (keys: a.b.c, d.e.f" in failure(file("a.b.c", "d.e.f", "g.h.i"))
    for suffix in ("ckpt", "pt", "bin"):
        (pickle := tmp_path / f"x.{suffix}").write_bytes(b"")
        assert f"x.{suffix} is a pickle, which can run code when it is loaded; convert it" in failure(pickle)
    (tmp_path / "x.gguf").write_bytes(b"")
    assert "x.gguf cannot be read as GGUF: it is damaged or incomplete" in failure(tmp_path / "x.gguf")
    (tmp_path / "cut.safetensors").write_bytes(b"1234567890")
    assert "damaged or incomplete" in failure(tmp_path / "cut.safetensors")
    for source in ("nowhere.ckpt", "./nowhere.safetensors", "~/a/b/nowhere.safetensors", "/a/b/nowhere.safetensors"):
        assert f"{source} does not exist" in failure(source)
    assert "is a URL" in failure("https://example.org/name/x.safetensors")
    whole = tiny_sd(tmp_path / "m")
    for key, value in (
        ("config", part(folder)),
        ("text_encoders", [part(folder)]),
        ("pipeline", "FluxKontextPipeline"),
    ):
        assert f"`{key}` is for a `source` that is a single file" in failure(whole, **{key: value})


def test_incomplete_file_is_refused(sd: tuple[Path, Path], tmp_path: Path) -> None:
    folder, file = sd
    weights = load_file(file)
    for removed in (
        "model.diffusion_model.out.2",
        "first_stage_model.decoder.conv_out",
        "cond_stage_model.transformer.text_model.final_layer_norm",
    ):
        damaged = tmp_path / "damaged.safetensors"
        save_file({key: tensor for key, tensor in weights.items() if not key.startswith(removed)}, damaged)
        assert "damaged.safetensors lacks " in failure(damaged, config=part(folder)), removed


# The first tokens of "a photo of a cat" are known from OpenAI's CLIP.
@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("a photo of a cat", [320, 1125, 539, 320, 2368]),
        ("A Photo  of a CAT", [320, 1125, 539, 320, 2368]),
        ("hello world!", [3306, 1002, 256]),
    ],
)
def test_tokenizer_of_clip(text: str, tokens: list[int]) -> None:
    tokenizer = clip_tokenizer()
    assert tokenizer(text).input_ids == [49406, *tokens, 49407]
    padded = tokenizer(text, padding="max_length", truncation=True).input_ids
    assert len(padded) == 77
    assert padded[-1] == 49407
    assert clip_tokenizer("!")(text, padding="max_length").input_ids[-1] == 0
    assert len(tokenizer) == 49408


# Published numbers of parameters.
PARAMETERS = {
    "v1": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    "v2": {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840},
    "xl_base": {
        "unet": 2_567_463_684,
        "vae": 83_653_863,
        "text_encoder": 123_060_480,
        "text_encoder_2": 694_659_840,
    },
    "sd3": {
        "transformer": 2_028_328_000,
        "vae": 83_819_683,
        "text_encoder": 123_650_304,
        "text_encoder_2": 694_659_840,
        "text_encoder_3": 4_762_310_656,
    },
    "sd35_large": {"transformer": 8_056_627_520},
    "flux-dev": {"transformer": 11_901_408_320, "text_encoder_2": 4_762_310_656},
    "flux-schnell": {"transformer": 11_891_178_560},
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_packaged_configurations_are_those_of_the_kind_that_diffusers_infers(kind: str, tmp_path: Path) -> None:
    pipeline = empty_pipeline(kind, tmp_path)
    assert infer_diffusers_model_type(original_weights(pipeline)) == kind
    for name, count in PARAMETERS.get(kind, {}).items():
        assert pipeline.components[name].num_parameters() == count


def scheduler_of(file: Path, **keys: object) -> dict[str, object]:
    checkpoint = find_checkpoint(ModelConfig(name="photo", source=str(file), **keys))  # type: ignore[arg-type]
    assert checkpoint is not None
    with checkpoint.configuration() as folder:
        config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
        return {**config, "sample_size": json.loads((folder / "unet" / "config.json").read_text())["sample_size"]}


def test_prediction_type_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "photo.safetensors"

    def of(kind: str, metadata: dict[str, str] | None = None, **more: int) -> object:
        write_header(kind, file, tmp_path / kind, metadata, **more)
        return scheduler_of(file)["prediction_type"]

    assert of("v1") == of("xl_base") == of("xl_refiner") == of("inpainting_v2") == "epsilon"
    assert of("v2") == of("v2", global_step=110_000) == "v_prediction"
    assert scheduler_of(file)["sample_size"] == 96
    # The 512 pixel model of Stability AI.
    assert of("v2", global_step=875_000) == "epsilon"
    assert scheduler_of(file)["sample_size"] == 64
    of("v2")
    assert scheduler_of(file, prediction_type="epsilon")["prediction_type"] == "epsilon"
    assert of("v2", {"modelspec.prediction_type": "epsilon"}) == "epsilon"
    assert of("v1", {"modelspec.prediction_type": "v"}) == "v_prediction"
    assert of("xl_base", {"modelspec.prediction_type": "other"}) == "epsilon"
    assert of("xl_base", v_pred=0) == "v_prediction"
    assert "rescale_betas_zero_snr" not in scheduler_of(file)
    assert of("xl_base", v_pred=0, ztsnr=0) == "v_prediction"
    assert scheduler_of(file)["rescale_betas_zero_snr"] is True
    assert scheduler_of(file)["timestep_spacing"] == "trailing"


def test_refiner_file(tmp_path: Path) -> None:
    """Its only text encoder is the second one, and it takes an aesthetic score."""
    pipeline = DiffusionPipeline.from_pretrained(tiny_sdxl(tmp_path / "base", second_width=64))
    config = {**pipeline.unet.config, "cross_attention_dim": 64, "projection_class_embeddings_input_dim": 5 * 8 + 32}
    refiner = diffusers.StableDiffusionXLImg2ImgPipeline(
        vae=pipeline.vae,
        text_encoder=None,
        text_encoder_2=pipeline.text_encoder_2,
        tokenizer=None,
        tokenizer_2=pipeline.tokenizer_2,
        unet=diffusers.UNet2DConditionModel.from_config(config),
        scheduler=pipeline.scheduler,
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
    )
    refiner.save_pretrained(tmp_path / "refiner")
    folder, file = as_file(tmp_path / "refiner")
    stock = diffusers.StableDiffusionXLImg2ImgPipeline.from_single_file(
        str(file), config=str(folder), local_files_only=True
    )
    spec = jobs(Scheduler.EULER)[0]
    (pixels,) = run(load(file, config=part(folder)), [spec])
    assert np.abs(pixels.astype(int) - reference(stock, spec)).max() <= 1
