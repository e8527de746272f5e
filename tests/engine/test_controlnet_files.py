"""ControlNets in one file: weights equal those of diffusers' from_single_file, without a configuration or network."""

import inspect
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import ControlNetModel, ControlNetUnionModel, DiffusionPipeline
from safetensors.torch import load_file, save_file

from img2img.domain.conditioning import Control
from img2img.domain.model_config import ComponentSource, ControlNetSource, ModelConfig
from img2img.domain.parameters import Task
from img2img.worker.errors import StartupError
from img2img.worker.images.inputs import Inputs
from img2img.worker.pipelines.families import FAMILIES
from img2img.worker.pipelines.loading.controlnet_files import load_controlnet
from img2img.worker.pipelines.model import load_model
from tests.support.engines import run_together
from tests.support.models.single_files import controlnet_weights
from tests.support.models.tiny_controlnets import (
    tiny_controlnet,
    tiny_flux_controlnet,
    tiny_qwen_controlnet,
    tiny_sd3_controlnet,
    tiny_union,
    tiny_z_image_controlnet,
)
from tests.support.models.tiny_families import tiny_flux, tiny_qwen_image, tiny_sd3, tiny_z_image
from tests.support.models.tiny_models import tiny_sd, tiny_sdxl
from tests.support.specs import make_spec

WEIGHTS = "diffusion_pytorch_model.safetensors"
CLASSES = tuple({name for family in FAMILIES for name in family.controlnet_classes})


def load(model: Path, file: Path, **more: Any) -> Any:
    base = DiffusionPipeline.from_pretrained(model)
    return load_controlnet(ComponentSource(source=str(file), **more), CLASSES, base)


def assert_equal(net: torch.nn.Module, expected: torch.nn.Module) -> None:
    ours, theirs = net.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    # Lists become tuples.
    known = inspect.signature(type(expected)).parameters
    same = {key: value for key, value in expected.config.items() if key in known}
    found = {key: net.config[key] for key in same}
    assert {key: _plain(value) for key, value in found.items()} == {key: _plain(value) for key, value in same.items()}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("prefix", ["control_model.", ""])
def test_original_layout_gives_the_weights_of_from_single_file(tmp_path: Path, prefix: str) -> None:
    model = tiny_sd(tmp_path / "model")
    folder = tiny_controlnet(model, tmp_path / "net", seed=3)
    net = ControlNetModel.from_pretrained(folder)
    file = tmp_path / "control_v11p_sd15_canny.safetensors"
    renamed = {prefix + key.removeprefix("control_model."): value for key, value in controlnet_weights(net).items()}
    save_file(renamed, file)
    loaded = load(model, file)
    stock = ControlNetModel.from_single_file(str(file), config=str(folder), local_files_only=True)
    for key, value in stock.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
        assert torch.equal(net.state_dict()[key], value), key


@pytest.mark.parametrize(
    ("make", "net", "kind", "config"),
    [
        (tiny_sd, tiny_controlnet, ControlNetModel, {}),
        (tiny_sdxl, tiny_controlnet, ControlNetModel, {}),
        (tiny_sdxl, tiny_union, ControlNetUnionModel, {"types": 8}),
        (tiny_sd3, tiny_sd3_controlnet, diffusers.SD3ControlNetModel, {}),
        (
            tiny_sd3,
            tiny_sd3_controlnet,
            diffusers.SD3ControlNetModel,
            {
                "use_pos_embed": False,
                "joint_attention_dim": None,
                "pos_embed_type": None,
                "force_zeros_for_pooled_projection": False,
            },
        ),
        (tiny_flux, tiny_flux_controlnet, diffusers.FluxControlNetModel, {"num_mode": 7, "guidance_embeds": False}),
        (tiny_flux, tiny_flux_controlnet, diffusers.FluxControlNetModel, {"num_layers": 2, "num_single_layers": 0}),
        (tiny_qwen_image, tiny_qwen_controlnet, diffusers.QwenImageControlNetModel, {"num_layers": 2}),
        (tiny_z_image, tiny_z_image_controlnet, diffusers.ZImageControlNetModel, {}),
        (
            tiny_z_image,
            tiny_z_image_controlnet,
            diffusers.ZImageControlNetModel,
            {"add_control_noise_refiner": "control_noise_refiner", "control_refiner_layers_places": [0]},
        ),
        (
            tiny_z_image,
            tiny_z_image_controlnet,
            diffusers.ZImageControlNetModel,
            {"add_control_noise_refiner": "control_layers", "control_refiner_layers_places": [0]},
        ),
    ],
)
def test_file_of_diffusers_is_the_folder(tmp_path: Path, make: Any, net: Any, kind: Any, config: Any) -> None:
    model = make(tmp_path / "model")
    folder = net(model, tmp_path / "net", seed=3, **config)
    file = (folder / WEIGHTS).rename(tmp_path / "moved.safetensors")
    expected = kind.from_config(kind.load_config(folder))
    expected.load_state_dict(load_file(file))
    assert_equal(load(model, file), expected)
    assert_equal(load(model, tmp_path, weight_name=file.name), expected)


