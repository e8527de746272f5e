"""Folders and files that cannot be loaded: one line with the true cause and what to do. Nothing loads as a stub."""

import io
import json
import logging
import pickle
import shutil
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import AutoencoderTiny, EulerDiscreteScheduler
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPTextModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from img2img.domain.model_config import ComponentSource, ModelConfig
from img2img.domain.parameters import Scheduler, Task
from img2img.telemetry.logging import make_handler
from img2img.worker.errors import StartupError
from img2img.worker.pipelines.loading.failures import reporting_failures
from img2img.worker.pipelines.loading.weightless import WeightFiles
from img2img.worker.pipelines.model import Model, load_model
from img2img.worker.runtime.model_loader import ModelLoader, warm_up
from tests.support.engines import running_engine
from tests.support.models.load_failures import load_failure
from tests.support.models.tiny_adapters import tiny_ip_adapter, tiny_lora
from tests.support.models.tiny_annotators import tiny_depth
from tests.support.models.tiny_controlnets import tiny_controlnet
from tests.support.models.tiny_models import text_config, tiny_unet

Damage = Callable[[Path], object]
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    """A copy of a tiny Stable Diffusion model."""
    return Path(shutil.copytree(model_folder, tmp_path / "photo"))


def load(source: Path, **parts: object) -> Model:
    return load_model(ModelConfig(name="photo", source=str(source), **parts), device="cpu")  # type: ignore[arg-type]


def failure(source: Path, **parts: object) -> str:
    """Return the one line with which loading fails."""
    return load_failure(lambda: load(source, **parts))


def edit_json(file: Path, **changes: object) -> None:
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def edit_weights(file: Path, keep: Callable[[str], bool]) -> None:
    weights = load_file(file)
    kept = {key: tensor for key, tensor in weights.items() if keep(key)}
    assert 0 < len(kept) < len(weights)
    save_file(kept, file, metadata={"format": "pt"})


def rename_weights(folder: Path, suffix: str) -> None:
    for file in list(folder.rglob("*.safetensors")):
        file.rename(file.with_name(file.name.replace(".safetensors", suffix)))


def shard(folder: Path) -> None:
    """Leave the first of two files."""
    index = {"metadata": {}, "weight_map": dict.fromkeys(load_file(folder / WEIGHTS), WEIGHTS)}
    (folder / WEIGHTS).rename(folder / "diffusion_pytorch_model-00001-of-00002.safetensors")
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


def as_pickle(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps({}))


def without_vocabulary(tokenizer: Path) -> None:
    for file in tokenizer.iterdir():
        if file.name != "tokenizer_config.json":
            file.unlink()


