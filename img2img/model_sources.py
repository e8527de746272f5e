"""Checks the sources of models that requests define: which files of a worker they may name.

A request may name anything that a model file may, with these limits: paths lead into the configured folders, and no
name of a folder, file or revision leads out of its parent.
"""

import os
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from .domain.model_card import is_path
from .domain.model_config import ComponentSource, ModelConfig

IS_PICKLE = "Input should be safetensors: a pickle can run code when it is loaded"
PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
# Separates folders in IMG2IMG_MODEL_FOLDERS.
SEPARATOR = ","
# No NUL and no other character that a terminal interprets.
_PRINTABLE = re.compile(r"[^\x00-\x1f\x7f]+")


class InvalidSource(ValueError):
    """A request may not name this source.

    Attributes:
        key: Key of the source in the definition, such as `loras.ink`.
    """

    def __init__(self, key: str, message: str, got: str) -> None:
        super().__init__(message)
        self.key, self.got = key, got


def parse_folders(text: str) -> tuple[Path, ...]:
    """Return the folders in IMG2IMG_MODEL_FOLDERS as absolute paths."""
    names = filter(None, map(str.strip, text.split(SEPARATOR)))
    return tuple(Path(os.path.normpath(Path(name).expanduser().absolute())) for name in names)


def check_names(config: ModelConfig) -> None:
    """Check all names in a definition that no file has to be read for. Raises InvalidSource."""
    for key, source in config.sources():
        _check_source(key, source)
    if config.offload_folder is not None:
        # The worker writes there.
        raise InvalidSource("offload_folder", "Only a model file can set this key", str(config.offload_folder))
    for key in ("variant", "revision"):
        _check_name(key, getattr(config, key))
    for key, component in config.components():
        _check_parts(component, f"{key}.")


def check_component(component: ComponentSource) -> None:
    """Check all names in a component that no file has to be read for. Raises InvalidSource."""
    _check_source("source", component.source)
    _check_parts(component, "")


def check_folders(config: ModelConfig, folders: Sequence[Path]) -> None:
    """Check that all paths lead into one of the folders, without reading them. Raises InvalidSource."""
    config.with_sources(partial(path_within, folders))


def within_folders(config: ModelConfig, folders: Sequence[Path]) -> ModelConfig:
    """Return a definition with its paths made absolute, for the process that loads the model.

    Args:
        folders: Folders that paths may lead into. A relative path starts at the first one.

    Raises:
        InvalidSource: A name or a path is not permitted.
    """
    check_names(config)
    for key, source in config.sources():
        _check_not_a_folder(key, source)
    return config.with_sources(partial(path_within, folders))


def component_within_folders(component: ComponentSource, folders: Sequence[Path], key: str) -> ComponentSource:
    """Return a component with its path made absolute. Raises InvalidSource."""
    check_component(component)
    _check_not_a_folder(key, component.source)
    return component.model_copy(update={"source": path_within(folders, key, component.source)})


def path_within(folders: Sequence[Path], key: str, source: str) -> str:
    """Return a source, with a path made absolute. Raises InvalidSource if it leads out of all folders."""
    if not _is_local(key, source):
        return source
    if not folders:
        raise InvalidSource(key, "Input should be a hub id: IMG2IMG_MODEL_FOLDERS permits no folder", source)
    # Links are not resolved: those in the folders were made by the operator.
    path = Path(os.path.normpath(folders[0] / source))
    if not any(path.is_relative_to(folder) for folder in folders):
        raise InvalidSource(key, "Input should be a hub id, or a path in one of IMG2IMG_MODEL_FOLDERS", source)
    return str(path)


def _is_local(key: str, source: str) -> bool:
    return key == "lora_folder" or is_path(source)


def _check_not_a_folder(key: str, source: str) -> None:
    """Check that a hub id is not at the same time a path of this process, which is what would be loaded."""
    if not _is_local(key, source) and Path(source).exists():
        raise InvalidSource(key, "Input should start with ./ or / to name a folder of the worker", source)


def _check_source(key: str, source: str) -> None:
    if not _PRINTABLE.fullmatch(source):
        raise InvalidSource(key, "Input should be a path or a hub id, without control characters", source)
    if "://" in source:
        raise InvalidSource(key, "Input should be a path or a hub id such as org/name, not a URL", source)
    if source.startswith("~"):
        raise InvalidSource(key, "Input should be an absolute path: ~ depends on the user of the worker", source)
    if source.endswith(PICKLES):
        raise InvalidSource(key, IS_PICKLE, source)
    if not _is_local(key, source) and ".." in source.split("/"):
        raise InvalidSource(key, "Input should be a path that starts with ./ or /, or a hub id", source)


def _check_parts(component: ComponentSource, prefix: str) -> None:
    for name in ("revision", "subfolder", "weight_name"):
        _check_name(prefix + name, getattr(component, name))


def _check_name(key: str, name: str | None) -> None:
    if name is None:
        return
    if not _PRINTABLE.fullmatch(name) or name.startswith(("/", "~")) or "\\" in name or ".." in name.split("/"):
        raise InvalidSource(key, "Input should be a name within the source, without ..", name)
    if name.endswith(PICKLES):
        raise InvalidSource(key, IS_PICKLE, name)
