"""Control maps by OpenCV, and the image that each control uses."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from img2img.domain.conditioning import Control, ControlType, InpaintRegion, Padding
from img2img.domain.parameters import Task
from img2img.domain.spec import JobSpec
from img2img.errors import JobError
from img2img.imaging.decode import encode_png
from img2img.worker.images.control_maps import PREPROCESSORS
from img2img.worker.images.inputs import load_inputs, to_tensor
from tests.support.specs import make_spec

EDGES = [ControlType.CANNY, ControlType.SOFTEDGE, ControlType.SCRIBBLE, ControlType.LINEART, ControlType.MLSD]
SIDE = 128
# Left and right, and top and bottom, of the square.
FROM, TO = 40, 88


def square(inside: str, outside: str) -> Image.Image:
    image = Image.new("RGB", (SIDE, SIDE), outside)
    image.paste(inside, (FROM, FROM, TO, TO))
    return image


def near_edges() -> np.ndarray:
    """Return a mask of the pixels near the outline of the square."""
    outline = np.zeros((SIDE, SIDE), bool)
    outline[FROM - 8 : TO + 8, FROM - 8 : TO + 8] = True
    outline[FROM + 8 : TO - 8, FROM + 8 : TO - 8] = False
    return outline


@pytest.mark.parametrize("kind", EDGES)
@pytest.mark.parametrize("colours", [("white", "black"), ("black", "white"), ("#d02020", "#2050d0")])
def test_preprocessors_find_edges_of_the_image_only(kind: ControlType, colours: tuple[str, str]) -> None:
    edges = PREPROCESSORS[kind](square(*colours))
    assert (edges.size, edges.mode) == ((SIDE, SIDE), "RGB")
    bright = np.asarray(edges)[..., 0]
    assert (bright[~near_edges()] < 16).all()
    for across in (bright[60:68, FROM - 3 : FROM + 3], bright[FROM - 3 : FROM + 3, 60:68].T):
        assert (across.max(axis=1) > 100).all(), "the edge has a gap"


@pytest.mark.parametrize("kind", EDGES)
def test_preprocessors_find_no_edges_in_a_flat_image(kind: ControlType) -> None:
    assert not np.asarray(PREPROCESSORS[kind](Image.new("RGB", (64, 48), "#808080"))).any()


def test_preprocessors_draw_edges_with_expected_strength() -> None:
    rng = np.random.default_rng(0)
    image = square("white", "#404040").resize((256, 256))
    noisy = Image.fromarray((np.asarray(image) + rng.normal(0, 4, (256, 256, 3))).clip(0, 255).astype(np.uint8))
    maps = {kind: np.asarray(PREPROCESSORS[kind](noisy))[..., 0] for kind in EDGES}
    for binary in (ControlType.CANNY, ControlType.SCRIBBLE):
        assert set(np.unique(maps[binary])) == {0, 255}
    assert len(np.unique(maps[ControlType.SOFTEDGE])) > 50
    # Along a row through both sides of the square.
    widths = {kind: (edges[128] > 100).sum() for kind, edges in maps.items()}
    assert 2 <= widths[ControlType.CANNY] < widths[ControlType.SCRIBBLE]


@pytest.mark.parametrize("kind", PREPROCESSORS)
def test_preprocessors_are_deterministic_across_threads(kind: ControlType) -> None:
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (96, 80, 3), np.uint8))
    with ThreadPoolExecutor(4) as pool:
        maps = list(pool.map(lambda _: PREPROCESSORS[kind](image).tobytes(), range(8)))
    assert len(set(maps)) == 1
    assert image.tobytes() == Image.fromarray(np.asarray(image)).tobytes()


def test_tile_and_ip2p_preprocessors_return_the_image() -> None:
    image = square("red", "green")
    for kind in (ControlType.TILE, ControlType.IP2P):
        assert PREPROCESSORS[kind](image).tobytes() == image.tobytes()


def test_mlsd_preprocessor_draws_long_straight_lines_only() -> None:
    image = Image.new("RGB", (SIDE * 2, SIDE * 2), "white")
    draw = ImageDraw.Draw(image)
    draw.line((20, 30, 230, 90), "black", 5)
    draw.ellipse((120, 120, 140, 140), "black")
    draw.line((40, 200, 48, 204), "black", 3)
    lines = np.asarray(PREPROCESSORS[ControlType.MLSD](image))[..., 0]
    assert set(np.unique(lines)) == {0, 255}
    assert lines[50:70, 100:130].any(), "the long line"
    assert not lines[110:].any(), "neither the circle nor the short line"


def test_blur_and_gray_preprocessors_remove_details_and_colours() -> None:
    rng = np.random.default_rng(0)
    noisy = Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8))
    blurred, gray = (np.asarray(PREPROCESSORS[kind](noisy)) for kind in (ControlType.BLUR, ControlType.GRAY))
    assert blurred.std() < 10 < np.asarray(noisy).std()
    assert (gray == np.asarray(noisy.convert("L"))[..., None]).all()


def control(image: str | None = None, **changes: object) -> Control:
    return Control(**{"type": "canny", "image": image, "preprocess": True, **changes})  # type: ignore[arg-type]


@pytest.fixture
def blobs() -> dict[str, bytes]:
    return {}


@pytest.fixture
def store(blobs: dict[str, bytes]) -> Callable[[Image.Image], str]:
    """Return a function that stores an image and returns its SHA-256."""

    def store(image: Image.Image) -> str:
        blob = encode_png(image)
        blobs[sha256(blob).hexdigest()] = blob
        return sha256(blob).hexdigest()

    return store


def square_spec(side: int, **changes: object) -> JobSpec:
    return make_spec(**{"width": side, "height": side, **changes})


def test_control_uses_its_image_or_else_the_image_of_the_job(
    blobs: dict[str, bytes], store: Callable[[Image.Image], str]
) -> None:
    job_image, control_image = square("white", "black"), square("black", "#202020").rotate(45)
    spec = square_spec(
        SIDE,
        image=store(job_image),
        controls=(
            control(),
            control(store(control_image)),
            control(store(control_image), preprocess=False),
            control(type="tile"),
        ),
    )
    from_job, from_control, unprocessed, tile = load_inputs(spec, blobs).controls
    assert torch.equal(from_job, to_tensor(PREPROCESSORS[ControlType.CANNY](job_image)))
    assert torch.equal(from_control, to_tensor(PREPROCESSORS[ControlType.CANNY](control_image)))
    assert torch.equal(unprocessed, to_tensor(control_image))
    assert torch.equal(tile, to_tensor(job_image))


def test_control_task_has_maps_and_no_image(blobs: dict[str, bytes], store: Callable[[Image.Image], str]) -> None:
    spec = square_spec(SIDE, task=Task.CONTROL, image=None, controls=(control(store(square("red", "blue"))),))
    inputs = load_inputs(spec, blobs)
    assert inputs.image is None
    assert inputs.controls[0].shape == (1, 3, SIDE, SIDE)


def test_inpaint_crops_control_maps_like_the_image(
    blobs: dict[str, bytes], store: Callable[[Image.Image], str]
) -> None:
    """The image is padded on the left and cropped at the lower right; all maps must be aligned with it."""
    image = Image.fromarray(np.random.default_rng(2).integers(0, 256, (100, 100, 3), np.uint8))
    region = InpaintRegion(mask=None, blur=0, margins=Padding(left=60), canvas=(160, 100), box=(20, 36, 84, 100))
    control_map = Image.new("RGB", (160, 100))
    # The lower right quarter of the box.
    control_map.paste("white", (52, 68, 84, 100))
    spec = square_spec(
        64,
        task=Task.INPAINT,
        image=store(image),
        region=region,
        controls=(
            control(type="tile"),
            control(store(image), type="tile"),
            control(store(control_map), preprocess=False),
        ),
    )
    inputs = load_inputs(spec, blobs)
    from_job, from_same_image, from_map = inputs.controls
    assert inputs.image is not None
    assert torch.equal(from_job, inputs.image)
    assert torch.equal(from_same_image, inputs.image)
    expected = torch.zeros(1, 3, 64, 64)
    expected[:, :, 32:, 32:] = 1
    assert torch.equal(from_map, expected)


def test_control_image_of_wrong_size_fails_the_job(
    blobs: dict[str, bytes], store: Callable[[Image.Image], str]
) -> None:
    image, other = store(square("red", "blue")), store(Image.new("RGB", (30, 20)))
    region = InpaintRegion(mask=None, blur=0, margins=Padding(left=64), canvas=(192, 128), box=(0, 0, 128, 128))
    for changes in ({}, {"task": Task.INPAINT, "region": region}):
        with pytest.raises(JobError, match="is 30x20, not "):
            load_inputs(square_spec(SIDE, image=image, controls=(control(other),), **changes), blobs)


def test_control_type_without_preprocessor_fails_the_job(
    blobs: dict[str, bytes], store: Callable[[Image.Image], str]
) -> None:
    spec = square_spec(SIDE, image=store(square("red", "blue")), controls=(control(type="depth"),))
    with pytest.raises(JobError, match="cannot make depth maps"):
        load_inputs(spec, blobs)
