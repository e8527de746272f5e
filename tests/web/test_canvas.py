"""The mask editor and the frame for margins."""

import io
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image, ImageChops
from playwright.sync_api import Page, expect

from tests.support.processes import wait_for

from .form import EXAMPLES, generate, open_form, put_image, set_number


@pytest.fixture
def form(page: Page, demo_url: str) -> Page:
    open_form(page, demo_url)
    put_image(page, name="rendered.png")
    return page


def choose(page: Page, tool: str) -> None:
    page.locator(".canvas-tools label").filter(has_text=tool).first.click()


def paint(page: Page, *points: tuple[float, float]) -> None:
    """Drag over the image along points, as shares of its width and height."""
    box = page.locator("canvas.mask").bounding_box()
    assert box
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=8)
    page.mouse.up()


def painted(page: Page) -> set[tuple[int, int]]:
    """Return the pixels of the mask that are painted."""
    pixels = page.locator("canvas.mask").evaluate(
        """canvas => {
          const { width, height } = canvas;
          const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
          const found = [];
          for (let at = 3; at < data.length; at += 4) if (data[at] > 127) found.push((at - 3) / 4);
          return found.map((pixel) => [pixel % width, Math.floor(pixel / width)]);
        }"""
    )
    return {(x, y) for x, y in pixels}


def image_of(job: dict[str, Any], url: str) -> Image.Image:
    return Image.open(io.BytesIO(httpx.get(f"{url}{job['images'][0]['url']}").content)).convert("RGB")


def test_pixels_outside_the_painted_mask_are_unchanged(form: Page, demo_url: str) -> None:
    choose(form, "Brush")
    set_number(form, "Brush size", "24")
    paint(form, (0.3, 0.5), (0.6, 0.5))
    form.get_by_label("Prompt", exact=True).fill("a lake")
    mask = painted(form)
    assert mask
    job = generate(form)
    assert job["request"]["task"] == "inpaint"
    before = Image.open(EXAMPLES / "rendered.png").convert("RGB")
    difference = ImageChops.difference(before, image_of(job, demo_url)).convert("L")
    changed = {(x, y) for x in range(difference.width) for y in range(difference.height) if difference.getpixel((x, y))}
    assert changed
    # The edge of the brush is smooth, and the service takes it as painted from half of it.
    neighbours = {(x + i, y + j) for x, y in mask for i in (-1, 0, 1) for j in (-1, 0, 1)}
    assert changed <= neighbours


def test_words_find_the_mask(form: Page) -> None:
    choose(form, "Brush")
    words = form.get_by_label("Words for the part to regenerate")
    words.fill("the house")
    words.press("Enter")
    wait_for(lambda: len(painted(form)) > 100)
    form.get_by_label("Prompt", exact=True).fill("a forest")
    job = generate(form)
    assert job["request"]["task"] == "inpaint"
    words.fill("a car")
    form.get_by_role("button", name="Find").click()
    expect(form.get_by_text("This model finds only")).to_be_visible()


def test_mask_is_edited(form: Page) -> None:
    choose(form, "Brush")
    paint(form, (0.2, 0.2), (0.8, 0.2))
    first = painted(form)
    paint(form, (0.2, 0.8), (0.8, 0.8))
    both = painted(form)
    assert first < both
    form.keyboard.press("Control+z")
    wait_for(lambda: painted(form) == first)
    form.keyboard.press("Control+Shift+Z")
    wait_for(lambda: painted(form) == both)
    choose(form, "Eraser")
    paint(form, (0.2, 0.8), (0.8, 0.8))
    # Smooth edges of what was erased are hardly visible, and do not count as painted.
    wait_for(lambda: painted(form) == first)
    choose(form, "Brush")
    form.get_by_role("button", name="Invert").click()
    wait_for(lambda: len(painted(form)) > 128 * 64)
    assert not painted(form) & first
    size = form.get_by_role("spinbutton", name="Brush size")
    before = int(size.input_value())
    form.locator(".image-canvas").click()
    form.keyboard.press("]")
    assert int(size.input_value()) > before
    form.keyboard.press("[")
    form.keyboard.press("[")
    assert int(size.input_value()) < before
    form.get_by_role("button", name="Clear").click()
    wait_for(lambda: painted(form) == set())


