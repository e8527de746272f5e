"""Strips and tables, code to copy, and settings that are restored and shared."""

import os
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect

from .form import MANY, generate, open_form, put_image, result, set_number

COLUMNS = "element => getComputedStyle(element).gridTemplateColumns.split(' ').length"


@pytest.fixture
def form(page: Page, demo_url: str) -> Page:
    open_form(page, demo_url)
    put_image(page)
    return page


def submitted(page: Page, count: int, act: Callable[[], None]) -> list[dict[str, Any]]:
    """Return the jobs that an action submits, as one batch."""
    with page.expect_response(lambda response: "/batches/" in response.url and "/jobs?" in response.url) as listed:
        act()
    jobs: list[dict[str, Any]] = listed.value.json()["jobs"]
    expect(page.locator(".tile")).to_have_count(count)
    assert len(jobs) == count
    assert len({job["batch"]["id"] for job in jobs}) == 1
    return jobs


def test_strength_strip_makes_five_images_with_one_seed(form: Page) -> None:
    jobs = submitted(form, 5, form.get_by_role("button", name="Strength strip").click)
    requests = [job["request"] for job in jobs]
    assert sorted(request["strength"] for request in requests) == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert len({request["seed"] for request in requests}) == 1
    form.locator(".tile img").nth(4).wait_for()
    assert form.locator(".tile-caption").all_inner_texts() == ["0.2", "0.4", "0.6", "0.8", "1"]
    form.locator(".tile").nth(3).click()
    result(form).wait_for()


def test_table_is_cancelled_as_one(form: Page, demo_url: str) -> None:
    set_number(form, "Steps", MANY)
    form.get_by_text("Strips and tables", exact=True).click()
    form.get_by_label("Rows").select_option("seed")
    jobs = submitted(form, 25, form.get_by_role("button", name="Generate 25 images").click)
    assert len({(job["request"]["strength"], job["request"]["seed"]) for job in jobs}) == 25
    assert form.locator(".grid").evaluate(COLUMNS) == 5
    form.get_by_role("button", name="Cancel all").click()
    expect(form.locator(".progress")).to_have_count(0)
    batch = httpx.get(f"{demo_url}/batches/{jobs[0]['batch']['id']}").json()
    assert (batch["status"], batch["cancelled"]) == ("ended", True)
    assert batch["counts"]["cancelled"] + batch["counts"]["succeeded"] == 25


def test_settings_are_restored_from_a_job_a_file_and_a_link(form: Page, demo_url: str, tmp_path: Path) -> None:
    prompt = form.get_by_label("Prompt", exact=True)
    prompt.fill("a lake in autumn")
    set_number(form, "Strength", "0.35")
    set_number(form, "Steps", "20")
    job = generate(form)

    def change() -> None:
        prompt.fill("something else")
        set_number(form, "Strength", "0.9")

    def check(page: Page) -> None:
        expect(page.get_by_label("Prompt", exact=True)).to_have_value("a lake in autumn")
        expect(page.get_by_role("spinbutton", name="Strength")).to_have_value("0.35")

    change()
    form.get_by_role("button", name="Restore settings").click()
    check(form)
    expect(form.get_by_label("Seed", exact=True)).to_have_value(str(job["images"][0]["seed"]))
    file = tmp_path / "result.png"
    file.write_bytes(httpx.get(f"{demo_url}{job['images'][0]['url']}").content)
    change()
    form.locator(".file-button input[type=file]").set_input_files(file)
    form.locator(".chosen").get_by_role("button", name="Restore settings").click()
    check(form)
    form.context.grant_permissions(["clipboard-read", "clipboard-write"])
    form.get_by_text("Presets and sharing", exact=True).click()
    form.get_by_role("button", name="Copy a link to these settings").click()
    expect(form.get_by_role("button", name="Copied")).to_be_visible()
    link = form.evaluate("navigator.clipboard.readText()")
    other = form.context.browser.new_page()  # type: ignore[union-attr]
    other.goto(link)
    check(other)
    assert other.url == f"{demo_url}/"
    other.close()


def test_preset_is_kept_by_the_browser(form: Page) -> None:
    prompt = form.get_by_label("Prompt", exact=True)
    prompt.fill("a pencil sketch")
    form.get_by_text("Presets and sharing", exact=True).click()
    form.get_by_label("Name of the preset").fill("sketch")
    form.get_by_role("button", name="Save", exact=True).click()
    prompt.fill("")
    form.reload()
    form.get_by_text("Presets and sharing", exact=True).click()
    form.get_by_role("button", name="sketch", exact=True).click()
    expect(prompt).to_have_value("a pencil sketch")


@pytest.mark.parametrize(
    ("language", "command"),
    [
        ("curl", ["bash", "code"]),
        ("Python", [sys.executable, "code"]),
        ("TypeScript", ["node", "code.mjs"]),
        ("img2img", ["bash", "code"]),
    ],
)
def test_copied_code_makes_the_same_image(form: Page, tmp_path: Path, language: str, command: list[str]) -> None:
    form.get_by_label("Prompt", exact=True).fill('it\'s a "house" & a lake, $HOME')
    set_number(form, "Strength", "0.5")
    job = generate(form)
    form.context.grant_permissions(["clipboard-read", "clipboard-write"])
    form.get_by_text("Copy as code").click()
    form.locator(".copy-as label").filter(has_text=language).click()
    form.get_by_role("button", name="Copy", exact=True).click()
    expect(form.get_by_role("button", name="Copied")).to_be_visible()
    (tmp_path / command[-1]).write_text(form.evaluate("navigator.clipboard.readText()"))
    # The command of the environment of these tests.
    (tmp_path / "img2img").write_text(f'#!/bin/sh\nexec {sys.executable} -m img2img.app.cli "$@"\n')
    (tmp_path / "img2img").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=120)
    assert sha256((tmp_path / "result.png").read_bytes()).hexdigest() == job["images"][0]["sha256"]
