"""Control maps by transformers models: depth, segmentation and pose.

A map is made in three steps. The load thread preprocesses the image with NumPy and Pillow. The job that needs the map
then calls the model on the engine's thread, through a gate: torch on another thread would start more OpenMP threads,
and jobs with the same image share one call. Postprocessing (colours, resize) takes a few milliseconds there.
"""

from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModelForDepthEstimation,
    AutoModelForSemanticSegmentation,
    VitPoseForPoseEstimation,
)
from transformers.models.vitpose.modeling_vitpose import VitPoseEstimatorOutput

from img2img.domain.conditioning import ControlType
from img2img.domain.model_config import ComponentSource, ModelConfig

from ...engine.gate import Gate
from ...errors import StartupError
from ...images.inputs import to_tensor
from ..loading.components import load_component
from ..loading.failures import reporting_failures
from ..loading.locations import component_folder
from ..loading.placement import Placement
from .ade20k import PALETTE
from .pose_drawing import draw_pose

# The images of a job share a map, and so do jobs that try several prompts with one image.
CACHE_BYTES = 64 * 2**20
# Minimum confidence of a keypoint.
KEYPOINT_THRESHOLD = 0.3
# Model types that predict distance; other depth models predict inverse distance.
METRIC_DEPTH_MODELS = frozenset({"depth_pro", "glpn", "zoedepth"})


class Annotator:
    """Makes control maps of one type."""

    def __init__(self, processor: Any, model: Any, device: torch.device) -> None:
        self._processor = processor
        self.model = model
        self._device = device
        self._gate = Gate("annotate", self._run, remember_bytes=CACHE_BYTES)

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
        output = self._gate(prepared.to(self._device))
        return to_tensor(self._draw(output.float().cpu(), size).convert("RGB"))

    def _processor_kwargs(self, size: tuple[int, int]) -> dict[str, Any]:  # noqa: ARG002
        return {}

    def _run(self, pixels: torch.Tensor) -> torch.Tensor:
        """Run the model. The first dimension of the output is the batch."""
        raise NotImplementedError

    def _draw(self, output: torch.Tensor, size: tuple[int, int]) -> Image.Image:
        raise NotImplementedError


class DepthAnnotator(Annotator):
    """Relative inverse depth in grey: near is bright."""

    def _run(self, pixels: torch.Tensor) -> torch.Tensor:
        depth: torch.Tensor = self.model(pixel_values=pixels).predicted_depth
        config = self.model.config
        if config.model_type in METRIC_DEPTH_MODELS or getattr(config, "depth_estimation_type", None) == "metric":
            return 1 / depth.clamp(min=1e-3)
        return depth

    def _draw(self, output: torch.Tensor, size: tuple[int, int]) -> Image.Image:
        depth = output[0].numpy()
        spread = max(float(np.ptp(depth)), 1e-6)
        grey = Image.fromarray(((depth - depth.min()) / spread * 255).round().astype(np.uint8))
        return grey.resize(size, Image.Resampling.BICUBIC)


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


class PoseAnnotator(Annotator):
    """OpenPose drawing of one person whose bounding box is the whole image."""

    def _processor_kwargs(self, size: tuple[int, int]) -> dict[str, Any]:
        return {"boxes": _whole_image_box(size)}

    def _run(self, pixels: torch.Tensor) -> torch.Tensor:
        experts = getattr(self.model.config.backbone_config, "num_experts", 1)
        # Expert 0 of ViTPose++ was trained on human bodies (COCO).
        expert = torch.zeros(len(pixels), dtype=torch.int64, device=pixels.device) if experts > 1 else None
        heatmaps: torch.Tensor = self.model(pixel_values=pixels, dataset_index=expert).heatmaps
        return heatmaps

    def _draw(self, output: torch.Tensor, size: tuple[int, int]) -> Image.Image:
        found = self._processor.post_process_pose_estimation(
            VitPoseEstimatorOutput(heatmaps=output), boxes=_whole_image_box(size), threshold=KEYPOINT_THRESHOLD
        )
        people = [
            {int(label): (float(x), float(y)) for label, (x, y) in zip(one["labels"], one["keypoints"], strict=True)}
            for one in found[0]
        ]
        return Image.fromarray(draw_pose(people, size))


def _whole_image_box(size: tuple[int, int]) -> list[list[list[float]]]:
    """Return the boxes (left, top, width, height) of the people in a batch of one image."""
    return [[[0.0, 0.0, float(size[0]), float(size[1])]]]


_ANNOTATORS: dict[ControlType, tuple[type[Annotator], Any]] = {
    ControlType.DEPTH: (DepthAnnotator, AutoModelForDepthEstimation),
    ControlType.SEGMENTATION: (SegmentationAnnotator, AutoModelForSemanticSegmentation),
    ControlType.POSE: (PoseAnnotator, VitPoseForPoseEstimation),
}


def load_annotators(config: ModelConfig, placement: Placement) -> dict[ControlType, Annotator]:
    """Load the `preprocessors` of a model. Safetensors only, no remote code.

    Raises:
        StartupError: if one is not supported or cannot be loaded.
    """
    return {
        control_type: _load(control_type, source, placement) for control_type, source in config.preprocessors.items()
    }


def _load(control_type: ControlType, source: ComponentSource, placement: Placement) -> Annotator:
    label = f"preprocessor {control_type}"
    if control_type not in _ANNOTATORS:
        raise StartupError(f"{label}: not made by a model; `preprocessors` can be: {', '.join(_ANNOTATORS)}")
    annotator, kind = _ANNOTATORS[control_type]
    with reporting_failures(label):
        folder = component_folder(source)
        processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
        # In float32 regardless of the dtype of the file: the models are small and their inputs are float32.
        model = load_component(kind, folder, torch.float32)
    if control_type is ControlType.SEGMENTATION and model.config.num_labels > len(PALETTE):
        raise StartupError(
            f"{label}: {source.source} has {model.config.num_labels} classes; the maximum is {len(PALETTE)} (ADE20K)"
        )
    placement.put(control_type, model.eval())
    return annotator(processor, model, placement.device)
