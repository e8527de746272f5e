"""models.toml: which models there are, and which parts each of them has. Requests name models, never files."""

import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from app.contract.conditions import ControlType, LoraName
from app.contract.models import model_name
from app.contract.spec import Scheduler
from worker.errors import StartupError


class Part(BaseModel):
    """Where weights come from: a folder or file (relative to the model file) or a hub id. Safetensors only."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    revision: str | None = None
    subfolder: str | None = None
    weight_name: str | None = None  # the file, where a source holds several


def _part(value: object) -> object:
    return {"source": value} if isinstance(value, str) else value


AnyPart = Annotated[Part, BeforeValidator(_part)]  # `"folder"` is short for `{ source = "folder" }`


class ModelEntry(BaseModel):
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
    upscale: dict[Annotated[int, Field(ge=2, le=4)], AnyPart] = {}  # upscaling pipelines by factor
    steps: Annotated[int | None, Field(ge=1, le=150)] = None  # defaults of requests
    guidance_scale: Annotated[float | None, Field(ge=1)] = None
    scheduler: Scheduler | None = None
    guidance: bool | None = None  # false: made to run without (turbo and lightning models); requests may not ask for it


def read_model_file(path: Path) -> dict[str, ModelEntry]:
    """The models of a file, by name; relative folders in it made absolute. Raises StartupError."""
    try:
        tables = tomllib.loads(path.read_text()).get("models", {})
        return {name: _entry(name, table, path.parent) for name, table in tables.items()}
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise StartupError(f"cannot read the model file {path}: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise StartupError(f"model file {path}: {error.title}: {place}: {first['msg']}") from error


def _entry(name: str, table: object, folder: Path) -> ModelEntry:
    entry = ModelEntry.model_validate({"name": name, **table} if isinstance(table, dict) else table)
    return _located(entry, folder)


def _located(entry: ModelEntry, folder: Path) -> ModelEntry:
    """The entry with every source that starts with a dot taken from `folder` on."""

    def locate(value: object) -> object:
        if isinstance(value, Part):
            return value.model_copy(update={"source": _path(value.source, folder)})
        if isinstance(value, dict):
            return {key: locate(part) for key, part in value.items()}
        return value

    changes = {name: locate(getattr(entry, name)) for name in ModelEntry.model_fields}
    return entry.model_copy(update={**changes, "source": _path(entry.source, folder)})


def _path(source: str, folder: Path) -> str:
    return str((folder / source).resolve()) if source.startswith(".") else source


def entry_of(source: str, revision: str | None = None) -> ModelEntry:
    """The entry of a model that no file describes: a folder or a hub id."""
    return ModelEntry(name=model_name(source), source=source, revision=revision)
