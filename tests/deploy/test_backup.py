"""Backup and restore by the commands of docs/operations.md, with the data of a real service."""

import signal
import subprocess
from pathlib import Path

import httpx

from tests.e2e.test_cli import folder, img2img, serving  # noqa: F401  # a fixture
from tests.support.pages import blocks


def commands() -> list[str]:
    """Return the commands of the page for `img2img serve`: the backup, then the restore."""
    [block] = blocks("bash", "run by tests/deploy/test_backup.py")
    return [line for line in block.splitlines() if not line.startswith("#")]


def run(command: str, directory: Path) -> None:
    subprocess.run(command, shell=True, cwd=directory, check=True)


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
