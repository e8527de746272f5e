"""Local folders of pipelines and components: given as a folder, or downloaded from the hub."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from img2img.domain.model_config import ComponentSource

from ...errors import StartupError
from .hub import HubRepository
from .modular_index import INDEX, MODULAR_INDEX, index_name, read_index, read_json
from .weight_files import choose_variant, is_weight_file
from .weightless import is_weightless

CONFIG = "config.json"
# Files that configs, tokenizers and processors consist of.
TEXT_FILES = (".json", ".txt", ".model", ".jinja")
_SINGLE_FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf")
# Folders that user interfaces for Stable Diffusion keep single files in.
_UI_FOLDERS = frozenset({"checkpoints", "diffusion_models", "Stable-diffusion", "loras", "Lora", "VAE", "embeddings"})


class PipelineLocation:
    """A pipeline in a folder or on the hub.

    Attributes:
        index: content of its model_index.json, or of its modular_model_index.json in the same form.
    """

    def __init__(self, source: str, revision: str | None, variant: str | None) -> None:
        """Read the index, downloading it if necessary.

        Raises:
            StartupError: the source is not a pipeline, or there is no access to it.
        """
        self._source, self._revision, self._variant = source, revision, variant
        self._repository: HubRepository | None = None
        self._folder = path = Path(source).expanduser()
        if path.exists():
            name = index_name(self)
            if name is None:
                raise StartupError(_why_no_pipeline(path))
        else:
            self._repository = _repository(source, revision)
            name = index_name(self)
            if name is None:
                if self._repository.is_cached_only:
                    raise self._repository.not_cached(INDEX)
                raise StartupError(f"{source} is not a model in diffusers' format: it has no {INDEX}")
            self._folder = self._repository.file(name).parent
        self._is_modular = name == MODULAR_INDEX
        self.index = read_index(self)

    def has(self, name: str) -> bool:
        """Return whether the model has a file."""
        return (self._folder / name).is_file() if self._repository is None else self._repository.has(name)

    def has_folder(self, name: str) -> bool:
        """Return whether the model has a folder."""
        if self._repository is None or self._repository.files is None:
            return (self._folder / name).is_dir()
        return any(file.startswith(f"{name}/") for file in self._repository.files)

    def file(self, name: str) -> Path:
        """Return the path of a file of the model, downloading it if necessary.

        Raises:
            StartupError: there is no such file, or no access to it.
        """
        return self._folder / name if self._repository is None else self._repository.file(name)

    def folder(self) -> Path:
        """Return the folder with all files, downloading them if necessary.

        Raises:
            StartupError: the repository has no weights that can be loaded, or the download fails.
        """
        if self._repository is None or self._repository.files is None:
            return self._folder
        if is_weightless():
            return self._repository.folder([name for name in self._repository.files if name.endswith(TEXT_FILES)])
        variant = self._hub_variant(self._repository.files)
        if self._is_modular:
            return self._repository.folder(self._modular_files(self._repository.files, variant))
        return Path(
            DiffusionPipeline.download(self._source, revision=self._revision, variant=variant, use_safetensors=True)
        )

    def _modular_files(self, files: tuple[str, ...], variant: str | None) -> list[str]:
        """Return the files to download: diffusers has no such function for modular pipelines."""
        parts = components(self.index)
        return [
            file
            for file in files
            if (folder := file.rpartition("/")[0]) in (*parts, "")
            and (file.endswith(TEXT_FILES) or (folder and is_weight_file(file.rpartition("/")[2], variant)))
        ]

    def _hub_variant(self, files: tuple[str, ...]) -> str | None:
        """Return the variant to download: files without a variant, unless a component has none."""
        names = defaultdict(list)
        for file in files:
            folder, _, name = file.rpartition("/")
            names[folder].append(name)
        variants = {
            choose_variant(names[folder], self._variant, f"{self._source}/{folder}")
            for folder in components(self.index)
            if any(is_weight_file(name) for name in names[folder])
        } - {None}
        if len(variants) > 1:
            found = ", ".join(sorted(map(str, variants)))
            raise StartupError(f"{self._source} has components of the variants {found}; choose another repository")
        if self._variant is not None and self._variant not in variants:
            raise StartupError(f"{self._source} has no weights of the variant {self._variant}")
        return next(iter(variants), None)


def components(index: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return (library, class) of the components in a model_index.json that are not null."""
    return {
        name: (value[0], value[1])
        for name, value in index.items()
        if isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(v, str) for v in value)
    }


