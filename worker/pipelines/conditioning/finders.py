"""Models that find what words name: as boxes (Grounding DINO, object detection) or as pixels (CLIPSeg, SAM 3).

They run on the engine's thread. Each call goes through a gate that remembers its output, because jobs with one image
and the same words are usual.
"""

import inspect
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image

from ...engine.gate import Gate
from ...images.masks import Corners, Thing, parts, resized
from .class_names import ClassNames

CACHE_BYTES = 64 * 2**20
# Lowest confidences: of the papers' demos, and of ADetailer for detectors.
PIXEL_THRESHOLD, BOX_THRESHOLD = 0.4, 0.3
# Tokens of a text for SAM 3.
SAM3_TOKENS = 32

Boxes = list[tuple[Corners, float]]


class Finder:
    """A model that finds things by words.

    Attributes:
        words: the words that it knows; empty if it takes any.
    """

    def __init__(self, processor: Any, tokenizer: Any, model: Any, device: torch.device) -> None:
        self._processor, self._tokenizer, self.model, self._device = processor, tokenizer, model, device
        self._gate = Gate("segment", self._run, remember_bytes=CACHE_BYTES)
        # Some models take a mask of the padding, and others do not.
        self._takes = inspect.signature(model.forward).parameters
        self.words: tuple[str, ...] = ()

    def _run(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Run the model on one image. The first dimension of the outputs is the batch."""
        raise NotImplementedError

    def _call(self, image: Image.Image, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        pixels = self._processor(images=image, return_tensors="pt")
        given = {name: value.to(self._device) for name, value in {**pixels, **inputs}.items() if name in self._takes}
        given["pixel_values"] = given["pixel_values"].float()
        return {name: value.float().cpu() for name, value in self._gate(**given).items()}


class PixelFinder(Finder):
    """A finder that gives masks."""

    def find(self, image: Image.Image, words: list[str], threshold: float | None) -> list[Thing]:
        """Return the things that the words name, the most certain first."""
        raise NotImplementedError


class BoxFinder(Finder):
    """A finder that gives boxes."""

    def boxes(self, image: Image.Image, words: list[str], threshold: float | None) -> Boxes:
        """Return the boxes of the things that the words name, the most certain first."""
        raise NotImplementedError


class ClipSegFinder(PixelFinder):
    """CLIPSeg: the likelihood of each pixel."""

    def find(self, image: Image.Image, words: list[str], threshold: float | None) -> list[Thing]:
        best = np.zeros((image.height, image.width), np.float32)
        for phrase in words:
            tokens = self._tokenizer([phrase], truncation=True, return_tensors="pt")
            inputs = {name: tokens[name] for name in ("input_ids", "attention_mask")}
            [logits] = self._call(image, **inputs)["logits"]
            best = np.maximum(best, resized(logits.sigmoid().numpy(), image.size))
        return parts(best, threshold or PIXEL_THRESHOLD)

    def _run(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.model(**inputs).logits
        return {"logits": logits.reshape(-1, *logits.shape[-2:])}


class Sam3Finder(PixelFinder):
    """SAM 3: a mask for each thing."""

    def find(self, image: Image.Image, words: list[str], threshold: float | None) -> list[Thing]:
        things = []
        for phrase in words:
            tokens = self._tokenizer(
                [phrase], padding="max_length", max_length=SAM3_TOKENS, truncation=True, return_tensors="pt"
            )
            output = self._call(image, input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
            scores = output["pred_logits"].sigmoid()
            if "presence_logits" in output:
                scores = scores * output["presence_logits"].sigmoid()
            for score, mask in zip(scores[0].flatten().tolist(), output["pred_masks"][0], strict=True):
                if score > (threshold or BOX_THRESHOLD):
                    things.append(Thing(resized(mask.sigmoid().numpy(), image.size) > 0.5, score))
        return sorted((thing for thing in things if thing.mask.any()), key=lambda thing: -thing.score)

    def _run(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        output = self.model(**inputs)
        names = ("pred_logits", "presence_logits", "pred_masks")
        return {name: value for name in names if (value := getattr(output, name)) is not None}


class GroundingFinder(BoxFinder):
    """Grounding DINO: boxes of things that any words name."""

    def boxes(self, image: Image.Image, words: list[str], threshold: float | None) -> Boxes:
        tokens = self._tokenizer(
            [". ".join(words) + "."], truncation=True, return_token_type_ids=True, return_tensors="pt"
        )
        output = self._call(image, **tokens)
        # The score of a box is that of its best token; a box is in shares of the image: centre, width, height.
        scores = output["logits"][0].sigmoid().amax(dim=-1).tolist()
        found = []
        for score, (x, y, width, height) in zip(scores, output["pred_boxes"][0].tolist(), strict=True):
            if score > (threshold or BOX_THRESHOLD):
                edges = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
                left, top, right, bottom = (edge * side for edge, side in zip(edges, image.size * 2, strict=True))
                found.append(((left, top, right, bottom), score))
        return sorted(found, key=lambda each: -each[1])

    def _run(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        output = self.model(**inputs)
        return {"logits": output.logits, "pred_boxes": output.pred_boxes}


class ObjectFinder(BoxFinder):
    """A model for object detection: boxes of things of the classes that it knows."""

    def __init__(self, processor: Any, tokenizer: Any, model: Any, device: torch.device) -> None:
        super().__init__(processor, tokenizer, model, device)
        self._names = ClassNames(model.config.id2label)
        self.words = self._names.words

    def boxes(self, image: Image.Image, words: list[str], threshold: float | None) -> Boxes:
        classes = self._names.find(words)
        [found] = self._processor.post_process_object_detection(
            SimpleNamespace(**self._call(image)),
            threshold=threshold or BOX_THRESHOLD,
            target_sizes=[(image.height, image.width)],
        )
        values = zip(found["boxes"].tolist(), found["scores"].tolist(), found["labels"].tolist(), strict=True)
        boxes = [((box[0], box[1], box[2], box[3]), score) for box, score, label in values if label in classes]
        return sorted(boxes, key=lambda each: -each[1])

    def _run(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        output = self.model(**inputs)
        return {"logits": output.logits, "pred_boxes": output.pred_boxes}