FOLDERS: dict[str, tuple[Damage, str]] = {
    "no class": (lambda f: edit_json(f / "model_index.json", _class_name=...), "has no `_class_name`"),
    "broken index": (lambda f: (f / "model_index.json").write_text("{"), "model_index.json is not valid JSON"),
    "no index": (lambda f: (f / "model_index.json").unlink(), "has no model_index.json: the download is incomplete"),
    "no tokenizer": (lambda f: shutil.rmtree(f / "tokenizer"), "has no folder tokenizer: the download is incomplete"),
    "no scheduler": (
        lambda f: (shutil.rmtree(f / "scheduler"), edit_json(f / "unet/config.json", cross_attention_dim=1024)),
        "has no scheduler/scheduler_config.json; copy it from the model that it is based on",
    ),
    "no config": (lambda f: (f / "unet/config.json").unlink(), "unet has no config.json"),
    "unknown class": (
        lambda f: edit_json(f / "model_index.json", unet=["diffusers", "UNet9"]),
        "is a UNet9, which this release of diffusers does not have",
    ),
    "remote code": (
        lambda f: edit_json(f / "model_index.json", unet=["my_unet", "UNet"]),
        "is a my_unet.UNet: code outside of diffusers is not run",
    ),
    "no weights": (lambda f: (f / "vae" / WEIGHTS).unlink(), "vae has no weights"),
    "only pickles": (lambda f: as_pickle(f / "unet"), "has only pickle files (diffusion_pytorch_model.bin)"),
    "only GGUF": (
        lambda f: (f / "unet" / WEIGHTS).rename(f / "unet/unet-Q4.gguf"),
        "unet has only GGUF weights (unet-Q4.gguf); set `source` to that file",
    ),
    "other name": (lambda f: (f / "unet" / WEIGHTS).rename(f / "unet/x.safetensors"), "x.safetensors has another name"),
    "part of a download": (
        lambda f: (f / "unet" / WEIGHTS).rename(f / "unet/1234.incomplete"),
        "unet is an incomplete download",
    ),
    "LFS pointer": (
        lambda f: (f / "unet" / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "is a Git LFS pointer without the weights; run `git lfs pull`",
    ),
    "truncated": (lambda f: truncate(f / "unet" / WEIGHTS), "or incomplete"),
    "truncated text encoder": (lambda f: truncate(f / "text_encoder/model.safetensors"), "or incomplete"),
    "missing shard": (lambda f: shard(f / "unet"), "unet has 1 of 2 weight files: the download is incomplete"),
    "missing weight of diffusers": (
        lambda f: edit_weights(f / "unet" / WEIGHTS, lambda key: "conv_in" not in key),
        "lacks 2 weights of UNet2DConditionModel, such as conv_in.bias",
    ),
    "missing weight of transformers": (
        lambda f: edit_weights(f / "text_encoder/model.safetensors", lambda key: "layers.1.mlp.fc1" not in key),
        "weights of CLIPTextModel, such as",
    ),
    "two variants": (
        lambda f: (
            rename_weights(f / "unet", ".fp16.safetensors"),
            shutil.copy(
                f / "unet/diffusion_pytorch_model.fp16.safetensors", f / "unet/diffusion_pytorch_model.ema.safetensors"
            ),
        ),
        "has weights of the variant ema, fp16 only; set `variant`",
    ),
    "gptq": (
        lambda f: edit_json(f / "unet/config.json", quantization_config={"quant_method": "gptq"}),
        "is quantised with gptq, which needs the package gptqmodel",
    ),
    "awq": (
        lambda f: edit_json(f / "unet/config.json", quantization_config={"quant_method": "awq"}),
        "is quantised with awq, which needs the package autoawq",
    ),
    "quanto": (
        lambda f: edit_json(f / "text_encoder/config.json", quantization_config={"quant_method": "quanto"}),
        "is quantised with quanto, which needs the package optimum-quanto",
    ),
    "tokenizer without vocabulary": (
        lambda f: without_vocabulary(f / "tokenizer"),
        "the files of the tokenizer are incomplete",
    ),
    "tokenizer without merges": (
        lambda f: (f / "tokenizer/tokenizer.json").rename(f / "tokenizer/vocab.json"),
        "tokenizer has no merges.txt",
    ),
    "tokenizer without configuration": (
        lambda f: (f / "tokenizer/tokenizer_config.json").unlink(),
        "tokenizer: the files of the tokenizer are incomplete",
    ),
    "text encoder of another vocabulary": (
        lambda f: edit_vocabulary(f, 1000),
        "it has 80 tokens, the text encoder has 1000",
    ),
    "tokenizer of another vocabulary": (
        lambda f: edit_vocabulary(f, 40),
        "it has 80 tokens, the text encoder has 40",
    ),
    "EDM": (
        lambda f: (
            edit_json(
                f / "scheduler/scheduler_config.json", _class_name="EDMDPMSolverMultistepScheduler", sigma_data=0.5
            )
            or edit_json(f / "model_index.json", scheduler=["diffusers", "EDMDPMSolverMultistepScheduler"])
        ),
        "EDM",
    ),
}


def edit_vocabulary(folder: Path, size: int) -> None:
    edit_json(folder / "text_encoder/config.json", vocab_size=size)
    file = folder / "text_encoder/model.safetensors"
    weights = load_file(file)
    [key] = [key for key in weights if key.endswith("token_embedding.weight")]
    save_file(weights | {key: torch.zeros(size, weights[key].shape[1])}, file, metadata={"format": "pt"})


@pytest.mark.parametrize("damage", FOLDERS)
def test_folder_that_cannot_be_loaded(folder: Path, damage: str) -> None:
    do, message = FOLDERS[damage]
    do(folder)
    assert message in failure(folder)


def checkpoint(file: Path, *keys: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: torch.zeros(1, 4) for key in keys}, file)
    return file


