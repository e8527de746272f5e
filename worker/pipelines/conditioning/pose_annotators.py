"""Drawings of poses: of one person who fills the image, or of all people that a detector finds."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.models.vitpose.modeling_vitpose import VitPoseEstimatorOutput

from ...errors import StartupError
from ...images.inputs import to_pixels, to_tensor
from .annotator import Annotator
from .pose_drawing import draw_pose

# Minimum confidence of a keypoint, and of a person.
KEYPOINT_THRESHOLD, PERSON_THRESHOLD = 0.3, 0.5
MAX_PEOPLE = 20
PERSON = "person"

Box = tuple[float, float, float, float]  # left, top, width, height


class PoseAnnotator(Annotator):
    """OpenPose drawing of one person whose bounding box is the whole image."""

    def _processor_kwargs(self, size: tuple[int, int]) -> dict[str, Any]:
        return {"boxes": [[[0.0, 0.0, float(size[0]), float(size[1])]]]}

    def _run(self, pixels: torch.Tensor) -> torch.Tensor:
        experts = getattr(self.model.config.backbone_config, "num_experts", 1)
        # Expert 0 of ViTPose++ was trained on human bodies (COCO).
        expert = torch.zeros(len(pixels), dtype=torch.int64, device=pixels.device) if experts > 1 else None
        heatmaps: torch.Tensor = self.model(pixel_values=pixels, dataset_index=expert).heatmaps
        return heatmaps

    def _draw(self, output: torch.Tensor, size: tuple[int, int]) -> Image.Image:
        return draw_people(self._keypoints(output, [(0.0, 0.0, float(size[0]), float(size[1]))]), size)

    def _keypoints(self, heatmaps: torch.Tensor, boxes: Sequence[Box]) -> torch.Tensor:
        """Return x, y and score of the keypoints of each person: (people, keypoints, 3)."""
        found = self._processor.post_process_pose_estimation(
            VitPoseEstimatorOutput(heatmaps=heatmaps), boxes=[[list(box) for box in boxes]]
        )
        people = [torch.cat([one["keypoints"], one["scores"][:, None]], dim=1) for one in found[0]]
        return torch.stack(people)


class PeopleAnnotator(PoseAnnotator):
    """OpenPose drawing of all people that a detector finds, each by a pass of the pose model over their box."""

    def __init__(self, processor: Any, model: Any, device: torch.device, detector: "PersonDetector") -> None:
        super().__init__(processor, model, device)
        self._detector = detector

    @property
    def modules(self) -> list[torch.nn.Module]:
        return [self.model, self._detector.model]

    def prepare(self, image: Image.Image) -> torch.Tensor:
        # Where the people are is known on the engine's thread only. Preprocessing takes milliseconds there, once per
        # image.
        return to_tensor(image)

    def _run(self, pixels: torch.Tensor) -> torch.Tensor:
        image = Image.fromarray(to_pixels(pixels))
        boxes = self._detector.find(image)
        if not boxes:
            return pixels.new_zeros(1, 0, self.model.config.num_labels, 3)
        crops = self._processor(images=image, boxes=[[list(box) for box in boxes]], return_tensors="np")
        heatmaps = super()._run(torch.from_numpy(np.ascontiguousarray(crops["pixel_values"])).to(self._device))
        return self._keypoints(heatmaps.float(), boxes)[None]

    def _draw(self, output: torch.Tensor, size: tuple[int, int]) -> Image.Image:
        return draw_people(output[0], size)


class PersonDetector:
    """Finds the boxes of people."""

    def __init__(self, processor: Any, model: Any, device: torch.device) -> None:
        """Wrap a model for object detection.

        Raises:
            StartupError: people are not among its classes.
        """
        self._processor, self.model, self._device = processor, model, device
        self._classes = [number for number, name in model.config.id2label.items() if name.lower() == PERSON]
        if not self._classes:
            raise StartupError("it has no class `person`; choose a detector of people, such as one trained on COCO")

    def find(self, image: Image.Image) -> list[Box]:
        """Return the boxes of people, the most certain first."""
        inputs = self._processor(images=image, return_tensors="np")
        pixels = torch.from_numpy(np.ascontiguousarray(inputs["pixel_values"], np.float32)).to(self._device)
        [found] = self._processor.post_process_object_detection(
            self.model(pixel_values=pixels), threshold=PERSON_THRESHOLD, target_sizes=[(image.height, image.width)]
        )
        people = [
            (score, box)
            for score, label, box in zip(
                found["scores"].tolist(), found["labels"].tolist(), found["boxes"].tolist(), strict=True
            )
            if label in self._classes
        ]
        people.sort(key=lambda each: -each[0])
        return [(left, top, right - left, bottom - top) for _, (left, top, right, bottom) in people[:MAX_PEOPLE]]


def draw_people(keypoints: torch.Tensor, size: tuple[int, int]) -> Image.Image:
    """Draw people, (people, keypoints, 3) with x, y and score, of a size in pixels."""
    people = [
        {number: (x, y) for number, (x, y, score) in enumerate(person) if score > KEYPOINT_THRESHOLD}
        for person in keypoints.tolist()
    ]
    return Image.fromarray(draw_pose(people, size))
