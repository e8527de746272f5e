"""Workers that a scaler starts from the exported metrics, as KEDA does with `minReplicaCount: 0`."""

import logging
import re
import signal
import time
from pathlib import Path

import httpx
import yaml

from img2img.redis.model_registry import ModelRegistry
from tests.support.api_process import api_process
from tests.support.images import encoded, gradient
from tests.support.processes import MODEL, Service, Worker, wait_for

ROOT = Path(__file__).parents[2]


def wanted_workers(client: httpx.Client) -> int:
    """Return what the query of the ScaledObject asks for: its terms are sums over metrics."""
    manifest = yaml.safe_load((ROOT / "docker/kubernetes/keda/scaledobject.yaml").read_text())
    [trigger] = manifest["spec"]["triggers"]
    assert manifest["spec"]["minReplicaCount"] == 0
    metrics = client.get("/metrics").text
    value = 0.0
    for name in re.findall(r"img2img_\w+", trigger["metadata"]["query"]):
        value += sum(float(found) for found in re.findall(rf"^{name}{{.*}} (\S+)$", metrics, re.M))
    return -int(-value // float(trigger["metadata"]["threshold"]))


def stop(worker: Worker, service: Service) -> None:
    worker.send(signal.SIGTERM)
    assert worker.exit_code(60) == 0
    wait_for(lambda: not ModelRegistry(service.redis).live())


def test_jobs_without_workers_start_one(service: Service, tmp_path: Path) -> None:
    # A new deployment starts with one worker, which announces its models.
    stop(service.start_worker(), service)
    settings = {"IMG2IMG_MODEL": str(service.model), "IMG2IMG_REDIS_URL": service.url}
    with (
        api_process(service.folder, tmp_path / "log", **settings) as api,
        httpx.Client(base_url=api.url, timeout=60) as client,
    ):
        assert wanted_workers(client) == 0
        [model] = client.get("/models").json()["models"]
        assert (model["name"], model["workers"], model["state"]) == (MODEL, [], "unloaded")
        submitted_at = time.monotonic()
        response = client.post("/img2img", files={"image": encoded(gradient(32, 32))}, data={"width": "32"})
        assert response.status_code == 202, response.text
        job = f"/jobs/{response.json()['id']}"
        assert client.get(job).json()["status"] == "queued"
        wait_for(lambda: wanted_workers(client) == 1)
        worker = service.start_worker(wait=False)
        assert client.get(job, params={"wait": 60}).json()["status"] == "succeeded"
        logging.info("first image without a worker at first: %.1f s", time.monotonic() - submitted_at)
        assert client.get(f"{job}/result").status_code == 200
        wait_for(lambda: wanted_workers(client) == 0)
        stop(worker, service)