SD_KEY, SDXL_KEY = "model.diffusion_model.input_blocks.0.0.weight", "conditioner.embedders.0.transformer.x.weight"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda f: checkpoint(f / "a.safetensors", SD_KEY),
            "no weights of the vae and text_encoder; set `text_encoders` and `vae`",
        ),
        (lambda f: checkpoint(f / "a.safetensors", SD_KEY, SDXL_KEY), "no weights of the vae and text_encoder"),
        (lambda f: checkpoint(f / "a.safetensors", "double_blocks.0.x.weight"), "a FLUX checkpoint without a denoiser"),
        (lambda f: checkpoint(f / "a.safetensors", "lora_unet_x.lora_up.weight"), "is a LoRA, not a whole model"),
        (
            lambda f: checkpoint(f / "a.safetensors", "first_stage_model.encoder.x").parent,
            "has no .*json. It has the single file a.safetensors; give the path",
        ),
        (lambda f: touch(f / "a.ckpt"), "a.ckpt is a pickle, which can run code"),
        (lambda f: touch(f / "flux-Q4_K.gguf"), "flux-Q4_K.gguf cannot be read as GGUF: it is damaged"),
        (lambda f: touch(f / "a.safetensors"), "a.safetensors cannot be read as safetensors: it is damaged"),
        (lambda f: touch(f / "checkpoints/a.ckpt") and touch(f / "loras/b.safetensors") and f, "of a user interface"),
        (lambda f: touch(f / "Stable-diffusion/a.ckpt") and touch(f / "Lora/b.pt") and f, "of a user interface"),
        (lambda f: touch(f / "snapshots/1/model_index.json") and f, "of the hub cache; give the hub id"),
        (lambda f: tiny_unet(in_channels=4).save_pretrained(f) or f, r"only one component \(UNet2DConditionModel\)"),
        (lambda f: f.mkdir() or f, "is not a diffusers model: it has no model_index.json"),
        (lambda f: f / "nowhere", "nowhere does not exist"),
        (lambda _: "nowhere.safetensors", "nowhere.safetensors does not exist"),
        (lambda _: "https://example.com/a.safetensors", "is a URL; give a folder, or a hub id"),
    ],
)
def test_source_that_is_no_pipeline(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    source = make(tmp_path / "given")
    with pytest.raises(StartupError, match=message) as raised:
        load(source)
    assert len(str(raised.value)) < 300


def touch(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"not a model")
    return file


def test_only_variant_is_used(folder: Path, tmp_path: Path) -> None:
    rename_weights(folder, ".fp16.safetensors")
    net = tiny_controlnet_of(folder, tmp_path)
    rename_weights(net, ".fp16.safetensors")
    edit = tmp_path / "edit"
    tiny_unet(in_channels=8).save_pretrained(edit / "unet")
    rename_weights(edit, ".fp16.safetensors")
    parts = {
        "controlnets": {"canny": ComponentSource(source=str(net))},
        "edit": ComponentSource(source=str(edit), subfolder="unet"),
    }
    served = load(folder, **parts)
    assert served.card.controls == ("canny",)
    assert "edit" in served.card.tasks
    assert load(folder, variant="fp16").card.tasks == ("img2img", "inpaint", "upscale")
    assert "has weights of the variant fp16 only" in failure(folder, variant="bf16")


def tiny_controlnet_of(folder: Path, tmp_path: Path) -> Path:
    """Return a ControlNet for a folder whose files may be of a variant."""
    plain = Path(shutil.copytree(folder, tmp_path / "plain"))
    for file in list(plain.rglob("*.fp16.safetensors")):
        file.rename(file.with_name(file.name.replace(".fp16", "")))
    return tiny_controlnet(plain, tmp_path / "net", seed=1)


def test_variant_that_no_component_has(folder: Path) -> None:
    assert "has no weights of the variant fp16" in failure(folder, variant="fp16")


def test_components_do_not_load_as_stubs(folder: Path, tmp_path: Path) -> None:
    net, depth = tiny_controlnet(folder, tmp_path / "net", seed=1), tiny_depth(tmp_path / "depth")
    adapter = tiny_ip_adapter(folder, tmp_path / "ip")
    edit_weights(net / WEIGHTS, lambda key: "mid_block.resnets.0.conv1" not in key)
    edit_weights(depth / "model.safetensors", lambda key: "head.head.0" not in key)
    edit_weights(adapter / "image_encoder/model.safetensors", lambda key: "visual_projection" not in key)
    for parts, message in (
        (
            {"controlnets": {"canny": ComponentSource(source=str(net))}},
            "ControlNet canny: .* weights of ControlNetModel",
        ),
        ({"preprocessors": {"depth": ComponentSource(source=str(depth))}}, "preprocessor depth: .* lacks 2 weights"),
        ({"ip_adapter": ComponentSource(source=str(adapter))}, "image encoder: .* visual_projection.weight"),
    ):
        with pytest.raises(StartupError, match=message) as raised:
            load(folder, **parts)
        assert len(str(raised.value)) < 300


def test_malformed_ip_adapter(folder: Path, tmp_path: Path) -> None:
    adapter = tiny_ip_adapter(folder, tmp_path / "ip")
    file = adapter / "ip-adapter.safetensors"
    good = load_file(file)
    plus = {"image_proj.latents": torch.zeros(1, 4, 8), "image_proj.proj_in.weight": torch.zeros(8, 8)}
    for weights in (
        {**plus, **{key: tensor for key, tensor in good.items() if key.startswith("ip_adapter")}},
        {key: tensor[:1] for key, tensor in good.items()},
        {key: tensor for key, tensor in good.items() if "norm" not in key},
    ):
        save_file({key: tensor.contiguous() for key, tensor in weights.items()}, file)
        assert "IP-Adapter does not fit the model: " in failure(folder, ip_adapter=ComponentSource(source=str(adapter)))
    tiny_lora(folder, file, seed=1)
    assert "it is a LoRA" in failure(folder, ip_adapter=ComponentSource(source=str(adapter)))


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        (["lora_unet_x.weight", "lora_unet_x.on_input"], "an IA3"),
        (["lora_unet_x.oft_blocks"], "an OFT"),
        (["emb_params"], "a textual inversion"),
        (["clip_g", "clip_l"], "a textual inversion"),
        (["<my-style>"], "a textual inversion"),
        ([SD_KEY], "a Stable Diffusion checkpoint"),
        ([SDXL_KEY, SD_KEY], "a Stable Diffusion XL checkpoint"),
        (["control_model.input_blocks.0.0.weight"], "a ControlNet"),
        (["decoder.up_blocks.0.resnets.0.conv1.weight"], "an autoencoder"),
        (["image_proj.norm.weight"], "an IP-Adapter"),
        (
            [f"other.layer{i}.weight" for i in range(2000)],
            "does not have the keys of a LoRA, but such as other.l",
        ),
    ],
)
def test_file_of_another_kind_as_lora(folder: Path, tmp_path: Path, keys: list[str], kind: str) -> None:
    file = checkpoint(tmp_path / "ink.safetensors", *keys)
    line = failure(folder, loras={"ink": ComponentSource(source=str(file))})
    assert "LoRA 'ink': ink.safetensors " in line
    assert kind in line


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    handler, logger = make_handler("worker", "text", stream), logging.getLogger("img2img.worker")
    logger.addHandler(handler)
    logger.setLevel("DEBUG")
    yield stream
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (NotImplementedError("TorchAoConfig requires torchao"), "NotImplementedError: TorchAoConfig requires torchao"),
        (ModuleNotFoundError("No module named 'bitsandbytes'", name="bitsandbytes"), "the package bitsandbytes is not"),
        (ImportError("needs the accelerate library\nmore"), "ImportError: needs the accelerate library"),
        (PackageNotFoundError("gguf"), "run `pip install gguf`"),
        (KeyError("conv_in.weight"), "'conv_in.weight' is missing in its files"),
        (OverflowError("int too big to convert"), "OverflowError: int too big to convert"),
        (NotImplementedError("Cannot copy out of meta tensor; no data!"), "weights are missing in its files"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), "out of memory; choose a smaller model"),
        (RuntimeError("x" * 5000), "RuntimeError: xxxx"),
        (AssertionError(), "AssertionError without a message in "),
    ],
)
def test_any_exception_is_one_line_with_its_message(error: Exception, message: str, log: io.StringIO) -> None:
    with pytest.raises(StartupError) as raised, reporting_failures("cannot load model 'photo'"):
        raise error
    assert str(raised.value).startswith("cannot load model 'photo': ")
    assert message in str(raised.value)
    assert len(str(raised.value)) < 300
    assert "\n" not in str(raised.value)
    # The traceback with the whole message.
    traceback = log.getvalue()
    assert "test_load_failures.py" in traceback
    assert type(error).__name__ in traceback
    assert str(error).replace("\n", "\\x0a") in traceback


