"""The weight files in a component's folder: which variant to load, and whether they are complete."""

import json
import logging
import re
from collections.abc import Collection, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import EllipsisType

from safetensors import SafetensorError, safe_open

from ...errors import StartupError

log = logging.getLogger(__name__)

# Names that diffusers and transformers give to weights: variant and shard, in the current and in the older order.
_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|model)(?:\.(?P<variant>\w+))?(?:-\d{5}-of-(?P<shards>\d{5}))?(?:\.(?P<older>\w+))?"
    r"\.safetensors"
)
_PICKLES = (".bin", ".ckpt", ".pt", ".pth")
_LFS_POINTER = b"version https://git-lfs"
# Python package by `quant_method`.
_QUANTISERS = {
    "awq": "autoawq",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
    "gguf": "gguf",
    "gptq": "gptqmodel",
    "quanto": "optimum-quanto",
    "torchao": "torchao",
}


def choose_variant(names: Iterable[str], wanted: str | None, where: str) -> str | None:
    """Return the variant of the safetensors files to load. None means files without a variant.

    Args:
        names: names of the files in the folder.
        wanted: variant that the model file names; files without a variant are the second choice.
        where: the folder in messages.

    Raises:
        StartupError: there are no safetensors files, or several variants to choose from.
    """
    files = list(names)
    variants = {_variant(name) for name in files if _WEIGHTS.fullmatch(name)}
    if wanted in variants:
        return wanted
    if None in variants:
        return None
    if not variants:
        raise StartupError(f"{where} {_why_no_weights(files)}")
    if len(variants) > 1 or wanted is not None:
        found = ", ".join(sorted(str(variant) for variant in variants))
        raise StartupError(f"{where} has weights of the variant {found} only; set `variant` in the model file to one")
    [only] = variants
    log.info("%s has weights of the variant %s only; it is used", where, only)
    return only


def is_weight_file(name: str, variant: str | EllipsisType | None = ...) -> bool:
    """Return whether a name is that of weights, of one variant if it is given, or of pickled weights without one."""
    if _WEIGHTS.fullmatch(name):
        return variant is ... or _variant(name) == variant
    return variant is ... and name.endswith((*_PICKLES, ".gguf"))


def _variant(name: str) -> str | None:
    match = _WEIGHTS.fullmatch(name)
    return match["variant"] or match["older"] if match else None


def _why_no_weights(names: Collection[str]) -> str:
    def ending(*suffixes: str) -> str | None:
        return next((name for name in sorted(names) if name.endswith(suffixes)), None)

    if ending(".incomplete"):
        return "is an incomplete download; download it again"
    if ending(".safetensors.index.json"):
        return "has an index of weights but no weights: the download is incomplete; download it again"
    if pickle := ending(*_PICKLES):
        return f"has only pickle files ({pickle}), which can run code and are not loaded; choose safetensors weights"
    if gguf := ending(".gguf"):
        return (
            f"has only GGUF weights ({gguf}); set `source` to that file, and `config` to the folder of the whole model"
        )
    if other := ending(".safetensors"):
        return (
            f"has no weights in diffusers' format: {other} has another name than `model` or `diffusion_pytorch_model`"
        )
    return "has no weights (*.safetensors): the download is incomplete, or it is another folder"


def check_folder(folder: Path, variant: str | None) -> str | None:
    """Check the weights of a component, and return their variant.

    Raises:
        StartupError: there are no safetensors files, some are missing or damaged, or a library for them is missing.
    """
    names = [path.name for path in folder.iterdir()]
    chosen = choose_variant(names, variant, str(folder))
    _check_quantisation(folder)
    files = [name for name in names if _WEIGHTS.fullmatch(name) and _variant(name) == chosen]
    for name in files:
        check_file(folder / name)
    shards = {int(match["shards"] or 1) for name in files if (match := _WEIGHTS.fullmatch(name))}
    if max(shards) > 1 and len(files) < max(shards):
        raise StartupError(
            f"{folder} has {len(files)} of {max(shards)} weight files: the download is incomplete; download it again"
        )
    return chosen


def files_of_variant(folder: Path, variant: str | None) -> list[Path]:
    """Return the weight files of one variant in a component's folder."""
    return [path for path in folder.iterdir() if _WEIGHTS.fullmatch(path.name) and _variant(path.name) == variant]


def has_weights(folder: Path) -> bool:
    """Return whether a component's folder has safetensors files of any variant."""
    return any(_WEIGHTS.fullmatch(path.name) for path in folder.iterdir())


def check_file(file: Path) -> None:
    """Check that a file is complete and in safetensors format, without reading its tensors.

    Raises:
        StartupError: it is not.
    """
    try:
        with file.open("rb") as opened:
            is_pointer = opened.read(len(_LFS_POINTER)) == _LFS_POINTER
        if is_pointer:
            raise StartupError(f"{file} is a Git LFS pointer without the weights; run `git lfs pull` in its folder")
        with safe_open(file, framework="pt"):
            pass
    except SafetensorError as error:
        raise StartupError(
            f"{file} cannot be read as safetensors: it is damaged or incomplete ({error}); download it again"
        ) from error


def weight_bytes(folder: Path, bytes_per_value: int) -> int:
    """Return the memory that a safetensors file, or those below a folder, need with values of a given size.

    Files of several variants of one component count once. A GGUF file needs its size.
    """
    if folder.suffix == ".gguf":
        return folder.stat().st_size
    if folder.is_file():
        return _values(folder) * bytes_per_value
    return sum(_largest_variant(path, bytes_per_value) for path in {file.parent for file in _weights_below(folder)})


def _weights_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*.safetensors") if _WEIGHTS.fullmatch(path.name)]


def _largest_variant(folder: Path, bytes_per_value: int) -> int:
    sizes: dict[str | None, int] = {}
    for file in folder.glob("*.safetensors"):
        if _WEIGHTS.fullmatch(file.name):
            variant = _variant(file.name)
            sizes[variant] = sizes.get(variant, 0) + _values(file) * bytes_per_value
    return max(sizes.values())


def _values(file: Path) -> int:
    """Return the number of values in a file."""
    count = 0
    with safe_open(file, framework="pt") as weights:
        for key in weights.keys():  # noqa: SIM118  # not a dict
            size = 1
            for side in weights.get_slice(key).get_shape():
                size *= side
            count += size
    return count


def _check_quantisation(folder: Path) -> None:
    config = folder / "config.json"
    quantised = json.loads(config.read_text()).get("quantization_config") if config.is_file() else None
    if not quantised:
        return
    method = str(quantised.get("quant_method", "")).removesuffix("_4bit").removesuffix("_8bit")
    package = _QUANTISERS.get(method)
    try:
        if package is not None:
            version(package)
    except PackageNotFoundError:
        raise StartupError(
            f"{folder} is quantised with {method}, which needs the package {package}; install it, or choose weights "
            "that are not quantised"
        ) from None
