"""Records the animation of the page in the documentation, in Chromium: `make animation`.

Runs the whole service with the demo model, and works with the page as a person does: drop an image, type a prompt, make
a strip of strengths with live previews, compare a result with the input. Writes docs/images/page.webp.
"""

import io
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image, ImageChops
from playwright.sync_api import Locator, Page, ViewportSize, sync_playwright

from img2img.app.settings import ApiSettings
from img2img.app.supervisor.supervisor import free_port, running

from .screenshots import CHROMIUM, IMAGES, ROOT, TIMEOUT_MS, fragment

FILE = IMAGES / "page.webp"
SIZE = ViewportSize(width=1200, height=750)
WIDTH = 960
MAX_BYTES = 3_000_000
PROMPT = "a watercolor painting of a house by a lake"
TILES = 5
# Frames of the previews: at most one in this time is taken, and shown this long.
SAMPLED_MS, SHOWN_MS = 200, 160
DROP = """([bytes, kind]) => {
  const data = new DataTransfer();
  data.items.add(new File([new Uint8Array(bytes)], "house.png", { type: "image/png" }));
  const target = document.querySelector(".input-image");
  target.dispatchEvent(new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true }));
}"""
POINTER = """() => {
  const pointer = document.createElement("div");
  pointer.innerHTML = '<svg width="26" height="26" viewBox="0 0 26 26"><path d="M4 2l0 18 5-4 3 7 3-1-3-7 6 0z" ' +
    'fill="#111" stroke="#fff" stroke-width="1.5"/></svg>';
  pointer.style.cssText = "position: fixed; z-index: 9999; pointer-events: none; left: 620px; top: 700px";
  document.body.append(pointer);
  addEventListener("mousemove", (event) => {
    pointer.style.left = `${event.clientX - 4}px`;
    pointer.style.top = `${event.clientY - 2}px`;
  }, true);
}"""


class Recorder:
    """Frames of a page with the time that each is shown."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self.frames: list[Image.Image] = []
        self.durations: list[int] = []

    def shoot(self, shown_ms: int) -> None:
        """Add a frame. One that equals the last frame makes that longer."""
        with Image.open(io.BytesIO(self._page.screenshot())) as image:
            frame = image.convert("RGB").resize((WIDTH, WIDTH * image.height // image.width), Image.Resampling.LANCZOS)
        if self.frames and ImageChops.difference(frame, self.frames[-1]).getbbox() is None:
            self.durations[-1] = max(self.durations[-1], shown_ms)
        else:
            self.frames.append(frame)
            self.durations.append(shown_ms)

    def move(self, x: float, y: float, steps: int = 4) -> None:
        """Move the pointer in some frames."""
        for at in range(1, steps + 1):
            self._page.mouse.move(
                self._x + (x - self._x) * at / steps,
                self._y + (y - self._y) * at / steps,
            )
            self.shoot(60)
        self._x, self._y = x, y

    _x, _y = 620.0, 700.0


def record(page: Page, recorder: Recorder) -> None:
    """Work with the page."""
    page.locator(".form").wait_for()
    page.evaluate(POINTER)
    recorder.shoot(900)
    house = list((ROOT / "examples" / "rendered.png").read_bytes())
    recorder.move(*centre(page.locator(".input-image")))
    page.evaluate(DROP, [house, "dragover"])
    recorder.shoot(500)
    page.evaluate(DROP, [house, "drop"])
    page.locator("[data-upload=done]").first.wait_for(state="attached")
    recorder.shoot(800)
    prompt = page.get_by_label("Prompt", exact=True)
    prompt.click()
    for word in PROMPT.split():
        prompt.press_sequentially(f"{word} ")
        recorder.shoot(130)
    strip = page.get_by_role("button", name="Strength strip")
    strip.scroll_into_view_if_needed()
    recorder.move(*centre(strip))
    strip.click()
    follow(page, recorder)
    recorder.shoot(1200)
    tile = page.locator(".tile").nth(1)
    recorder.move(*centre(tile))
    tile.click()
    page.locator(".result-image").wait_for()
    page.wait_for_load_state("networkidle")
    recorder.shoot(900)
    compare(page, recorder)
    recorder.shoot(2000)


def follow(page: Page, recorder: Recorder) -> None:
    """Record the previews until all images of the strip are done."""
    page.evaluate("scrollTo(0, 0)")
    end = time.monotonic() + TIMEOUT_MS / 1000
    while page.locator(".tile img:not([src^='data:'])").count() < TILES:
        if time.monotonic() > end:
            sys.exit("animation: the strip was not done in time")
        recorder.shoot(SHOWN_MS)
        page.wait_for_timeout(SAMPLED_MS)


def compare(page: Page, recorder: Recorder) -> None:
    """Drag the line between input and result to and fro."""
    box = page.locator(".compare").bounding_box()
    assert box is not None
    x, y, width = box["x"], box["y"] + box["height"] / 2, box["width"]
    recorder.move(x + width / 2, y)
    page.mouse.down()
    for share in (0.15, 0.85, 0.5):
        recorder.move(x + share * width, y, steps=8)
    page.mouse.up()


def centre(element: Locator) -> tuple[float, float]:
    box = element.bounding_box()
    assert box is not None
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def main() -> None:
    """Record the animation."""
    if CHROMIUM is None:
        sys.exit("animation: needs chromium")
    with TemporaryDirectory(prefix="i2i-") as folder:
        settings = ApiSettings(_env_file=None, data_dir=Path(folder), port=free_port())
        with running(settings), sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            context = browser.new_context(viewport=SIZE, reduced_motion="reduce", locale="en-US")
            page = context.new_page()
            page.set_default_timeout(TIMEOUT_MS)
            page.goto(f"{settings.local_url}/{fragment(prompt='')}")
            recorder = Recorder(page)
            record(page, recorder)
            browser.close()
    first, *others = recorder.frames
    first.save(FILE, save_all=True, append_images=others, duration=recorder.durations, loop=0, quality=70, method=4)
    size, seconds = FILE.stat().st_size, sum(recorder.durations) / 1000
    print(f"{FILE.relative_to(ROOT)}: {len(recorder.frames)} frames, {seconds:.0f} s, {size:,} bytes")
    if size > MAX_BYTES:
        sys.exit(f"animation: larger than {MAX_BYTES:,} bytes")


if __name__ == "__main__":
    main()
