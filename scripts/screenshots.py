"""Takes the images of the page in the documentation, in Chromium: `make screenshots`.

Runs the whole service with the demo model, works with the page as a person does, and writes docs/images/page-*.png.
"""

import base64
import json
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from playwright.sync_api import Browser, Page, ViewportSize, sync_playwright

from img2img.app.settings import ApiSettings
from img2img.app.supervisor.supervisor import free_port, running

ROOT = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
IMAGES = ROOT / "docs" / "images"
DESKTOP = ViewportSize(width=1440, height=900)
PHONE = ViewportSize(width=390, height=844)
VALUES: dict[str, Any] = {
    "prompt": "a watercolor painting of a house by a lake",
    "guidance_scale": 4,
    "num_inference_steps": 25,
    "scheduler": "dpmpp_2m",
    "seed": 1,
}
TIMEOUT_MS = 120_000


def main() -> None:
    """Take all screenshots."""
    if CHROMIUM is None:
        sys.exit("screenshots: needs chromium")
    with TemporaryDirectory(prefix="i2i-") as folder:
        settings = ApiSettings(_env_file=None, data_dir=Path(folder), port=free_port())
        with running(settings), sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            take(browser, settings.local_url, "light", DESKTOP, strip)
            take(browser, settings.local_url, "dark", DESKTOP, paint)
            take(browser, settings.local_url, "phone", PHONE, single)
            browser.close()


def take(browser: Browser, url: str, name: str, size: ViewportSize, act: Any) -> None:
    """Write an image of the page after `act`."""
    context = browser.new_context(
        viewport=size, color_scheme="dark" if name == "dark" else "light", reduced_motion="reduce", locale="en-US"
    )
    page = context.new_page()
    page.set_default_timeout(TIMEOUT_MS)
    page.goto(f"{url}/{fragment()}")
    page.locator(".form").wait_for()
    page.locator(".example").nth(1).click()
    page.locator("[data-upload=done]").first.wait_for(state="attached")
    act(page)
    path = IMAGES / f"page-{name}.png"
    page.screenshot(path=path)
    context.close()
    print(path.relative_to(ROOT))


def fragment(**values: Any) -> str:
    """Return the fragment of a shared URL with the settings of the screenshots, and other values for some."""
    settings = {"mode": "transform", "values": VALUES | values, "controls": []}
    return "#settings=" + base64.urlsafe_b64encode(json.dumps(settings).encode()).decode().rstrip("=")


def strip(page: Page) -> None:
    """Make a strength strip and choose an image of it."""
    page.get_by_role("button", name="Strength strip").click()
    page.locator(".tile img").nth(4).wait_for()
    page.locator(".tile").nth(2).click()
    page.locator(".result-image").wait_for()
    page.wait_for_load_state("networkidle")
    page.evaluate("scrollTo(0, 0)")


def paint(page: Page) -> None:
    """Paint a mask and regenerate its part of the image."""
    page.get_by_label("Prompt", exact=True).fill("a lake")
    page.locator(".canvas-tools label").filter(has_text="Brush").click()
    box = page.locator("canvas.mask").bounding_box()
    assert box is not None
    x, y, width, height = (box[name] for name in ("x", "y", "width", "height"))  # type: ignore[literal-required]
    for row in (0.55, 0.62, 0.69, 0.76):
        page.mouse.move(x + 0.2 * width, y + row * height)
        page.mouse.down()
        page.mouse.move(x + 0.56 * width, y + row * height, steps=10)
        page.mouse.up()
    page.get_by_role("button", name="Generate").click()
    page.locator(".result-image").wait_for()
    page.mouse.move(0, 0)
    page.evaluate("scrollTo(0, 0)")


def single(page: Page) -> None:
    """Make one image and show it."""
    page.get_by_role("button", name="Generate").click()
    page.locator(".result-image").wait_for()
    page.locator("#result").evaluate("element => element.scrollIntoView()")


if __name__ == "__main__":
    main()
