"""The models.toml file: which models a worker serves and the components of each.

Clients name models, LoRAs and control types; they never name files.
"""

import importlib.util
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from img2img.domain.conditioning import ControlType, LoraName
from img2img.domain.model_card import model_name
from img2img.domain.parameters import Scheduler

from ...errors import StartupError

# Name of the bundled model.
DEMO = "demo"
ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,199}$")]


class ComponentSource(BaseModel):
    """Location of weights. Safetensors only."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # Folder or file (relative to models.toml if it starts with a dot) or hub id.
    source: str
    revision: str | None = None
    subfolder: str | None = None
    # File name, for a source with several files.
    weight_name: str | None = None


class UpscalerSource(ComponentSource):
    """Location of an upscaler, with the defaults of requests that use it."""

    steps: Annotated[int | None, Field(ge=1, le=150)] = None
    guidance_scale: Annotated[float | None, Field(ge=1)] = None


def _expand(value: object) -> object:
    """Expand the short form `"folder"` to `{ source = "folder" }`."""
    return {"source": value} if isinstance(value, str) else value


Component = Annotated[ComponentSource, BeforeValidator(_expand)]
UpscaleFactor = Annotated[int, Field(ge=2, le=4)]


class ModelConfig(BaseModel):
    """Configuration of one model: its weights, optional components and defaults of requests."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # Name that clients use: the key of the table.
    name: str = ""
    source: str
    revision: str | None = None
    # Variant of the weight files, such as fp16.
    variant: str | None = None
    # Default: the dtype of the family on CUDA, float32 on the CPU.
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    controlnets: dict[ControlType, Component] = {}
    # transformers models that make depth, segmentation and pose maps.
    preprocessors: dict[ControlType, Component] = {}
    ip_adapter: Component | None = None
    # Image encoder of the IP-Adapter. Default: the folder `image_encoder` beside the adapter.
    image_encoder: Component | None = None
    loras: dict[LoraName, Component] = {}
    # Pipeline or UNet with 9 input channels.
    inpaint: Component | None = None
    # Pipeline or UNet with 8 input channels (InstructPix2Pix).
    edit: Component | None = None
    upscale: dict[UpscaleFactor, Annotated[UpscalerSource, BeforeValidator(_expand)]] = {}
    steps: Annotated[int | None, Field(ge=1, le=150)] = None
    guidance_scale: Annotated[float | None, Field(ge=1)] = None
    scheduler: Scheduler | None = None
    # false for models that run without guidance (turbo, lightning): requests with a guidance scale are rejected.
    guidance: bool | None = None


class _ModelsFile(BaseModel):
    """Content of a models.toml file."""

    model_config = ConfigDict(extra="forbid")

    models: Annotated[dict[ModelName, ModelConfig], Field(min_length=1)]


def read_models_file(path: Path) -> dict[str, ModelConfig]:
    """Read a models.toml file. Relative paths in it become absolute.

    Returns:
        Configurations by model name.

    Raises:
        StartupError: if the file cannot be read or is not valid.
    """
    try:
        models = _ModelsFile.model_validate(tomllib.loads(path.read_text())).models
    except (OSError, ValueError) as error:
        if isinstance(error, ValidationError):
            raise StartupError(f"the model file {path}: {_first_error(error)}") from error
        raise StartupError(f"cannot read the model file {path}: {error}") from error
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
        if isinstance(value, dict):
            return {key: resolve(item) for key, item in value.items()}
        return value

    changes = {name: resolve(getattr(config, name)) for name in ModelConfig.model_fields}
    return config.model_copy(update={**changes, "source": _absolute(config.source, folder)})


def _absolute(source: str, folder: Path) -> str:
    return str((folder / Path(source).expanduser()).resolve()) if is_path(source) else source


def is_path(source: str) -> bool:
    """Check whether a source is a path and not a hub id."""
    return source.startswith((".", "/", "~"))


def config_for(source: str, revision: str | None = None) -> ModelConfig:
    """Return the configuration of a model without a models.toml file: `demo`, a folder or a hub id."""
    if source == DEMO:
        return _demo()
    return ModelConfig(name=model_name(source), source=source, revision=revision)


def _demo() -> ModelConfig:
    spec = importlib.util.find_spec("img2img.demo_model")
    if spec is None or spec.origin is None:
        raise StartupError("the demo model is not installed; choose another model with --model")
    return read_models_file(Path(spec.origin).parent / "models.toml")[DEMO]


def configs_to_serve(model: str, revision: str | None, file: Path | None, names: str | None) -> list[ModelConfig]:
    """Return the configurations of the models that a worker serves.

    Args:
        model: model to serve if there is no models.toml file.
        revision: revision of `model` on the hub.
        file: path of models.toml.
        names: comma-separated names of the models in `file` to serve. Default: all of them.

    Raises:
        StartupError: if the settings contradict each other, a name is unknown or a local path does not exist.
    """
    if file is None:
        config = config_for(model, revision)
        known = {config.name: config}
    elif revision is not None:
        raise StartupError("IMG2IMG_REVISION cannot be used with a model file; set `revision` in the file")
    else:
        known = read_models_file(file)
    chosen = list(known)
    if names is not None:
        chosen = _parse_names(names)
        known = {DEMO: _demo(), **known} if DEMO in chosen else known
    for name in chosen:
        if name not in known:
            raise StartupError(f"IMG2IMG_SERVE: unknown model {name!r}; known: {', '.join(sorted({DEMO, *known}))}")
        for key, source in _sources(known[name]):
            if is_path(source) and not Path(source).expanduser().exists():
                raise StartupError(f"model {name!r}: {key}: {source} does not exist")
    return [known[name] for name in chosen]


def _parse_names(names: str) -> list[str]:
    parsed = [name.strip() for name in names.split(",") if name.strip()]
    if not parsed:
        raise StartupError("IMG2IMG_SERVE is empty: set it to the names of one or more models, or unset it")
    return list(dict.fromkeys(parsed))


def _sources(config: ModelConfig) -> Iterator[tuple[str, str]]:
    """Yield each source of a configuration with its key."""
    yield "source", config.source
    for name in ModelConfig.model_fields:
        value = getattr(config, name)
        items = {f"{name}.{key}": item for key, item in value.items()} if isinstance(value, dict) else {name: value}
        yield from ((key, item.source) for key, item in items.items() if isinstance(item, ComponentSource))
