"""Reads the index of a model in diffusers' format: model_index.json, or modular_model_index.json."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ...errors import StartupError

INDEX = "model_index.json"
MODULAR_INDEX = "modular_model_index.json"
# Names the class of blocks that come with a model as Python code.
_OWN_BLOCKS = "modular_config.json"
# Settings of the guider of a modular pipeline, and the key that they get in the converted index.
_GUIDER = "guider/guider_config.json"
GUIDER_CONFIG = "_guider_config"


class ModelFiles(Protocol):
    """The files of a model, in a folder or on the hub."""

    def has(self, name: str) -> bool:
        """Return whether there is a file."""
        ...

    def has_folder(self, name: str) -> bool:
        """Return whether there is a folder."""
        ...

    def file(self, name: str) -> Path:
        """Return the path of a file, downloading it if necessary."""
        ...


@dataclass(frozen=True)
class LocalFiles:
    """The files of a model in a local folder."""

    folder: Path

    def has(self, name: str) -> bool:
        """Return whether there is a file."""
        return self.file(name).is_file()

    def has_folder(self, name: str) -> bool:
        """Return whether there is a folder."""
        return self.file(name).is_dir()

    def file(self, name: str) -> Path:
        """Return the path of a file."""
        return self.folder / name


def index_name(files: ModelFiles) -> str | None:
    """Return the name of the index that a model has; None if it has none."""
    return next((name for name in (INDEX, MODULAR_INDEX) if files.has(name)), None)


def read_index(files: ModelFiles) -> dict[str, Any]:
    """Read the index of a model. That of a modular pipeline is converted to the form of an ordinary one.

    Raises:
        StartupError: it is not valid, or the model needs code of its own.
    """
    name = index_name(files) or INDEX
    index = read_json(files.file(name))
    if not isinstance(index.get("_class_name"), str):
        raise StartupError(f"{files.file(name)} has no `_class_name`: it does not name the pipeline's class")
    if name == INDEX:
        return index
    if files.has(_OWN_BLOCKS):
        raise StartupError(
            f"{index['_class_name']} has blocks of its own ({_OWN_BLOCKS}): code outside of diffusers is not run; give "
            "a model whose blocks are in diffusers"
        )
    converted = _ordinary(index, files)
    if files.has(_GUIDER):
        converted[GUIDER_CONFIG] = read_json(files.file(_GUIDER))
    return converted


def read_json(file: Path) -> dict[str, Any]:
    """Read an object from a JSON file.

    Raises:
        StartupError: it is not valid JSON, or no object.
    """
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise StartupError(f"{file} is not valid JSON ({error}); download it again") from error
    if not isinstance(content, dict):
        raise StartupError(f"{file} is not a JSON object; download it again")
    return content


def _ordinary(index: Mapping[str, Any], files: ModelFiles) -> dict[str, Any]:
    """Return the index with (library, class) for each component, and nulls for those of other repositories."""
    converted = dict(index)
    for name, value in index.items():
        if isinstance(value, list) and len(value) == 3 and isinstance(value[2], Mapping):
            # The class of the component itself is often null, and that of the hint is not.
            hint = value[2].get("type_hint") or (None, None)
            library, class_name = value[:2] if value[0] and value[1] else hint
            is_here = value[2].get("subfolder") == name and files.has_folder(name)
            converted[name] = [library, class_name] if is_here else [None, None]
    return converted
