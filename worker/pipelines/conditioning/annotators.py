"""Control maps by transformers models: depth, normals, segmentation and poses."""

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModelForDepthEstimation,
    AutoModelForObjectDetection,
    AutoModelForSemanticSegmentation,
    VitPoseForPoseEstimation,
)

from img2img.domain.conditioning import ControlName, ControlType
from img2img.domain.model_config import ComponentSource, ModelConfig

from ...errors import StartupError
from ..loading.components import load_component
from ..loading.failures import reporting_failures
from ..loading.locations import component_folder
from ..loading.placement import Placement
from .ade20k import PALETTE
from .annotator import Annotator
from .pose_annotators import PERSON, PeopleAnnotator, PersonDetector, PoseAnnotator

# Model types that predict distance; other depth models predict inverse distance.
METRIC_DEPTH_MODELS = frozenset({"depth_pro", "glpn", "zoedepth"})
# Of normals: the extent of the scene in depth, in shorter sides of the image. Relative depth has no unit.
SCENE_DEPTH = 0.5
# Smooths depth before its slope is computed; in pixels of an image of this side.
NORMAL_SIGMA, NORMAL_SIDE = 1.5, 512


class DepthAnnotator(Annotator):
    """Relative inverse depth in grey: near is bright."""

    def _run(self, pixels: torch.Tensor) -> torch.Tensor:
        depth: torch.Tensor = self.model(pixel_values=pixels).predicted_depth
        config = self.model.config
        if config.model_type in METRIC_DEPTH_MODELS or getattr(config, "depth_estimation_type", None) == "metric":
            return 1 / depth.clamp(min=1e-3)
        return depth

    def _draw(self, output: torch.Tensor, size: tuple[int, int]) -> Image.Image:
        grey = Image.fromarray((_relative(output) * 255).round().astype(np.uint8))
        return grey.resize(size, Image.Resampling.BICUBIC)


class NormalAnnotator(DepthAnnotator):
    """Surface normals from the slopes of relative inverse depth.

    Colours are those of the published ControlNets: red faces left, green faces up, blue faces the viewer.
    """

    def _draw(self, output: torch.Tensor, size: tuple[int, int]) -> Image.Image:
        side = min(size)
        depth = cv2.resize(_relative(output) * SCENE_DEPTH * side, size, interpolation=cv2.INTER_CUBIC)
        depth = cv2.GaussianBlur(depth, (0, 0), NORMAL_SIGMA * max(1.0, side / NORMAL_SIDE))
        # Sobel sums eight differences over one pixel each.
        left, up = cv2.Sobel(depth, cv2.CV_32F, 1, 0) / 8, cv2.Sobel(depth, cv2.CV_32F, 0, 1) / 8
        facing = np.stack([left, up, np.ones_like(left)], axis=2)
        normals = facing / np.linalg.norm(facing, axis=2, keepdims=True)
        return Image.fromarray(((normals + 1) / 2 * 255).round().astype(np.uint8))


class SegmentationAnnotator(Annotator):
    """ADE20K classes in their colours."""

    def _run(self, pixels: torch.Tensor) -> torch.Tensor:
        logits = self.model(pixel_values=pixels).logits
        if logits.shape[-2:] != pixels.shape[-2:]:
            logits = torch.nn.functional.interpolate(logits, size=pixels.shape[-2:], mode="bilinear")
        classes: torch.Tensor = logits.argmax(dim=1).to(torch.uint8)
        return classes

    def _draw(self, output: torch.Tensor, size: tuple[int, int]) -> Image.Image:
        colours = Image.fromarray(PALETTE[output[0].numpy().astype(np.uint8)])
        return colours.resize(size, Image.Resampling.NEAREST)


def _relative(output: torch.Tensor) -> npt.NDArray[np.float32]:
    """Return inverse depth from 0 (far) to 1 (near)."""
    depth = output[0].numpy()
    spread = max(float(np.ptp(depth)), 1e-6)
    return np.asarray((depth - depth.min()) / spread, np.float32)


_ANNOTATORS: Mapping[str, tuple[type[Annotator], Any]] = {
    ControlType.DEPTH: (DepthAnnotator, AutoModelForDepthEstimation),
    ControlType.NORMAL: (NormalAnnotator, AutoModelForDepthEstimation),
    ControlType.SEGMENTATION: (SegmentationAnnotator, AutoModelForSemanticSegmentation),
    ControlType.POSE: (PoseAnnotator, VitPoseForPoseEstimation),
}


def load_annotators(config: ModelConfig, placement: Placement) -> dict[ControlName, Annotator]:
    """Load the `preprocessors` of a model. Safetensors only, no remote code.

    Raises:
        StartupError: if one is not supported or cannot be loaded.
    """
    sources = dict(config.preprocessors)
    person = sources.pop(PERSON, None)
    detector = None
    if person is not None:
        with reporting_failures(f"preprocessor {PERSON}"):
            if ControlType.POSE not in sources:
                raise StartupError(f"it finds the people for `{ControlType.POSE}`, which is not listed; add it")
            processor, model = _parts(AutoModelForObjectDetection, person)
            detector = PersonDetector(processor, model, placement.device)
            placement.put(PERSON, model)
    return {name: _load(name, source, placement, detector) for name, source in sources.items()}


def _load(
    control_type: ControlName, source: ComponentSource, placement: Placement, detector: PersonDetector | None
) -> Annotator:
    label = f"preprocessor {control_type}"
    if control_type not in _ANNOTATORS:
        known = ", ".join((*_ANNOTATORS, PERSON))
        raise StartupError(f"{label}: not made by a model; `preprocessors` can be: {known}")
    annotator, kind = _ANNOTATORS[control_type]
    with reporting_failures(label):
        processor, model = _parts(kind, source)
    if control_type == ControlType.SEGMENTATION and model.config.num_labels > len(PALETTE):
        raise StartupError(
            f"{label}: {source.source} has {model.config.num_labels} classes; the maximum is {len(PALETTE)} (ADE20K)"
        )
    placement.put(control_type, model)
    if annotator is PoseAnnotator and detector is not None:
        return PeopleAnnotator(processor, model, placement.device, detector)
    return annotator(processor, model, placement.device)


def _parts(kind: Any, source: ComponentSource) -> tuple[Any, Any]:
    """Load the image processor and the model of a preprocessor."""
    folder = component_folder(source)
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    # In float32 regardless of the dtype of the file: the models are small and their inputs are float32.
    return processor, load_component(kind, folder, torch.float32).eval()
