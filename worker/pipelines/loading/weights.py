"""Finds the safetensors file of a component, in a local folder or on the hub."""

from pathlib import Path

from img2img.domain.model_card import is_path
from img2img.domain.model_config import ComponentSource

from ...errors import StartupError, first_line
from .hub import HubRepository
from .weight_files import check_file
from .weightless import reading


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
    try:
        file = _local_file(source, path) if is_local else _download(source, default)
        _check_suffix(file.name)
        check_file(file)
        with reading([file]):
            pass
    except StartupError as error:
        raise StartupError(f"{label}: {error}") from error
    except OSError as error:
        raise StartupError(f"{label}: {first_line(error)}") from error
    return file


def _local_file(source: ComponentSource, path: Path) -> Path:
    folder = path / (source.subfolder or "")
    if path.is_file():
        return path
    if source.weight_name:
        if not (folder / source.weight_name).is_file():
            raise StartupError(f"{folder / source.weight_name} does not exist")
        return folder / source.weight_name
    if not folder.exists():
        raise StartupError(f"{folder.absolute()} does not exist")
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise StartupError(f"{folder} has {len(files)} safetensors files; set `weight_name` to one of them")
    return files[0]


def _download(source: ComponentSource, default: str | None) -> Path:
    name = source.weight_name or default
    if name is None:
        raise StartupError(f"set `weight_name` to the file in {source.source}")
    _check_suffix(name)
    folder = f"{source.subfolder}/" if source.subfolder else ""
    return HubRepository(source.source, source.revision).file(folder + name)


def _check_suffix(name: str) -> None:
    if not name.endswith(".safetensors"):
        raise StartupError(f"{name} is not a safetensors file; other formats are not supported")


def is_single_file(source: ComponentSource) -> bool:
    """Return whether a part is one file, and not a folder or a repository."""
    return source.weight_name is not None or Path(source.source).expanduser().is_file()
