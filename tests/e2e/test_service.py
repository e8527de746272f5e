"""The whole service as `img2img serve` runs it: API server, Redis, and a worker with a tiny model."""

import base64
import io
import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import diffusers
import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from img2img.domain.parameters import DIFFUSION_SCHEDULERS, Scheduler
from tests.support.engines import one_thread as one_thread
from tests.support.serving import serving

ROOT = Path(__file__).parents[2]
# Native size of the tiny model.
SIZE = 64


@pytest.fixture(scope="module")
def stock(model_folder: Path) -> diffusers.DiffusionPipeline:
    pipeline = diffusers.AutoPipelineForImage2Image.from_pretrained(model_folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(3).integers(0, 256, (SIZE, SIZE, 3), np.uint8))


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def submit(client: httpx.Client, image: Image.Image, **fields: Any) -> str:
    response = client.post("/img2img", files={"image": png(image)}, data=fields)
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


def wait(client: httpx.Client, job_id: str, timeout_s: float = 120) -> dict[str, Any]:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        job: dict[str, Any] = client.get(f"/jobs/{job_id}").json()
        if job["finished_at"]:
            return job
        time.sleep(0.05)
    raise AssertionError(f"job {job_id} did not end: {job}")


def fetch(client: httpx.Client, job: dict[str, Any], index: int = 0) -> np.ndarray:
    info = job["images"][index]
    response = client.get(info["url"])
    assert response.status_code == 200
    assert sha256(response.content).hexdigest() == info["sha256"]
    assert len(response.content) == info["bytes"]
    with Image.open(io.BytesIO(response.content)) as image:
        assert image.size == (info["width"], info["height"])
        return np.asarray(image)


def make(client: httpx.Client, image: Image.Image, **fields: Any) -> tuple[dict[str, Any], np.ndarray]:
    job = wait(client, submit(client, image, **fields))
    assert job["status"] == "succeeded", job["error"]
    return job, fetch(client, job)


