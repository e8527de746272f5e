"""Reads models.toml files."""

import tomllib
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .domain.model_card import is_path
from .domain.model_config import ModelConfig, ModelName


class InvalidModelsFile(Exception):
    """A model file cannot be read. The message is for the operator."""


class ModelsFile(BaseModel):
    """Content of a models.toml file."""

    model_config = ConfigDict(extra="forbid")

    models: Annotated[dict[ModelName, ModelConfig], Field(min_length=1)]

    @model_validator(mode="after")
    def _with_distinct_names(self) -> Self:
        names = Counter([*self.models, *(alias for config in self.models.values() for alias in set(config.aliases))])
        for name, config in self.models.items():
            for alias in config.aliases:
                if names[alias] > 1:
                    raise ValueError(f"models.{name}.aliases: {alias} is also a name or an alias of another model")
        return self


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
    return {name: _resolved(config.model_copy(update={"name": name}), path.parent) for name, config in models.items()}


def _first_error(error: ValidationError) -> str:
    """Return key, reason and value of the first error."""
    first = error.errors()[0]
    key = ".".join(str(step) for step in first["loc"] if step != "[key]")
    if first["type"] == "extra_forbidden":
        return f"{key}: unknown key"
    if not key:
        return first["msg"].removeprefix("Value error, ")
    return f"{key}: {first['msg'].removeprefix('Value error, ')}, got {first['input']!r}"


def _resolved(config: ModelConfig, folder: Path) -> ModelConfig:
    """Return the configuration with paths resolved against `folder`."""
    offload_folder = config.offload_folder and (folder / config.offload_folder.expanduser()).resolve()
    return config.with_sources(partial(_absolute, folder)).model_copy(update={"offload_folder": offload_folder})


def _absolute(folder: Path, key: str, source: str) -> str:
    """Return a source with a path resolved against `folder`."""
    path = folder / Path(source).expanduser()
    return str(path.resolve()) if key == "lora_folder" or is_path(source) or path.is_file() else source
