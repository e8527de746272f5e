"""Chooses the models that a worker serves."""

import importlib.util
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from img2img.domain.model_card import is_path, model_name
from img2img.domain.model_change import ModelChange, apply_changes
from img2img.domain.model_config import ComponentSource, ModelConfig
from img2img.file_watch import Version, version_of
from img2img.model_sources import InvalidSource, component_within_folders, within_folders
from img2img.models_file import InvalidModelsFile, read_models_file

from ...errors import StartupError
from .lora_folder import LoraFolders

T = TypeVar("T")

# Name of the bundled model.
DEMO = "demo"


def config_for(source: str, revision: str | None = None) -> ModelConfig:
    """Return the configuration of a model without a models.toml file: `demo`, a folder or a hub id."""
    if source == DEMO:
        return _demo()
    return ModelConfig(name=model_name(source), source=source, revision=revision)


def _demo() -> ModelConfig:
    spec = importlib.util.find_spec("img2img.demo_model")
    if spec is None or spec.origin is None:
        raise StartupError("the demo model is not installed; choose another model with --model")
    return _read(Path(spec.origin).parent / "models.toml")[DEMO]


def models_of_file(model: str, revision: str | None, file: Path | None) -> dict[str, ModelConfig]:
    """Return the models of a model file, or without one the model of the settings, by name.

    Args:
        model: model to serve if there is no models.toml file.
        revision: revision of `model` on the hub.
        file: path of models.toml.

    Raises:
        StartupError: if the settings contradict each other, or the file is invalid.
    """
    if file is None:
        config = config_for(model, revision)
        return {config.name: config}
    if revision is not None:
        raise StartupError("IMG2IMG_REVISION cannot be used with a model file; set `revision` in the file")
    return _read(file)


class ModelSelection:
    """Chooses the models that a worker serves: those of its model file as requests have changed them.

    Args:
        names: comma-separated names of the models to serve. Default: all of them.
        folders: folders from which models may be loaded that requests define.
        defaults: values of keys that a model does not set.

    Raises:
        StartupError: `names` is empty.
    """

    def __init__(self, names: str | None, folders: Sequence[Path], defaults: Mapping[str, str] = {}) -> None:
        self._defaults = defaults
        self._names = None if names is None else _parse_names(names)
        self._folders = folders
        self._lora_folders = LoraFolders()
        self._rejected: dict[tuple[str, str], _Rejected] = {}

    def check(self, file: Mapping[str, ModelConfig], changes: Mapping[str, ModelChange]) -> None:
        """Check the models of a model file at the start of a worker.

        Raises:
            StartupError: if a name to serve is unknown, or no model of the file has all of its local paths.
        """
        known = {*self._with_demo(file), *changes}
        for name in self._names or ():
            if name not in known:
                raise StartupError(f"IMG2IMG_SERVE: unknown model {name!r}; known: {', '.join(sorted({DEMO, *known}))}")
        problems = [_missing_source(config) for config in self._chosen(self._with_demo(file)).values()]
        if problems and all(problems) and not changes:
            raise StartupError(str(problems[0]))

    def select(self, file: Mapping[str, ModelConfig], changes: Mapping[str, ModelChange]) -> "Selection":
        """Return the models to serve now."""
        file, changes = self._with_demo(file), self._chosen(changes)
        permitted, refused = {}, {}
        for name, change in changes.items():
            try:
                permitted[name] = self._permitted(change)
            except InvalidSource as error:
                refused[name] = f"{error.key}: {error}, got {error.got!r}"
        removed = {
            name: change.before_removal().apply(file.get(name), name)
            for name, change in permitted.items()
            if change.removed
        }
        return Selection(
            {name: self._expanded(config, permitted) for name, config in self._of(file, permitted).items()},
            {name: self._expanded(config, permitted) for name, config in removed.items() if config is not None},
            refused,
            self._left_out(),
        )

    def reject_lora(self, config: ModelConfig, name: str, reason: str) -> None:
        """Leave out a LoRA of a model, which cannot be loaded, until its file or its definition changes."""
        source = config.loras[name]
        self._rejected[config.name, name] = _Rejected(source, _version(source), reason)

    def _left_out(self) -> dict[str, dict[str, str]]:
        left_out: dict[str, dict[str, str]] = {}
        for (model, lora), rejected in self._rejected.items():
            left_out.setdefault(model, {})[lora] = rejected.reason
        return left_out

    def _of(self, file: Mapping[str, ModelConfig], changes: Mapping[str, ModelChange]) -> dict[str, ModelConfig]:
        """Return the models after the changes, in the order of the names to serve."""
        return self._chosen(apply_changes(file, changes))

    def _chosen(self, known: Mapping[str, T]) -> dict[str, T]:
        names = known if self._names is None else self._names
        return {name: known[name] for name in names if name in known}

    def _with_demo(self, file: Mapping[str, ModelConfig]) -> Mapping[str, ModelConfig]:
        return {DEMO: _demo(), **file} if self._names and DEMO in self._names else file

    def _permitted(self, change: ModelChange) -> ModelChange:
        """Return a change with absolute paths. Raises InvalidSource."""
        model = change.model and within_folders(change.model, self._folders)
        loras = {
            name: source and component_within_folders(source, self._folders, f"loras.{name}")
            for name, source in change.loras.items()
        }
        return change.model_copy(update={"model": model, "loras": loras})

    def _expanded(self, config: ModelConfig, changes: Mapping[str, ModelChange]) -> ModelConfig:
        unset = {key: value for key, value in self._defaults.items() if getattr(config, key) is None}
        config = config.model_copy(update=unset)
        loras = changes[config.name].loras if config.name in changes else {}
        config = self._lora_folders.expand(config, {name for name, source in loras.items() if source is None})
        for model, lora in list(self._rejected):
            source, rejected = config.loras.get(lora), self._rejected[model, lora]
            changed = source is None or (source, _version(source)) != (rejected.source, rejected.version)
            if model == config.name and changed:
                del self._rejected[model, lora]
        kept = {name: source for name, source in config.loras.items() if (config.name, name) not in self._rejected}
        return config.model_copy(update={"loras": kept})


