"""The start of a worker as its operator sees it: log lines and /readyz, while it loads and when it cannot."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import pytest

from img2img.app.settings import ApiSettings
from img2img.app.supervisor.supervisor import free_port
from tests.support.model_hub import model_hub
from tests.support.servers import http_server, redis_server


@contextmanager
def worker(**settings: str) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-m", "img2img.worker"]
    with subprocess.Popen(command, env=os.environ | settings, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def folder() -> Iterator[Path]:
    with TemporaryDirectory(prefix="i2i-") as name:
        yield Path(name)


@contextmanager
def api_server(folder: Path) -> Iterator[tuple[dict[str, str], httpx.Client]]:
    """Run Redis and the API server; yield settings for a worker, and a client."""
    with redis_server(folder) as redis_url:
        settings = ApiSettings(_env_file=None, data_dir=folder, redis_url=redis_url, model="org/tiny", port=free_port())
        with http_server(settings) as url, httpx.Client(base_url=url, timeout=30) as client:
            yield {"IMG2IMG_REDIS_URL": redis_url, "IMG2IMG_DATA_DIR": str(folder), "HF_HOME": str(folder)}, client


def workers(client: httpx.Client) -> str:
    return str(client.get("/readyz").json()["workers"]["detail"])


def test_download_and_loading_are_reported(folder: Path, model_folder: Path) -> None:
    sizes = [path.stat().st_size for path in model_folder.rglob("*") if path.is_file()]
    size, total = max(sizes), sum(sizes) + 1e5
    with (
        api_server(folder) as (settings, client),
        # The largest file takes seconds.
        model_hub("org/tiny", model_folder, bytes_per_s=size / 4) as hub,
        worker(IMG2IMG_MODEL="org/tiny", HF_ENDPOINT=hub, IMG2IMG_DEVICE="cpu", **settings) as process,
    ):
        seen: list[str] = []
        while client.get("/readyz").status_code != 200:
            assert process.poll() is None, process.stderr and process.stderr.read()
            if (detail := workers(client)) not in seen:
                seen.append(detail)
            time.sleep(0.1)
        # What it loads is no longer listed.
        assert workers(client) == "1 live"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        log = process.stderr.read() if process.stderr else ""
    text = "\n".join(seen)
    assert "0 live; loading org/tiny on cpu: downloaded " in text
    progress = [float(done) for done, _ in re.findall(r"downloaded (\d+\.\d+) of (\d+\.\d+) MB", text)]
    assert 0 < progress[0] < progress[-1] <= total / 1e6, text
    assert "loading org/tiny on cpu" in log
    assert "warming up org/tiny" in log


def test_reason_of_a_failed_start_is_reported(folder: Path) -> None:
    with api_server(folder) as (settings, client):
        with worker(IMG2IMG_MODEL="./no-such-folder", **settings) as process:
            assert process.wait(120) == 2
        detail = workers(client)
    assert detail.startswith("0 live; cannot start: ")
    assert "no-such-folder" in detail


def test_model_that_cannot_be_loaded_ends_the_worker_with_one_line(folder: Path, model_folder: Path) -> None:
    damaged = Path(shutil.copytree(model_folder, folder / "damaged"))
    (damaged / "tokenizer/tokenizer.json").unlink()
    reason = f"cannot load model 'damaged': {damaged}/tokenizer: the files of the tokenizer are incomplete"
    with api_server(folder) as (settings, client):
        with worker(IMG2IMG_MODEL=str(damaged), IMG2IMG_DEVICE="cpu", **settings) as process:
            assert process.wait(120) == 2
            log = process.stderr.read() if process.stderr else ""
        assert reason in workers(client)
    *started, failed = log.splitlines()
    assert len(started) <= 2, started
    assert failed.startswith(f"img2img worker: {reason}")
    assert len(failed) < 300


def test_container_that_cannot_start_stays_down_until_its_models_change(folder: Path, model_folder: Path) -> None:
    file, live = folder / "models.toml", folder / "live"
    file.write_text('[models.photo]\nsource = "./no-such-folder"')
    options = {"IMG2IMG_MODELS_FILE": str(file), "IMG2IMG_LIVE_FILE": str(live), "START_RETRY_S": "0"}
    with api_server(folder) as (settings, client), worker(**options, **settings) as process:
        while "cannot start" not in workers(client):
            assert process.poll() is None
            time.sleep(0.1)
        assert "no-such-folder" in workers(client)
        while not live.with_name("live.down").exists():
            assert process.poll() is None
            time.sleep(0.1)
        file.write_text(f'[models.photo]\nsource = "{model_folder}"')
        assert process.wait(60) == 2
    with api_server(folder) as (settings, client), worker(**options, **settings) as process:
        while "1 live" not in workers(client):
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_container_starts_again_when_the_hub_may_be_back(folder: Path) -> None:
    options = {"IMG2IMG_MODEL": "org/name", "HF_ENDPOINT": "http://127.0.0.1:9"}
    with api_server(folder) as (settings, client):
        with worker(**options, START_RETRY_S="1", **settings) as process:
            assert process.wait(120) == 1
        assert "cannot be reached" in workers(client)