def test_mask_file_and_its_options_are_sent(form: Page, tmp_path: Path) -> None:
    mask = Image.new("L", (128, 128))
    mask.paste(255, (32, 32, 96, 96))
    mask.save(tmp_path / "mask.png")
    choose(form, "Brush")
    form.locator(".canvas-tools input[type=file]").set_input_files(tmp_path / "mask.png")
    form.get_by_role("spinbutton", name="Feather").wait_for()
    wait_for(lambda: painted(form) == {(x, y) for x in range(32, 96) for y in range(32, 96)})
    set_number(form, "Feather", "6")
    form.get_by_label("Only masked").check()
    set_number(form, "Padding", "16")
    with form.expect_request(lambda request: request.url.endswith("/img2img")) as sent:
        job = generate(form)
    assert sent.value.post_data_json["mask_blur"] == 6
    assert sent.value.post_data_json["mask_padding"] == 16
    assert job["request"]["region"]["box"] == [16, 16, 112, 112]


def test_transparent_pixels_are_regenerated(form: Page, demo_url: str, tmp_path: Path) -> None:
    image = Image.open(EXAMPLES / "rendered.png").convert("RGBA")
    image.paste((0, 0, 0, 0), (40, 40, 80, 80))
    image.save(tmp_path / "hole.png")
    form.locator(".file-button input[type=file]").last.set_input_files(tmp_path / "hole.png")
    form.locator("[data-upload=done]").first.wait_for(state="attached")
    choose(form, "Brush")
    form.get_by_role("button", name="From transparency").click()
    with form.expect_request(lambda request: request.url.endswith("/img2img")) as sent:
        job = generate(form)
    assert sent.value.post_data_json["mask"] == "alpha"
    assert image_of(job, demo_url).getpixel((10, 10)) == image.convert("RGB").getpixel((10, 10))


def test_margins_are_dragged_and_the_image_is_kept(form: Page, demo_url: str) -> None:
    choose(form, "Outpaint")
    handle = form.get_by_role("slider", name="Right", exact=True)
    box = handle.bounding_box()
    layer = form.locator("canvas.mask").bounding_box()
    assert box
    assert layer
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    form.mouse.move(x, y)
    form.mouse.down()
    form.mouse.move(x + layer["width"] / 4, y, steps=6)
    form.mouse.up()
    expect(form.locator(".frame")).to_have_attribute("data-margins", "0 0 32 0")
    left = form.get_by_role("slider", name="Left", exact=True)
    left.focus()
    left.press("ArrowLeft")
    expect(form.locator(".frame")).to_have_attribute("data-margins", "8 0 32 0")
    job = generate(form)
    assert (job["images"][0]["width"], job["images"][0]["height"]) == (168, 128)
    inside = image_of(job, demo_url).crop((8, 0, 136, 128))
    assert inside.tobytes() == Image.open(EXAMPLES / "rendered.png").convert("RGB").tobytes()


def test_image_is_zoomed_and_painted(form: Page) -> None:
    choose(form, "Brush")
    for _ in range(3):
        form.get_by_role("button", name="Zoom in").click()
    viewport = form.locator(".image-canvas").bounding_box()
    assert viewport
    form.mouse.move(viewport["x"] + viewport["width"] / 2, viewport["y"] + viewport["height"] / 2)
    form.mouse.down()
    form.mouse.up()
    mask = wait_for(lambda: painted(form))
    # At the centre of the view is the centre of the image, also when enlarged.
    assert (64, 64) in mask
    columns = {x for x, _ in mask}
    assert abs(max(columns) + min(columns) - 127) <= 2
