"""Chooses the models that a worker serves."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from img2img.domain.model_card import is_path, model_name
from img2img.domain.model_config import ModelConfig
from img2img.models_file import InvalidModelsFile, read_models_file

from ...errors import StartupError

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


def configs_to_serve(model: str, revision: str | None, file: Path | None, names: str | None) -> list[ModelConfig]:
    """Return the configurations of the models that a worker serves.

    Args:
        model: model to serve if there is no models.toml file.
        revision: revision of `model` on the hub.
        file: path of models.toml.
        names: comma-separated names of the models in `file` to serve. Default: all of them.

    Raises:
        StartupError: if the settings contradict each other, a name is unknown, or no model has all of its local paths.
    """
    if file is None:
        config = config_for(model, revision)
        known = {config.name: config}
    elif revision is not None:
        raise StartupError("IMG2IMG_REVISION cannot be used with a model file; set `revision` in the file")
    else:
        known = _read(file)
    chosen = list(known)
    if names is not None:
        chosen = _parse_names(names)
        known = {DEMO: _demo(), **known} if DEMO in chosen else known
    for name in chosen:
        if name not in known:
            raise StartupError(f"IMG2IMG_SERVE: unknown model {name!r}; known: {', '.join(sorted({DEMO, *known}))}")
    problems = [_missing_source(known[name]) for name in chosen]
    if all(problems):
        raise StartupError(str(problems[0]))
    return [known[name] for name in chosen]


def _missing_source(config: ModelConfig) -> str | None:
    for key, source in config.sources():
        if is_path(source) and not Path(source).expanduser().exists():
            return f"model {config.name!r}: {key}: {source} does not exist"
    return None


def models_to_preload(names: str | None, served: Sequence[str]) -> list[str]:
    """Return the names of the models to load at the start.

    Args:
        names: comma-separated names; None for the first model.
        served: names of the models that the worker serves.

    Raises:
        StartupError: if a name is unknown.
    """
    if names is None:
        return list(served[:1])
    chosen = _split(names)
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