@dataclass(frozen=True)
class _Rejected:
    """A LoRA that could not be loaded, with the version of its file."""

    source: ComponentSource
    version: Version
    reason: str


def _version(source: ComponentSource) -> Version:
    path = Path(source.source, source.subfolder or "", source.weight_name or "")
    return version_of(path if path.is_file() else Path(source.source))


@dataclass(frozen=True)
class Selection:
    """The models that a worker serves.

    Attributes:
        configs: models by name.
        removed: models that requests have removed; only jobs that wait already are run.
        refused: why a change by request is left out, by name of the model.
        loras_left_out: by name of the model, its LoRAs that could not be loaded, and why.
    """

    configs: dict[str, ModelConfig]
    removed: dict[str, ModelConfig]
    refused: dict[str, str]
    loras_left_out: dict[str, dict[str, str]]


def _missing_source(config: ModelConfig) -> str | None:
    for key, source in config.sources():
        if is_path(source) and not Path(source).expanduser().exists():
            return f"model {config.name!r}: {key}: {source} does not exist"
    return None


def models_to_preload(names: str | None, served: Sequence[str], removed: Collection[str] = ()) -> list[str]:
    """Return the names of the models to load at the start.

    Args:
        names: comma-separated names; None for the first model.
        served: names of the models that the worker serves.
        removed: names of models that requests have removed. They are left out.

    Raises:
        StartupError: if a name is unknown.
    """
    if names is None:
        return list(served[:1])
    chosen = [name for name in _split(names) if name in served or name not in removed]
    for name in chosen:
        if name not in served:
            raise StartupError(f"IMG2IMG_PRELOAD: unknown model {name!r}; this worker serves: {', '.join(served)}")
    return chosen


def _read(file: Path) -> dict[str, ModelConfig]:
    try:
        return read_models_file(file)
    except InvalidModelsFile as error:
        raise StartupError(str(error)) from error


def _parse_names(names: str) -> list[str]:
    parsed = _split(names)
    if not parsed:
        raise StartupError("IMG2IMG_SERVE is empty: set it to the names of one or more models, or unset it")
    return parsed


def _split(names: str) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
