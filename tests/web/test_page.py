"""The page in a browser, with the whole service and the demo model: from an image to a result."""

import json
import re
from collections.abc import Iterator
from hashlib import sha256

import httpx
import pytest
from PIL import Image
from playwright.sync_api import BrowserContext, Page, Route, expect

from .form import CONTROLS, DROP, EXAMPLES, FEW, MANY, PASTE, generate, open_form, put_image, result, set_number


@pytest.fixture
def form(page: Page, demo_url: str) -> Page:
    """The page with its form, and a small number of steps."""
    open_form(page, demo_url)
    return page


def test_image_is_dropped_run_and_compared(form: Page) -> None:
    put_image(form)
    form.get_by_label("Prompt", exact=True).fill("a watercolor painting")
    job = generate(form)
    assert job["request"]["num_inference_steps"] == int(FEW)
    slider = form.get_by_role("slider", name="Share of the result that is covered by the input")
    expect(slider).to_have_value("50")
    slider.focus()
    slider.press("End")
    # The input covers the result, up to the right edge.
    before = form.locator(".compare-before")
    assert before.evaluate("element => getComputedStyle(element).clipPath") == "inset(0px 0% 0px 0px)"
    with form.expect_download() as download:
        form.get_by_role("link", name="Download").click()
    assert sha256(download.value.path().read_bytes()).hexdigest() == job["images"][0]["sha256"]
    form.get_by_role("button", name="100 %", exact=True).click()
    width = result(form).evaluate("element => element.getBoundingClientRect().width")
    assert width == 128 / form.evaluate("devicePixelRatio")
    # In a narrow and high window the width is what limits the image.
    form.get_by_role("button", name="100 %", exact=True).click()
    form.set_viewport_size({"width": 1000, "height": 1400})
    inner, outer = (form.locator(name).bounding_box() for name in (".canvas", ".viewport"))
    assert inner
    assert outer
    assert outer["x"] < inner["x"] < inner["x"] + inner["width"] < outer["x"] + outer["width"]


def test_image_is_pasted_and_run_by_keyboard(form: Page) -> None:
    put_image(form, PASTE, "rendered.png")
    prompt = form.get_by_label("Prompt", exact=True)
    prompt.fill("a house in winter")
    prompt.press("Control+Enter")
    result(form).wait_for()
    expect(form.locator(".history-entry img").first).to_be_visible()


def test_result_becomes_the_next_input(form: Page) -> None:
    put_image(form)
    job = generate(form)
    form.get_by_role("button", name="Use as input").click()
    form.locator("[data-upload=done]").first.wait_for(state="attached")
    with form.expect_request(lambda request: request.url.endswith("/img2img")) as sent:
        form.get_by_role("button", name="Generate").click()
    assert sent.value.post_data_json["image"] == job["images"][0]["sha256"]
    result(form).wait_for()


def test_variants_of_a_result_leave_the_form_as_it_is(form: Page) -> None:
    put_image(form)
    form.get_by_label("Prompt", exact=True).fill("a lake")
    generate(form)
    form.get_by_label("Prompt", exact=True).fill("something else")
    with form.expect_response(lambda response: response.url.endswith("/img2img")) as submitted:
        form.get_by_role("button", name="More like this").click()
    request = submitted.value.request.post_data_json
    assert (request["prompt"], request["strength"], request["num_images"]) == ("a lake", 0.5, 4)
    form.locator(".tile").nth(3).wait_for()
    expect(form.get_by_label("Prompt", exact=True)).to_have_value("something else")
    expect(form.get_by_role("spinbutton", name="Images")).to_have_value("1")
    with form.expect_request(lambda request: request.url.endswith("/img2img")) as sent:
        form.get_by_role("button", name="Generate").click()
    assert sent.value.post_data_json["image"] != request["image"]


def test_what_is_wrong_is_shown_where_it_was_given(form: Page) -> None:
    form.evaluate(DROP.replace("image/png", "text/plain"), [list(b"text"), "note.txt"])
    expect(form.locator(".input-image > .error")).to_contain_text("“note.txt” is not an image")
    put_image(form)
    expect(form.locator(".input-image > .error")).to_have_count(0)
    seed, run = form.get_by_label("Seed", exact=True), form.locator(".run")
    seed.fill("abc")
    seed.blur()
    expect(run).to_be_disabled()
    expect(seed).to_have_value("abc")
    expect(form.locator(".field").filter(has=seed)).to_contain_text("a whole number")
    seed.fill("7")
    seed.blur()
    expect(run).to_be_enabled()


