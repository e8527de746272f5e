"""Loads ControlNets: folders in diffusers' format, or single files, and checks that they fit the model."""

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
from diffusers import DiffusionPipeline
from safetensors import safe_open

from img2img.domain.model_card import SINGLE_FILES
from img2img.domain.model_config import ComponentSource

from ...errors import StartupError
from .components import load_component
from .controlnet_configs import config_of, is_original, layout_of
from .locations import CONFIG, component_class, component_folder
from .vae_files import reporting_incomplete
from .weights import resolve_weights

# Values of the configuration in which a ControlNet and the denoiser of its model agree, unless the ControlNet has none.
_COMMON = (
    *("cross_attention_dim", "attention_head_dim", "num_attention_heads", "joint_attention_dim"),
    *("pooled_projection_dim", "in_channels", "dim", "n_heads"),
)
# UNets for inpainting have more input channels than their ControlNets, and heads by block.
_NOT_OF_UNETS = ("attention_head_dim", "in_channels", "num_attention_heads")
# Of Z-Image: zero in files whose noise refiner is unused.
_REFINER_INPUT = "control_noise_refiner.0.before_proj.weight"
_WEIGHTS = "diffusion_pytorch_model.safetensors"


def load_controlnet(source: ComponentSource, classes: Sequence[str], base: DiffusionPipeline) -> Any:
    """Load a ControlNet in the dtype of the model. Safetensors only.

    Args:
        classes: classes of ControlNets that the family of the model has.
        base: pipeline of the model.

    Raises:
        StartupError: it cannot be loaded, or does not fit the model.
    """
    denoiser = base.components.get("unet") or base.transformer
    if source.weight_name or source.source.endswith(SINGLE_FILES):
        net = _load_file(resolve_weights(source, "`controlnets`"), classes, denoiser)
    else:
        folder = component_folder(source)
        class_name = component_class(folder)
        _check_class(str(folder), class_name, classes)
        net = load_component(getattr(diffusers, str(class_name)), folder, denoiser.dtype)
        _check_fit(net.config, denoiser)
    return net.eval()


def _load_file(file: Path, classes: Sequence[str], denoiser: Any) -> Any:
    """Load a ControlNet in one file, without a configuration."""
    with safe_open(file, framework="pt") as opened:
        shapes = {key: tuple(opened.get_slice(key).get_shape()) for key in opened.keys()}  # noqa: SIM118  # not a dict
        unused = _REFINER_INPUT in shapes and not opened.get_tensor(_REFINER_INPUT).any()
    class_name = layout_of(shapes, file.name)
    _check_class(file.name, class_name, classes)
    if is_original(shapes) and denoiser.config.get("addition_embed_type"):
        raise StartupError(f"{file.name} is a ControlNet for Stable Diffusion 1 or 2; the model is of another kind")
    config = config_of(class_name, shapes, denoiser, is_refined_by_layers=unused)
    _check_fit(config, denoiser)
    kind = getattr(diffusers, class_name)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / CONFIG).write_text(json.dumps(config))
        if is_original(shapes) or unused:
            with reporting_incomplete(file):
                return kind.from_single_file(str(file), config=name, local_files_only=True, dtype=denoiser.dtype)
        (folder / _WEIGHTS).symlink_to(file.resolve())
        with _naming(file, folder):
            return load_component(kind, folder, denoiser.dtype)


@contextmanager
def _naming(file: Path, folder: Path) -> Iterator[None]:
    """Name the file in errors, which name the folder made from it."""
    try:
        yield
    except (OSError, RuntimeError, StartupError, ValueError) as error:
        raise StartupError(str(error).splitlines()[0].replace(str(folder), file.name)) from error


def _check_class(where: str, class_name: str | None, classes: Sequence[str]) -> None:
    if class_name not in classes:
        found = class_name or "component without `_class_name`"
        raise StartupError(f"{where} is a {found}; only {' and '.join(classes)} is supported")


def _check_fit(config: Any, denoiser: Any) -> None:
    unchecked = _NOT_OF_UNETS if "cross_attention_dim" in denoiser.config else ()
    for key in _COMMON:
        value, expected = config.get(key), denoiser.config.get(key)
        if value is not None and expected is not None and value != expected and key not in unchecked:
            raise StartupError(f"it does not fit the model: its {key} is {value}, that of the model is {expected}")
    if config.get("extra_conditioning_channels") or config.get("extra_condition_channels"):
        raise StartupError("ControlNets for inpainting, which take a mask, are not supported; remove it")
