"""Backgrounds: the opacity that the stock models give, transparent results, and backgrounds that are inpainted."""

import io
import threading
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForSemanticSegmentation, VitMatteForImageMatting
from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil
from transformers.models.vitmatte.image_processing_pil_vitmatte import VitMatteImageProcessorPil

from img2img.domain.model_config import ModelConfig
from img2img.domain.parameters import Task
from img2img.domain.spec import JobSpec
from img2img.errors import JobError
from img2img.worker.engine.engine import Engine
from img2img.worker.images.png import read_metadata
from img2img.worker.pipelines.conditioning.matting import trimap
from img2img.worker.pipelines.model import Model, load_model
from img2img.worker.runner import JobRunner, Rendering
from tests.support.engines import one_thread, running_engine  # noqa: F401
from tests.support.images import encoded
from tests.support.models.load_failures import load_failure
from tests.support.models.tiny_annotators import tiny_matting, tiny_matting_refiner
from tests.support.models.tiny_models import tiny_sd
from tests.support.specs import make_spec

SIDE = 64
IMAGE = Image.fromarray(np.random.default_rng(1).integers(0, 256, (8, 8, 3), np.uint8)).resize((SIDE, SIDE))
PNG = encoded(IMAGE)
DIGEST = sha256(PNG).hexdigest()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("matting")
    return {
        "source": tiny_sd(folder / "model"),
        "matting": tiny_matting(folder / "matting"),
        "matting_refiner": tiny_matting_refiner(folder / "refiner"),
    }


def load(folders: dict[str, Path], *parts: str, **keys: Any) -> Model:
    sources = {name: str(folders[name]) for name in ("source", *parts)}
    return load_model(ModelConfig.model_validate({"name": "photo", **sources, **keys}), device="cpu")


@pytest.fixture(scope="module")
def model(folders: dict[str, Path]) -> Model:
    return load(folders, "matting")


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with running_engine(slots=8) as engine:
        yield engine


def render(engine: Engine, model: Model, specs: list[JobSpec], pngs: dict[str, bytes] | None = None) -> list[bytes]:
    """Run jobs together, and return their first images."""
    runner = JobRunner(engine)
    renderings: list[tuple[Rendering, threading.Event]] = []
    for spec in specs:
        rendering, ended = runner.prepare(spec, pngs or {DIGEST: PNG}, [0], model), threading.Event()
        rendering.start(ended.set)
        renderings.append((rendering, ended))
    images = []
    for rendering, ended in renderings:
        ended.wait()
        [image] = rendering.render()
        assert image.png is not None
        images.append(image.png)
    return images


