"""models.toml: which models there are, and which parts each of them has. Requests name models, never files."""

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

DEMO = "demo"  # the model of this repository, always there
ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,199}$")]


class ComponentSource(BaseModel):
    """Where weights come from: a folder or file (relative to the model file) or a hub id. Safetensors only."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    revision: str | None = None
    subfolder: str | None = None
    weight_name: str | None = None  # the file, where a source holds several


class UpscalerSource(ComponentSource):
    """What enlarges, with the defaults of requests that it is used for."""

    steps: Annotated[int | None, Field(ge=1, le=150)] = None
    guidance_scale: Annotated[float | None, Field(ge=1)] = None


def _part(value: object) -> object:
    return {"source": value} if isinstance(value, str) else value


AnyPart = Annotated[ComponentSource, BeforeValidator(_part)]  # `"folder"` is short for `{ source = "folder" }`


class ModelConfig(BaseModel):
    """One model: its own weights, and the parts by which it can do more than plain image-to-image."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = ""  # that clients use; from the table's key
    source: str
    revision: str | None = None
    variant: str | None = None  # of the weight files, e.g. fp16
    dtype: Literal["float32", "float16", "bfloat16"] | None = None  # None: float16 on CUDA, else float32
    controlnets: dict[ControlType, AnyPart] = {}
    preprocessors: dict[ControlType, AnyPart] = {}  # transformers models that make depth, pose and segmentation maps
    ip_adapter: AnyPart | None = None
    image_encoder: AnyPart | None = None  # of the IP-Adapter, where its own folder has none
    loras: dict[LoraName, AnyPart] = {}
    inpaint: AnyPart | None = None  # a pipeline or UNet with 9 channels
    edit: AnyPart | None = None  # a pipeline or UNet with 8 channels (InstructPix2Pix)
    upscale: dict[
        Annotated[int, Field(ge=2, le=4)], Annotated[UpscalerSource, BeforeValidator(_part)]
    ] = {}  # by factor
    steps: Annotated[int | None, Field(ge=1, le=150)] = None  # defaults of requests
    guidance_scale: Annotated[float | None, Field(ge=1)] = None
    scheduler: Scheduler | None = None
    guidance: bool | None = None  # false: made to run without (turbo and lightning models); requests may not ask for it


class _ModelFile(BaseModel):
    """The file as it is written."""

    model_config = ConfigDict(extra="forbid")

    models: Annotated[dict[ModelName, ModelConfig], Field(min_length=1)]


def read_models_file(path: Path) -> dict[str, ModelConfig]:
    """The models of a file, by name; relative folders in it made absolute. Raises StartupError."""
    try:
        tables = _ModelFile.model_validate(tomllib.loads(path.read_text())).models
    except (OSError, ValueError) as error:
        if isinstance(error, ValidationError):
            raise StartupError(f"the model file {path}: {_first(error)}") from error
        raise StartupError(f"cannot read the model file {path}: {error}") from error
    return {name: _located(entry.model_copy(update={"name": name}), path.parent) for name, entry in tables.items()}


def _first(error: ValidationError) -> str:
    """The first thing that is wrong: where, why, and what stands there."""
    first = error.errors()[0]
    place = ".".join(str(step) for step in first["loc"] if step != "[key]")
    if first["type"] == "extra_forbidden":
        return f"{place}: there is no such key"
    return f"{place}: {first['msg']}, got {first['input']!r}"


def _located(entry: ModelConfig, folder: Path) -> ModelConfig:
    """The entry with every source that starts with a dot taken from `folder` on."""

    def locate(value: object) -> object:
        if isinstance(value, ComponentSource):
            return value.model_copy(update={"source": _path(value.source, folder)})
        if isinstance(value, dict):
            return {key: locate(part) for key, part in value.items()}
        return value

    changes = {name: locate(getattr(entry, name)) for name in ModelConfig.model_fields}
    return entry.model_copy(update={**changes, "source": _path(entry.source, folder)})


def _path(source: str, folder: Path) -> str:
    return str((folder / Path(source).expanduser()).resolve()) if is_path(source) else source


def is_path(source: str) -> bool:
    """Whether a source is a folder or file, and not a hub id."""
    return source.startswith((".", "/", "~"))


def config_for(source: str, revision: str | None = None) -> ModelConfig:
    """The entry of a model that no file of the user's describes: `demo`, a folder or a hub id."""
    if source == DEMO:
        return _demo()
    return ModelConfig(name=model_name(source), source=source, revision=revision)


def _demo() -> ModelConfig:
    spec = importlib.util.find_spec("img2img.demo_model")
    if spec is None or spec.origin is None:
        raise StartupError("the demo model is not installed; name another with --model")
    return read_models_file(Path(spec.origin).parent / "models.toml")[DEMO]


def configs_to_serve(model: str, revision: str | None, file: Path | None, names: str | None) -> list[ModelConfig]:
    """What a worker serves: of a model file all models or those of `names`, comma separated; without a file, `model`.

    Raises StartupError where that cannot be, or where a folder or file that an entry names is not there.
    """
    if file is None:
        entry = config_for(model, revision)
        known = {entry.name: entry}
    elif revision is not None:
        raise StartupError("IMG2IMG_REVISION is for a model without a model file; in the file, `revision` stands")
    else:
        known = read_models_file(file)
    chosen = list(known)
    if names is not None:
        known = {DEMO: _demo(), **known} if DEMO in _names(names) else known
        chosen = _names(names)
    for name in chosen:
        if name not in known:
            raise StartupError(f"IMG2IMG_SERVE: there is no model {name!r}, but {', '.join(sorted({DEMO, *known}))}")
        for place, source in _sources(known[name]):
            if is_path(source) and not Path(source).expanduser().exists():
                raise StartupError(f"model {name!r}: {place}: there is no {source}")
    return [known[name] for name in chosen]


def _names(names: str) -> list[str]:
    listed = [name.strip() for name in names.split(",") if name.strip()]
    if not listed:
        raise StartupError("IMG2IMG_SERVE: name one model at least, or unset it")
    return list(dict.fromkeys(listed))


def _sources(entry: ModelConfig) -> Iterator[tuple[str, str]]:
    """Each source of an entry, and where in the entry it stands."""
    yield "source", entry.source
    for name in ModelConfig.model_fields:
        value = getattr(entry, name)
        parts = {f"{name}.{key}": part for key, part in value.items()} if isinstance(value, dict) else {name: value}
        yield from ((place, part.source) for place, part in parts.items() if isinstance(part, ComponentSource))
