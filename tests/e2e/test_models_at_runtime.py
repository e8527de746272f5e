"""Models and LoRAs that are added, changed and removed while a service runs jobs."""

import io
import json
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.support.images import encoded, gradient
from tests.support.model_hub import model_hub
from tests.support.models.tiny_adapters import tiny_lora
from tests.support.models.tiny_models import tiny_sdxl
from tests.support.processes import wait_for as wait_for_up_to
from tests.support.serving import serving

INPUT = encoded(gradient(64, 64))
FIELDS = {"prompt": "a house", "num_inference_steps": 4, "seed": 4, "strength": 0.9, "width": 64, "height": 64}


# A machine that runs other tests is slow.
wait_for = partial(wait_for_up_to, timeout_s=120)


def models_file(folder: Path, model: Path, *names: str) -> None:
    """Write a model file as editors do: completely, then renamed."""
    tables = [f'[models.{name}]\nsource = "{model}"\nlora_folder = "./loras"\n' for name in names]
    (folder / "models.new").write_text("\n".join(tables))
    (folder / "models.new").rename(folder / "models.toml")


@pytest.fixture(scope="module")
def folder(model_folder: Path) -> Iterator[Path]:
    """The folder of a model file and its LoRAs."""
    with TemporaryDirectory(prefix="i2i-") as name:
        folder = Path(name)
        (folder / "loras").mkdir()
        models_file(folder, model_folder, "house")
        yield folder


@pytest.fixture(scope="module")
def client(folder: Path, model_folder: Path) -> Iterator[httpx.Client]:
    """A client of a service that makes no requests to the hub at its start, like a container after its first start."""
    with TemporaryDirectory(prefix="i2i-") as data, model_hub("org/tiny", model_folder) as hub:
        environment = {"HF_ENDPOINT": hub, "HF_HOME": data, "HF_HUB_OFFLINE": "1", "OFFLINE_UNTIL_CHANGE": "true"}
        with serving(Path(data), folder / "models.toml", "--models-file", **environment) as client:
            yield client


def submit(client: httpx.Client, **fields: Any) -> httpx.Response:
    data = {name: json.dumps(value) if isinstance(value, list) else value for name, value in (FIELDS | fields).items()}
    return client.post("/img2img", files={"image": INPUT}, data=data)


def ended(client: httpx.Client, response: httpx.Response) -> dict[str, Any]:
    """Return the job of a submit after its end."""
    assert response.status_code == 202, response.text
    while True:
        job: dict[str, Any] = client.get(f"{response.headers['location']}?wait=20").json()
        if job["finished_at"]:
            return job


def succeeded(client: httpx.Client, response: httpx.Response) -> bytes:
    """Return the pixels of a job that succeeds."""
    job = ended(client, response)
    assert job["status"] == "succeeded", job["error"]
    with Image.open(io.BytesIO(client.get(f"/jobs/{job['id']}/result").content)) as image:
        return image.tobytes()


def wait_until_served(client: httpx.Client, name: str, lora: str | None = None) -> None:
    def is_served() -> bool:
        model = client.get(f"/models/{name}").json()
        assert model.get("state") != "failed", model
        card = model.get("card") or {"loras": []}
        return model.get("state") in ("loaded", "unloaded") and (lora is None or lora in card["loras"])

    wait_for(is_served)


@contextmanager
def load(client: httpx.Client, **fields: Any) -> Iterator[list[str]]:
    """Submit jobs without pause, and collect why any of them failed."""
    failures: list[str] = []
    stopped = threading.Event()

    def run(seed: int) -> None:
        while not stopped.is_set():
            job = ended(client, submit(client, seed=seed, **fields))
            if job["status"] != "succeeded":
                failures.append(str(job["error"]))

    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(run, seed) for seed in range(3)]
        try:
            yield failures
        finally:
            stopped.set()
        for future in futures:
            future.result()


def test_model_and_lora_are_added_used_and_removed_under_load(
    client: httpx.Client, model_folder: Path, folder: Path
) -> None:
    ink = tiny_lora(model_folder, folder / "elsewhere" / "ink.safetensors", seed=1)
    plain = succeeded(client, submit(client, model="house"))
    with load(client, model="house") as failures:
        assert client.put("/models/org/hut", json={"source": str(model_folder)}).status_code == 202
        wait_until_served(client, "org/hut")
        assert succeeded(client, submit(client, model="org/hut")) == plain

        for name in ("house", "org/hut"):
            assert client.put(f"/models/{name}/loras/ink", json={"source": str(ink)}).status_code == 202
            wait_until_served(client, name, "ink")
        with_ink = [
            succeeded(client, submit(client, model=name, loras=[{"name": "ink"}])) for name in ("house", "org/hut")
        ]
        assert with_ink[0] == with_ink[1] != plain

        # Running jobs keep the LoRA that is removed, and other jobs do not notice.
        running = [submit(client, model="org/hut", loras=[{"name": "ink"}], num_inference_steps=100)]
        wait_for(lambda: client.get(running[0].headers["location"]).json()["status"] == "running")
        assert client.delete("/models/org/hut/loras/ink").status_code == 202
        wait_for(lambda: client.get("/models/org/hut").json()["card"]["loras"] == [])
        assert submit(client, model="org/hut", loras=[{"name": "ink"}]).status_code == 422
        succeeded(client, running[0])

        # Jobs that were accepted before the removal of their model are run.
        waiting = [submit(client, model="org/hut", seed=seed, num_inference_steps=20) for seed in range(30)]
        assert client.delete("/models/org/hut").json()["state"] == "removed"
        assert submit(client, model="org/hut").status_code == 422
        for response in waiting:
            succeeded(client, response)
        wait_for(lambda: [model["name"] for model in client.get("/models").json()["models"]] == ["house"])
    assert failures == []
    client.delete("/models/house/loras/ink")