def test_running_job_shows_progress_and_can_be_cancelled(form: Page) -> None:
    put_image(form)
    set_number(form, "Steps", MANY)
    set_number(form, "Images", "8")
    form.get_by_role("button", name="Generate").click()
    progress = form.locator(".progress[data-status=running]")
    expect(progress.get_by_role("status")).to_contain_text(re.compile(r"Step \d+ of \d+"))
    expect(progress.get_by_role("status")).to_contain_text("left")
    form.locator("img.preview").wait_for()
    progress.get_by_role("button", name="Cancel").click()
    expect(form.locator(".stage")).to_contain_text("Cancelled")


def test_reload_finds_the_running_job_and_the_form(form: Page) -> None:
    put_image(form)
    form.get_by_label("Prompt", exact=True).fill("a lake at night")
    set_number(form, "Strength", "1")
    set_number(form, "Steps", MANY)
    form.get_by_role("button", name="Generate").click()
    form.locator(".progress").wait_for()
    form.reload()
    expect(form.get_by_label("Prompt", exact=True)).to_have_value("a lake at night")
    form.locator("[data-upload=done]").first.wait_for(state="attached")
    form.locator(".compare .result-image").wait_for()


def test_rejected_field_shows_the_sentence_of_the_service(form: Page, demo_url: str) -> None:
    put_image(form)
    set_number(form, "Steps", "9999")
    form.get_by_role("button", name="Generate").click()
    error = form.locator('[data-field="num_inference_steps"]')
    refused = httpx.post(f"{demo_url}/img2img", json={"num_inference_steps": 9999}).json()["errors"]
    [sentence] = [one["message"] for one in refused if one["field"] == "num_inference_steps"]
    expect(error).to_have_text(sentence)
    expect(form.get_by_role("spinbutton", name="Steps")).to_have_attribute("aria-invalid", "true")
    # A section that is closed opens for an error in it.
    form.get_by_text("Settings", exact=True).click()
    expect(error).to_be_hidden()
    form.get_by_role("button", name="Generate").click()
    expect(error).to_be_visible()
    set_number(form, "Steps", FEW)
    expect(error).to_have_count(0)


def test_control_map_is_previewed(form: Page) -> None:
    put_image(form, name="rendered.png")
    form.get_by_text(CONTROLS, exact=True).click()
    form.get_by_role("button", name="Add a control").click()
    form.get_by_role("button", name="Preview the map").click()
    expect(form.get_by_role("img", name="Control map: canny")).to_be_visible()
    job = generate(form)
    [control] = job["request"]["controls"]
    assert (control["type"], control["preprocess"]) == ("canny", True)


def test_edit_and_upscale(form: Page) -> None:
    put_image(form)
    set_number(form, "Strength", "1")
    form.get_by_text("Edit", exact=True).click()
    form.get_by_label("Instruction").fill("make it night")
    assert generate(form)["request"]["task"] == "edit"
    form.get_by_role("button", name="Upscale this").click()
    form.get_by_label("Enlarge").select_option("2")
    job = generate(form)
    assert (job["request"]["task"], job["images"][0]["width"]) == ("upscale", 256)
    # Each task has a strength of its own.
    assert job["request"]["strength"] == 0.3
    form.get_by_text("Transform", exact=True).click()
    expect(form.get_by_role("spinbutton", name="Strength")).to_have_value("1")


def test_background_is_transparent_or_replaced(form: Page) -> None:
    put_image(form)
    form.get_by_label("Prompt", exact=True).fill("a house")
    background = form.get_by_label("Background", exact=True)
    background.select_option("transparent")
    form.get_by_label("Speed").select_option("fast")
    generate(form)
    expect(result(form)).to_have_css("background-image", re.compile("conic-gradient"))
    with form.expect_download() as download:
        form.get_by_role("link", name="Download").click()
    with Image.open(download.value.path()) as image:
        assert image.mode == "RGBA"
        assert image.getchannel("A").getextrema()[0] == 0
    form.get_by_text("Copy as code").click()
    code = form.locator(".code")
    for text in ('"speed": "fast"', '"background": "transparent"'):
        expect(code).to_contain_text(text)
    background.select_option("replace")
    expect(form.get_by_label("Prompt", exact=True)).to_have_count(0)
    prompt = form.get_by_label("New background")
    prompt.fill("the sea at sunset")
    request = generate(form)["request"]
    assert (request["prompt"], request["region"]["background"]) == ("the sea at sunset", True)
    expect(result(form)).to_have_css("background-image", "none")
    background.select_option("keep")
    expect(form.get_by_label("Prompt", exact=True)).to_have_value("a house")
    form.get_by_role("button", name="Restore settings").click()
    expect(prompt).to_have_value("the sea at sunset")


def test_reuse_needs_a_seed_and_returns_the_earlier_result(form: Page) -> None:
    put_image(form)
    form.get_by_text("More settings", exact=True).click()
    reuse = form.get_by_label("Reuse earlier results")
    expect(reuse).to_be_disabled()
    seed = form.get_by_label("Seed", exact=True)
    seed.fill("7")
    seed.blur()
    first = generate(form)
    reuse.check()
    second = generate(form)
    assert second["reused_from"] == first["id"]


