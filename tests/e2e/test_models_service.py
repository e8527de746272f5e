"""`img2img serve` with a model file: a tiny model with a LoRA and an IP-Adapter."""

import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import diffusers
import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.images import encoded
from tests.support.models.tiny_adapters import tiny_ip_adapter, tiny_lora
from tests.support.serving import serving

SIDE = 64
FIELDS = {"prompt": "a house", "num_inference_steps": 3, "seed": 4, "guidance_scale": 3.0, "strength": 0.9}


@pytest.fixture(scope="module")
def files(model_folder: Path) -> Iterator[Path]:
    """The folder of a model file, its LoRA and its IP-Adapter."""
    with TemporaryDirectory(prefix="i2i-") as name:
        folder = Path(name)
        tiny_lora(model_folder, folder / "ink.safetensors", seed=1)
        tiny_ip_adapter(model_folder, folder / "ip")
        (folder / "models.toml").write_text(
            f"""
            [models.house]
            source = "{model_folder}"
            steps = 3
            scheduler = "euler"
            loras.ink = "./ink.safetensors"
            ip_adapter = "./ip"

            [models.plain]
            source = "{model_folder}"
            """
        )
        yield folder


@pytest.fixture(scope="module")
def client(files: Path) -> Iterator[httpx.Client]:
    models = files / "models.toml"
    with TemporaryDirectory(prefix="i2i-") as folder, serving(Path(folder), models, "--models-file") as client:
        yield client


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(3).integers(0, 256, (SIDE, SIDE, 3), np.uint8))


def submit(client: httpx.Client, image: Image.Image, **fields: Any) -> str:
    data = {name: json.dumps(value) if isinstance(value, list) else value for name, value in (FIELDS | fields).items()}
    files = {"image": encoded(image)}
    if "image_prompts" in fields:
        files["image_prompts.0.image"] = encoded(image)
    response = client.post("/img2img", files=files, data=data)
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


def result(client: httpx.Client, job_id: str) -> tuple[dict[str, Any], np.ndarray]:
    while True:
        job: dict[str, Any] = client.get(f"/jobs/{job_id}?wait=10").json()
        if job["finished_at"]:
            break
        time.sleep(0.05)
    assert job["status"] == "succeeded", job["error"]
    with Image.open(io.BytesIO(client.get(f"/jobs/{job_id}/result").content)) as image:
        return job, np.asarray(image)


def stock(
    model: Path, image: Image.Image, files: Path, *, lora_scale: float = 0, image_prompt_scale: float = 0
) -> np.ndarray:
    pipeline = diffusers.StableDiffusionImg2ImgPipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    conditions = {}
    if image_prompt_scale:
        pipeline.load_ip_adapter(str(files / "ip"), subfolder="", weight_name="ip-adapter.safetensors")
        pipeline.set_ip_adapter_scale(image_prompt_scale)
        conditions["ip_adapter_image"] = image
    if lora_scale:
        pipeline.load_lora_weights(files / "ink.safetensors", adapter_name="ink")
        pipeline.set_adapters(["ink"], [lora_scale])
    parameters = {name: value for name, value in FIELDS.items() if name != "seed"}
    generator = torch.Generator().manual_seed(int(FIELDS["seed"]))  # type: ignore[call-overload]
    return np.asarray(pipeline(image=image, generator=generator, **parameters, **conditions).images[0])


def test_jobs_with_and_without_adapters_match_the_stock_pipeline(
    client: httpx.Client, model_folder: Path, files: Path, image: Image.Image
) -> None:
    adapters = {"loras": [{"name": "ink", "scale": 0.7}], "image_prompts": [{"scale": 0.5}]}
    ids = [
        submit(client, image, **adapters),
        submit(client, image),
        submit(client, image, loras=adapters["loras"]),
        submit(client, image, model="plain", scheduler="euler"),
    ]
    expected = [
        stock(model_folder, image, files, lora_scale=0.7, image_prompt_scale=0.5),
        stock(model_folder, image, files),
        stock(model_folder, image, files, lora_scale=0.7),
    ]
    jobs = [result(client, job_id) for job_id in ids]
    for (job, pixels), wanted in zip(jobs, [*expected, expected[1]], strict=True):
        assert np.abs(pixels.astype(int) - wanted.astype(int)).max() <= 1, job["request"]
    assert [job["request"]["model"] for job, _ in jobs] == ["house", "house", "house", "plain"]
    assert np.abs(expected[0].astype(int) - expected[1]).max() > 8


def test_models_have_the_settings_of_the_file(client: httpx.Client, image: Image.Image) -> None:
    house, plain = client.get("/models").json()["models"]
    assert (house["name"], house["default"], house["loras"], house["image_prompts"]) == ("house", True, ["ink"], True)
    assert (house["default_steps"], house["default_scheduler"]) == (3, "euler")
    assert house["adapter_tasks"] == ["img2img", "inpaint"]
    assert (plain["name"], plain["default"], plain["loras"], plain["image_prompts"]) == ("plain", False, [], False)
    refused = client.post(
        "/img2img", files={"image": encoded(image)}, data={"model": "plain", "loras": '[{"name": "ink"}]'}
    )
    assert refused.status_code == 422