def pixels_of(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def job(**changes: Any) -> JobSpec:
    fields = {"image": DIGEST, "width": SIDE, "height": SIDE, "num_inference_steps": 4, "strength": 0.5}
    return make_spec(**{**fields, **changes})


def inpaint(**region: Any) -> JobSpec:
    return job(task=Task.INPAINT, region={"canvas": (SIDE, SIDE), "box": (0, 0, SIDE, SIDE), **region}, strength=1.0)


def stock_share(folder: Path, image: Image.Image) -> np.ndarray:
    """Return the probability of what is not background, (height, width)."""
    pixels = SegformerImageProcessorPil.from_pretrained(folder)(image, return_tensors="pt").pixel_values
    with torch.no_grad():
        logits = AutoModelForSemanticSegmentation.from_pretrained(folder)(pixels).logits
    share = 1 - logits.softmax(dim=1)[0, 0]
    return np.clip(cv2.resize(share.numpy(), image.size, interpolation=cv2.INTER_LINEAR), 0, 1)


def test_result_is_transparent_where_the_model_sees_background(
    model: Model, engine: Engine, folders: dict[str, Path]
) -> None:
    assert model.card.matting
    jobs = [job(seed=seed, background="transparent") for seed in (1, 2)]
    together = render(engine, model, [*jobs, job(seed=1)])
    for one, png in zip(jobs, together, strict=False):
        [opaque] = render(engine, model, [one.model_copy(update={"background": "keep"})])
        pixels = pixels_of(png)
        assert pixels.shape == (SIDE, SIDE, 4)
        assert np.abs(pixels[..., :3].astype(int) - pixels_of(opaque)).max() <= 1
        expected = stock_share(folders["matting"], Image.fromarray(pixels[..., :3])) * 255
        assert np.abs(pixels[..., 3] - expected).max() <= 1
        assert np.ptp(pixels[..., 3]) > 100, "this image has foreground and background"
        [alone] = render(engine, model, [one])
        assert np.abs(pixels_of(alone)[..., :3].astype(int) - pixels[..., :3]).max() <= 1
    assert pixels_of(together[2]).shape == (SIDE, SIDE, 3)
    assert read_metadata(together[0])["background"] == "transparent"


def test_refiner_decides_what_the_trimap_leaves_open(engine: Engine, folders: dict[str, Path]) -> None:
    [png] = render(engine, load(folders, "matting", "matting_refiner"), [job(seed=1, background="transparent")])
    pixels = pixels_of(png)
    open_pixels = trimap(stock_share(folders["matting"], Image.fromarray(pixels[..., :3])))
    prepared = VitMatteImageProcessorPil.from_pretrained(folders["matting_refiner"])(
        pixels[..., :3], open_pixels, return_tensors="pt"
    )
    with torch.no_grad():
        alphas = VitMatteForImageMatting.from_pretrained(folders["matting_refiner"])(**prepared).alphas[0, 0]
    is_open = open_pixels == 128
    assert is_open.any()
    assert np.abs(pixels[..., 3].astype(int) - (alphas.numpy() * 255).round())[is_open].max() <= 1
    assert (pixels[..., 3] == open_pixels)[~is_open].all()


def test_trimap_is_open_near_edges_and_where_nothing_is_certain() -> None:
    share = np.zeros((100, 100), np.float32)
    share[:, 50:] = 1
    share[:20] = 0.5
    expected = np.where(share == 1, 255, 0)
    expected[:, 49:51] = 128
    expected[:21] = 128
    assert (trimap(share) == expected).all()


def test_new_background_is_inpainted_around_what_is_in_front(
    model: Model, engine: Engine, folders: dict[str, Path]
) -> None:
    is_background = stock_share(folders["matting"], IMAGE) < 0.5
    assert 0.05 < is_background.mean() < 0.95
    [found] = render(engine, model, [inpaint(background=True)])
    mask = encoded(Image.fromarray(is_background.astype(np.uint8) * 255))
    masked = inpaint(mask=sha256(mask).hexdigest())
    [given] = render(engine, model, [masked], {DIGEST: PNG, masked.region.mask: mask})
    assert (pixels_of(found) == pixels_of(given)).all()
    assert (pixels_of(found) == np.asarray(IMAGE))[~is_background].all()
    assert not (pixels_of(found) == np.asarray(IMAGE))[is_background].all()
    assert read_metadata(found)["region"]["background"] is True


@pytest.mark.parametrize(("foreground", "message"), [([0, "House", "plant"], "no background"), (["tree"], None)])
def test_image_without_background_fails(
    engine: Engine, folders: dict[str, Path], foreground: list[str | int], message: str | None
) -> None:
    source = {"source": str(folders["matting"]), "foreground": foreground}
    model = load(folders, matting=source)
    if message is None:
        render(engine, model, [inpaint(background=True)])
        return
    with pytest.raises(JobError, match=message):
        render(engine, model, [inpaint(background=True)])


def test_weights_count_as_those_of_the_model(folders: dict[str, Path], model: Model) -> None:
    refined = load(folders, "matting", "matting_refiner")
    assert {type(part).__name__ for part in set(refined.modules()) - set(model.modules())} >= {
        "SegformerForSemanticSegmentation",
        "VitMatteForImageMatting",
    }


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"matting_refiner": "matting_refiner"}, "`matting_refiner` refines the edges of `matting`, which is not set"),
        ({"matting": "matting", "foreground": ["cat"]}, "has no class 'cat'; correct `foreground`"),
        ({"matting": "matting", "foreground": [7]}, "has no class 7; correct `foreground`"),
        ({"matting": "unnamed"}, "has no class `background`; list the classes of the foreground in `foreground`"),
        ({"matting": "matting_refiner"}, "matting: "),
    ],
)
def test_unsuitable_part_is_refused(
    folders: dict[str, Path], keys: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folders = {**folders, "unnamed": tiny_matting(tmp_path, labels=("sky", "house"))}
    parts = {key: {"source": str(folders[keys[key]])} for key in ("matting", "matting_refiner") if key in keys}
    if "foreground" in keys:
        parts["matting"]["foreground"] = keys["foreground"]
    assert message in load_failure(lambda: load(folders, **parts))