def test_edit_takes_several_images(page: Page, demo_url: str) -> None:
    models = httpx.get(f"{demo_url}/models").json()
    models["models"][0]["max_images"] = 3
    page.route("**/models", lambda route: route.fulfill(json=models))
    open_form(page, demo_url)
    put_image(page)
    page.get_by_text("Edit", exact=True).click()
    for name in ("Image 2", "Image 3"):
        page.get_by_label(name).set_input_files(EXAMPLES / "input.png")
    expect(page.locator(".references img")).to_have_count(2)
    expect(page.locator(".references .slot")).to_have_count(2)
    page.get_by_label("Instruction").fill("make it night")
    with page.expect_request(lambda request: request.url.endswith("/img2img")) as sent:
        page.get_by_role("button", name="Generate").click()
    assert len(sent.value.post_data_json["images"]) == 2
    # The model of this service takes one.
    error = page.locator('[data-field="images"]')
    expect(error).to_contain_text("takes one image")
    page.locator(".references").get_by_role("button", name="Remove image").first.click()
    expect(page.locator(".references img")).to_have_count(1)
    expect(error).to_have_count(0)


def test_form_shows_only_what_the_model_can_do(page: Page, demo_url: str) -> None:
    models = httpx.get(f"{demo_url}/models").json()
    plain = models["models"][0] | {"tasks": ["img2img"], "controls": [], "loras": [], "image_prompts": False}
    plain |= {"upscales": [], "upscalers": [], "guidance": False, "negative_prompt": False}
    plain |= {"matting": False, "scheduler_parameters": {}}
    able = {**models["models"][0], "name": "able", "default": False}

    def answer(route: Route) -> None:
        route.fulfill(content_type="application/json", body=json.dumps({"models": [plain, able]}))

    page.route("**/models", answer)
    page.goto(demo_url)
    page.get_by_label("Prompt", exact=True).wait_for()
    hidden = ("Negative prompt", "Guidance", CONTROLS, "Image prompts", "LoRAs", "Upscale", "Background", "Speed")
    for name in hidden:
        assert page.get_by_text(name, exact=True).count() == 0, name
    page.get_by_label("Model").select_option("able")
    for name in hidden:
        expect(page.get_by_text(name, exact=True).first).to_be_visible()


def test_service_that_is_away_comes_back(form: Page, context: BrowserContext) -> None:
    context.set_offline(True)
    form.evaluate(DROP, [list((EXAMPLES / "input.png").read_bytes()), "input.png"])
    expect(form.locator(".status")).to_have_text("The service does not answer. Trying again…")
    context.set_offline(False)
    expect(form.locator(".status")).to_have_text("")
    form.get_by_role("button", name="Generate").click()
    result(form).wait_for()


def test_two_tabs_do_not_disturb_each_other(form: Page, context: BrowserContext, demo_url: str) -> None:
    other = context.new_page()
    open_form(other, demo_url)
    for page, prompt in ((form, "a lake"), (other, "a house")):
        put_image(page)
        page.get_by_label("Prompt", exact=True).fill(prompt)
        page.get_by_role("button", name="Generate").click()
    for page, prompt in ((form, "a lake"), (other, "a house")):
        result(page).wait_for()
        expect(page.get_by_label("Prompt", exact=True)).to_have_value(prompt)


def test_no_request_leaves_the_service(page: Page, demo_url: str) -> None:
    urls: list[str] = []
    page.on("request", lambda request: urls.append(request.url))
    open_form(page, demo_url)
    page.locator(".example").first.click()
    page.locator("[data-upload=done]").first.wait_for(state="attached")
    generate(page)
    assert [url for url in urls if not url.startswith((f"{demo_url}/", "blob:", "data:"))] == []


@pytest.fixture
def phone(context: BrowserContext, demo_url: str) -> Iterator[Page]:
    page = context.new_page()
    page.set_viewport_size({"width": 390, "height": 844})
    open_form(page, demo_url)
    yield page
    page.close()


def test_phone_has_no_horizontal_scrolling(phone: Page) -> None:
    def is_too_wide() -> bool:
        return bool(phone.evaluate("document.documentElement.scrollWidth > innerWidth"))

    assert not is_too_wide()
    put_image(phone)
    for name in (CONTROLS, "Image prompts", "LoRAs", "More settings"):
        phone.get_by_text(name, exact=True).click()
    phone.get_by_role("button", name="Add a control").click()
    phone.get_by_role("button", name="Add an image prompt").click()
    assert not is_too_wide()
    phone.get_by_role("button", name="Generate").click()
    result(phone).wait_for()
    assert not is_too_wide()
