"""Finds the safetensors file of a component, in a local folder or on the hub."""

from pathlib import Path

from huggingface_hub import hf_hub_download
from safetensors import SafetensorError, safe_open

from ...errors import StartupError
from .model_config import ComponentSource, is_path


def resolve_weights(source: ComponentSource, label: str, default: str | None = None) -> Path:
    """Return the path of the safetensors file of a component, downloading it if necessary.

    Args:
        label: name of the component in error messages.
        default: file name in a hub repository, if `source` has no `weight_name`.

    Raises:
        StartupError: if there is no such file, or if it is not in safetensors format. Other formats are based on
            pickle and can run code when they are loaded.
    """
    path = Path(source.source).expanduser()
    is_local = is_path(source.source) or path.exists()
    file = _local_file(source, path, label) if is_local else _download(source, label, default)
    _check_suffix(file.name, label)
    try:
        with safe_open(file, framework="pt") as weights:
            weights.keys()
    except (OSError, SafetensorError) as error:
        raise StartupError(f"{label}: {file} cannot be read as safetensors: {error}") from error
    return file


def _local_file(source: ComponentSource, path: Path, label: str) -> Path:
    folder = path / (source.subfolder or "")
    if path.is_file():
        return path
    if source.weight_name:
        return folder / source.weight_name
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise StartupError(f"{label}: {folder} has {len(files)} safetensors files; set `weight_name` to one of them")
    return files[0]


def _download(source: ComponentSource, label: str, default: str | None) -> Path:
    name = source.weight_name or default
    if name is None:
        raise StartupError(f"{label}: set `weight_name` to the file in {source.source}")
    _check_suffix(name, label)
    try:
        return Path(hf_hub_download(source.source, name, subfolder=source.subfolder, revision=source.revision))
    except (OSError, ValueError) as error:
        raise StartupError(f"{label}: cannot download {source.source}: {first_line(error)}") from error


def _check_suffix(name: str, label: str) -> None:
    if not name.endswith(".safetensors"):
        raise StartupError(f"{label}: {name} is not a safetensors file; other formats are not supported")


def first_line(error: BaseException) -> str:
    """Return the first line of an error message, or the second if the first ends with a colon."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[1] if lines[0].endswith(":") and len(lines) > 1 else lines[0]
