"""A whole service with its embedded Redis on a small disk that is full: it says so, and recovers without help."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import pytest
from redis import Redis

from img2img.redis import outage
from img2img.settings import embedded_redis_socket
from tests.support.images import encoded, gradient
from tests.support.problems import assert_problem
from tests.support.processes import wait_for
from tests.support.serving import serving

DISK_MB = 40
TTL_S = 12


@pytest.fixture
def disk() -> Iterator[Path]:
    """A folder on a file system of its own, which only root can mount."""
    # A short path, because it contains a unix socket.
    with TemporaryDirectory(prefix="i2i-") as folder:
        command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}M", "tmpfs", folder]
        if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("only root can mount a file system")
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "--lazy", folder], check=False)


def noise(side: int) -> bytes:
    from PIL import Image

    return encoded(Image.frombytes("RGB", (side, side), os.urandom(3 * side * side)), compress_level=0)


def upload_until_refused(client: httpx.Client, disk: Path) -> httpx.Response:
    for _ in range(1000):
        free = shutil.disk_usage(disk).free
        response = client.post("/images", files={"image": noise(900 if free > 4_000_000 else 100)})
        if response.status_code != 201:
            return response
    raise AssertionError("the disk does not get full")


def fill(disk: Path) -> None:
    with suppress(OSError), (disk / "ballast").open("wb", buffering=0) as file:
        while True:
            file.write(b"0" * 4096)


def submit(client: httpx.Client, **fields: Any) -> httpx.Response:
    return client.post(
        "/img2img", files={"image": encoded(gradient(16, 16))}, data={"num_inference_steps": "2", **fields}
    )


def rejects_writes(client: httpx.Client, disk: Path) -> bool:
    """Send submits until Redis cannot write them to its file."""
    submit(client, prompt="y" * 9000)
    with Redis.from_url(f"unix://{embedded_redis_socket(disk)}") as redis:
        return outage.why_not_writable(redis) is not None


def settings_of(reserve: str, ttl_s: int = TTL_S) -> dict[str, str]:
    return {"IMG2IMG_RESULT_TTL": str(ttl_s), "IMG2IMG_MIN_FREE_DISK": reserve, "IMG2IMG_LEASE_S": "4"}


def assert_job_runs(client: httpx.Client) -> None:
    job = submit(client)
    assert job.status_code == 202, job.text
    assert client.get(f"/jobs/{job.json()['id']}", params={"wait": 30}).json()["status"] == "succeeded"


def test_disk_filled_by_uploads_recovers_when_they_expire(disk: Path) -> None:
    with serving(disk, Path("demo"), **settings_of("0")) as client:
        problem = assert_problem(upload_until_refused(client, disk), 507, "storage_full")
        assert "disk" in problem["detail"]
        fill(disk)
        wait_for(lambda: rejects_writes(client, disk))
        full_at = time.monotonic()
        response = submit(client)
        assert "full" in assert_problem(response, 507, "storage_full")["detail"]
        assert int(response.headers["retry-after"]) > 0
        ready = client.get("/readyz")
        assert (ready.status_code, ready.json()["ready"]) == (503, False)
        assert ready.json()["redis"] == {"ok": False, "detail": "the disk of Redis is full or cannot be written"}
        # The ballast stays: only expired uploads make room.
        wait_for(lambda: submit(client).status_code == 202, 120)
        assert time.monotonic() - full_at < TTL_S + 60
        wait_for(lambda: client.get("/readyz").json()["ready"])
        assert_job_runs(client)


def test_service_that_is_restarted_on_a_full_disk_recovers(disk: Path, tmp_path: Path) -> None:
    with serving(disk, Path("demo"), **settings_of("0")) as client:
        upload_until_refused(client, disk)
        fill(disk)
        wait_for(lambda: rejects_writes(client, disk))
    log = tmp_path / "log"
    # `serving` waits until the service is ready.
    with serving(disk, Path("demo"), log=log, **settings_of("0")) as client:
        assert_job_runs(client)
    text = log.read_text()
    assert "Traceback" not in text
    assert "img2img: not ready: redis: the disk of Redis is full" in text
    assert text.count("img2img: not ready: redis") < 5, "once, and not at every check"


def test_uploads_and_inputs_leave_a_reserve_that_results_may_use(disk: Path) -> None:
    # Long enough for the upload to be there after the disk was filled.
    with serving(disk, Path("demo"), **settings_of("20%", ttl_s=45)) as client:
        image = client.post("/images", files={"image": noise(16)}).json()["sha256"]
        running = submit(client, num_inference_steps="60").json()["id"]
        problem = assert_problem(upload_until_refused(client, disk), 507, "storage_full")
        assert problem["detail"].startswith("The disk of the service is full, except for 20%")
        assert shutil.disk_usage(disk).free >= 0.19 * DISK_MB * 1024**2
        # Inputs are smaller than the uploads, so a few still fit.
        wait_for(lambda: submit(client).status_code == 507)
        assert_problem(client.post("/img2img", json={"image": image}), 507, "storage_full")
        assert client.post("/img2img?dry_run=true", json={"image": image}).status_code == 200
        assert client.get("/readyz").json()["store"]["ok"] is False
        assert client.get(f"/jobs/{running}", params={"wait": 60}).json()["status"] == "succeeded"
        assert client.get(f"/jobs/{running}/result").status_code == 200
        wait_for(lambda: submit(client).status_code == 202, 120)
