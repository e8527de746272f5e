"""Denoisers in GGUF files: weights in blocks of 2 to 8 bits, which are converted to the dtype of the model as used."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch
from diffusers.models.model_loading_utils import load_gguf_checkpoint

from ...errors import StartupError, first_line
from .checkpoint_weights import WeightFile, Weights

SUFFIX = ".gguf"


@dataclass(frozen=True)
class GGUFFile(WeightFile):
    """A GGUF file."""

    def header(self) -> tuple[Weights, Mapping[str, str]]:
        """Return tensors without values, and no metadata.

        Raises:
            StartupError: the file cannot be read, or the package gguf is missing.
        """
        try:
            version("gguf")
        except PackageNotFoundError:
            raise StartupError(f"{self.file.name} needs the package gguf; run `pip install gguf`") from None
        from gguf import GGUFReader

        try:
            tensors = GGUFReader(self.file).tensors
        # The reader raises exceptions of several classes for damaged files.
        except Exception as error:
            raise StartupError(
                f"{self.file} cannot be read as GGUF: it is damaged or incomplete ({first_line(error)}); download it "
                "again"
            ) from error
        # The last side of a tensor is the first in the file.
        shapes = {tensor.name: [int(side) for side in reversed(tensor.shape)] for tensor in tensors}
        named = {self.rename(name): torch.empty(shape, device="meta") for name, shape in shapes.items()}
        return {key: tensor for key, tensor in named.items() if key is not None}, {}

    def read(self, keys: Callable[[str], bool], _dtype: torch.dtype) -> Weights:
        """Return the weights of some keys of the checkpoint, quantised as in the file."""
        named = {self.rename(key): tensor for key, tensor in load_gguf_checkpoint(str(self.file)).items()}
        return {key: tensor for key, tensor in named.items() if key is not None and keys(key)}
