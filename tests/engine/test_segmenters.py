"""Masks by words, points and boxes equal the outputs of the transformers models."""

import hashlib
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForObjectDetection,
    AutoModelForSemanticSegmentation,
    AutoTokenizer,
    BertTokenizer,
    CLIPSegForImageSegmentation,
    CLIPSegProcessor,
    GroundingDinoForObjectDetection,
    GroundingDinoProcessor,
    Sam2Model,
    SamModel,
    SamProcessor,
)
from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil
from transformers.models.rt_detr.image_processing_pil_rt_detr import RTDetrImageProcessorPil
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil
from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from img2img.domain.conditioning import InpaintRegion
from img2img.domain.geometry import expand_box
from img2img.domain.masks import MaskQuery
from img2img.domain.model_config import ComponentSource, ModelConfig
from img2img.domain.parameters import Task
from img2img.domain.spec import JobSpec
from img2img.errors import JobError
from img2img.worker.engine.engine import Engine
from img2img.worker.errors import StartupError
from img2img.worker.images.masks import query_mask
from img2img.worker.images.png import decode_png, encode_png
from img2img.worker.pipelines.conditioning.segmenters import Segmenters, load_segmenters
from img2img.worker.pipelines.loading.placement import Placement
from img2img.worker.pipelines.model import Model, load_model
from img2img.worker.runner import JobRunner
from tests.engine.test_annotators import random_image
from tests.support.engines import running_engine
from tests.support.models.tiny_annotators import tiny_detector, tiny_segmentation
from tests.support.models.tiny_models import tiny_sd
from tests.support.models.tiny_segmenters import tiny_clipseg, tiny_grounding_dino, tiny_sam, tiny_sam2
from tests.support.specs import make_spec

pytestmark = pytest.mark.usefixtures("no_grad")

WIDTH, HEIGHT = 96, 64
NAMES = {0: "wall", 1: "house; building", 2: "tree"}


def photo(seed: int = 0) -> Image.Image:
    return random_image(seed).resize((WIDTH, HEIGHT))


def segmenters(source: str = "unused", **folders: Path) -> Segmenters:
    parts = {kind: ComponentSource(source=str(folder)) for kind, folder in folders.items()}
    config = ModelConfig(name="tiny", source=source, segmenters=parts)
    return load_segmenters(config, Placement(config, "cpu"))


def agree(found: np.ndarray, expected: np.ndarray) -> None:
    """Assert that two masks are equal but for pixels at a threshold and specks, and that they are no trivial ones."""
    assert found.shape == expected.shape == (HEIGHT, WIDTH)
    assert (found == expected).mean() > 0.98
    assert 0.01 < expected.mean() < 0.99


@pytest.fixture(scope="module")
def clipseg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clipseg(tmp_path_factory.mktemp("clipseg"))


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_segmentation(tmp_path_factory.mktemp("classes"), classes=3)
    model = AutoModelForSemanticSegmentation.from_pretrained(folder)
    model.config.id2label = NAMES
    model.config.label2id = {name: number for number, name in NAMES.items()}
    model.save_pretrained(folder)
    return folder


def test_clipseg_finds_pixels_of_any_of_the_words(clipseg: Path) -> None:
    processor = CLIPSegProcessor(ViTImageProcessorPil.from_pretrained(clipseg), AutoTokenizer.from_pretrained(clipseg))
    stock = CLIPSegForImageSegmentation.from_pretrained(clipseg)
    words = ["a house", "the sky"]
    best = torch.zeros(HEIGHT, WIDTH)
    for phrase in words:
        logits = stock(**processor(text=[phrase], images=[photo()], return_tensors="pt")).logits.reshape(1, 1, 64, 64)
        best = torch.maximum(
            best, torch.nn.functional.interpolate(logits.sigmoid(), (HEIGHT, WIDTH), mode="bilinear")[0, 0]
        )
    threshold = float(best.median())
    mask = segmenters(text=clipseg).mask(photo(), MaskQuery(text="A house, the sky.", threshold=threshold))
    agree(np.asarray(mask) > 0, (best > threshold).numpy())