def test_smaller_controlnets_for_sdxl_have_fewer_blocks(tmp_path: Path) -> None:
    model = tiny_sdxl(tmp_path / "model")
    config = {
        **ControlNetModel.load_config(tiny_controlnet(model, tmp_path / "net", seed=0)),
        "down_block_types": ["DownBlock2D", "DownBlock2D"],
        "mid_block_type": "UNetMidBlock2D",
        "transformer_layers_per_block": 1,
    }
    middle = {**config, "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"], "transformer_layers_per_block": 0}
    for changed in (config, middle, {**middle, "transformer_layers_per_block": [1, 3]}):
        small = ControlNetModel.from_config(changed)
        save_file(small.state_dict(), tmp_path / "small.safetensors")
        loaded = load(model, tmp_path / "small.safetensors")
        assert loaded.state_dict().keys() == small.state_dict().keys()
        assert list(loaded.config.down_block_types) == changed["down_block_types"]


def test_unused_refiner_of_z_image_is_recognised_by_its_values(tmp_path: Path) -> None:
    model = tiny_z_image(tmp_path / "model")
    refined = {"add_control_noise_refiner": "control_noise_refiner", "control_refiner_layers_places": [0]}
    folder = tiny_z_image_controlnet(model, tmp_path / "net", seed=3, **refined)
    weights = load_file(folder / WEIGHTS)
    key = "control_noise_refiner.0.before_proj.weight"
    weights[key] = torch.zeros_like(weights[key])
    save_file(weights, tmp_path / "union-2.0.safetensors")
    net = load(model, tmp_path / "union-2.0.safetensors")
    assert net.config.add_control_noise_refiner == "control_layers"
    assert net.control_noise_refiner is None


def test_model_with_a_file_serves_it(tmp_path: Path) -> None:
    model = tiny_sd(tmp_path / "model")
    folder = tiny_controlnet(model, tmp_path / "net", seed=3)
    file = tmp_path / "canny.safetensors"
    save_file(controlnet_weights(ControlNetModel.from_pretrained(folder)), file)
    results = []
    for source in (file, folder):
        config = ModelConfig(name="m", source=str(model), controlnets={"canny": ControlNetSource(source=str(source))})
        controls = (Control(type="canny", image="2" * 64, preprocess=False),)
        spec = make_spec(task=Task.CONTROL, image=None, width=64, height=64, controls=controls)
        inputs = Inputs(controls=(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)),))
        results += run_together(load_model(config, device="cpu"), [(spec, inputs)])
    assert (results[0] == results[1]).all()


def test_other_files_are_refused(tmp_path: Path) -> None:
    sd, sdxl, flux = tiny_sd(tmp_path / "sd"), tiny_sdxl(tmp_path / "sdxl"), tiny_flux(tmp_path / "flux")
    original = controlnet_weights(ControlNetModel.from_pretrained(tiny_controlnet(sd, tmp_path / "net", seed=0)))
    own = load_file(tiny_controlnet(sdxl, tmp_path / "xl", seed=0) / WEIGHTS)
    one = torch.zeros(1)
    incomplete = {key: value for key, value in original.items() if "middle_block.0" not in key}
    for model, weights, reason in (
        (sdxl, {"lora_controlnet": one, "input_blocks.1.0.in_layers.2.down": one.clone()}, "is a control-LoRA"),
        (sdxl, {"lllite_unet_input_blocks_4_1.down.0.weight": one}, "is a ControlNet-LLLite"),
        (sdxl, {"adapter.body.0.in_conv.weight": one}, "is a T2I-Adapter"),
        (flux, {"double_blocks.0.img_attn.qkv.weight": one}, "in the layout of XLabs"),
        (sd, {"some.weight": one}, r"is not a ControlNet that is known \(keys: some.weight\)"),
        (sdxl, original, "for Stable Diffusion 1 or 2"),
        (sd, own, "its cross_attention_dim is 64, that of the model is 32"),
        (sd, incomplete, "lacks some weights"),
        (sdxl, {key: value for key, value in own.items() if "time_embedding" not in key}, "net.safetensors lacks"),
    ):
        save_file(weights, tmp_path / "net.safetensors")
        with pytest.raises(StartupError, match=reason) as raised:
            load(model, tmp_path / "net.safetensors")
        assert "\n" not in str(raised.value)
        assert len(str(raised.value)) < 300