def is_pipeline(source: ComponentSource) -> bool:
    """Check whether a source is a whole pipeline and not a single module.

    Raises:
        StartupError: there is no such source, or no access to it.
    """
    if source.subfolder is not None:
        return False
    folder = Path(source.source).expanduser()
    if folder.exists():
        return (folder / INDEX).is_file()
    return _repository(source.source, source.revision).has(INDEX)


def component_folder(source: ComponentSource) -> Path:
    """Return the folder of a component, downloading its files if necessary.

    Raises:
        StartupError: there is no such folder, or no access to it.
    """
    path = Path(source.source).expanduser()
    if source.weight_name:
        raise StartupError(f"{source.source} must be a folder or hub id in diffusers' format; remove `weight_name`")
    if path.is_file():
        raise StartupError(f"{path} must be a folder or hub id in diffusers' format, not a file")
    if path.is_dir():
        folder = path / (source.subfolder or "")
        if not folder.is_dir():
            raise StartupError(f"{path} has no folder {source.subfolder}")
        return folder
    repository = _repository(source.source, source.revision)
    prefix = f"{source.subfolder}/" if source.subfolder else ""
    if repository.files is None:
        return repository.file(prefix + CONFIG).parent
    names = [
        file.removeprefix(prefix)
        for file in repository.files
        if file.startswith(prefix) and "/" not in file.removeprefix(prefix)
    ]
    where = f"{source.source}/{prefix}".removesuffix("/")
    if CONFIG not in names:
        raise StartupError(f"{where} has no {CONFIG}; check `subfolder`")
    variant = choose_variant(names, None, where)
    chosen = [
        name for name in names if name.endswith(TEXT_FILES) or (is_weight_file(name, variant) and not is_weightless())
    ]
    return repository.folder([prefix + name for name in chosen]) / prefix


def component_class(folder: Path) -> str | None:
    """Return the class that the config.json in a folder names."""
    file = folder / CONFIG
    if not file.is_file():
        raise StartupError(f"{folder} has no {CONFIG}: it is not a component in diffusers' format")
    name = read_json(file).get("_class_name")
    return str(name) if name else None


def _repository(source: str, revision: str | None) -> HubRepository:
    if "://" in source:
        raise StartupError(f"{source} is a URL; give a folder, or a hub id such as org/name")
    if source.endswith(_SINGLE_FILES) or source.startswith((".", "/", "~")):
        raise StartupError(f"{source} does not exist")
    return HubRepository(source, revision)


def _why_no_pipeline(path: Path) -> str:
    if path.is_file():
        return f"{path} is a file, not a folder in diffusers' format"
    names = {child.name for child in path.iterdir()}
    no_index = f"{path} is not a diffusers model: it has no {INDEX}"
    if names & {"snapshots", "blobs"}:
        return f"{no_index}. It is a folder of the hub cache; give the hub id"
    if len(names & _UI_FOLDERS) > 1:
        return f"{no_index}. It is the models folder of a user interface; give one model, as a folder in that format"
    if CONFIG in names:
        config = read_json(path / CONFIG)
        kind = config.get("_class_name") or next(iter(config.get("architectures") or ()), "a component")
        return f"{no_index}. It holds only one component ({kind}); give the folder of the whole model"
    if singles := sorted(name for name in names if name.endswith(_SINGLE_FILES)):
        return f"{no_index}. It has the single file {singles[0]}; give the path of a safetensors file to load that"
    if names & {"unet", "transformer", "vae", "text_encoder", "scheduler"}:
        return f"{no_index}: the download is incomplete; download it again"
    return no_index
