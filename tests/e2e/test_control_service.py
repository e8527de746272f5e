"""Jobs with ControlNets: a model file, a worker process and an API server."""

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

# Three processes import torch, which takes minutes on a busy machine.
pytestmark = pytest.mark.timeout(900)

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


def example_image() -> Image.Image:
    image = Image.new("RGB", (SIDE, SIDE), "navy")
    image.paste("yellow", (16, 24, 48, 56))
    return image


def encoded(image: Image.Image) -> str:
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def run_job(client: httpx.Client, path: str = "/img2img", **fields: Any) -> tuple[dict[str, Any], np.ndarray]:
    """Submit a job, and return it with the pixels of its result after it has succeeded."""
    common = {} if path == "/control-maps" else {"num_inference_steps": 4, "seed": 1, "prompt": "a house"}
    response = client.post(path, json={"width": SIDE, "height": SIDE, **common, **fields})
    assert response.status_code == 202, response.text
    job = response.json()
    while job["status"] in ("queued", "running"):
        job = client.get(f"/jobs/{job['id']}?wait=20").json()
    assert job["status"] == "succeeded", json.dumps(job)
    png = client.get(job["images"][0]["url"]).content
    return job, np.asarray(Image.open(BytesIO(png)))


def test_control_map_matches_the_preprocessor(client: httpx.Client) -> None:
    for kind in (ControlType.CANNY, ControlType.SOFTEDGE):
        job, pixels = run_job(client, "/control-maps", image=encoded(example_image()), type=kind)
        assert (pixels == np.asarray(PREPROCESSORS[kind](example_image()))).all()
        assert job["request"]["task"] == "control_map"
        assert job["progress"]["fraction"] == 1


def test_control_map_can_be_computed_uploaded_or_referenced(client: httpx.Client) -> None:
    image = encoded(example_image())
    map_job, _ = run_job(client, "/control-maps", image=image, type="canny")
    as_map = {"type": "canny", "preprocess": False}
    _, plain = run_job(client, image=image)
    _, controlled = run_job(client, image=image, controls=[{"type": "canny"}])
    _, referenced = run_job(client, image=image, controls=[{**as_map, "image": map_job["images"][0]["url"]}])
    _, uploaded = run_job(
        client, image=image, controls=[{**as_map, "image": encoded(PREPROCESSORS[ControlType.CANNY](example_image()))}]
    )
    assert np.abs(plain.astype(int) - controlled).max() > 20
    assert (referenced == controlled).all()
    assert (uploaded == controlled).all()


def test_example_writes_the_edges_and_an_image(client: httpx.Client, tmp_path: Path) -> None:
    program = Path(__file__).parents[2] / "examples" / "controlnet.py"
    environment = os.environ | {"IMG2IMG_URL": str(client.base_url).rstrip("/")}
    subprocess.run([sys.executable, program], cwd=tmp_path, env=environment, check=True, timeout=120)
    edges = np.asarray(Image.open(tmp_path / "edges.png").convert("L"))
    assert set(np.unique(edges)) == {0, 255}
    assert Image.open(tmp_path / "controlled.png").size == edges.shape[::-1]


def test_jobs_with_two_controls_succeed(client: httpx.Client) -> None:
    controls = [
        {"type": "canny", "image": encoded(example_image()), "scale": 0.5},
        {"type": "scribble", "image": encoded(example_image())},
    ]
    job, _ = run_job(client, controls=controls)
    assert (job["request"]["task"], "image" in job["request"]) == ("control", False)
    job, result = run_job(
        client, image=encoded(example_image()), outpaint={"right": 32}, controls=controls, width=None, height=None
    )
    assert (job["request"]["task"], result.shape) == ("inpaint", (SIDE, SIDE + 32, 3))
    assert (result[:, :SIDE] == np.asarray(example_image())).all()


def test_model_card_lists_controls_and_preprocessors(client: httpx.Client) -> None:
    [model] = client.get("/models").json()["models"]
    assert model["controls"] == ["canny", "scribble"]
    assert model["tasks"] == ["img2img", "inpaint", "control", "upscale"]
    assert set(model["preprocessors"]) >= {"canny", "scribble", "lineart", "softedge", "tile", "mlsd", "blur", "gray"}
