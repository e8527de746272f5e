"""The page for everyone: accessibility by axe, API keys, the security policy, and large photos."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page, expect
from redis import Redis

from img2img.app.settings import ApiSettings
from img2img.domain.api_key import Scope
from img2img.redis.api_keys import ApiKeys
from img2img.settings import embedded_redis_socket
from tests.support.authenticated import authenticated_server

from .form import CONTROLS, FEW, generate, open_form, put_image, result, set_number

AXE = Path(__file__).parents[2] / "web" / "node_modules" / "axe-core" / "axe.min.js"


@pytest.fixture(scope="module")
def axe() -> str:
    if not AXE.exists():
        pytest.skip("accessibility is not checked: `make web` gets axe")
    return AXE.read_text()


@pytest.mark.parametrize("colors", ["light", "dark"])
def test_axe_finds_no_violations(page: Page, demo_url: str, axe: str, colors: str) -> None:
    page.emulate_media(color_scheme=colors)  # type: ignore[arg-type]
    page.set_default_timeout(20_000)
    violations: dict[str, object] = {}

    def check(view: str) -> None:
        page.evaluate(axe)
        found = page.evaluate("axe.run().then(({ violations }) => violations)")
        violations.update({f"{view}: {one['id']}": [node["html"] for node in one["nodes"]] for one in found})

    open_form(page, demo_url)
    check("empty")
    put_image(page)
    for name in (CONTROLS, "Image prompts", "LoRAs", "More settings", "Strips and tables", "Presets and sharing"):
        page.get_by_text(name, exact=True).click()
    page.get_by_role("button", name="Add a control").click()
    page.get_by_role("button", name="Add an image prompt").click()
    page.locator("[name=priority]").wait_for()
    page.get_by_label("FreeU").check()
    check("all settings")
    page.get_by_label("FreeU").uncheck()
    page.get_by_label("Background", exact=True).select_option("replace")
    check("new background")
    page.get_by_label("Background", exact=True).select_option("transparent")
    for tool in ("Brush", "Outpaint"):
        page.locator(".canvas-tools label").filter(has_text=tool).click()
        if tool == "Brush":
            page.get_by_role("button", name="Invert").click()
        check(tool)
    page.get_by_role("button", name="Clear").click()
    page.get_by_role("button", name="Remove", exact=True).last.click()
    set_number(page, "Steps", "0")
    page.locator(".run").click()
    page.locator(".error").first.wait_for()
    check("refused")
    set_number(page, "Steps", FEW)
    set_number(page, "Images", "2")
    page.locator(".run").click()
    page.locator(".progress").first.wait_for()
    check("running")
    result(page).wait_for()
    page.locator(".tile img").nth(1).wait_for()
    page.get_by_text("Copy as code").click()
    check("result")
    page.get_by_text("Edit", exact=True).click()
    check("edit")
    page.get_by_text("Upscale", exact=True).click()
    check("upscale")
    assert violations == {}


def test_language_is_chosen_and_kept(page: Page, demo_url: str) -> None:
    open_form(page, demo_url)
    page.get_by_label("Language").select_option("zh")
    expect(page.get_by_label("提示词", exact=True)).to_be_visible()
    page.reload()
    expect(page.locator(".run")).to_contain_text("生成")
    assert page.evaluate("document.documentElement.lang") == "zh"


@pytest.fixture
def keyed(demo_url: str, demo_data: Path) -> Iterator[tuple[str, str]]:
    """The URL of an API server of the same service that requires API keys, and a key."""
    redis_url = f"unix://{embedded_redis_socket(demo_data)}"
    settings = ApiSettings(_env_file=None, data_dir=demo_data, redis_url=redis_url, model="demo")
    with Redis.from_url(redis_url) as redis, authenticated_server(settings) as url:
        secret, _ = ApiKeys(redis).create("page", (Scope.READ, Scope.SUBMIT))
        yield url, secret


def test_key_is_asked_for_and_used(page: Page, keyed: tuple[str, str]) -> None:
    url, secret = keyed
    page.goto(url)
    dialog = page.get_by_role("dialog", name="API key")
    dialog.get_by_label("API key").fill("i2i_wrong")
    dialog.get_by_role("button", name="Use key").click()
    expect(dialog).to_contain_text("does not accept this key")
    dialog.get_by_label("API key").fill(secret)
    dialog.get_by_role("button", name="Use key").click()
    page.locator(".form").wait_for()
    expect(dialog).to_have_count(0)
    set_number(page, "Steps", FEW)
    put_image(page)
    page.locator(".run").click()
    # An <img> sends no key, so the page fetches the image.
    expect(result(page)).to_have_attribute("src", re.compile("^blob:"))
    page.reload()
    result(page).wait_for()
    # Only this tab has the key.
    other = page.context.new_page()
    other.goto(url)
    other.get_by_role("dialog", name="API key").wait_for()


def test_policy_is_not_violated(page: Page, demo_url: str) -> None:
    messages: list[str] = []
    page.on("console", lambda message: messages.append(message.text) if message.type == "error" else None)
    open_form(page, demo_url)
    put_image(page)
    generate(page)
    assert messages == []


def test_photo_of_40_megapixels_does_not_freeze_the_page(page: Page, demo_url: str, tmp_path: Path) -> None:
    photo = Image.effect_noise((400, 250), 60).resize((8000, 5000)).convert("RGB")
    photo.save(tmp_path / "photo.jpg", "JPEG", quality=70)
    open_form(page, demo_url)
    # Tasks of the page's thread that take longer than 50 ms.
    page.evaluate(
        """() => {
          window.tasks = [];
          new PerformanceObserver((list) => window.tasks.push(...list.getEntries().map(({ duration }) => duration)))
            .observe({ entryTypes: ["longtask"] });
        }"""
    )
    page.locator(".file-button input[type=file]").set_input_files(tmp_path / "photo.jpg")
    page.locator("[data-upload=done]").first.wait_for(state="attached")
    expect(page.locator("[data-upload]").first).to_contain_text("Scaled from 8000")
    # 50 ms on an idle machine. Scaling it on the page's thread takes more than a second.
    assert max(page.evaluate("window.tasks"), default=0) < 600
    generate(page)
