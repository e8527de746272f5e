"""Control maps by OpenCV, and the image that each control uses."""

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256

import cv2
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


STROKES = [ControlType.SCRIBBLE, ControlType.LINEART, ControlType.SOFTEDGE]


def drawing(width: int, paper: str, *inks: str, noise: float = 0) -> Image.Image:
    """Return a house, the sun and a tree, 900 x 700."""
    image = Image.new("RGB", (900, 700), paper)
    draw, ink = ImageDraw.Draw(image), itertools.cycle(inks)
    draw.line((40, 600, 860, 600), next(ink), width)
    draw.rectangle((250, 350, 550, 600), None, next(ink), width)
    draw.line((230, 350, 400, 200, 570, 350), next(ink), width)
    draw.ellipse((680, 80, 780, 180), None, next(ink), width)
    for angle in np.linspace(0, 2 * np.pi, 8, endpoint=False):
        across, down = np.cos(angle), np.sin(angle)
        ray = (730 + 70 * across, 130 + 70 * down, 730 + 110 * across, 130 + 110 * down)
        draw.line(ray, next(ink), width)
    draw.ellipse((640, 340, 770, 480), None, next(ink), width)
    pixels = np.asarray(image) + np.random.default_rng(0).normal(0, noise, (700, 900, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("kind", STROKES)
@pytest.mark.parametrize("size", [(900, 700), (512, 400), (144, 112)])
@pytest.mark.parametrize(
    ("width", "colours", "noise"),
    [
        (2, ("white", "black"), 0),
        (6, ("white", "black"), 0),
        (3, ("#c4c4be", "#303030"), 5),
        (4, ("#fbfaf5", "#d0503c", "#3c64c8", "#50a050", "#e0b020"), 2),
        (3, ("black", "white"), 0),
    ],
    ids=["thin", "thick", "grey paper", "coloured pencil", "white on black"],
)
def test_map_of_a_drawing_is_its_strokes(
    width: int, colours: tuple[str, ...], noise: float, size: tuple[int, int], kind: ControlType
) -> None:
    drawn = drawing(width, *colours, noise=noise)
    bright = np.asarray(PREPROCESSORS[kind](drawn.resize(size, Image.Resampling.LANCZOS)))[..., 0]
    plain = drawing(width, "black", "white").resize(size, Image.Resampling.BOX)
    shares = np.asarray(plain, np.float32)[..., 0]
    visible = 50 if kind == ControlType.LINEART else 128
    near = cv2.dilate((bright > visible).astype(np.uint8), np.ones((3, 3), np.uint8))
    assert near[shares > shares.max() / 2].mean() > 0.99, "a stroke is missing"
    around = cv2.dilate((shares > 0).astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
    assert (bright[~around] < 64).all()
    # A stroke has one line: the ground line, in each of some columns away from the house.
    columns = (bright[:, int(0.7 * size[0]) : int(0.9 * size[0])] > visible)[int(0.8 * size[1]) :]
    assert (np.diff(columns.astype(int), axis=0) == 1).sum(axis=0).max() == 1


def product() -> Image.Image:
    """Return a shaded ball on white."""
    down, across = np.mgrid[:256, :256] / 256 - 0.5
    shade = np.where(np.hypot(down, across) < 0.3, 0.5 + down, 1)
    return Image.fromarray((shade * 255).astype(np.uint8)).convert("RGB")


def landscape() -> Image.Image:
    """Return a sky over textured ground."""
    pixels = np.linspace(230, 180, 256)[:, None, None] * np.array([0.8, 0.9, 1.0]) * np.ones((256, 256, 1))
    pixels[150:] = np.random.default_rng(3).normal(110, 30, (106, 256, 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("kind", STROKES)
def test_map_of_an_image_that_is_no_drawing_is_made_of_its_edges(
    kind: ControlType, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [Image.open(path).convert("RGB") for path in ("examples/input.png", "examples/rendered.png")]
    images = [*files, product(), landscape(), square("black", "white"), files[0].resize((512, 512))]
    maps = [PREPROCESSORS[kind](image).tobytes() for image in images]
    monkeypatch.setattr("img2img.worker.images.control_maps._strokes", lambda _image: None)
    assert maps == [PREPROCESSORS[kind](image).tobytes() for image in images]


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