def test_semantic_segmentation_finds_its_classes_by_words_points_and_boxes(classes: Path) -> None:
    processor = SegformerImageProcessorPil.from_pretrained(classes)
    stock = AutoModelForSemanticSegmentation.from_pretrained(classes)
    [labels] = processor.post_process_semantic_segmentation(
        stock(**processor(photo(), return_tensors="pt")), [(HEIGHT, WIDTH)]
    )
    labels = labels.numpy()
    present = np.unique(labels).tolist()
    assert len(present) > 1
    model = segmenters(text=classes)
    assert (model.kinds, model.words) == (("text", "points", "box"), ("wall", "house", "building", "tree"))
    for number in present:
        word = NAMES[number].split(";")[0]
        things = model.find(photo(), MaskQuery(text=f"the {word}s"))
        found = np.logical_or.reduce([thing.mask for thing in things])
        assert (found == (labels == number)).mean() > 0.97, "small parts are left out"
        thing = max(things, key=lambda one: one.mask.sum())
        y, x = np.argwhere(thing.mask)[thing.mask.sum() // 2]
        [at_point] = model.find(photo(), MaskQuery(points=((x + 0.5, y + 0.5),)))
        assert at_point.mask[y, x]
        [in_box] = model.find(photo(), MaskQuery(box=thing.box))
        assert in_box.box == thing.box
    both = f"{NAMES[present[0]].split(';')[0]}, {NAMES[present[1]].split(';')[0]}"
    assert np.asarray(model.mask(photo(), MaskQuery(text=both))).mean() > 0
    with pytest.raises(JobError, match=r"does not know 'car'; it knows: wall, house, building, tree"):
        model.mask(photo(), MaskQuery(text="house, car"))


def test_grounding_dino_finds_boxes_which_sam_outlines(tmp_path: Path) -> None:
    dino, sam = tiny_grounding_dino(tmp_path / "dino"), tiny_sam(tmp_path / "sam")
    image_processor = GroundingDinoImageProcessorPil.from_pretrained(dino)
    processor = GroundingDinoProcessor(image_processor, BertTokenizer.from_pretrained(dino))
    inputs = processor(images=photo(), text="a house. a tree.", return_tensors="pt")
    output = GroundingDinoForObjectDetection.from_pretrained(dino)(**inputs)
    scores = output.logits.sigmoid().amax(dim=-1)[0]
    threshold = float(scores.sort().values[2:4].mean())
    [expected] = processor.post_process_grounded_object_detection(
        output, inputs["input_ids"], threshold=threshold, text_threshold=threshold, target_sizes=[(HEIGHT, WIDTH)]
    )
    query = MaskQuery(text="A house, a tree", threshold=threshold)
    boxes = sorted(zip(expected["scores"].tolist(), expected["boxes"].tolist(), strict=True), reverse=True)
    assert len(boxes) == 3
    plain = segmenters(text=dino)
    things = plain.find(photo(), query)
    assert [thing.score for thing in things] == pytest.approx([score for score, _ in boxes], abs=1e-4)
    for thing, (_, box) in zip(things, boxes, strict=True):
        edges = np.clip(np.round(box), 0, (WIDTH, HEIGHT) * 2)
        assert np.abs(np.subtract(thing.box, edges)).max() <= 1
    assert plain.kinds == ("text",)
    outlined = segmenters(text=dino, points=sam)
    assert outlined.kinds == ("text", "points", "box")
    for thing, (_, box) in zip(outlined.find(photo(), query), boxes, strict=True):
        expected_mask = sam_mask(sam, input_boxes=[[box]], multimask_output=False)
        assert (thing.mask == expected_mask).mean() > 0.99


def sam_mask(folder: Path, **prompt: object) -> np.ndarray:
    """Return the mask of the stock SAM."""
    multimask = prompt.pop("multimask_output")
    processor = SamProcessor(SamImageProcessorPil.from_pretrained(folder))
    inputs = processor(images=photo(), return_tensors="pt", **prompt)
    sizes = inputs.pop("original_sizes"), inputs.pop("reshaped_input_sizes")
    output = SamModel.from_pretrained(folder)(**inputs, multimask_output=multimask)
    [masks] = processor.image_processor.post_process_masks(output.pred_masks, *sizes)
    return masks[0][int(output.iou_scores[0, 0].argmax())].numpy()


def test_sam_outlines_points_and_boxes(tmp_path: Path) -> None:
    sam = tiny_sam(tmp_path / "sam")
    model = segmenters(points=sam)
    assert model.kinds == ("points", "box")
    points = ((30.0, 20.0), (80.0, 50.0))
    cases = {
        MaskQuery(points=points[:1]): {"input_points": [[list(points[0])]], "multimask_output": True},
        MaskQuery(points=points, labels=(1, 0)): {
            "input_points": [[list(map(list, points))]],
            "input_labels": [[[1, 0]]],
            "multimask_output": False,
        },
        MaskQuery(box=(20, 10, 70, 60)): {"input_boxes": [[[20.0, 10.0, 70.0, 60.0]]], "multimask_output": False},
    }
    for query, prompt in cases.items():
        [thing] = model.find(photo(), query)
        agree(thing.mask, sam_mask(sam, **prompt))


def test_sam_2_needs_no_torchvision(tmp_path: Path) -> None:
    folder = tiny_sam2(tmp_path / "sam2")
    [thing] = segmenters(points=folder).find(photo(), MaskQuery(points=((48, 16),)))
    pixels = ViTImageProcessorPil.from_pretrained(folder)(photo(), return_tensors="pt")["pixel_values"]
    output = Sam2Model.from_pretrained(folder)(
        pixel_values=pixels, input_points=torch.tensor([[[[64.0, 32.0]]]]), input_labels=torch.tensor([[[1]]])
    )
    best = output.pred_masks[0, :, int(output.iou_scores[0, 0].argmax())]
    agree(thing.mask, (torch.nn.functional.interpolate(best[None], (HEIGHT, WIDTH), mode="bilinear")[0, 0] > 0).numpy())


def test_object_detection_finds_boxes_of_its_classes(tmp_path: Path) -> None:
    folder = tiny_detector(tmp_path, label="face")
    processor = RTDetrImageProcessorPil.from_pretrained(folder)
    output = AutoModelForObjectDetection.from_pretrained(folder)(**processor(photo(), return_tensors="pt"))
    [expected] = processor.post_process_object_detection(output, threshold=0.3, target_sizes=[(HEIGHT, WIDTH)])
    faces = [score for score, label in zip(expected["scores"], expected["labels"], strict=True) if label == 1]
    model = segmenters(text=folder)
    assert model.words == ("car", "face")
    assert [thing.score for thing in model.find(photo(), MaskQuery(text="faces"))] == pytest.approx(
        sorted(map(float, faces), reverse=True)
    )
    assert faces


def test_mask_is_grown_shrunk_and_inverted(classes: Path) -> None:
    model = segmenters(text=classes)
    image = Image.new("RGB", (WIDTH, HEIGHT))
    [thing] = model.find(photo(), MaskQuery(box=(0, 0, WIDTH, HEIGHT)))
    area = thing.mask.sum()
    grown = np.asarray(query_mask([thing], MaskQuery(text="x", grow=4))) > 0
    shrunk = np.asarray(query_mask([thing], MaskQuery(text="x", grow=-1))) > 0
    assert shrunk.sum() < area < grown.sum()
    assert (grown >= thing.mask).all()
    assert (thing.mask >= shrunk).all()
    inverted = np.asarray(query_mask([thing], MaskQuery(text="x", invert=True)))
    assert ((inverted > 0) == ~thing.mask).all()
    with pytest.raises(JobError, match="nothing is left of the mask of `x` after `grow`"):
        query_mask([thing], MaskQuery(text="x", grow=-500))
    with pytest.raises(JobError, match="did not find `the sky` in the image; give other words"):
        query_mask([], MaskQuery(text="the sky"))
    assert image.size == (WIDTH, HEIGHT)


@pytest.fixture(scope="module")
def served(classes: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    parts = {"text": ComponentSource(source=str(classes))}
    source = str(tiny_sd(tmp_path_factory.mktemp("sd")))
    return load_model(ModelConfig(name="tiny", source=source, segmenters=parts), device="cpu")


def inpaint(image: str, **region: object) -> JobSpec:
    fields = {"canvas": (WIDTH, HEIGHT), "box": (0, 0, WIDTH, HEIGHT), "blur": 0, **region}
    return make_spec(
        Task.INPAINT, image=image, region=InpaintRegion(**fields), width=96, height=64, num_inference_steps=4
    )


def rendered(engine: Engine, model: Model, spec: JobSpec, *images: bytes) -> np.ndarray:
    """Return the pixels of the first result."""
    pngs = {hashlib.sha256(png).hexdigest(): png for png in images}
    rendering = JobRunner(engine).prepare(spec, pngs, [0], model)

    ended = Event()
    rendering.start(ended.set)
    assert ended.wait(60)
    [image] = rendering.render()
    assert image.png is not None
    return np.asarray(decode_png(image.png).convert("RGB"))


def test_inpainting_with_a_found_mask_equals_that_with_its_image(served: Model) -> None:
    assert (served.card.masks, served.card.mask_words[0]) == (("text", "points", "box"), "wall")
    png = encode_png(np.asarray(photo()), None)
    digest = hashlib.sha256(png).hexdigest()
    labels = served.segmenters.find(photo(), MaskQuery(points=((40, 30),)))[0].mask
    word = next(name for name in ("wall", "house", "tree") if _has(served, name))
    query = MaskQuery(text=word, grow=1)
    with running_engine(4) as engine:
        mask = rendered(engine, served, make_spec(Task.MASK, image=digest, find=query, width=96, height=64), png)
        assert set(np.unique(mask)) == {0, 255}
        mask_png = encode_png(mask, None)
        mask_digest = hashlib.sha256(mask_png).hexdigest()
        found = rendered(engine, served, inpaint(digest, find=query), png)
        given = rendered(engine, served, inpaint(digest, mask=mask_digest), png, mask_png)
        assert (found == given).all()
        assert (found[mask[..., 0] == 0] == np.asarray(photo())[mask[..., 0] == 0]).all()
        assert (found[mask[..., 0] > 0] != np.asarray(photo())[mask[..., 0] > 0]).any()
        # With padding, the box is that of the mask, in the aspect ratio of the working size.
        bounds = Image.fromarray(mask).convert("L").getbbox()
        box = expand_box(bounds, 2, (WIDTH, HEIGHT), served.card, (96, 64))
        cropped = rendered(engine, served, inpaint(digest, find=query, padding=2), png)
        by_hand = rendered(engine, served, inpaint(digest, mask=mask_digest, box=box, padding=2), png, mask_png)
        assert (cropped == by_hand).all()
        with pytest.raises(JobError, match="the segmenter does not know 'car'"):
            rendered(engine, served, inpaint(digest, find=MaskQuery(text="car")), png)
        nothing = MaskQuery(text=word, threshold=0.999)
        with pytest.raises(JobError, match=f"the model did not find `{word}` in the image"):
            rendered(engine, served, inpaint(digest, find=nothing), png)
    assert labels.any()


def _has(model: Model, word: str) -> bool:
    return bool(model.segmenters.find(photo(), MaskQuery(text=word)))


def test_load_segmenters_rejects_what_cannot_find_masks(classes: Path, clipseg: Path, tmp_path: Path) -> None:
    unnamed = tiny_segmentation(tmp_path / "unnamed", classes=3)
    for parts, reason in (
        ({"box": classes}, "segmenter box: boxes are outlined by the one of `points`"),
        ({"text": unnamed}, "segmenter text: its classes have no names; set `id2label` in its config.json"),
        ({"points": clipseg}, "is a clipseg; choose SAM, SAM 2 or SAM 3"),
        ({"text": tmp_path / "nowhere"}, "segmenter text"),
    ):
        with pytest.raises(StartupError, match=reason):
            segmenters(**parts)
