"""The scripts of `examples/`, run against a service with the tiny model."""

import os
import shutil
import subprocess
import sys
import time
from base64 import b64encode
from pathlib import Path

import httpx
import pytest

from img2img.app.supervisor.supervisor import free_port
from img2img.app.webhooks.signing import WebhookSigner
from tests.support.processes import wait_for

EXAMPLES = Path(__file__).parents[2] / "examples"
PNG = b"\x89PNG"


def run(folder: Path, client: httpx.Client, *command: str) -> str:
    """Run a script until it exits, and return its output."""
    environment = os.environ | {"IMG2IMG_URL": str(client.base_url).rstrip("/")}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_python_client_writes_an_image(client: httpx.Client, tmp_path: Path) -> None:
    output = run(tmp_path, client, sys.executable, str(EXAMPLES / "python_client.py"))
    assert output.splitlines()[-1] == "result-0.png"
    assert (tmp_path / "result-0.png").read_bytes().startswith(PNG)


def test_inpaint_writes_an_image(client: httpx.Client, tmp_path: Path) -> None:
    assert run(tmp_path, client, sys.executable, str(EXAMPLES / "inpaint.py")) == "inpainted.png\n"
    assert (tmp_path / "inpainted.png").read_bytes().startswith(PNG)


def test_batch_folder_writes_all_images(client: httpx.Client, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for name in ("a.png", "b.png"):
        shutil.copy(EXAMPLES / "input.png", tmp_path / "photos" / name)
    output = run(tmp_path, client, sys.executable, str(EXAMPLES / "batch_folder.py"), "photos", "paintings", "a sketch")
    assert sorted(output.split()) == ["paintings/a.png", "paintings/b.png"]
    assert (tmp_path / "paintings" / "b.png").read_bytes().startswith(PNG)


@pytest.mark.skipif(not shutil.which("jq"), reason="needs jq")
def test_curl_writes_an_image(client: httpx.Client, tmp_path: Path) -> None:
    assert run(tmp_path, client, str(EXAMPLES / "curl.sh")) == "result.png\n"
    assert (tmp_path / "result.png").read_bytes().startswith(PNG)


def test_webhook_receiver_accepts_signed_events_only() -> None:
    secret, port = f"whsec_{b64encode(b'x' * 32).decode()}", free_port()
    receiver = subprocess.Popen(
        [sys.executable, str(EXAMPLES / "webhook_receiver.py"), str(port)],
        env=os.environ | {"WEBHOOK_SECRET": secret},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        body = '{"type": "job.succeeded", "data": {"id": "3f0c"}}'
        headers = WebhookSigner((secret,)).headers("3f0c", body, time.time())

        def post(**extra_headers: str) -> int:
            assert receiver.poll() is None
            try:
                return httpx.post(
                    f"http://127.0.0.1:{port}/", content=body, headers=headers | extra_headers, trust_env=False
                ).status_code
            except httpx.ConnectError:
                return 0

        assert wait_for(post, 60) == 204
        assert receiver.stdout is not None
        assert receiver.stdout.readline() == "job.succeeded 3f0c\n"
        assert post(**{"webhook-id": "another"}) == 401
    finally:
        receiver.kill()
        receiver.wait()
