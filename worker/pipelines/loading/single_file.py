"""Models and parts of models in single files."""

import re
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from img2img.domain.model_card import SINGLE_FILES
from img2img.domain.model_config import ModelConfig

from ...errors import StartupError
from .checkpoint import Checkpoint
from .hub import HubRepository

_PICKLES = (".bin", ".ckpt", ".pt", ".pth")
_HUB_FILE = re.compile(r"(?P<repository>[\w-][\w.-]*/[\w.-]+)/(?P<file>[^:]+\.(?:safetensors|gguf|bin|ckpt|pt|pth))")


def find_checkpoint(config: ModelConfig) -> Checkpoint | None:
    """Return the checkpoint that a model consists of, downloading it if necessary; None if it is not a single file.

    Raises:
        StartupError: the file cannot be loaded, or there is no access to it.
    """
    path = Path(config.source).expanduser()
    if path.is_file():
        file = path
    elif match := _HUB_FILE.fullmatch(config.source):
        _check_suffix(match["file"])
        file = HubRepository(match["repository"], config.revision).file(match["file"])
    else:
        for key in ("config", "text_encoders", "pipeline"):
            if getattr(config, key):
                raise StartupError(f"`{key}` is for a `source` that is a single file; remove it")
        return None
    _check_suffix(file.name)
    if config.variant is not None:
        raise StartupError("`variant` is for a `source` that is a folder or a hub id; remove it")
    return Checkpoint(file, config)


def load_file_of(
    file: Path, kind: type[DiffusionPipeline], base: DiffusionPipeline, device: torch.device
) -> DiffusionPipeline:
    """Load a pipeline from a part that is one safetensors file: a whole checkpoint, or a UNet.

    Args:
        base: pipeline whose components are used for those that the file lacks.
        device: device of the components.

    Raises:
        StartupError: it cannot be loaded.
    """
    checkpoint = Checkpoint(file, ModelConfig(source=str(file)))
    return checkpoint.load(kind, device=device, dtype=base.dtype, others=base.components)


def _check_suffix(name: str) -> None:
    if name.endswith(_PICKLES):
        raise StartupError(
            f"{name} is a pickle, which can run code when it is loaded; convert it to safetensors (docs/models.md)"
        )
    if not name.endswith(SINGLE_FILES):
        raise StartupError(f"{name} is not a safetensors or GGUF file; other formats are not supported")
