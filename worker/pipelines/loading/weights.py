"""Where a part's weights lie: one safetensors file, on this disk or from the hub."""

from pathlib import Path

from huggingface_hub import hf_hub_download
from safetensors import SafetensorError, safe_open

from ...errors import StartupError
from .model_config import ComponentSource, is_path


def weights_file(part: ComponentSource, what: str, default: str | None = None) -> Path:
    """The file of a part; `default` is its name in a hub repository where the part gives none.

    what: how messages call the part. Raises StartupError, also for a file that is not safetensors: other formats are
    programs, which run when they are read.
    """
    path = Path(part.source).expanduser()
    file = _local(part, path, what) if is_path(part.source) or path.exists() else _from_hub(part, what, default)
    _check_suffix(file.name, what)
    try:
        with safe_open(file, framework="pt") as weights:
            weights.keys()
    except (OSError, SafetensorError) as error:
        raise StartupError(f"{what}: {file} cannot be read as safetensors: {error}") from error
    return file


def _local(part: ComponentSource, path: Path, what: str) -> Path:
    folder = path / (part.subfolder or "")
    if path.is_file():
        return path
    if part.weight_name:
        return folder / part.weight_name
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise StartupError(f"{what}: {folder} holds {len(files)} safetensors files; name the one by `weight_name`")
    return files[0]


def _from_hub(part: ComponentSource, what: str, default: str | None) -> Path:
    name = part.weight_name or default
    if name is None:
        raise StartupError(f"{what}: name the file in {part.source} by `weight_name`")
    _check_suffix(name, what)
    try:
        return Path(hf_hub_download(part.source, name, subfolder=part.subfolder, revision=part.revision))
    except (OSError, ValueError) as error:
        raise StartupError(f"{what}: {part.source}: {first_line(error)}") from error


def _check_suffix(name: str, what: str) -> None:
    if not name.endswith(".safetensors"):
        raise StartupError(f"{what}: {name} is not a safetensors file, and no other kind is read")


def first_line(error: BaseException) -> str:
    """What an error of a library says, in one line: the first, or the second where the first only announces it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[1] if lines[0].endswith(":") and len(lines) > 1 else lines[0]
