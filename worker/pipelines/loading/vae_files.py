"""The VAE that replaces that of a model."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderTiny
from diffusers.loaders import single_file_utils

from img2img.domain.model_config import ComponentSource

from ...errors import StartupError
from .components import load_component
from .failures import reporting_failures
from .locations import PipelineLocation, component_class, component_folder, components
from .weightless import build_without_weights, is_weightless
from .weights import is_single_file, resolve_weights


def load_vae(source: ComponentSource, folder: Path, dtype: torch.dtype) -> Any:
    """Load the VAE that replaces that of a model: a folder in diffusers' format, or one file.

    Args:
        folder: folder with the configurations of the model; a VAE in one file has the configuration of the model's VAE.

    Raises:
        StartupError: it cannot be loaded, or is of another class than the VAE of the model.
    """
    with reporting_failures("`vae`"):
        class_name = components(PipelineLocation(str(folder), None, None).index)["vae"][1]
        kind = getattr(diffusers, class_name)
        if not is_single_file(source):
            part = component_folder(source)
            if (found := component_class(part)) != class_name:
                raise StartupError(f"{part} is of the class {found}, and the model needs {class_name}")
            return load_component(kind, part, dtype)
        file = resolve_weights(source, "`weight_name`")
        if is_weightless():
            return build_without_weights(kind, folder / "vae", dtype)
        with reporting_incomplete(file):
            return kind.from_single_file(
                str(file), config=str(folder), subfolder="vae", local_files_only=True, dtype=dtype
            )


def load_fast_vae(source: ComponentSource, vae: Any, dtype: torch.dtype) -> AutoencoderTiny:
    """Load the small VAE that jobs can use instead of that of the model.

    Args:
        vae: VAE of the model, without gates.

    Raises:
        StartupError: it cannot be loaded, or has other latents than the VAE of the model.
    """
    with reporting_failures("`fast_vae`"):
        if not isinstance(vae, diffusers.AutoencoderKL):
            raise StartupError(f"there is none for models whose VAE is a {type(vae).__name__}; remove it")
        if is_single_file(source):
            raise StartupError("a single file lacks the configuration; give a folder in diffusers format, or a hub id")
        part = component_folder(source)
        if (found := component_class(part)) != AutoencoderTiny.__name__:
            raise StartupError(f"{part} is of the class {found}, not {AutoencoderTiny.__name__}")
        fast: AutoencoderTiny = load_component(AutoencoderTiny, part, dtype)
        latents, wanted = _latents_of(fast), _latents_of(vae)
        if latents != wanted:
            raise StartupError(
                f"its latents have {latents[0]} channels and are {latents[1]} times smaller than the image, those of "
                f"the model {wanted[0]} and {wanted[1]} times"
            )
        return fast


def _latents_of(vae: Any) -> tuple[int, int]:
    """Return the channels of the latents of a VAE, and the pixels along a side of one."""
    return vae.config.latent_channels, 2 ** (len(vae.config.block_out_channels) - 1)


@contextmanager
def reporting_incomplete(file: Path) -> Iterator[None]:
    """Raise the errors of diffusers about weights that a file lacks as StartupError."""
    try:
        yield
    except single_file_utils.SingleFileComponentError as error:
        raise StartupError(f"{file.name}: {str(error).splitlines()[0]}") from error
    except NotImplementedError as error:
        if "meta tensor" not in str(error):
            raise
        raise StartupError(
            f"{file.name} lacks some weights of a component: it is incomplete or of another model; download it again"
        ) from error
