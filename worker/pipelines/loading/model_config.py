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
from img2img.domain.model_card import is_path, model_name
from img2img.domain.parameters import Scheduler

from ...errors import StartupError

# Name of the bundled model.
DEMO = "demo"
ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,199}$")]


class ComponentSource(BaseModel):
    """Location of weights. Safetensors only."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: Annotated[
        str,
        Field(description="folder or file, relative to the model file if it starts with a dot, or a hub id; required"),
    ]
    revision: Annotated[str | None, Field(description="revision of the hub repository; default: the latest")] = None
    subfolder: Annotated[str | None, Field(description="folder within the source")] = None
    weight_name: Annotated[str | None, Field(description="file name, for a source with several files")] = None


class UpscalerSource(ComponentSource):
    """Location of an upscaler, with the defaults of requests that use it."""

    steps: Annotated[
        int | None, Field(ge=1, le=150, description="default of upscaling requests, 1 to 150; only in `upscale`")
    ] = None
    guidance_scale: Annotated[
        float | None, Field(ge=1, description="default of upscaling requests, at least 1; only in `upscale`")
    ] = None


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
    source: Annotated[
        str,
        Field(
            description="folder in diffusers format (with a `model_index.json`), hub id, safetensors file with a whole "
            "model, or such a file on the hub (`org/name/file.safetensors`); required"
        ),
    ]
    revision: Annotated[str | None, Field(description="revision of the hub repository; default: the latest")] = None
    variant: Annotated[str | None, Field(description="variant of the weight files, such as `fp16`")] = None
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"] | None,
        Field(
            description="`float32`, `float16` or `bfloat16`; default: `float16` on CUDA (`bfloat16` for families that "
            "need it), else `float32`"
        ),
    ] = None
    config: Annotated[
        Component | None,
        Field(
            description="part: a model in diffusers format that has the configurations, the tokenizers and the "
            "components that a single file lacks; Stable Diffusion 1, 2 and XL need none"
        ),
    ] = None
    prediction_type: Annotated[
        Literal["epsilon", "v_prediction"] | None,
        Field(description="`epsilon` or `v_prediction`; default: of the model"),
    ] = None
    vae: Annotated[
        Component | None, Field(description="part: the VAE, a folder or a file; default: that of the model")
    ] = None
    controlnets: Annotated[dict[ControlType, Component], Field(description="table: control type -> part")] = {}
    preprocessors: Annotated[
        dict[ControlType, Component],
        Field(
            description="table: `depth`, `pose` or `segmentation` -> part, a transformers model that computes the map"
        ),
    ] = {}
    ip_adapter: Annotated[Component | None, Field(description="part: the IP-Adapter")] = None
    image_encoder: Annotated[
        Component | None,
        Field(
            description="part: the CLIP image encoder of the IP-Adapter; default: `image_encoder` next to the adapter "
            "file"
        ),
    ] = None
    loras: Annotated[dict[LoraName, Component], Field(description="table: name -> part")] = {}
    inpaint: Annotated[
        Component | None,
        Field(
            description="part: a pipeline or UNet with 9 input channels, used for inpainting; default: the model itself"
        ),
    ] = None
    edit: Annotated[
        Component | None, Field(description="part: a pipeline or UNet with 8 input channels (InstructPix2Pix)")
    ] = None
    upscale: Annotated[
        dict[UpscaleFactor, Annotated[UpscalerSource, BeforeValidator(_expand)]],
        Field(description="table: factor (2 or 4) -> part, which also takes `steps` and `guidance_scale`"),
    ] = {}
    steps: Annotated[
        int | None, Field(ge=1, le=150, description="default of requests, 1 to 150; default: of the family, usually 30")
    ] = None
    guidance_scale: Annotated[
        float | None,
        Field(ge=1, description="default of requests, at least 1; default: of the model family, usually 7.5"),
    ] = None
    scheduler: Annotated[
        Scheduler | None, Field(description="default of requests; default: the scheduler of the model")
    ] = None
    guidance: Annotated[
        bool | None,
        Field(
            description="`false` for models made to run without guidance (turbo and lightning models): requests cannot "
            "enable it"
        ),
    ] = None


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
    path = folder / Path(source).expanduser()
    return str(path.resolve()) if is_path(source) or path.is_file() else source


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
