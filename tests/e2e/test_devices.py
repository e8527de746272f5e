"""`img2img serve` with several devices: a worker process for each."""

import time
from pathlib import Path

import httpx
from redis import Redis

from img2img.client import Client
from img2img.redis.job_store import JobStore
from tests.support.images import encoded, gradient
from tests.support.processes import wait_for
from tests.support.serving import serving


def live_workers(client: httpx.Client) -> set[str]:
    return {worker for model in client.get("/models").json()["models"] for worker in model["workers"]}


def test_each_device_has_a_worker(tmp_path: Path, model_folder: Path) -> None:
    with serving(tmp_path / "data", model_folder, IMG2IMG_DEVICE="cpu,cpu") as client:
        wait_for(lambda: len(live_workers(client)) == 2, timeout_s=120)
        with Client(str(client.base_url)) as api:
            jobs = [
                api.submit(image=encoded(gradient(64, 64)), prompt="a house", seed=seed, num_inference_steps=20)
                for seed in range(40)
            ]
            assert {api.wait(job, timeout_s=120).status for job in jobs} == {"succeeded"}
        with Redis(unix_socket_path=str(tmp_path / "data/redis.sock")) as redis:
            records = [JobStore(redis).get(job.id) for job in jobs]
        assert {record.worker for record in records if record} == live_workers(client)


def test_service_runs_without_a_device_that_cannot_be_used(tmp_path: Path, model_folder: Path) -> None:
    log = tmp_path / "log"
    with serving(tmp_path / "data", model_folder, log=log, IMG2IMG_DEVICE="cpu,cuda:7") as client:
        wait_for(lambda: "worker 1 (cuda:7) cannot start; the service runs without it" in log.read_text(), timeout_s=60)
        assert len(live_workers(client)) == 1
        # It is not started again.
        starts = log.read_text().count("on cuda:7")
        time.sleep(3)
        assert log.read_text().count("on cuda:7") == starts
