"""Backup and restore by the commands of docs/operations/backup.md, with the data of a real service."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import httpx
import psutil
import pytest

from img2img.app.supervisor.redis_server import find_redis_server
from img2img.app.supervisor.supervisor import free_port
from tests.e2e.test_cli import child_named, folder, img2img, serving  # noqa: F401  # a fixture
from tests.support.pages import blocks
from tests.support.redis_servers import RedisServer


def block_with(text: str) -> str:
    """Return the only code block of the pages that has this text."""
    [block] = [block for block in blocks("bash", "run by tests/deploy/test_backup.py") if text in block]
    return block


def commands() -> list[str]:
    """Return the commands of the page for `img2img serve`: the backup, then the restore."""
    return [line for line in block_with("tar -cf img2img.tar").splitlines() if not line.startswith("#")]


def run(command: str, directory: Path, **environment: str) -> None:
    bash = ["bash", "-e", "-o", "pipefail", "-c", command]
    subprocess.run(bash, cwd=directory, env=os.environ | environment, check=True, timeout=60)


def test_restored_service_has_jobs_images_and_keys(folder: Path) -> None:  # noqa: F811
    back_up, *restore = commands()
    assert img2img(folder, "keys", "create", "--name", "ada").returncode == 0
    image = (folder / "in.png").read_bytes()
    with serving(folder) as (serve, url), httpx.Client(base_url=url) as client:
        job = client.post("/img2img", files={"image": image}, data={"prompt": "x"}).json()
        job = client.get(f"/jobs/{job['id']}?wait=30", timeout=60).json()
        assert job["status"] == "succeeded"
        result = client.get(job["images"][0]["url"]).content
        serve.send_signal(signal.SIGINT)
        assert serve.wait(60) == 0
    keys = img2img(folder, "keys", "list").stdout
    assert "ada" in keys
    run(back_up, folder)
    with serving(folder) as (_, url):
        assert httpx.delete(f"{url}/jobs/{job['id']}").status_code == 204
        # A job that the backup does not have.
        later = httpx.post(f"{url}/img2img", files={"image": image}, data={"prompt": "y"}).json()
    for command in restore:
        run(command, folder)
    with serving(folder) as (_, url), httpx.Client(base_url=url) as client:
        restored = client.get(f"/jobs/{job['id']}").json()
        assert (restored["status"], restored["request"]) == ("succeeded", job["request"])
        assert client.get(job["images"][0]["url"]).content == result
        assert client.get(f"/jobs/{later['id']}").status_code == 404
    assert img2img(folder, "keys", "list").stdout == keys


@pytest.mark.skipif(not shutil.which("redis-cli"), reason="needs redis-cli")
def test_snapshot_of_a_running_service_has_its_results_and_its_queue(folder: Path, tmp_path: Path) -> None:  # noqa: F811
    # The restore starts redis-server by its name.
    (tmp_path / "redis-server").symlink_to(find_redis_server())
    port = free_port()
    own = RedisServer(folder / "redis", port=str(port))
    url = f"redis://127.0.0.1:{port}/0"
    environment = {
        "IMG2IMG_REDIS_URL": url,
        "REDIS_DIR": str(folder / "redis"),
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
    }
    image = (folder / "in.png").read_bytes()

    def submit(client: httpx.Client, prompt: str) -> str:
        response = client.post("/img2img", files={"image": image}, data={"prompt": prompt})
        assert response.status_code == 202, response.text
        return str(response.json()["id"])

    try:
        with serving(folder, IMG2IMG_REDIS_URL=url) as (serve, service), httpx.Client(base_url=service) as client:
            job = client.get(f"/jobs/{submit(client, 'x')}?wait=30", timeout=60).json()
            result = client.get(job["images"][0]["url"]).content
            worker = child_named(psutil.Process(serve.pid), "img2img.worker")
            worker.suspend()
            queued = submit(client, "y")
            run(block_with("--rdb"), folder, **environment)
            worker.resume()
            later = submit(client, "z")
            assert client.delete(f"/jobs/{job['id']}").status_code == 204
        own.kill()
        run(block_with("restore.sock"), folder, **environment)
        own.start()
        with serving(folder, IMG2IMG_REDIS_URL=url) as (_, service), httpx.Client(base_url=service) as client:
            restored = client.get(f"/jobs/{job['id']}").json()
            assert (restored["status"], restored["request"]) == ("succeeded", job["request"])
            assert client.get(job["images"][0]["url"]).content == result
            assert client.get(f"/jobs/{queued}?wait=30", timeout=60).json()["status"] == "succeeded"
            assert client.get(f"/jobs/{later}").status_code == 404
        # The append-only file has it all.
        own.kill()
        own.start()
        with serving(folder, IMG2IMG_REDIS_URL=url) as (_, service):
            assert httpx.get(f"{service}/jobs/{queued}").json()["status"] == "succeeded"
    finally:
        own.kill()
        own.redis.close()
