"""The model of this repository does every task, over HTTP."""

import io
import time
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.support.serving import serving

EXAMPLES = Path(__file__).parents[2] / "examples"
PICTURE = b64encode((EXAMPLES / "rendered.png").read_bytes()).decode()
FEW = {"num_inference_steps": 4, "guidance_scale": 2.0, "seed": 1, "scheduler": "ddim"}
TYPES = ("canny", "scribble", "lineart", "softedge", "depth", "segmentation")


def mask() -> str:
    picture, buffer = Image.new("L", (128, 128)), io.BytesIO()
    picture.paste(255, (32, 32, 96, 96))
    picture.save(buffer, "PNG")
    return b64encode(buffer.getvalue()).decode()


TASKS: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "style": ({"image": PICTURE, "prompt": "an oil painting"}, (128, 128)),
    "inpainting": ({"image": PICTURE, "prompt": "a house", "mask": mask()}, (128, 128)),
    "outpainting": ({"image": PICTURE, "prompt": "a house", "outpaint": {"left": 32}}, (160, 128)),
    **{kind: ({"prompt": "a house", "controls": [{"type": kind, "image": PICTURE}]}, (128, 128)) for kind in TYPES},
    "two controls": (
        {
            "image": PICTURE,
            "prompt": "a house",
            "controls": [{"type": "canny"}, {"type": "segmentation", "scale": 0.5}],
        },
        (128, 128),
    ),
    "image prompt": ({"image": PICTURE, "prompt": "a house", "image_prompts": [{"image": PICTURE}]}, (128, 128)),
    "lora": ({"image": PICTURE, "prompt": "a blueprint of a house", "loras": [{"name": "blueprint"}]}, (128, 128)),
    "edit": ({"image": PICTURE, "instruction": "make it night"}, (128, 128)),
    "super-resolution": ({"image": PICTURE, "prompt": "a house", "upscale": 4, "num_inference_steps": 2}, (512, 512)),
}


@pytest.fixture(scope="module")
def demo() -> Iterator[httpx.Client]:
    with TemporaryDirectory(prefix="i2i-") as folder, serving(Path(folder), Path("demo")) as client:
        yield client


def test_all_tasks_at_once(demo: httpx.Client) -> None:
    """They meet on one engine; the results' own pixels are compared with stock pipelines elsewhere, on tiny models."""
    jobs = {}
    for name, (fields, _) in TASKS.items():
        answer = demo.post("/img2img", json=FEW | fields)
        assert answer.status_code == 202, (name, answer.text)
        jobs[name] = answer.json()["id"]
    for name, job_id in jobs.items():
        while not (job := demo.get(f"/jobs/{job_id}").json())["finished_at"]:
            time.sleep(0.1)
        assert job["status"] == "succeeded", (name, job["error"])
        with Image.open(io.BytesIO(demo.get(f"/jobs/{job_id}/result").content)) as picture:
            assert picture.size == TASKS[name][1], name
            assert len(picture.convert("RGB").getcolors(1 << 20) or ()) > 50, name


def test_its_card_tells_of_every_task(demo: httpx.Client) -> None:
    [card] = demo.get("/models").json()["models"]
    assert set(card["tasks"]) == {"img2img", "inpaint", "control", "edit", "upscale"}
    assert set(TYPES) <= set(card["controls"])
    assert {"depth", "segmentation"} <= set(card["preprocessors"])
    assert card["loras"] == ["blueprint"]
    assert card["image_prompts"]
    assert card["upscales"] == [2, 4]


def test_poses_are_refused_for_there_are_no_people(demo: httpx.Client) -> None:
    answer = demo.post("/img2img", json=FEW | {"prompt": "", "controls": [{"type": "pose", "image": PICTURE}]})
    assert answer.status_code == 422
    [error] = answer.json()["errors"]
    assert error["field"] == "controls.0.type"
    assert "canny" in error["message"], "what the model can do is said"
