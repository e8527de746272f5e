"""The safety checker of a model, which flags finished images. The pipelines themselves are loaded without it.

Inside a pipeline it would blacken images without a word, one image at a time, and not at strength 0. Here it checks
the images that are delivered: after inpainting is pasted into the original and tiles are merged.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from transformers import AutoImageProcessor

from img2img.domain.model_card import SafetyChecker
from img2img.domain.model_config import ModelConfig

from ..engine.gate import Gate
from ..errors import StartupError
from ..images.png import Pixels
from .loading.components import load_component
from .loading.failures import reporting_failures
from .loading.locations import PipelineLocation, component_folder, components
from .loading.placement import Placement

NAME = "safety_checker"
CLASS = "StableDiffusionSafetyChecker"
PROCESSOR = "preprocessor_config.json"
PUBLISHED = "CompVis/stable-diffusion-safety-checker"


class ImageChecker:
    """A safety checker behind a gate, so that the images of several jobs are checked in one call.

    Attributes:
        module: the safety checker.
        withholds: whether flagged images are not delivered.
    """

    def __init__(
        self, module: StableDiffusionSafetyChecker, processor: Any, device: torch.device, *, withholds: bool
    ) -> None:
        self.withholds = withholds
        self.module = module
        self._device, self._dtype = device, module.dtype
        self._processor = processor
        self._gate = Gate("check", self._run)

    def prepare(self, pixels: Pixels) -> torch.Tensor:
        """Preprocess an image, on any thread.

        Returns:
            Tensor of shape (1, 3, height, width) of the checker's input size.
        """
        prepared = self._processor(images=Image.fromarray(pixels), return_tensors="np")["pixel_values"]
        return torch.from_numpy(np.ascontiguousarray(prepared, np.float32))

    def is_flagged(self, prepared: torch.Tensor) -> bool:
        """Return whether the image is flagged, on the engine's thread.

        Args:
            prepared: output of `prepare`.
        """
        return bool(self._gate(prepared.to(self._device, self._dtype)).item())

    def _run(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return a flag for each row."""
        # The module overwrites the flagged ones of `images`, which are not needed.
        _, flags = self.module(clip_input=pixels, images=[np.zeros(1) for _ in pixels])
        return torch.tensor(flags)


def load_safety_checker(
    config: ModelConfig, location: PipelineLocation | None, placement: Placement, dtype: torch.dtype
) -> ImageChecker | None:
    """Load the safety checker that a model is configured to use; None if its images are not checked.

    Args:
        location: where the model is, if it is not a single file.
        placement: puts the checker on the device, or offloads it.

    Raises:
        StartupError: it is required and there is none, or it cannot be loaded.
    """
    if config.safety_checker is SafetyChecker.OFF:
        return None
    own = components(location.index).get(NAME) if location is not None else None
    if config.safety_checker_source is not None:
        with reporting_failures("`safety_checker_source`"):
            folder = component_folder(config.safety_checker_source)
            return _load(folder, config, placement, dtype)
    if own is not None and location is not None:
        if own[1] != CLASS:
            raise StartupError(
                f"its safety checker is a {own[1]}, which is not supported; set `safety_checker_source` to a {CLASS}, "
                'or `safety_checker` to "off"'
            )
        return _load(location.folder() / NAME, config, placement, dtype)
    if config.safety_checker is None:
        return None
    raise StartupError(
        f'`safety_checker` is "{config.safety_checker}", and the model has no safety checker; set '
        f'`safety_checker_source` to one, such as "{PUBLISHED}", or `safety_checker` to "off"'
    )


def mode_of(checker: ImageChecker | None) -> SafetyChecker:
    """Return the mode that is in force, for the model card."""
    if checker is None:
        return SafetyChecker.OFF
    return SafetyChecker.ON if checker.withholds else SafetyChecker.REPORT


def _load(folder: Path, config: ModelConfig, placement: Placement, dtype: torch.dtype) -> ImageChecker:
    module = load_component(StableDiffusionSafetyChecker, folder, dtype).eval()
    processor = AutoImageProcessor.from_pretrained(_processor_folder(folder), backend="pil")
    withholds = config.safety_checker is not SafetyChecker.REPORT
    checker = ImageChecker(module, processor, placement.device, withholds=withholds)
    placement.put(NAME, module)
    return checker


def _processor_folder(folder: Path) -> Path:
    """Return the folder with the configuration of the image processor: that of the checker, or next to it."""
    for candidate in (folder, folder.parent / "feature_extractor"):
        if (candidate / PROCESSOR).is_file():
            return candidate
    raise StartupError(f"{folder} has no {PROCESSOR}, and there is no folder feature_extractor next to it")