def test_out_of_memory_names_the_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_out(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr(diffusers.DiffusionPipeline, "to", run_out)
    line = failure(folder)
    assert "out of memory: it needs about 0.0 GB for weights, this machine has " in line
    assert "set `dtype` to float16 or bfloat16, or choose a smaller model" in line


def test_failure_of_the_warm_up(folder: Path) -> None:
    encoder = CLIPTextModel(text_config(hidden=16))
    encoder.save_pretrained(folder / "text_encoder")
    stages: list[str] = []
    with running_engine() as engine:
        loader = ModelLoader(engine, "cpu", stages.append)
        with pytest.raises(StartupError, match=r"^cannot warm up model 'photo': RuntimeError: .*shapes"):
            loader.load(ModelConfig(name="photo", source=str(folder)), WeightFiles())
    assert stages == ["warming up photo"]


def test_weights_with_the_names_of_early_releases_are_complete(folder: Path) -> None:
    """Load an autoencoder with the attention names of Stable Diffusion 1.x, without buffers that no file needs."""
    file = folder / "vae" / WEIGHTS
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for key, tensor in load_file(file).items():
        new = key
        for name, early in names.items():
            new = new.replace(f"attentions.0.{name}.", f"attentions.0.{early}.")
        renamed[new] = tensor
    assert any("proj_attn" in key for key in renamed)
    expected = load(folder).vae.state_dict()
    save_file(renamed, file, metadata={"format": "pt"})
    loaded = load(folder).vae.state_dict()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in expected.items())


