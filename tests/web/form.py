"""What a person does on the page."""

from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import Locator, Page

EXAMPLES = Path(__file__).parents[2] / "examples"
DROP = """([bytes, name]) => {
  const data = new DataTransfer();
  data.items.add(new File([new Uint8Array(bytes)], name, { type: "image/png" }));
  const target = document.querySelector(".input-image");
  for (const kind of ["dragover", "drop"]) {
    target.dispatchEvent(new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true }));
  }
}"""
PASTE = """([bytes, name]) => {
  const data = new DataTransfer();
  data.items.add(new File([new Uint8Array(bytes)], name, { type: "image/png" }));
  document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true }));
}"""
# Steps of a job that takes a second, and of one that can be seen running.
FEW, MANY = "4", "150"
# Title of the section.
CONTROLS = "Sketch, edges, depth (ControlNet)"


def open_form(page: Page, url: str) -> None:
    """Open the page and set a small number of steps."""
    page.goto(url)
    page.locator(".form").wait_for()
    set_number(page, "Steps", FEW)


def set_number(page: Page, label: str, value: str) -> None:
    field = page.get_by_role("spinbutton", name=label, exact=True)
    field.fill(value)
    field.blur()


def put_image(page: Page, script: str = DROP, name: str = "input.png") -> None:
    """Drop or paste an example, and wait for its upload."""
    page.evaluate(script, [list((EXAMPLES / name).read_bytes()), name])
    page.locator("[data-upload=done]").first.wait_for(state="attached")


def result(page: Page) -> Locator:
    return page.locator(".stage img.result-image")


def generate(page: Page) -> dict[str, Any]:
    """Run the form, wait for the result, and return the job."""
    with page.expect_response(lambda response: response.url.endswith("/img2img")) as submitted:
        page.get_by_role("button", name="Generate").click()
    assert submitted.value.status == 202, submitted.value.text()
    job = submitted.value.json()
    page.locator(f'.stage img.result-image[src*="{job["id"]}"]').wait_for()
    ended = httpx.get(f"{submitted.value.url.removesuffix('/img2img')}/jobs/{job['id']}")
    return ended.raise_for_status().json()  # type: ignore[no-any-return]
