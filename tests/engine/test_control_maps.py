"""Control maps that OpenCV makes, and which picture they are made of."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256

import numpy as np
import pytest
import torch
from PIL import Image

from img2img.app.imaging.decode import encode_png
from img2img.domain.conditioning import Control, ControlType, InpaintRegion, Padding
from img2img.domain.parameters import Task
from img2img.domain.spec import JobSpec
from img2img.errors import JobError
from img2img.worker.images.control_maps import PREPROCESSORS
from img2img.worker.images.inputs import load_inputs, to_tensor
from tests.support.specs import make_spec

EDGES = [ControlType.CANNY, ControlType.SOFTEDGE, ControlType.SCRIBBLE, ControlType.LINEART]
SIDE = 128
FROM, TO = 40, 88  # where the square lies


def square(inside: str, outside: str) -> Image.Image:
    picture = Image.new("RGB", (SIDE, SIDE), outside)
    picture.paste(inside, (FROM, FROM, TO, TO))
    return picture


def near_the_edges() -> np.ndarray:
    """True within a few pixels of the square's outline."""
    outline = np.zeros((SIDE, SIDE), bool)
    outline[FROM - 8 : TO + 8, FROM - 8 : TO + 8] = True
    outline[FROM + 8 : TO - 8, FROM + 8 : TO - 8] = False
    return outline


@pytest.mark.parametrize("kind", EDGES)
@pytest.mark.parametrize("colours", [("white", "black"), ("black", "white"), ("#d02020", "#2050d0")])
def test_there_are_edges_where_the_picture_has_edges_and_nowhere_else(
    kind: ControlType, colours: tuple[str, str]
) -> None:
    made = PREPROCESSORS[kind](square(*colours))
    assert (made.size, made.mode) == ((SIDE, SIDE), "RGB")
    bright = np.asarray(made)[..., 0]
    assert (bright[~near_the_edges()] < 16).all()
    for across in (bright[60:68, FROM - 3 : FROM + 3], bright[FROM - 3 : FROM + 3, 60:68].T):
        assert (across.max(axis=1) > 100).all(), "the edge has a gap"


@pytest.mark.parametrize("kind", EDGES)
def test_a_flat_picture_has_no_edges(kind: ControlType) -> None:
    assert not np.asarray(PREPROCESSORS[kind](Image.new("RGB", (64, 48), "#808080"))).any()


def test_types_are_as_strong_as_their_controlnets_expect() -> None:
    rng = np.random.default_rng(0)
    picture = square("white", "#404040").resize((256, 256))
    noisy = Image.fromarray((np.asarray(picture) + rng.normal(0, 4, (256, 256, 3))).clip(0, 255).astype(np.uint8))
    maps = {kind: np.asarray(PREPROCESSORS[kind](noisy))[..., 0] for kind in EDGES}
    for binary in (ControlType.CANNY, ControlType.SCRIBBLE):
        assert set(np.unique(maps[binary])) == {0, 255}
    assert len(np.unique(maps[ControlType.SOFTEDGE])) > 50
    widths = {kind: (made[128] > 100).sum() for kind, made in maps.items()}  # along a row through both sides
    assert 2 <= widths[ControlType.CANNY] < widths[ControlType.SCRIBBLE]


@pytest.mark.parametrize("kind", PREPROCESSORS)
def test_the_same_picture_gives_the_same_map_on_every_thread(kind: ControlType) -> None:
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (96, 80, 3), np.uint8))
    with ThreadPoolExecutor(4) as pool:
        maps = list(pool.map(lambda _: PREPROCESSORS[kind](picture).tobytes(), range(8)))
    assert len(set(maps)) == 1
    assert picture.tobytes() == Image.fromarray(np.asarray(picture)).tobytes()


def test_tile_is_the_picture_itself() -> None:
    picture = square("red", "green")
    assert PREPROCESSORS[ControlType.TILE](picture).tobytes() == picture.tobytes()


def control(image: str | None = None, **changes: object) -> Control:
    return Control(**{"type": "canny", "image": image, "preprocess": True, **changes})  # type: ignore[arg-type]