def test_safety_checker_is_loaded(folder: Path) -> None:
    config = CLIPConfig(
        text_config={"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
        vision_config={"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
        projection_dim=16,
    )
    StableDiffusionSafetyChecker(config).save_pretrained(folder / "safety_checker")
    CLIPImageProcessorPil(size={"shortest_edge": 224}).save_pretrained(folder / "feature_extractor")
    edit_json(
        folder / "model_index.json",
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        feature_extractor=["transformers", "CLIPImageProcessor"],
    )
    assert load(folder).card.name == "photo"
    rename_weights(folder / "safety_checker", ".bin")
    assert "safety_checker has only pickle files" in failure(folder)


def test_preview_and_warm_up_of_a_model_with_a_tiny_autoencoder(folder: Path) -> None:
    shutil.rmtree(folder / "vae")
    widths = (8, 8)
    AutoencoderTiny(
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ).save_pretrained(folder / "vae")
    edit_json(folder / "model_index.json", vae=["diffusers", "AutoencoderTiny"])
    served = load(folder)
    served.fit_preview()
    with running_engine() as engine:
        warm_up(served, engine)
    assert served.preview is not None
    assert served.preview.jpeg(torch.zeros(1, 4, 8, 8))


def test_scheduler_outside_of_the_table_is_kept(folder: Path, log: io.StringIO) -> None:
    EulerDiscreteScheduler(use_karras_sigmas=True).save_pretrained(folder / "scheduler")
    edit_json(folder / "model_index.json", scheduler=["diffusers", "EulerDiscreteScheduler"])
    served = load(folder)
    assert served.card.default_scheduler == served.card.schedulers[-1] == "model"
    assert "model" in served.card.scheduler_parameters["speed"]
    own, named = (served.pipeline(Task.IMG2IMG, name).scheduler for name in (Scheduler.MODEL, Scheduler.EULER))
    assert type(own).__name__ == type(named).__name__ == "EulerDiscreteScheduler"
    assert (own.config.use_karras_sigmas, named.config.use_karras_sigmas) == (True, False)
    EulerDiscreteScheduler().save_pretrained(folder / "scheduler")
    plain = load(folder).card
    assert plain.default_scheduler == "euler"
    assert "model" not in plain.schedulers
    # It draws noise at every step, which upscaling in tiles has to know.
    edit_json(folder / "model_index.json", scheduler=["diffusers", "KDPM2AncestralDiscreteScheduler"])
    assert load(folder).card.default_scheduler == "dpmpp_2m"
    assert "KDPM2AncestralDiscreteScheduler, is not one that requests can name" in log.getvalue()


def test_libraries_do_not_write_to_stderr(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    as_pickle(folder / "unet")
    failure(folder)
    (folder / "unet/diffusion_pytorch_model.bin").unlink()
    tiny_unet(in_channels=4).save_pretrained(folder / "unet")
    load(folder)
    assert capfd.readouterr() == ("", "")
