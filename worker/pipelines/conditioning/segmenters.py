"""The `segmenters` of a model: they find the thing in an image that words, points or a box name."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModelForObjectDetection,
    AutoModelForSemanticSegmentation,
    AutoTokenizer,
    CLIPSegForImageSegmentation,
    GroundingDinoForObjectDetection,
    MMGroundingDinoForObjectDetection,
    Sam2Model,
    Sam3Model,
    Sam3TrackerModel,
    SamModel,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES,
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES,
)
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from img2img.domain.masks import MaskKind, MaskQuery, split_words
from img2img.domain.model_config import ComponentSource, ModelConfig

from ...errors import StartupError
from ...images.masks import Thing, query_mask, rectangle
from ..loading.components import load_component
from ..loading.failures import reporting_failures
from ..loading.locations import CONFIG, component_folder
from ..loading.modular_index import read_json
from ..loading.placement import Placement
from .class_segmenter import ClassSegmenter
from .finders import BoxFinder, ClipSegFinder, Finder, GroundingFinder, ObjectFinder, PixelFinder, Sam3Finder
from .outliner import Outliner, SamOutliner

# By `model_type` of a config.json. Published checkpoints of SAM 2 and 3 have the type of their video models.
_FINDERS: dict[str, tuple[type[Finder], Any]] = {
    "clipseg": (ClipSegFinder, CLIPSegForImageSegmentation),
    "grounding-dino": (GroundingFinder, GroundingDinoForObjectDetection),
    "mm-grounding-dino": (GroundingFinder, MMGroundingDinoForObjectDetection),
    "sam3": (Sam3Finder, Sam3Model),
    "sam3_video": (Sam3Finder, Sam3Model),
}
_OUTLINERS: dict[str, tuple[type[Outliner], Any]] = {
    "sam": (SamOutliner, SamModel),
    "sam2": (Outliner, Sam2Model),
    "sam2_video": (Outliner, Sam2Model),
    "sam3_tracker": (Outliner, Sam3TrackerModel),
    "sam3_tracker_video": (Outliner, Sam3TrackerModel),
    "sam3_video": (Outliner, Sam3TrackerModel),
}
# Boxes that are outlined at most, the most certain first.
MAX_BOXES = 50
_TAKE_ANY_WORDS = (ClipSegFinder, GroundingFinder, Sam3Finder)
# The image processors of these models need torchvision. They only resize and normalise.
_PLAIN = {
    "sam2": {"size": {"height": 1024, "width": 1024}, "image_mean": [0.485, 0.456, 0.406]}
    | {"image_std": [0.229, 0.224, 0.225]},
    "sam3": {"size": {"height": 1008, "width": 1008}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
}


class Segmenters:
    """Finds things in images, on the engine's thread."""

    def __init__(self, finder: Finder | None, outliner: Outliner | None) -> None:
        self._finder, self._outliner = finder, outliner

    @property
    def kinds(self) -> tuple[MaskKind, ...]:
        """The kinds of masks that can be found."""
        shapes = self._outliner or isinstance(self._finder, ClassSegmenter)
        return (*((MaskKind.TEXT,) if self._finder else ()), *((MaskKind.POINTS, MaskKind.BOX) if shapes else ()))

    @property
    def words(self) -> tuple[str, ...]:
        """The words that are known; empty if any are."""
        return self._finder.words if self._finder else ()

    @property
    def modules(self) -> list[torch.nn.Module]:
        return [part.model for part in (self._finder, self._outliner) if part is not None]

    def find(self, image: Image.Image, query: MaskQuery) -> list[Thing]:
        """Return the things that a query names in an RGB image, the most certain first.

        Raises:
            JobError: a word is not known.
        """
        if query.text is None:
            outliner = self._outliner or self._finder
            assert isinstance(outliner, Outliner | ClassSegmenter)
            return outliner.outline(image, query)
        words = split_words(query.text)
        if isinstance(self._finder, PixelFinder):
            return self._finder.find(image, words, query.threshold)
        assert isinstance(self._finder, BoxFinder)
        boxes = self._finder.boxes(image, words, query.threshold)[:MAX_BOXES]
        if self._outliner is None or not boxes:
            return [Thing(rectangle(box, image.size), score) for box, score in boxes]
        outlined = self._outliner.outline_boxes(image, [box for box, _ in boxes])
        return [Thing(thing.mask, score) for thing, (_, score) in zip(outlined, boxes, strict=True)]

    def mask(self, image: Image.Image, query: MaskQuery) -> Image.Image:
        """Return the mask of a query: greyscale, 255 where the thing is, else 0.

        Raises:
            JobError: nothing is found, or a word is not known.
        """
        return query_mask(self.find(image, query), query)


def load_segmenters(config: ModelConfig, placement: Placement) -> Segmenters:
    """Load the `segmenters` of a model. Safetensors only, no remote code.

    Raises:
        StartupError: if one is not supported or cannot be loaded.
    """
    if MaskKind.BOX in config.segmenters:
        raise StartupError(
            "segmenter box: boxes are outlined by the one of `points`; `segmenters` can be: text, points"
        )
    finder, outliner = (config.segmenters.get(kind) for kind in (MaskKind.TEXT, MaskKind.POINTS))
    return Segmenters(
        _load_finder(finder, placement) if finder else None, _load_outliner(outliner, placement) if outliner else None
    )


def _load_finder(source: ComponentSource, placement: Placement) -> Finder:
    with reporting_failures("segmenter text"):
        folder = component_folder(source)
        model_type = _model_type(folder)
        kind, model_class = _finder_class(model_type)
        model = load_component(model_class, folder, torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder) if issubclass(kind, _TAKE_ANY_WORDS) else None
        finder = kind(_processor(folder, model_type), tokenizer, model, placement.device)
    placement.put("segmenters.text", model)
    return finder


def _load_outliner(source: ComponentSource, placement: Placement) -> Outliner:
    with reporting_failures("segmenter points"):
        folder = component_folder(source)
        model_type = _model_type(folder)
        if model_type not in _OUTLINERS:
            raise StartupError(f"{source.source} is a {model_type}; choose SAM, SAM 2 or SAM 3")
        kind, model_class = _OUTLINERS[model_type]
        model = load_component(model_class, folder, torch.float32).eval()
    placement.put("segmenters.points", model)
    return kind(_processor(folder, model_type), model, placement.device)


def _finder_class(model_type: str) -> tuple[type[Finder], Any]:
    if model_type in _FINDERS:
        return _FINDERS[model_type]
    if model_type in MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES:
        return ClassSegmenter, AutoModelForSemanticSegmentation
    if model_type in MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES:
        return ObjectFinder, AutoModelForObjectDetection
    raise StartupError(
        f"it is a {model_type}; choose CLIPSeg, Grounding DINO, SAM 3, or a model of semantic segmentation or object "
        "detection"
    )


def _model_type(folder: Path) -> str:
    return str(read_json(folder / CONFIG).get("model_type"))


def _processor(folder: Path, model_type: str) -> Any:
    """Return the image processor. None of them needs torchvision."""
    plain = next((values for name, values in _PLAIN.items() if model_type.startswith(name)), None)
    if plain is None:
        return AutoImageProcessor.from_pretrained(folder, backend="pil")
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            content = read_json(folder / name)
            own = content.get("image_processor", content)
            plain = plain | {key: own[key] for key in plain if key in own}
            break
    return ViTImageProcessorPil(**plain, resample=Image.Resampling.BILINEAR)
