"""Control maps that need a model: depth, segmentation and pose, by models of transformers that the model file names.

A map is made in three steps, on two threads. The load thread resizes and normalises the picture (NumPy and Pillow). The
model itself is called on the engine's thread, by the job that needs the map, at a gate: torch on any other thread would
bring OpenMP threads of its own, and jobs with the same picture share one call. What is left, colours and a resize, is a
few milliseconds there.
"""

from collections.abc import Callable
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

from ...engine.gate import Gate
from ...errors import StartupError
from ...images.inputs import to_tensor
from ..loading.model_config import ComponentSource, ModelConfig
from .ade20k import PALETTE
from .pose_drawing import draw_pose

MEMORY_BYTES = 64 * 2**20  # the pictures of a job share a map, and so do jobs that try prompts on one picture
SEEN = 0.3  # score from which a joint counts as seen
METRIC = frozenset({"depth_pro", "glpn", "zoedepth"})  # models that give distances; the others give their inverse


class Annotator:
    """Makes maps of one type."""

    def __init__(self, processor: Any, model: Any, device: torch.device) -> None:
        self._processor = processor
        self._model = model.eval().to(device)
        self._device = device
        self._gate = Gate("annotate", self._run, remember_bytes=MEMORY_BYTES)

    def prepare(self, picture: Image.Image) -> torch.Tensor:
        """What the model takes of an RGB picture. On any thread."""
        pixels = self._processor(images=picture, return_tensors="np", **self._arguments(picture.size))["pixel_values"]
        return torch.from_numpy(np.ascontiguousarray(pixels, np.float32))

    def make(self, prepared: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """The map, (1, 3, height, width) in [0, 1]. On the engine's thread. size: width and height."""
        output = self._gate(prepared.to(self._device))
        return to_tensor(self._draw(output.float().cpu(), size).convert("RGB"))

    def _arguments(self, size: tuple[int, int]) -> dict[str, Any]:  # noqa: ARG002
        return {}

    def _run(self, pixels: torch.Tensor) -> torch.Tensor:
        """The model's output, rows first."""
        raise NotImplementedError

    def _draw(self, output: torch.Tensor, size: tuple[int, int]) -> Image.Image:
        raise NotImplementedError


class Depth(Annotator):
    """Near is bright, far is dark."""

    def _run(self, pixels: torch.Tensor) -> torch.Tensor:
        depth: torch.Tensor = self._model(pixel_values=pixels).predicted_depth
        config = self._model.config
        if config.model_type in METRIC or getattr(config, "depth_estimation_type", None) == "metric":
            return 1 / depth.clamp(min=1e-3)
        return depth

    def _draw(self, output: torch.Tensor, size: tuple[int, int]) -> Image.Image:
        depth = output[0].numpy()
        spread = max(float(np.ptp(depth)), 1e-6)
        grey = Image.fromarray(((depth - depth.min()) / spread * 255).round().astype(np.uint8))
        return grey.resize(size, Image.Resampling.BICUBIC)


class Segmentation(Annotator):
    """Each of ADE20K's classes in its colour."""

    def _run(self, pixels: torch.Tensor) -> torch.Tensor:
        logits = self._model(pixel_values=pixels).logits
        if logits.shape[-2:] != pixels.shape[-2:]:
            logits = torch.nn.functional.interpolate(logits, size=pixels.shape[-2:], mode="bilinear")
        classes: torch.Tensor = logits.argmax(dim=1).to(torch.uint8)
        return classes

    def _draw(self, output: torch.Tensor, size: tuple[int, int]) -> Image.Image:
        colours = Image.fromarray(PALETTE[output[0].numpy().astype(np.uint8)])
        return colours.resize(size, Image.Resampling.NEAREST)


class Pose(Annotator):
    """One person, taken to fill the picture, as OpenPose draws people."""

    def _arguments(self, size: tuple[int, int]) -> dict[str, Any]:
        return {"boxes": _whole(size)}

    def _run(self, pixels: torch.Tensor) -> torch.Tensor:
        experts = getattr(self._model.config.backbone_config, "num_experts", 1)
        body = torch.zeros(len(pixels), dtype=torch.int64, device=pixels.device) if experts > 1 else None
        heatmaps: torch.Tensor = self._model(pixel_values=pixels, dataset_index=body).heatmaps
        return heatmaps

    def _draw(self, output: torch.Tensor, size: tuple[int, int]) -> Image.Image:
        found = self._processor.post_process_pose_estimation(
            VitPoseEstimatorOutput(heatmaps=output), boxes=_whole(size), threshold=SEEN
        )
        people = [
            {int(label): (float(x), float(y)) for label, (x, y) in zip(one["labels"], one["keypoints"], strict=True)}
            for one in found[0]
        ]
        return Image.fromarray(draw_pose(people, size))


def _whole(size: tuple[int, int]) -> list[list[list[float]]]:
    """Boxes of the people in one picture: left, top, width, height."""
    return [[[0.0, 0.0, float(size[0]), float(size[1])]]]


_KINDS: dict[ControlType, tuple[type[Annotator], Callable[..., Any]]] = {
    ControlType.DEPTH: (Depth, AutoModelForDepthEstimation.from_pretrained),
    ControlType.SEGMENTATION: (Segmentation, AutoModelForSemanticSegmentation.from_pretrained),
    ControlType.POSE: (Pose, VitPoseForPoseEstimation.from_pretrained),
}


def load_annotators(entry: ModelConfig, device: torch.device) -> dict[ControlType, Annotator]:
    """The annotators that a model's entry names. Safetensors only, no remote code. Raises StartupError."""
    return {kind: _load(entry, kind, part, device) for kind, part in entry.preprocessors.items()}


def _load(entry: ModelConfig, kind: ControlType, part: ComponentSource, device: torch.device) -> Annotator:
    name = f"model {entry.name!r}: preprocessor {kind}"
    if kind not in _KINDS:
        raise StartupError(f"{name}: no model makes these maps; it can be one of: {', '.join(_KINDS)}")
    where = {"revision": part.revision or "main", "subfolder": part.subfolder or ""}
    annotator, from_pretrained = _KINDS[kind]
    try:
        processor = AutoImageProcessor.from_pretrained(part.source, backend="pil", **where)
        # Full precision, however it was saved: it is small, and what it is given is float32.
        model = from_pretrained(part.source, use_safetensors=True, dtype=torch.float32, **where)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise StartupError(f"{name}: cannot load {part.source}: {str(error).strip().splitlines()[0]}") from error
    if kind is ControlType.SEGMENTATION and model.config.num_labels > len(PALETTE):
        raise StartupError(f"{name}: {part.source} knows {model.config.num_labels} classes; ADE20K has {len(PALETTE)}")
    return annotator(processor, model, device)
