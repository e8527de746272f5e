"""Fingerprints of models: equal as long as a model makes the same images from the same parameters."""

import json
from collections.abc import Iterator
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import torch
from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name

from img2img.domain.model_config import ModelConfig

# Keys that change no image: names, and where weights are while they are not used.
_OTHER_KEYS = {"description", "aliases", "offload", "offload_folder", "lora_folder"}
_LIBRARIES = ("img2img-server", "diffusers", "transformers", "torch")


def fingerprint_of(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> str:
    """Return the fingerprint of a model: of its settings, its files, the libraries and the kind of its device.

    The weights are not read: files are known by their names, sizes and times of change, repositories by their commits.
    """
    sources = [(config.source, config.revision), *((part.source, part.revision) for _, part in config.components())]
    content = {
        "config": config.model_dump(mode="json", exclude=_OTHER_KEYS),
        "device": device.type,
        "dtype": str(dtype),
        "libraries": {name: version(name) for name in _LIBRARIES},
        "files": sorted({line for source, revision in sources for line in _versions_of(source, revision)}),
    }
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _versions_of(source: str, revision: str | None) -> Iterator[str]:
    path = Path(source).expanduser()
    if not path.exists():
        yield f"{source} {_commit_of(source, revision)}"
    elif path.is_file():
        yield _version_of(path)
    else:
        yield from (_version_of(file) for file in path.rglob("*") if file.is_file())


def _version_of(file: Path) -> str:
    found = file.stat()
    return f"{file} {found.st_size} {found.st_mtime_ns}"


def _commit_of(source: str, revision: str | None) -> str:
    """Return the commit of a revision in the cache of the hub, or the revision if it is none that the cache has."""
    # A source may name a file within a repository.
    repository = "/".join(source.split("/")[:2])
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model")
    ref = folder / "refs" / (revision or constants.DEFAULT_REVISION)
    return ref.read_text().strip() if ref.is_file() else revision or ""
