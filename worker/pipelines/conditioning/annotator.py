"""A model that makes control maps: the steps that all of them have.

A map is made in three steps. The load thread preprocesses the image with NumPy and Pillow. The job that needs the map
then calls the model on the engine's thread, through a gate: torch on another thread would start more OpenMP threads,
and jobs with the same image share one call. Postprocessing (colours, resize) takes a few milliseconds there.
"""

from typing import Any

import numpy as np
import torch
from PIL import Image

from ...engine.content import lazy_digest, with_digest
from ...engine.gate import Gate
from ...images.inputs import to_tensor

# The images of a job share a map, and so do jobs that try several prompts with one image.
CACHE_BYTES = 64 * 2**20


class Annotator:
    """Makes control maps of one type."""

    def __init__(self, processor: Any, model: Any, device: torch.device) -> None:
        self._processor = processor
        self.model = model
        self._device = device
        self._gate = Gate("annotate", self._run, remember_bytes=CACHE_BYTES, reads_images=True)

    @property
    def modules(self) -> list[torch.nn.Module]:
        return [self.model]

    def prepare(self, image: Image.Image) -> torch.Tensor:
        """Preprocess an RGB image for the model, on any thread.

        Returns:
            Tensor of shape (1, 3, height, width) of the model's input size.
        """
        pixels = self._processor(images=image, return_tensors="np", **self._processor_kwargs(image.size))
        return torch.from_numpy(np.ascontiguousarray(pixels["pixel_values"], np.float32))

    def make_map(self, prepared: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Make the control map, on the engine's thread.

        Args:
            prepared: output of `prepare`.
            size: (width, height) of the map in pixels.

        Returns:
            Tensor of shape (1, 3, height, width) with values in [0, 1].
        """
        # The digest is that of main memory: reading it back would wait for the device.
        output = self._gate(with_digest(prepared.to(self._device), lazy_digest(prepared)))
        return to_tensor(self._draw(output.float().cpu(), size).convert("RGB"))

    def _processor_kwargs(self, size: tuple[int, int]) -> dict[str, Any]:  # noqa: ARG002
        return {}

    def _run(self, pixels: torch.Tensor) -> torch.Tensor:
        """Run the model. The first dimension of the output is the batch."""
        raise NotImplementedError

    def _draw(self, output: torch.Tensor, size: tuple[int, int]) -> Image.Image:
        raise NotImplementedError
