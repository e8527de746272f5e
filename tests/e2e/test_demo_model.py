"""The demo model supports every task, over HTTP, and runs the code blocks of docs/how-to."""

import io
import os
import subprocess
import sys
import time
import zipfile
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.support.pages import ROOT, fences
from tests.support.serving import serving

EXAMPLES = ROOT / "examples"
HOW_TO = sorted((ROOT / "docs" / "how-to").glob("*.md"))
IMAGE = b64encode((EXAMPLES / "rendered.png").read_bytes()).decode()
DEFAULTS = {"num_inference_steps": 4, "guidance_scale": 2.0, "seed": 1, "scheduler": "ddim"}
TYPES = ("canny", "scribble", "lineart", "softedge", "depth", "segmentation")


def mask() -> str:
    image, buffer = Image.new("L", (128, 128)), io.BytesIO()
    image.paste(255, (32, 32, 96, 96))
    image.save(buffer, "PNG")
    return b64encode(buffer.getvalue()).decode()


TASKS: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "style": ({"image": IMAGE, "prompt": "an oil painting"}, (128, 128)),
    "inpainting": ({"image": IMAGE, "prompt": "a house", "mask": mask()}, (128, 128)),
    "outpainting": ({"image": IMAGE, "prompt": "a house", "outpaint": {"left": 32}}, (160, 128)),
    **{kind: ({"prompt": "a house", "controls": [{"type": kind, "image": IMAGE}]}, (128, 128)) for kind in TYPES},
    "two controls": (
        {
            "image": IMAGE,
            "prompt": "a house",
            "controls": [{"type": "canny"}, {"type": "segmentation", "scale": 0.5}],
        },
        (128, 128),
    ),
    "image prompt": ({"image": IMAGE, "prompt": "a house", "image_prompts": [{"image": IMAGE}]}, (128, 128)),
    "lora": ({"image": IMAGE, "prompt": "a blueprint of a house", "loras": [{"name": "blueprint"}]}, (128, 128)),
    "edit": ({"image": IMAGE, "instruction": "make it night"}, (128, 128)),
    "mask by words": (
        {"image": IMAGE, "prompt": "a forest", "mask": {"text": "the house, trees", "grow": 2}, "mask_padding": 8},
        (128, 128),
    ),
    "detail pass": ({"image": IMAGE, "prompt": "a house", "refine": [{"detect": "house"}]}, (128, 128)),
    "new background": ({"image": IMAGE, "background": {"prompt": "the sea at sunset"}}, (128, 128)),
    "super-resolution": ({"image": IMAGE, "prompt": "a house", "upscale": 4, "num_inference_steps": 2}, (512, 512)),
}


@pytest.fixture(scope="module")
def demo() -> Iterator[httpx.Client]:
    with TemporaryDirectory(prefix="i2i-") as folder, serving(Path(folder), Path("demo")) as client:
        yield client


def test_concurrent_jobs_of_all_tasks_succeed(demo: httpx.Client) -> None:
    """Run all tasks in one engine. The tests of tests/engine compare the pixels with those of stock pipelines."""
    jobs = {}
    for name, (fields, _) in TASKS.items():
        response = demo.post("/img2img", json=DEFAULTS | fields)
        assert response.status_code == 202, (name, response.text)
        jobs[name] = response.json()["id"]
    for name, job_id in jobs.items():
        while not (job := demo.get(f"/jobs/{job_id}").json())["finished_at"]:
            time.sleep(0.1)
        assert job["status"] == "succeeded", (name, job["error"])
        with Image.open(io.BytesIO(demo.get(f"/jobs/{job_id}/result").content)) as image:
            assert image.size == TASKS[name][1], name
            assert len(image.convert("RGB").getcolors(1 << 20) or ()) > 50, name


def test_background_of_a_house_is_transparent(demo: httpx.Client) -> None:
    job = demo.post("/img2img", json=DEFAULTS | {"image": IMAGE, "strength": 0.3, "background": "transparent"}).json()
    job = demo.get(f"/jobs/{job['id']}?wait=60").json()
    assert job["status"] == "succeeded", job["error"]
    png = Image.open(io.BytesIO(demo.get(f"/jobs/{job['id']}/result").content))
    webp = Image.open(io.BytesIO(demo.get(f"/jobs/{job['id']}/result?format=webp").content))
    assert png.mode == webp.mode == "RGBA"
    for image in (png, webp):
        opacity = np.asarray(image)[..., 3] / 255
        # The sky is at the top, and the house in the middle.
        assert 0.05 < opacity.mean() < 0.8
        assert opacity[:10].mean() < 0.2 < 0.6 < opacity.max(initial=0)
    jpeg = demo.get(f"/jobs/{job['id']}/result?format=jpeg")
    assert jpeg.status_code == 422
    assert "A JPEG cannot be transparent" in jpeg.json()["detail"]


