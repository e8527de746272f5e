"""`/docs` in a browser: Execute makes a job, with fields that were not touched."""

from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Locator, Page

from img2img.app.openapi import examples

INPUT = Path(__file__).parents[2] / "examples" / "input.png"


@pytest.fixture
def operation(page: Page, demo_url: str) -> Locator:
    """The submit operation, with its form open for input."""
    page.goto(f"{demo_url}/docs")
    operation = page.locator("#operations-jobs-submit_img2img")
    operation.locator(".opblock-summary-control").click()
    operation.get_by_role("button", name="Try it out").click()
    return operation


def executed(operation: Locator, demo_url: str) -> dict[str, object]:
    """Click Execute, assert that a job was made, and return it."""
    operation.get_by_role("button", name="Execute").click()
    # In the second table are the responses that the document describes.
    response = operation.locator(".live-responses-table .response")
    response.wait_for()
    assert response.locator(".response-col_status").inner_text().strip() == "202", response.inner_text()
    location = response.locator(".headers-lines, pre.microlight").all_inner_texts()
    [path] = {
        line.split("location: ")[1].split()[0]
        for text in location
        for line in text.splitlines()
        if "location: " in line
    }
    return httpx.get(f"{demo_url}{path}").raise_for_status().json()  # type: ignore[no-any-return]


def test_execute_with_a_form_makes_a_job(operation: Locator, demo_url: str) -> None:
    assert operation.locator("select.content-type").first.input_value() == "multipart/form-data"
    operation.locator("tr[data-property-name=image] input[type=file]").set_input_files(INPUT)
    assert executed(operation, demo_url)["request"]["task"] == "img2img"  # type: ignore[index]


@pytest.mark.parametrize("name", ["plain", *(name for name in examples.IMG2IMG if name != "plain")])
def test_execute_with_a_json_example_makes_a_job(operation: Locator, demo_url: str, name: str) -> None:
    operation.locator("select.content-type").first.select_option("application/json")
    if name != "plain":
        operation.locator(".examples-select select").select_option(name)
    request = executed(operation, demo_url)["request"]
    tasks = {"plain": "img2img", "mask": "inpaint", "controls": "control", "edit": "edit", "upscale": "upscale"}
    assert request["task"] == tasks[name]  # type: ignore[index]
