"""Geometry of inpainting without a model: boxes, working sizes and unmasked pixels."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from img2img.domain.conditioning import InpaintRegion, Padding
from img2img.domain.geometry import expand_box, margin_boxes, union, working_size
from img2img.domain.model_card import ModelCard, size_buckets
from img2img.domain.parameters import Scheduler
from img2img.worker.images.inpaint_canvas import InpaintCanvas

CARD = ModelCard(
    name="m",
    family="none",
    native_size=512,
    size_multiple=8,
    min_size=256,
    max_size=1024,
    sizes=size_buckets(512, 8),
    schedulers=(Scheduler.DDIM,),
    default_scheduler=Scheduler.DDIM,
)
SIDES = st.integers(1, 5000)


@st.composite
def boxes_on_canvases(draw: st.DrawFn) -> tuple[tuple[int, int, int, int], tuple[int, int]]:
    canvas = draw(SIDES), draw(SIDES)
    left, top = draw(st.integers(0, canvas[0] - 1)), draw(st.integers(0, canvas[1] - 1))
    return (left, top, draw(st.integers(left + 1, canvas[0])), draw(st.integers(top + 1, canvas[1]))), canvas


@given(boxes_on_canvases(), st.integers(0, 500))
def test_expand_box_contains_the_box_within_the_canvas(
    box_and_canvas: tuple[tuple[int, int, int, int], tuple[int, int]], padding: int
) -> None:
    box, canvas = box_and_canvas
    left, top, right, bottom = expand_box(box, padding, canvas, CARD)
    assert 0 <= left <= max(0, box[0] - padding)
    assert 0 <= top <= max(0, box[1] - padding)
    assert canvas[0] >= right >= min(canvas[0], box[2] + padding)
    assert canvas[1] >= bottom >= min(canvas[1], box[3] + padding)


@given(SIDES, SIDES)
def test_working_size_is_supported_and_keeps_the_aspect_ratio(width: int, height: int) -> None:
    size = working_size((0, 0, width, height), CARD)
    assert all(side % 8 == 0 and 8 <= side <= CARD.max_size for side in size)
    if max(width, height) <= 3 * min(width, height):
        assert abs(np.log(size[0] / size[1] * height / width)) < 0.05
        assert 0.7 < size[0] * size[1] / 512**2 < 1.3


def test_small_box_is_expanded_to_the_aspect_ratio_of_a_bucket() -> None:
    assert working_size(expand_box((1000, 1000, 1100, 1040), 32, (4000, 3000), CARD), CARD) in CARD.sizes


def test_margin_boxes_and_their_union() -> None:
    assert margin_boxes(Padding(left=10), (110, 50)) == [(0, 0, 10, 50)]
    assert union(margin_boxes(Padding(left=10, bottom=5), (110, 50))) == (0, 0, 110, 50)


def region(margins: Padding, canvas: tuple[int, int], *, blur: int, masked: bool) -> InpaintRegion:
    return InpaintRegion(
        mask="0" * 64 if masked else None, blur=blur, margins=margins, canvas=canvas, box=(0, 0, *canvas)
    )


@given(
    st.builds(Padding, **{side: st.integers(0, 9) for side in ("left", "top", "right", "bottom")}),
    st.integers(0, 20),
    st.integers(0, 2**32 - 1),
)
def test_unmasked_pixels_are_returned_unchanged(margins: Padding, blur: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (24, 30, 3), np.uint8)
    mask = (rng.random((24, 30)) < 0.4).astype(np.uint8) * 255
    size = 30 + margins.left + margins.right, 24 + margins.top + margins.bottom
    canvas = InpaintCanvas(Image.fromarray(image), Image.fromarray(mask), region(margins, size, blur=blur, masked=True))
    model_image, model_mask = canvas.model_input((32, 32))
    assert model_image.size == model_mask.size == (32, 32)
    assert set(np.unique(np.asarray(model_mask))) <= {0, 255}
    assert model_mask.getbbox() or not (mask.any() or margins.any)
    result = canvas.paste(rng.integers(0, 256, (32, 32, 3), np.uint8))
    assert result.shape == (size[1], size[0], 3)
    inner = result[margins.top : margins.top + 24, margins.left : margins.left + 30]
    assert (inner[mask == 0] == image[mask == 0]).all()


def line(width: int) -> np.ndarray:
    mask = Image.new("L", (256, 192))
    ImageDraw.Draw(mask).line((13, 21, 240, 170), fill=255, width=width)
    return np.asarray(mask)


def square(side: int) -> np.ndarray:
    mask = Image.new("L", (256, 192))
    mask.paste(255, (53, 49, 53 + side, 49 + side))
    return np.asarray(mask)


def painted(mask: np.ndarray, blur: int) -> np.ndarray:
    """Return by how much of the distance to white each pixel of a black image is changed, 0 to 255."""
    size = mask.shape[1], mask.shape[0]
    canvas = InpaintCanvas(
        Image.new("RGB", size), Image.fromarray(mask), region(Padding(), size, blur=blur, masked=True)
    )
    return canvas.paste(np.full((*mask.shape, 3), 255, np.uint8))[..., 0]


@pytest.mark.parametrize("blur", [0, 1, 4, 30, 256])
@pytest.mark.parametrize(
    "mask", [line(1), line(2), line(5), square(1), square(60)], ids=["1", "2", "5", "spot", "square"]
)
def test_no_part_of_a_mask_fades_away(mask: np.ndarray, blur: int) -> None:
    result = painted(mask, blur)
    assert (result[mask == 0] == 0).all()
    assert (result[mask > 0] > 0).all()
    # Each pixel is near one that is repainted completely: a corner of a square, at most 1.5 times half its side.
    reach = cv2.distanceTransform((result < 250).astype(np.uint8), cv2.DIST_L2, 5)
    thickness = cv2.distanceTransform(mask, cv2.DIST_L2, 5).max()
    assert reach[mask > 0].max() <= 1.5 * thickness + 1


def test_thin_part_beside_a_thick_one_is_repainted() -> None:
    mask = square(60).copy()
    mask[79, :53] = 255
    assert (painted(mask, 16)[79, :45] == 255).all()


def test_blur_fades_over_its_width() -> None:
    row = painted(square(60), 4)[79]
    assert row[52:58].tolist() == [0, 64, 128, 191, 255, 255]


@pytest.mark.parametrize("mask", [line(1), line(2), square(1), square(6)], ids=["1", "2", "spot", "square"])
@pytest.mark.parametrize("size", [(256, 192), (64, 48), (512, 384)])
def test_every_thin_part_is_seen_by_the_model(mask: np.ndarray, size: tuple[int, int]) -> None:
    canvas = InpaintCanvas(
        Image.new("RGB", (256, 192)), Image.fromarray(mask), region(Padding(), (256, 192), blur=4, masked=True)
    )
    _, seen = canvas.model_input(size)
    # Pipelines read one mask pixel for each latent.
    latents = np.asarray(seen)[::8, ::8] > 0
    for y, x in zip(*np.nonzero(mask), strict=True):
        assert latents[y * size[1] // 192 // 8, x * size[0] // 256 // 8]


def test_thick_mask_of_the_working_size_is_unchanged() -> None:
    canvas = InpaintCanvas(
        Image.new("RGB", (256, 192)), Image.fromarray(square(60)), region(Padding(), (256, 192), blur=4, masked=True)
    )
    assert (np.asarray(canvas.model_input((256, 192))[1]) == square(60)).all()


def test_outpainting_changes_only_the_margins_and_blends_the_seam() -> None:
    image = np.full((40, 40, 3), 200, np.uint8)
    canvas = InpaintCanvas(Image.fromarray(image), None, region(Padding(right=40), (80, 40), blur=16, masked=False))
    result = canvas.paste(np.zeros((40, 80, 3), np.uint8))
    assert (result[:, :40] == 200).all()
    assert result[20, 41, 0] > 150
    assert (result[:, 70:] == 0).all()
    assert (np.diff(result[20, 40:].astype(int), axis=0) <= 0).all()
