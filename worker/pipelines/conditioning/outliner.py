"""SAM, SAM 2 and the tracker of SAM 3: the outlines of things by points and boxes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from img2img.domain.masks import MaskQuery

from ...engine.gate import Gate
from ...images.masks import Corners, Thing, resized
from .finders import CACHE_BYTES


class Outliner:
    """A model that outlines the thing at points or in a box, on the engine's thread."""

    def __init__(self, processor: Any, model: Any, device: torch.device) -> None:
        self._processor, self.model, self._device = processor, model, device
        # In one call, because hooks of offloaded models run before `forward`.
        self._gate = Gate("segment", self._run, remember_bytes=CACHE_BYTES)

    def outline(self, image: Image.Image, query: MaskQuery) -> list[Thing]:
        """Return the thing at the points or in the box of a query."""
        if query.box is not None:
            return self.outline_boxes(image, [query.box])
        labels = query.labels or (1,) * len(query.points)
        points = torch.tensor([[query.points]]) * self._scale(image)
        # The point on a thing can be one on a part of it: of several masks, the best one is taken.
        return self._things(
            image, multimask=len(labels) == 1, input_points=points, input_labels=torch.tensor([[labels]])
        )

    def outline_boxes(self, image: Image.Image, boxes: Sequence[Corners]) -> list[Thing]:
        """Return a thing for each box."""
        corners = torch.tensor([boxes]) * self._scale(image).repeat(2)
        return self._things(image, multimask=False, input_boxes=corners)

    def _things(self, image: Image.Image, *, multimask: bool, **prompt: torch.Tensor) -> list[Thing]:
        pixel_values = self._processor(images=image, return_tensors="np")["pixel_values"]
        pixels = torch.from_numpy(np.ascontiguousarray(pixel_values, np.float32))
        given = {name: value.to(self._device) for name, value in prompt.items()}
        output = self._gate(pixels.to(self._device), multimask_output=multimask, **given)
        masks, scores = (part.float().cpu().numpy() for part in output)
        things = []
        for one, score in zip(masks[0], scores[0], strict=True):
            best = int(score.argmax())
            things.append(Thing(self._full_size(one[best], image.size) > 0, float(score[best])))
        return things

    def _run(self, pixels: torch.Tensor, **prompt: Any) -> tuple[torch.Tensor, torch.Tensor]:
        output = self.model(pixel_values=pixels, **prompt)
        return output.pred_masks, output.iou_scores

    def _scale(self, image: Image.Image) -> torch.Tensor:
        """Return the factors of x and y from the image to the input of the model."""
        size = self._processor.size
        return torch.tensor([size["width"] / image.width, size["height"] / image.height])

    def _full_size(self, mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Return a small mask of logits in the size of the image."""
        return resized(mask, size)


class SamOutliner(Outliner):
    """The first SAM, whose input is the image with its aspect ratio, padded to a square."""

    def _side(self) -> int:
        return int(self._processor.size["longest_edge"])

    def _scale(self, image: Image.Image) -> torch.Tensor:
        height, width = self._processor._get_preprocess_shape((image.height, image.width), longest_edge=self._side())
        return torch.tensor([width / image.width, height / image.height])

    def _full_size(self, mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        side = self._side()
        height, width = self._processor._get_preprocess_shape((size[1], size[0]), longest_edge=side)
        return resized(resized(mask, (side, side))[:height, :width], size)