def test_model_card_lists_every_task(demo: httpx.Client) -> None:
    [card] = demo.get("/models").json()["models"]
    assert set(card["tasks"]) == {"img2img", "inpaint", "control", "edit", "upscale"}
    assert set(TYPES) <= set(card["controls"])
    assert {"depth", "segmentation"} <= set(card["preprocessors"])
    assert card["loras"] == ["blueprint"]
    assert card["image_prompts"]
    assert card["matting"]
    assert card["upscales"] == [2, 4]
    assert card["masks"] == ["text", "points", "box"]
    assert {"house", "sky", "tree"} <= set(card["mask_words"])


def test_words_find_a_mask_that_an_inpainting_job_keeps_to(demo: httpx.Client) -> None:
    find = {"text": "the house", "grow": 3}
    job = finished(demo, "/masks", {"image": IMAGE, **find})
    assert (job["request"]["task"], job["request"]["find"]["text"]) == ("mask", "the house")
    found = np.asarray(result(demo, job))
    assert set(np.unique(found)) == {0, 255}
    with Image.open(EXAMPLES / "rendered.png") as opened:
        before = np.asarray(opened.convert("RGB"))
    fields = DEFAULTS | {"image": IMAGE, "prompt": "a forest"}
    by_words = finished(demo, "/img2img", fields | {"mask": find})
    by_image = finished(demo, "/img2img", fields | {"mask": job["images"][0]["url"]})
    after = np.asarray(result(demo, by_words))
    assert by_words["images"][0]["sha256"] != by_image["images"][0]["sha256"], "they have other parameters"
    assert (after == np.asarray(result(demo, by_image))).all()
    assert (after[found == 0] == before[found == 0]).all()
    assert (after[found > 0] != before[found > 0]).mean() > 0.5
    x, y = np.argwhere(found[..., 0] > 0).mean(axis=0)[::-1].tolist()
    at_point = np.asarray(result(demo, finished(demo, "/masks", {"image": IMAGE, "points": [[x, y]], "grow": 3})))
    assert (at_point == found).mean() > 0.9
    missing = demo.post("/img2img", json=fields | {"mask": {"text": "cloud", "threshold": 0.999}}).json()
    job = wait(demo, missing["id"])
    assert job["status"] == "failed"
    assert "did not find `cloud` in the image" in job["error"]["message"]


def finished(demo: httpx.Client, path: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Submit a job, and return it after it has succeeded."""
    response = demo.post(path, json=fields)
    assert response.status_code == 202, response.text
    job = wait(demo, response.json()["id"])
    assert job["status"] == "succeeded", job["error"]
    return job


def wait(demo: httpx.Client, job_id: str) -> dict[str, Any]:
    while not (job := demo.get(f"/jobs/{job_id}?wait=20").json())["finished_at"]:
        pass
    return dict(job)


def result(demo: httpx.Client, job: dict[str, Any]) -> Image.Image:
    return Image.open(io.BytesIO(demo.get(f"/jobs/{job['id']}/result").content)).convert("RGB")


def test_pose_control_is_refused(demo: httpx.Client) -> None:
    response = demo.post("/img2img", json=DEFAULTS | {"prompt": "", "controls": [{"type": "pose", "image": IMAGE}]})
    assert response.status_code == 422
    [error] = response.json()["errors"]
    assert error["field"] == "controls.0.type"
    assert "canny" in error["message"], "the message lists the supported types"


def how_to_blocks(path: Path) -> list[list[str]]:
    """Return the commands that run the code blocks without a caption."""
    commands = {"bash": ("bash", "-euc"), "python": (sys.executable, "-c")}
    return [[*commands[kind], block] for kind, title, block in fences(path) if kind in commands and title is None]


@pytest.mark.parametrize("path", [path for path in HOW_TO if how_to_blocks(path)], ids=lambda path: path.stem)
def test_code_blocks_of_how_to_pages_make_the_images_that_they_name(
    demo: httpx.Client, tmp_path: Path, path: Path
) -> None:
    (tmp_path / "examples").symlink_to(EXAMPLES)
    url = str(demo.base_url).rstrip("/")
    environment = os.environ | {"IMG2IMG_URL": url, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for *command, block in how_to_blocks(path):
        code = block.replace("http://127.0.0.1:8000", url)
        subprocess.run([*command, code], cwd=tmp_path, env=environment, check=True, timeout=300)
    images, archives = list(tmp_path.rglob("*.png")), list(tmp_path.rglob("*.zip"))
    assert images or archives
    for file in images:
        Image.open(file).load()
    assert all(map(zipfile.is_zipfile, archives))
