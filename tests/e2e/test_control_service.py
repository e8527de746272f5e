"""ControlNets end to end: a model file, a worker process, real HTTP."""

import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from img2img.app.settings import ApiSettings
from img2img.app.supervisor.supervisor import free_port
from img2img.domain.conditioning import ControlType
from img2img.worker.images.control_maps import PREPROCESSORS
from tests.support.models.tiny_controlnets import tiny_controlnet
from tests.support.models.tiny_models import tiny_sd
from tests.support.servers import http_server, redis_server

pytestmark = pytest.mark.timeout(900)  # three processes import torch; a busy machine takes minutes for it

SIDE = 64


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with TemporaryDirectory(prefix="i2i-") as name, redis_server(Path(name)) as redis_url:
        folder = Path(name)
        tiny_controlnet(tiny_sd(folder / "tiny"), folder / "canny", seed=0)
        models = folder / "models.toml"
        models.write_text(
            '[models.tiny]\nsource = "./tiny"\ncontrolnets = { canny = "./canny", scribble = "./canny" }\n'
        )
        settings = ApiSettings(_env_file=None, data_dir=folder, redis_url=redis_url, model="tiny", port=free_port())
        environment = {
            "IMG2IMG_REDIS_URL": redis_url,
            "IMG2IMG_DATA_DIR": name,
            "IMG2IMG_MODELS_FILE": str(models),
            "IMG2IMG_MODEL": "tiny",
            "OMP_NUM_THREADS": "1",
        }
        worker = subprocess.Popen([sys.executable, "-P", "-m", "img2img.worker"], env=os.environ | environment)
        try:
            with http_server(settings) as url, httpx.Client(base_url=url, timeout=30) as client:
                while client.get("/readyz").status_code != 200:
                    assert worker.poll() is None, "the worker did not start"
                    time.sleep(0.1)
                yield client
        finally:
            worker.kill()
            worker.wait()


def picture() -> Image.Image:
    drawn = Image.new("RGB", (SIDE, SIDE), "navy")
    drawn.paste("yellow", (16, 24, 48, 56))
    return drawn


def encoded(image: Image.Image) -> str:
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def made(client: httpx.Client, path: str = "/img2img", **fields: Any) -> tuple[dict[str, Any], np.ndarray]:
    """The job of a request when it has succeeded, and its picture."""
    common = {} if path == "/control-maps" else {"num_inference_steps": 4, "seed": 1, "prompt": "a house"}
    response = client.post(path, json={"width": SIDE, "height": SIDE, **common, **fields})
    assert response.status_code == 202, response.text
    job = response.json()
    while job["status"] in ("queued", "running"):
        job = client.get(f"/jobs/{job['id']}?wait=20").json()
    assert job["status"] == "succeeded", json.dumps(job)
    png = client.get(job["images"][0]["url"]).content
    return job, np.asarray(Image.open(BytesIO(png)))


def test_a_control_map_is_what_opencv_makes_of_the_picture(client: httpx.Client) -> None:
    for kind in (ControlType.CANNY, ControlType.SOFTEDGE):
        job, seen = made(client, "/control-maps", image=encoded(picture()), type=kind)
        assert (seen == np.asarray(PREPROCESSORS[kind](picture()))).all()
        assert job["request"]["task"] == "control_map"
        assert job["progress"]["fraction"] == 1


def test_a_job_follows_its_control_and_a_map_sent_or_referred_to_is_the_map_that_is_made(client: httpx.Client) -> None:
    image = encoded(picture())
    map_job, _ = made(client, "/control-maps", image=image, type="canny")
    as_map = {"type": "canny", "preprocess": False}
    _, plain = made(client, image=image)
    _, steered = made(client, image=image, controls=[{"type": "canny"}])
    _, referred = made(client, image=image, controls=[{**as_map, "image": map_job["images"][0]["url"]}])
    _, sent = made(
        client, image=image, controls=[{**as_map, "image": encoded(PREPROCESSORS[ControlType.CANNY](picture()))}]
    )
    assert np.abs(plain.astype(int) - steered).max() > 20
    assert (referred == steered).all()
    assert (sent == steered).all()


def test_tasks_with_several_controls_end_well(client: httpx.Client) -> None:
    two = [
        {"type": "canny", "image": encoded(picture()), "scale": 0.5},
        {"type": "scribble", "image": encoded(picture())},
    ]
    job, _ = made(client, controls=two)
    assert (job["request"]["task"], job["request"]["image"]) == ("control", None)
    job, result = made(client, image=encoded(picture()), outpaint={"right": 32}, controls=two, width=None, height=None)
    assert (job["request"]["task"], result.shape) == ("inpaint", (SIDE, SIDE + 32, 3))
    assert (result[:, :SIDE] == np.asarray(picture())).all()


def test_the_model_says_what_it_can_follow(client: httpx.Client) -> None:
    [model] = client.get("/models").json()["models"]
    assert model["controls"] == ["canny", "scribble"]
    assert model["tasks"] == ["img2img", "inpaint", "control", "upscale"]
    assert model["preprocessors"] == ["canny", "scribble", "lineart", "softedge", "tile"]
