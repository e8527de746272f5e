"""The `matting` of a model: finds the foreground of an image, so that the rest can be removed or replaced.

A model of semantic segmentation gives each pixel the probability of the classes that count as foreground. That is
coarse at edges: a `matting_refiner`, which is a ViTMatte model, computes the pixels near them again.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, VitMatteForImageMatting

from img2img.domain.model_config import ComponentSource, MattingSource, ModelConfig

from ...engine.gate import Gate
from ...errors import StartupError
from ..loading.components import load_component
from ..loading.failures import reporting_failures
from ..loading.locations import component_folder
from ..loading.placement import Placement

# 0 is background, 255 is foreground.
Alpha = npt.NDArray[np.uint8]  # (height, width)

BACKGROUND = "background"
# Probabilities between these are refined, and so are pixels near an edge: within this part of the longer side.
CERTAIN, EDGE = 0.95, 1 / 100
# Pixels of the longer side of an image for the refiner, whose memory grows with the square of their number.
MAX_REFINED_SIDE = 1024
UNKNOWN, FOREGROUND = 128, 255


class Matting:
    """Finds the foreground of images. Calls are not merged: a matte does not depend on other jobs."""

    def __init__(
        self, processor: Any, model: Any, foreground: Collection[int], device: torch.device, refiner: "Refiner | None"
    ) -> None:
        """Wrap a model of semantic segmentation.

        Args:
            foreground: classes that count as foreground.
        """
        self._processor = processor
        self._model = model
        self._foreground = sorted(foreground)
        self._device = device
        self._refiner = refiner
        self._gate = Gate("matte", self._run, merges=False)

    @property
    def modules(self) -> list[torch.nn.Module]:
        return [self._model, *([self._refiner.model] if self._refiner else [])]

    def prepare(self, image: Image.Image) -> torch.Tensor:
        """Preprocess an RGB image, on any thread. Returns a tensor of shape (1, 3, height, width)."""
        pixels = self._processor(images=image, return_tensors="np")["pixel_values"]
        return torch.from_numpy(np.ascontiguousarray(pixels, np.float32))

    def alpha(self, image: Image.Image, prepared: torch.Tensor) -> Alpha:
        """Return the opacity of each pixel of an image, on the engine's thread.

        Args:
            image: RGB.
            prepared: output of `prepare` for it.
        """
        coarse = self._gate(prepared.to(self._device))[0].float().cpu().numpy()
        share = np.clip(cv2.resize(coarse, image.size, interpolation=cv2.INTER_LINEAR), 0, 1)
        if self._refiner is not None:
            return self._refiner.refined(image, share)
        return np.asarray((share * FOREGROUND).round(), np.uint8)

    def _run(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the probability of the foreground, (1, height, width)."""
        probabilities = self._model(pixel_values=pixels).logits.softmax(dim=1)
        chosen: torch.Tensor = probabilities[:, self._foreground].sum(dim=1)
        return chosen


class Refiner:
    """A ViTMatte model: computes the opacity of the pixels that a trimap leaves open."""

    def __init__(self, processor: Any, model: Any, device: torch.device) -> None:
        self._processor = processor
        self.model = model
        self._device = device
        self._gate = Gate("matte", lambda pixels: model(pixel_values=pixels).alphas, merges=False)

    def refined(self, image: Image.Image, share: npt.NDArray[np.float32]) -> Alpha:
        """Return the opacity of each pixel of an image.

        Args:
            share: probability of the foreground, (height, width).
        """
        scale = min(1.0, MAX_REFINED_SIDE / max(image.size))
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        resized = np.asarray(cv2.resize(share, size, interpolation=cv2.INTER_LINEAR), np.float32)
        open_pixels = trimap(resized)
        small = np.asarray(image.resize(size, Image.Resampling.LANCZOS))
        pixels = self._processor(images=small, trimaps=open_pixels, return_tensors="np")["pixel_values"]
        prepared = torch.from_numpy(np.ascontiguousarray(pixels, np.float32)).to(self._device)
        alpha = self._gate(prepared)[0, 0, : size[1], : size[0]].float().cpu().numpy()
        # Decisions of the trimap are kept.
        known = open_pixels.astype(np.float32) / FOREGROUND
        alpha = np.where(open_pixels == UNKNOWN, alpha, known)
        enlarged = cv2.resize(alpha.astype(np.float32), image.size, interpolation=cv2.INTER_LINEAR)
        return np.asarray((np.clip(enlarged, 0, 1) * FOREGROUND).round(), np.uint8)


def trimap(share: npt.NDArray[np.float32]) -> Alpha:
    """Return a map with 0 for certain background, 255 for certain foreground, and 128 for the rest."""
    radius = max(1, round(EDGE * max(share.shape)))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    inside = cv2.erode((share > CERTAIN).astype(np.uint8), kernel, borderType=cv2.BORDER_REPLICATE)
    outside = cv2.erode((share < 1 - CERTAIN).astype(np.uint8), kernel, borderType=cv2.BORDER_REPLICATE)
    return np.where(inside == 1, FOREGROUND, np.where(outside == 1, 0, UNKNOWN)).astype(np.uint8)


def load_matting(config: ModelConfig, placement: Placement) -> Matting | None:
    """Load the `matting` of a model, if it has one. Safetensors only, no remote code.

    Raises:
        StartupError: it is not supported or cannot be loaded.
    """
    if config.matting is None:
        if config.matting_refiner is not None:
            raise StartupError("`matting_refiner` refines the edges of `matting`, which is not set; add it")
        return None
    with reporting_failures("matting"):
        processor, model = _parts(AutoModelForSemanticSegmentation, config.matting)
        foreground = _foreground(config.matting, model.config.id2label)
    placement.put("matting", model)
    refiner = None
    if config.matting_refiner is not None:
        with reporting_failures("matting_refiner"):
            refiner = Refiner(*_parts(VitMatteForImageMatting, config.matting_refiner), placement.device)
        placement.put("matting_refiner", refiner.model)
    return Matting(processor, model, foreground, placement.device, refiner)


def _foreground(source: MattingSource, labels: dict[int, str]) -> list[int]:
    """Return the classes that count as foreground. Raises StartupError if that is not known."""
    # A class can have several names: `ground, grass`.
    names = {number: {part.strip().lower() for part in label.split(",")} for number, label in labels.items()}
    numbers: dict[str | int, int] = {name: number for number, parts in names.items() for name in parts}
    if source.foreground:
        known = numbers | {number: number for number in labels}
        wanted = [one.lower() if isinstance(one, str) else one for one in source.foreground]
        if missing := [one for one in wanted if one not in known]:
            raise StartupError(f"{source.source} has no class {missing[0]!r}; correct `foreground`")
        return sorted({known[one] for one in wanted})
    if BACKGROUND not in numbers:
        raise StartupError(
            f"{source.source} has no class `{BACKGROUND}`; list the classes of the foreground in `foreground`"
        )
    return [number for number, parts in names.items() if BACKGROUND not in parts]


def _parts(kind: Any, source: ComponentSource) -> tuple[Any, Any]:
    """Load the image processor and the model of a part."""
    folder: Path = component_folder(source)
    # In float32 regardless of the dtype of the file, like the models that make control maps.
    return AutoImageProcessor.from_pretrained(folder, backend="pil"), load_component(kind, folder, torch.float32).eval()
