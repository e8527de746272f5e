"""Client input cannot forge lines of the log."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from redis import Redis

from img2img.app.settings import ApiSettings
from img2img.app.supervisor.supervisor import free_port
from img2img.redis.model_registry import ModelRegistry
from tests.support.authenticated import connected
from tests.support.images import encoded, gradient
from tests.support.model_cards import CARD

FORGED = "FORGED 2026-01-01 all is well"


@pytest.fixture
def log(settings: ApiSettings, redis: Redis, tmp_path: Path) -> Path:
    """Log of the API server during requests with line breaks in every field."""
    own = settings.model_copy(update={"port": free_port()})
    redis.flushall()
    ModelRegistry(redis).register("test-worker", [CARD], ttl_s=60)
    environment = os.environ | own.as_environment() | {"IMG2IMG_LOG_LEVEL": "INFO", "IMG2IMG_PORT": str(own.port)}
    file = tmp_path / "log"
    with file.open("wb") as output:
        api = subprocess.Popen(
            [sys.executable, "-m", "img2img.app.cli", "api"], env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        _write_lines(own.local_url, api)
        api.terminate()
        api.wait(60)
    finally:
        api.kill()
        api.wait()
    return file


def _write_lines(url: str, api: "subprocess.Popen[bytes]") -> None:
    line = f"x\r\n{FORGED}\n\x1b[31m{FORGED}\u2028{FORGED}"
    image = encoded(gradient(20, 20))
    with httpx.Client(base_url=url, timeout=30) as client:
        while True:
            assert api.poll() is None
            try:
                client.get("/healthz")
                break
            except httpx.TransportError:
                time.sleep(0.1)
        client.get("/jobs/" + "".join(f"%{byte:02x}" for byte in line.encode()))
        client.get("/jobs", params={"status": line, line: line})
        client.post("/img2img", json={"image": line, "prompt": line, line: line, "model": line})
        client.post("/img2img", files={"image": ("a.png", image)}, data={"prompt": line})
        client.post("/img2img", files={"image": (line, image, line)}, data={"prompt": line, line: line})
        client.post("/img2img", files={"image": image[:-30]}, data={"prompt": line, "webhook": "https://" + line})
        client.post("/sdapi/v1/img2img", json={"init_images": [line], "prompt": line})
        client.post("/v1/images/edits", files={"image": image}, data={"prompt": line, "size": line})
    raw = [
        b"GET /jobs/a\n" + FORGED.encode() + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: a\n" + FORGED.encode() + b"\r\nConnection: close\r\n\r\n",
        b"GET /\x1b[31m"
        + FORGED.replace(" ", "_").encode()
        + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        FORGED.encode() + b"\n\n",
    ]
    for request in raw:
        with connected(url) as connection:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            connection.settimeout(20)
            connection.recv(65536)


def test_access_log_escapes_client_input(redis_url: str, log: Path) -> None:
    logged = log.read_text()
    assert "INFO img2img.start: API server starts on http://" in logged.splitlines()[0]
    assert "POST /img2img 202 in" in logged
    assert "POST /img2img 422 in" in logged
    assert "\x1b[31m" not in logged
    assert not [line for line in logged.splitlines() if line.lstrip().startswith("FORGED")]
