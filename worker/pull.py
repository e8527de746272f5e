"""Downloads a model from the hub into the cache: `python -m img2img.worker.pull SOURCE REVISION VARIANT`."""

import sys
from pathlib import Path

from huggingface_hub import constants

from img2img.domain.model_card import SINGLE_FILES, is_path
from img2img.domain.model_config import ComponentSource
from img2img.printable import printable

from .errors import StartupError
from .pipelines.loading.hub import HubRepository
from .pipelines.loading.locations import CONFIG, PipelineLocation, component_folder
from .pipelines.loading.modular_index import INDEX, MODULAR_INDEX
from .pipelines.loading.weight_files import check_file

CANNOT_PULL = 1
SAFETENSORS = ".safetensors"


def main() -> int:
    """Download a model and print where it is. Returns the exit code."""
    source, revision, variant = (argument or None for argument in sys.argv[1:4])
    try:
        assert source is not None
        path = pull(source, revision, variant)
    except StartupError as error:
        print(f"img2img: {printable(str(error))}", file=sys.stderr)  # noqa: T201
        return CANNOT_PULL
    size = path.stat().st_size if path.is_file() else sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
    print(f"{printable(source)}: {size / 1e9:.2f} GB in {path}")  # noqa: T201
    return 0


def pull(source: str, revision: str | None, variant: str | None) -> Path:
    """Download the files that a worker loads, and return their folder or file. huggingface_hub shows the progress.

    Raises:
        StartupError: there is no such repository, no access to it, or it has no weights that can be loaded.
    """
    if constants.HF_HUB_OFFLINE:
        raise StartupError("HF_HUB_OFFLINE is set: nothing is downloaded")
    if is_path(source):
        raise StartupError(f"{source} is a path; give a hub id such as org/name")
    if source.endswith(SINGLE_FILES):
        owner, name, file = source.split("/", 2)
        path = HubRepository(f"{owner}/{name}", revision).file(file)
        if path.suffix == SAFETENSORS:
            check_file(path)
        return path
    repository = HubRepository(source, revision)
    if repository.has(INDEX) or repository.has(MODULAR_INDEX):
        return PipelineLocation(source, revision, variant).folder()
    if repository.has(CONFIG):
        return component_folder(ComponentSource(source=source, revision=revision))
    files = [name for name in repository.files or () if name.endswith(SAFETENSORS) and "/" not in name]
    if len(files) != 1:
        found = f"has {len(files)} safetensors files" if repository.files is not None else "cannot be read now"
        raise StartupError(f"{source} {found}; give one of them, as {source}/file.safetensors")
    return repository.file(files[0])


if __name__ == "__main__":
    sys.exit(main())