def test_folder_of_loras_is_followed(client: httpx.Client, model_folder: Path, folder: Path) -> None:
    pen = tiny_lora(model_folder, folder / "elsewhere" / "pen.safetensors", seed=2)
    content = pen.read_bytes()
    (folder / "loras" / "notes.txt").write_text("no LoRA")
    (folder / "loras" / "broken.safetensors").write_bytes(content[: len(content) // 2])
    (folder / "loras" / "vae.safetensors").symlink_to(model_folder / "vae" / "diffusion_pytorch_model.safetensors")
    with load(client, model="house") as failures:
        # A slow copy: the file is not used before it is complete.
        with (folder / "loras" / "pen.safetensors").open("wb") as copy:
            for start in range(0, len(content), len(content) // 3 + 1):
                copy.write(content[start : start + len(content) // 3 + 1])
                copy.flush()
                time.sleep(0.6)
        wait_until_served(client, "house", "pen")
        succeeded(client, submit(client, model="house", loras=[{"name": "pen"}]))
        shutil.copy(pen, folder / "loras" / "brush.safetensors")
        wait_until_served(client, "house", "brush")
        (folder / "loras" / "pen.safetensors").unlink()
        wait_for(lambda: client.get("/models/house").json()["card"]["loras"] == ["brush"])
    assert failures == []

    def with_brush() -> bytes:
        return succeeded(client, submit(client, model="house", loras=[{"name": "brush"}]))

    before = with_brush()
    with load(client, model="house", loras=[{"name": "brush"}]) as failures:
        tiny_lora(model_folder, folder / "loras" / "brush.safetensors", seed=5)
        wait_for(lambda: with_brush() != before)
    assert failures == []


def test_lora_of_the_folder_that_does_not_fit_leaves_the_model_alone(
    client: httpx.Client, folder: Path, tmp_path: Path
) -> None:
    # A LoRA of another family, which only loading it shows.
    tiny_lora(tiny_sdxl(tmp_path / "other"), folder / "loras" / "large.safetensors", seed=3)
    with load(client, model="house") as failures:
        time.sleep(4)
        succeeded(client, submit(client, model="house"))
    assert failures == []
    assert "large" not in client.get("/models/house").json()["card"]["loras"]
    wait_for(lambda: any("the LoRA large is left out" in notice for notice in client.get("/models").json()["notices"]))
    (folder / "loras" / "large.safetensors").unlink()
    wait_for(lambda: client.get("/models").json()["notices"] == [])


def test_model_file_is_followed_and_an_invalid_one_is_ignored(
    client: httpx.Client, model_folder: Path, folder: Path
) -> None:
    with load(client) as failures:
        (folder / "models.toml").write_text("[models.house]\nsource = './no")
        wait_for(lambda: "a change of the model file is ignored" in client.get("/readyz").json()["workers"]["detail"])
        assert [model["name"] for model in client.get("/models").json()["models"]] == ["house"]
        models_file(folder, model_folder, "cabin", "house")
        wait_until_served(client, "cabin")
        wait_for(lambda: client.get("/models/cabin").json()["default"])
        assert client.get("/models").json()["notices"] == []
        assert ended(client, submit(client))["request"]["model"] == "cabin"
        models_file(folder, model_folder, "house")
        wait_for(lambda: [model["name"] for model in client.get("/models").json()["models"]] == ["house"])
        wait_for(lambda: client.get("/models/house").json()["default"])
    assert failures == []


def test_model_of_the_hub_is_downloaded(client: httpx.Client) -> None:
    assert client.put("/models/org/tiny", json={"source": "org/tiny"}).status_code == 202
    wait_until_served(client, "org/tiny")
    assert succeeded(client, submit(client, model="org/tiny")) == succeeded(client, submit(client, model="house"))


def test_definition_that_cannot_be_loaded_is_listed_with_the_reason(client: httpx.Client, tmp_path: Path) -> None:
    assert client.put("/models/bad", json={"source": str(tmp_path / "none")}).status_code == 202
    wait_for(lambda: client.get("/models/bad").json()["state"] == "failed")
    assert "none" in client.get("/models/bad").json()["detail"]
    assert [model["name"] for model in client.get("/models").json()["pending"]] == ["bad"]
    succeeded(client, submit(client, model="house"))
    assert client.post("/models/bad/reset").status_code == 202
    wait_for(lambda: client.get("/models/bad").status_code == 404)
    assert client.get("/models").json()["pending"] == []