@pytest.fixture
def blobs() -> dict[str, bytes]:
    return {}


@pytest.fixture
def keep(blobs: dict[str, bytes]) -> Callable[[Image.Image], str]:
    """Stores a picture and answers its hash."""

    def keep(picture: Image.Image) -> str:
        blob = encode_png(picture)
        blobs[sha256(blob).hexdigest()] = blob
        return sha256(blob).hexdigest()

    return keep


def of_size(side: int, **changes: object) -> JobSpec:
    return make_spec(**{"width": side, "height": side, **changes})


def test_a_map_is_made_of_the_controls_own_picture_or_else_of_the_jobs(
    blobs: dict[str, bytes], keep: Callable[[Image.Image], str]
) -> None:
    mine, own = square("white", "black"), square("black", "#202020").rotate(45)
    spec = of_size(
        SIDE,
        image=keep(mine),
        controls=(control(), control(keep(own)), control(keep(own), preprocess=False), control(type="tile")),
    )
    of_mine, of_own, as_sent, tile = load_inputs(spec, blobs).controls
    assert torch.equal(of_mine, to_tensor(PREPROCESSORS[ControlType.CANNY](mine)))
    assert torch.equal(of_own, to_tensor(PREPROCESSORS[ControlType.CANNY](own)))
    assert torch.equal(as_sent, to_tensor(own))
    assert torch.equal(tile, to_tensor(mine))


def test_the_control_task_has_maps_and_no_picture(blobs: dict[str, bytes], keep: Callable[[Image.Image], str]) -> None:
    spec = of_size(SIDE, task=Task.CONTROL, image=None, controls=(control(keep(square("red", "blue"))),))
    inputs = load_inputs(spec, blobs)
    assert inputs.image is None
    assert inputs.controls[0].shape == (1, 3, SIDE, SIDE)


def test_in_an_inpaint_a_map_lies_on_what_the_model_sees(
    blobs: dict[str, bytes], keep: Callable[[Image.Image], str]
) -> None:
    """The model sees the lower right of a canvas that is wider to the left: so does its map, whichever way it came."""
    picture = Image.fromarray(np.random.default_rng(2).integers(0, 256, (100, 100, 3), np.uint8))
    region = InpaintRegion(mask=None, blur=0, margins=Padding(left=60), canvas=(160, 100), box=(20, 36, 84, 100))
    drawn = Image.new("RGB", (160, 100))
    drawn.paste("white", (52, 68, 84, 100))  # the lower right quarter of the box
    spec = of_size(
        64,
        task=Task.INPAINT,
        image=keep(picture),
        region=region,
        controls=(
            control(type="tile"),
            control(keep(picture), type="tile"),
            control(keep(drawn), preprocess=False),
        ),
    )
    inputs = load_inputs(spec, blobs)
    of_canvas, of_same_size, of_drawn = inputs.controls
    assert inputs.image is not None
    assert torch.equal(of_canvas, inputs.image)
    assert torch.equal(of_same_size, inputs.image)
    expected = torch.zeros(1, 3, 64, 64)
    expected[:, :, 32:, 32:] = 1
    assert torch.equal(of_drawn, expected)


def test_a_control_picture_of_a_wrong_size_fails_the_job(
    blobs: dict[str, bytes], keep: Callable[[Image.Image], str]
) -> None:
    image, other = keep(square("red", "blue")), keep(Image.new("RGB", (30, 20)))
    region = InpaintRegion(mask=None, blur=0, margins=Padding(left=64), canvas=(192, 128), box=(0, 0, 128, 128))
    for changes in ({}, {"task": Task.INPAINT, "region": region}):
        with pytest.raises(JobError, match="is 30x20, not "):
            load_inputs(of_size(SIDE, image=image, controls=(control(other),), **changes), blobs)


def test_a_map_that_nothing_here_can_make_fails_the_job(
    blobs: dict[str, bytes], keep: Callable[[Image.Image], str]
) -> None:
    spec = of_size(SIDE, image=keep(square("red", "blue")), controls=(control(type="depth"),))
    with pytest.raises(JobError, match="cannot make depth maps"):
        load_inputs(spec, blobs)
