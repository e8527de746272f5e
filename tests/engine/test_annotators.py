"""Depth, segmentation and pose maps equal the drawn outputs of the transformers models."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModelForDepthEstimation,
    AutoModelForObjectDetection,
    AutoModelForSemanticSegmentation,
    VitPoseForPoseEstimation,
)
from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil
from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil
from transformers.models.vitpose.image_processing_pil_vitpose import VitPoseImageProcessorPil

from img2img.domain.conditioning import ControlType
from img2img.domain.model_config import ComponentSource, ModelConfig
from img2img.domain.parameters import Task
from img2img.domain.spec import JobSpec
from img2img.worker.errors import StartupError
from img2img.worker.images.inputs import Inputs
from img2img.worker.pipelines.conditioning.ade20k import PALETTE
from img2img.worker.pipelines.conditioning.pose_drawing import draw_pose
from img2img.worker.pipelines.model import Model, load_model
from tests.engine.test_control import calls_of
from tests.support.engines import run_together
from tests.support.models.tiny_annotators import tiny_depth, tiny_detector, tiny_pose, tiny_segmentation
from tests.support.models.tiny_models import tiny_sd
from tests.support.specs import make_spec

SIDE = 64
DEPTH, SEGMENTATION, POSE, NORMAL = ControlType.DEPTH, ControlType.SEGMENTATION, ControlType.POSE, ControlType.NORMAL


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[ControlType, Path]:
    folder = tmp_path_factory.mktemp("annotators")
    return {
        DEPTH: tiny_depth(folder / "depth"),
        SEGMENTATION: tiny_segmentation(folder / "segmentation"),
        POSE: tiny_pose(folder / "pose"),
        NORMAL: tiny_depth(folder / "normal"),
    }


@pytest.fixture(scope="module")
def model(folders: dict[ControlType, Path], tmp_path_factory: pytest.TempPathFactory) -> Model:
    source = str(tiny_sd(tmp_path_factory.mktemp("model")))
    preprocessors = {kind: ComponentSource(source=str(folder)) for kind, folder in folders.items()}
    return load_model(ModelConfig(name="tiny", source=source, preprocessors=preprocessors), device="cpu")


def random_image(seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize((SIDE, SIDE))


def job(kind: ControlType) -> JobSpec:
    return make_spec(task=Task.CONTROL_MAP, width=SIDE, height=SIDE, type=kind)


def map_job(model: Model, kind: ControlType, image: Image.Image) -> tuple[JobSpec, Inputs]:
    return job(kind), Inputs(controls=(model.annotators[kind].prepare(image),))


def make_map(model: Model, kind: ControlType, image: Image.Image) -> np.ndarray:
    [pixels] = run_together(model, [map_job(model, kind, image)])
    assert pixels.shape == (SIDE, SIDE, 3)
    return pixels


def test_depth_map_is_bright_near_and_dark_far(model: Model, folders: dict[ControlType, Path]) -> None:
    pixels = make_map(model, DEPTH, random_image())
    processor = DPTImageProcessorPil.from_pretrained(folders[DEPTH])
    with torch.no_grad():
        inverse = AutoModelForDepthEstimation.from_pretrained(folders[DEPTH])(
            **processor(random_image(), return_tensors="pt")
        ).predicted_depth[0]
    spread = (inverse - inverse.min()) / (inverse.max() - inverse.min())
    expected = Image.fromarray((spread.numpy() * 255).round().astype(np.uint8)).resize((SIDE, SIDE), 3)
    assert (pixels == pixels[..., :1]).all()
    assert np.abs(pixels[..., 0].astype(int) - np.asarray(expected)).max() <= 1
    assert np.ptp(pixels) > 200


def test_segmentation_map_has_ade20k_colours(model: Model, folders: dict[ControlType, Path]) -> None:
    pixels = make_map(model, SEGMENTATION, random_image())
    processor = SegformerImageProcessorPil.from_pretrained(folders[SEGMENTATION])
    with torch.no_grad():
        output = AutoModelForSemanticSegmentation.from_pretrained(folders[SEGMENTATION])(
            **processor(random_image(), return_tensors="pt")
        )
    [classes] = processor.post_process_semantic_segmentation(output, [(SIDE, SIDE)])
    # Ties can differ.
    assert (pixels == PALETTE[classes.numpy()]).mean() > 0.99
    assert len(np.unique(classes)) > 1


def test_pose_map_draws_detected_keypoints(model: Model, folders: dict[ControlType, Path]) -> None:
    pixels = make_map(model, POSE, random_image())
    processor = VitPoseImageProcessorPil.from_pretrained(folders[POSE])
    boxes = [[[0.0, 0.0, SIDE, SIDE]]]
    with torch.no_grad():
        output = VitPoseForPoseEstimation.from_pretrained(folders[POSE])(
            **processor(random_image(), boxes=boxes, return_tensors="pt")
        )
    [[person]] = processor.post_process_pose_estimation(output, boxes)
    keypoints = {i: (float(x), float(y)) for i, (x, y) in enumerate(person["keypoints"])}
    assert len(keypoints) == 17
    assert (pixels == draw_pose([keypoints], (SIDE, SIDE))).mean() > 0.99
    assert pixels.any()


def test_normal_map_points_where_surfaces_face(model: Model) -> None:
    annotator = model.annotators[NORMAL]
    across = np.linspace(0, 1, 32)
    # A pyramid with its top in the middle, which is near. Left half and upper half face left and up.
    pyramid = np.minimum(np.minimum(across, 1 - across)[:, None], np.minimum(across, 1 - across)[None])
    drawn = np.asarray(annotator._draw(torch.from_numpy(pyramid)[None].float(), (128, 128))).astype(int)
    left, right, top, bottom = drawn[64, 20], drawn[64, 108], drawn[20, 64], drawn[108, 64]
    assert left[0] > 160 > 95 > right[0], "red faces left"
    assert top[1] > 160 > 95 > bottom[1], "green faces up"
    assert abs(left[1] - 128) < 8
    assert (drawn[..., 2] > 128).all(), "blue faces the viewer"
    flat = np.asarray(annotator._draw(torch.ones(1, 32, 32), (64, 64)))
    assert (flat == (128, 128, 255)).all()
    pixels = make_map(model, NORMAL, random_image())
    assert np.ptp(pixels[..., 0]) > 20


def test_pose_map_draws_everyone_that_the_detector_finds(folders: dict[ControlType, Path], tmp_path: Path) -> None:
    detector = tiny_detector(tmp_path / "detector")
    preprocessors = {
        "pose": ComponentSource(source=str(folders[POSE])),
        "person": ComponentSource(source=str(detector)),
    }
    source = str(tiny_sd(tmp_path / "sd"))
    model = load_model(ModelConfig(name="tiny", source=source, preprocessors=preprocessors), device="cpu")
    assert "person" not in model.card.preprocessors
    find = AutoImageProcessor.from_pretrained(detector, backend="pil")
    processor = VitPoseImageProcessorPil.from_pretrained(folders[POSE])
    counts = set()
    for seed in range(4):
        image = random_image(seed)
        with torch.no_grad():
            output = AutoModelForObjectDetection.from_pretrained(detector)(**find(image, return_tensors="pt"))
            [found] = find.post_process_object_detection(output, threshold=0.5, target_sizes=[(SIDE, SIDE)])
            boxes = [
                [box[0], box[1], box[2] - box[0], box[3] - box[1]]
                for box, label in zip(found["boxes"].tolist(), found["labels"].tolist(), strict=True)
                if label == 1
            ]
            people = []
            for box in boxes:
                crops = processor(image, boxes=[[box]], return_tensors="pt")
                pose = VitPoseForPoseEstimation.from_pretrained(folders[POSE])(**crops)
                [[person]] = processor.post_process_pose_estimation(pose, [[box]])
                people.append({i: (float(x), float(y)) for i, (x, y) in enumerate(person["keypoints"])})
        counts.add(len(boxes))
        assert any(label == 0 for label in found["labels"]) or boxes
        pixels = make_map(model, POSE, image)
        assert (pixels == draw_pose(people, (SIDE, SIDE))).mean() > 0.99
        assert pixels.any() == bool(boxes)
    assert max(counts) > 1, "several people at once"


def test_maps_are_made_one_per_call_and_cached(model: Model) -> None:
    for kind in model.annotators:
        jobs = [map_job(model, kind, random_image(seed)) for seed in (7, 8, 9, 7)]
        engine = calls_of(model, jobs)
        assert (engine.calls_run["annotate"], engine.rows_run["annotate"]) == (3, 3)
        assert calls_of(model, jobs).calls_run["annotate"] == 0
        together = run_together(model, jobs)
        for seed, pixels in zip((7, 8, 9, 7), together, strict=True):
            assert (pixels == make_map(model, kind, random_image(seed))).all()


def test_card_lists_preprocessors(model: Model) -> None:
    assert {DEPTH, SEGMENTATION, POSE, NORMAL} <= set(model.card.preprocessors)


def test_load_model_rejects_invalid_preprocessors(tmp_path: Path) -> None:
    source = str(tiny_sd(tmp_path / "sd"))
    too_many = tiny_segmentation(tmp_path / "classes", classes=151)
    for kind, folder, reason in (
        (ControlType.CANNY, too_many, "not made by a model"),
        (DEPTH, tmp_path / "nowhere", "cannot load"),
        (SEGMENTATION, too_many, "has 151 classes"),
        ("qr", too_many, "`preprocessors` can be: depth, normal, segmentation, pose, person"),
        ("person", too_many, "it finds the people for `pose`, which is not listed"),
    ):
        config = ModelConfig(name="m", source=source, preprocessors={kind: ComponentSource(source=str(folder))})
        with pytest.raises(StartupError, match=reason):
            load_model(config, device="cpu")


def test_load_model_rejects_detectors_without_people(folders: dict[ControlType, Path], tmp_path: Path) -> None:
    detector = tiny_detector(tmp_path / "detector", label="dog")
    preprocessors = {
        "pose": ComponentSource(source=str(folders[POSE])),
        "person": ComponentSource(source=str(detector)),
    }
    config = ModelConfig(name="m", source=str(tiny_sd(tmp_path / "sd")), preprocessors=preprocessors)
    with pytest.raises(StartupError, match="preprocessor person: it has no class `person`"):
        load_model(config, device="cpu")


def test_draw_pose_uses_openpose_colours() -> None:
    # An upright person who faces the viewer: nose, eyes, ears, shoulders, elbows, wrists, hips, knees, ankles, each
    # pair left first; the left side of the person is right in the image.
    keypoints = dict(
        enumerate(
            [
                *((256, 60), (266, 50), (246, 50), (280, 56), (232, 56)),
                *((300, 120), (212, 120), (320, 200), (192, 200), (330, 280), (182, 280)),
                *((280, 280), (232, 280), (284, 380), (228, 380), (286, 480), (226, 480)),
            ]
        )
    )
    drawing = draw_pose([keypoints], (512, 512))
    assert tuple(drawing[60, 256]) == (255, 0, 0)  # the nose
    assert tuple(drawing[120, 256]) == (255, 85, 0)  # the neck, between the shoulders
    assert tuple(drawing[120, 212]) == (255, 170, 0)  # their right shoulder
    assert tuple(drawing[160, 202]) == (153, 102, 0)  # their right upper arm, darker than keypoints
    assert tuple(drawing[330, 282]) == (0, 102, 153)  # their left thigh
    assert not drawing[:, :150].any()
    without_arm = draw_pose([{i: p for i, p in keypoints.items() if i != 8}], (512, 512))
    assert not without_arm[160, 202].any()
    assert not draw_pose([], (512, 512)).any()