def test_sixteen_mixed_jobs_match_the_stock_pipeline(client, stock, image) -> None:
    jobs = [
        {
            "prompt": f"a house {i}",
            "strength": (0.05, 0.3, 0.6, 1.0)[i % 4],
            "guidance_scale": (1.0, 4.0)[i // 4 % 2],
            "num_inference_steps": 20 + i % 3,
            "seed": i,
        }
        for i in range(16)
    ]
    ids = [submit(client, image, **job) for job in jobs]
    for job, job_id in zip(jobs, ids, strict=True):
        pixels = fetch(client, wait(client, job_id))
        expected = stock(
            prompt=job["prompt"],
            image=image,
            strength=job["strength"],
            num_inference_steps=job["num_inference_steps"],
            guidance_scale=job["guidance_scale"],
            generator=torch.Generator().manual_seed(job["seed"]),
        ).images[0]
        assert np.abs(pixels.astype(int) - np.asarray(expected).astype(int)).max() <= 1, job


@pytest.mark.parametrize("scheduler", DIFFUSION_SCHEDULERS)
def test_job_with_each_scheduler_succeeds(client, image, scheduler: Scheduler) -> None:
    job, _ = make(client, image, scheduler=scheduler.value, num_inference_steps=8, strength=0.5)
    assert job["request"]["scheduler"] == scheduler
    assert job["progress"] == {"step": 4, "steps": 4, "fraction": 1}


def test_repeated_request_gives_the_same_bytes(client, image) -> None:
    fields = {"prompt": "repeated", "seed": 5, "num_inference_steps": 6, "scheduler": "euler_a"}
    first, second = (make(client, image, **fields)[0] for _ in range(2))
    assert first["images"][0]["sha256"] == second["images"][0]["sha256"]


def test_random_seed_is_reported_and_reproduces_the_image(client, image) -> None:
    job, first = make(client, image, num_inference_steps=4)
    _, second = make(client, image, num_inference_steps=4, seed=job["request"]["seed"])
    assert np.array_equal(first, second)


def test_image_has_the_seed_of_the_job_plus_its_index(client, image) -> None:
    job = wait(client, submit(client, image, num_images=3, seed=10, num_inference_steps=6))
    assert [info["seed"] for info in job["images"]] == [10, 11, 12]
    assert job["progress"]["steps"] == 3 * 4
    for info in job["images"]:
        _, alone = make(client, image, seed=info["seed"], num_inference_steps=6)
        assert np.abs(fetch(client, job, info["index"]).astype(int) - alone.astype(int)).max() <= 1


def test_strength_zero_runs_no_step(client, image) -> None:
    job, _ = make(client, image, strength=0)
    assert job["progress"] == {"step": 0, "steps": 0, "fraction": 1}
    assert "denoise" not in job["timings"]


def test_inpainting_changes_only_the_masked_pixels(client) -> None:
    photo = Image.fromarray(np.random.default_rng(4).integers(0, 256, (61, 75, 3), np.uint8))
    mask = Image.new("L", photo.size)
    mask.paste(255, (20, 10, 50, 40))
    for fields in ({}, {"mask_padding": 4}, {"outpaint": json.dumps({"right": 11})}):
        files = {"image": png(photo), "mask": png(mask)}
        response = client.post("/img2img", files=files, data={"num_inference_steps": 3, "num_images": 2, **fields})
        assert response.status_code == 202, response.text
        job = wait(client, response.json()["id"])
        whole = fetch(client, job, 1)
        assert whole.shape == (61, 86 if "outpaint" in fields else 75, 3)
        old, kept = np.asarray(photo), np.asarray(mask) == 0
        assert (whole[:, :75][kept] == old[kept]).all()
        assert (whole[:, :75][~kept] != old[~kept]).mean() > 0.5


def test_event_stream_sends_previews(client, image) -> None:
    job_id = submit(client, image, num_inference_steps=150, strength=1)
    steps = []
    with client.stream("GET", f"/jobs/{job_id}/events?preview=true") as events:
        name = ""
        for line in events.iter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: ") and name == "preview":
                event = json.loads(line.removeprefix("data: "))
                steps.append(event["step"])
                header, _, data = event["image"].partition(",")
                assert header == "data:image/jpeg;base64"
                with Image.open(io.BytesIO(base64.b64decode(data))) as preview:
                    assert preview.size == (SIZE // 2, SIZE // 2)
    assert steps
    assert steps == sorted(set(steps))


def test_watch_option_draws_previews_in_a_terminal(client, image, tmp_path: Path) -> None:
    (tmp_path / "in.png").write_bytes(png(image))
    command = [
        sys.executable,
        "-m",
        "img2img.app.cli",
        "submit",
        "in.png",
        "--watch",
        "--strength",
        "1",
        "--steps",
        "150",
    ]
    terminal, device = os.openpty()
    environment = os.environ | {"IMG2IMG_URL": str(client.base_url), "TERM": "xterm-256color", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [*command, "-o", "out.png"], cwd=tmp_path, env=environment, stdin=device, stdout=device, stderr=device
    )
    os.close(device)
    output = b""
    # Linux raises an error when the process has closed the terminal.
    with suppress(OSError):
        while data := os.read(terminal, 65536):
            output += data
    os.close(terminal)
    assert process.wait(60) == 0, output.decode()
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    assert "▄" in output.decode() or "▀" in output.decode()


def test_smallest_strength_runs_one_step(client, image) -> None:
    job, _ = make(client, image, strength=0.0001)
    assert job["progress"]["steps"] == 1


@pytest.mark.parametrize("resize", ["crop", "pad", "stretch"])
def test_result_has_the_requested_size(client, image, resize: str) -> None:
    job, pixels = make(client, image.resize((90, 50)), width=72, height=96, resize=resize, num_inference_steps=2)
    assert pixels.shape == (96, 72, 3)
    assert job["request"]["resize"] == resize


def test_default_size_is_the_bucket_of_the_aspect_ratio(client, image) -> None:
    sizes = client.get("/models").json()["models"][0]["sizes"]
    job, pixels = make(client, image.resize((300, 200)), num_inference_steps=2)
    assert [job["request"]["width"], job["request"]["height"]] in sizes
    assert pixels.shape[1] > pixels.shape[0]


def test_json_and_multipart_give_the_same_image(client, image) -> None:
    fields = {"prompt": "json", "seed": 3, "num_inference_steps": 4}
    body = {**fields, "image": "data:image/png;base64," + base64.b64encode(png(image)).decode()}
    response = client.post("/img2img", json=body)
    assert response.status_code == 202
    by_json = wait(client, response.json()["id"])
    by_form, _ = make(client, image, **fields)
    assert by_json["images"][0]["sha256"] == by_form["images"][0]["sha256"]


def test_png_has_its_parameters_without_job_id_and_input_hash(client, image) -> None:
    job, _ = make(client, image, prompt="a häuschen", seed=11, num_inference_steps=2)
    with Image.open(io.BytesIO(client.get(f"/jobs/{job['id']}/result").content)) as result:
        parameters = json.loads(result.text["img2img"])
    assert parameters["prompt"] == "a häuschen"
    assert parameters["seed"] == 11
    assert job["id"] not in json.dumps(parameters)
    assert job["request"]["image"] not in json.dumps(parameters)


def test_timings_have_all_stages(client, image) -> None:
    # Not `image` itself, whose encoding is remembered.
    timings = make(client, image.transpose(Image.Transpose.ROTATE_90), prompt="timed", num_inference_steps=4)[0][
        "timings"
    ]
    assert {"queued", "run", "load", "wait", "encode", "denoise", "decode", "save"} <= set(timings)
    assert all(seconds >= 0 for seconds in timings.values())
    assert timings["denoise"] <= timings["run"]


def test_cancelled_job_frees_its_rows_and_stays_cancelled(client, image) -> None:
    slow = [submit(client, image, num_images=8, num_inference_steps=150, strength=1) for _ in range(2)]
    while not all(client.get(f"/jobs/{job_id}").json()["progress"]["step"] for job_id in slow):
        time.sleep(0.05)
    following = submit(client, image, num_inference_steps=2)
    for job_id in slow:
        assert client.post(f"/jobs/{job_id}/cancel").json()["status"] == "cancelled"
    cancelled_at = time.monotonic()
    assert wait(client, following)["status"] == "succeeded"
    assert time.monotonic() - cancelled_at < 10, "the cancelled jobs kept their sixteen rows"
    for job_id in slow:
        assert client.get(f"/jobs/{job_id}").json()["status"] == "cancelled"
        assert client.get(f"/jobs/{job_id}/result").status_code == 410


def test_models_and_health_checks_respond(client) -> None:
    (model,) = client.get("/models").json()["models"]
    assert model["name"] == "tiny"
    assert model["family"] == "stable-diffusion"
    assert model["native_size"] == SIZE
    assert set(model["schedulers"]) == set(DIFFUSION_SCHEDULERS)
    assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200


def test_jobs_survive_a_restart_of_serve(model_folder, image) -> None:
    with TemporaryDirectory(prefix="i2i-") as folder:
        data_dir = Path(folder)
        with serving(data_dir, model_folder) as client:
            done = make(client, image, num_inference_steps=2)[0]
            left = [submit(client, image, num_inference_steps=30, seed=i) for i in range(24)]
        with serving(data_dir, model_folder) as client:
            assert client.get(f"/jobs/{done['id']}").json() == done
            assert fetch(client, done).shape == (SIZE, SIZE, 3)
            jobs = [wait(client, job_id) for job_id in left]
    assert {job["status"] for job in jobs} == {"succeeded"}
