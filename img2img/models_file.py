"""Reads models.toml files."""

import tomllib
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .domain.model_card import is_path
from .domain.model_config import ComponentSource, ModelConfig, ModelName


class InvalidModelsFile(Exception):
    """A model file cannot be read. The message is for the operator."""


class ModelsFile(BaseModel):
    """Content of a models.toml file."""

    model_config = ConfigDict(extra="forbid")

    models: Annotated[dict[ModelName, ModelConfig], Field(min_length=1)]


def read_models_file(path: Path) -> dict[str, ModelConfig]:
    """Read a models.toml file. Relative paths in it become absolute.

    Returns:
        Configurations by model name.

    Raises:
        InvalidModelsFile: if the file cannot be read or is not valid.
    """
    try:
        models = ModelsFile.model_validate(tomllib.loads(path.read_text())).models
    except (OSError, ValueError) as error:
        if isinstance(error, ValidationError):
            raise InvalidModelsFile(f"the model file {path}: {_first_error(error)}") from error
        raise InvalidModelsFile(f"cannot read the model file {path}: {error}") from error
    return {
        name: _make_absolute(config.model_copy(update={"name": name}), path.parent) for name, config in models.items()
    }


def _first_error(error: ValidationError) -> str:
    """Return key, reason and value of the first error."""
    first = error.errors()[0]
    key = ".".join(str(step) for step in first["loc"] if step != "[key]")
    if first["type"] == "extra_forbidden":
        return f"{key}: unknown key"
    return f"{key}: {first['msg']}, got {first['input']!r}"


def _make_absolute(config: ModelConfig, folder: Path) -> ModelConfig:
    """Return the configuration with sources that are paths resolved against `folder`."""

    def resolve(value: object) -> object:
        if isinstance(value, ComponentSource):
            return value.model_copy(update={"source": _absolute(value.source, folder)})
        if isinstance(value, Path):
            return (folder / value.expanduser()).resolve()
        if isinstance(value, dict):
            return {key: resolve(item) for key, item in value.items()}
        if isinstance(value, tuple):
            return tuple(map(resolve, value))
        return value

    changes = {name: resolve(getattr(config, name)) for name in ModelConfig.model_fields}
    return config.model_copy(update={**changes, "source": _absolute(config.source, folder)})


def _absolute(source: str, folder: Path) -> str:
    path = folder / Path(source).expanduser()
    return str(path.resolve()) if is_path(source) or path.is_file() else source
