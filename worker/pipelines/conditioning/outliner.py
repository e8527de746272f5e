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
        # The image is encoded once for all jobs and boxes with it.
        self._encode = Gate("segment", self._run_encoder, remember_bytes=CACHE_BYTES)
        self._decode = Gate("segment", self._run_decoder, merges=False)

    def outline(self, image: Image.Image, query: MaskQuery) -> list[Thing]:
        """Return the thing at the points or in the box of a query."""
        if query.box is not None:
            return self.outline_boxes(image, [query.box])
        labels = query.labels or (1,) * len(query.points)
        points = torch.tensor([[query.points]]) * self._scale(image)
        return self._things(
            image, input_points=points, input_labels=torch.tensor([[labels]]), multimask_output=len(labels) == 1
        )

    def outline_boxes(self, image: Image.Image, boxes: Sequence[Corners]) -> list[Thing]:
        """Return a thing for each box."""
        corners = torch.tensor([boxes]) * self._scale(image).repeat(2)
        return self._things(image, input_boxes=corners, multimask_output=False)

    def _things(self, image: Image.Image, **prompt: Any) -> list[Thing]:
        pixel_values = self._processor(images=image, return_tensors="np")["pixel_values"]
        pixels = torch.from_numpy(np.ascontiguousarray(pixel_values, np.float32))
        embeddings = self._encode(pixels.to(self._device))
        given = {
            name: value.to(self._device) if isinstance(value, torch.Tensor) else value for name, value in prompt.items()
        }
        masks, scores = (output.float().cpu().numpy() for output in self._decode(embeddings, **given))
        things = []
        for one, score in zip(masks[0], scores[0], strict=True):
            best = int(score.argmax())
            things.append(Thing(self._full_size(one[best], image.size) > 0, float(score[best])))
        return things

    def _run_encoder(self, pixels: torch.Tensor) -> Any:
        return self.model.get_image_embeddings(pixels)

    def _run_decoder(self, embeddings: Any, **prompt: Any) -> tuple[torch.Tensor, torch.Tensor]:
        output = self.model(image_embeddings=embeddings, **prompt)
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
