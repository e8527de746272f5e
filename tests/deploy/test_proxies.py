"""The TLS proxies of docs/how-to/tls-proxy.md, as real processes before the API server: bodies, events, polls."""

import os
import re
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import trustme
from PIL import Image

from img2img.app.settings import ApiSettings
from img2img.app.supervisor.supervisor import free_port
from tests.support.images import encoded
from tests.support.pages import blocks
from tests.support.processes import wait_for

AUTHORITY = trustme.CA()


def nginx(folder: Path, port: int, upstream: str) -> list[str]:
    """Write the configuration, and return the command."""
    [server] = blocks("nginx")
    edits = {
        r"listen 443 ssl;": f"listen 127.0.0.1:{port} ssl;",
        r"ssl_certificate \S+;": f"ssl_certificate {folder}/chain.pem;",
        r"ssl_certificate_key \S+;": f"ssl_certificate_key {folder}/key.pem;",
        r"127\.0\.0\.1:8000": upstream.removeprefix("http://"),
        r"\n *server 127\.0\.0\.1:8001;.*": "",
    }
    for pattern, replacement in edits.items():
        server, count = re.subn(pattern, replacement, server)
        assert count == 1, pattern
    paths = "".join(
        f"{name}_temp_path {folder}/{name};" for name in ("proxy", "fastcgi", "uwsgi", "scgi", "client_body")
    )
    (folder / "nginx.conf").write_text(
        f"user {'root' if os.geteuid() == 0 else 'nobody'};"
        f"pid {folder}/pid; error_log stderr; daemon off; events {{}} http {{ access_log off; {paths} {server} }}"
    )
    return ["nginx", "-c", str(folder / "nginx.conf"), "-p", str(folder)]


def caddy(folder: Path, port: int, upstream: str) -> list[str]:
    """Write the configuration, and return the command."""
    [site] = blocks("caddy")
    site = site.replace("127.0.0.1:8000", upstream.removeprefix("http://"))
    site, count = re.subn(
        r"^images\.example \{", f"https://127.0.0.1:{port} {{\n\ttls {folder}/chain.pem {folder}/key.pem", site
    )
    assert count == 1
    (folder / "Caddyfile").write_text(
        f"{{\n\tadmin off\n\tauto_https disable_redirects\n\tskip_install_trust\n}}\n{site}"
    )
    return ["caddy", "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]


@pytest.fixture(params=[nginx, caddy])
def proxy(
    request: pytest.FixtureRequest, tmp_path: Path, service_url: str, http: httpx.Client
) -> Iterator[httpx.Client]:
    """A client that connects through a proxy."""
    if not shutil.which(request.param.__name__):
        pytest.skip(f"{request.param.__name__} is not installed")
    port = free_port()
    certificate = AUTHORITY.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    for part in certificate.cert_chain_pems:
        part.write_to_path(tmp_path / "chain.pem", append=True)
    trust = ssl.create_default_context()
    AUTHORITY.configure_trust(trust)
    command = request.param(tmp_path, port, service_url)
    environment = os.environ | {"HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        try:
            with httpx.Client(
                base_url=f"https://127.0.0.1:{port}", verify=trust, timeout=30, trust_env=False
            ) as client:
                wait_for(lambda: responds(client) or process.poll() is not None, timeout_s=60)
                yield client
        finally:
            process.terminate()


def responds(client: httpx.Client) -> bool:
    try:
        return client.get("/healthz").status_code == 200
    except httpx.TransportError:
        return False


def submit(proxy: httpx.Client, image: bytes) -> httpx.Response:
    return proxy.post("/img2img", files={"image": image}, data={"prompt": "x"})


def test_large_body_is_accepted(proxy: httpx.Client, settings: ApiSettings) -> None:
    image = encoded(Image.frombytes("RGB", (1000, 1000), os.urandom(3_000_000)))
    # More than the 1 MB that nginx accepts by default.
    assert 2_000_000 < len(image) < settings.max_body_bytes
    response = submit(proxy, image)
    assert response.status_code == 202, response.text
    assert response.headers["Location"] == f"/jobs/{response.json()['id']}"


def test_events_arrive_at_once(proxy: httpx.Client, image_bytes: bytes, finish: Callable[[str], bytes]) -> None:
    job_id = submit(proxy, image_bytes).json()["id"]
    with proxy.stream("GET", f"/jobs/{job_id}/events") as events:
        lines = events.iter_lines()
        # Before the job ends.
        assert any("queued" in line for line in lines)
        finish(job_id)
        assert any("succeeded" in line for line in lines)


def test_long_poll_ends_with_the_job(proxy: httpx.Client, image_bytes: bytes, finish: Callable[[str], bytes]) -> None:
    job_id = submit(proxy, image_bytes).json()["id"]
    timer = threading.Timer(2, finish, [job_id])
    timer.start()
    started_at = time.monotonic()
    assert proxy.get(f"/jobs/{job_id}?wait=25").json()["status"] == "succeeded"
    assert 1 < time.monotonic() - started_at < 20
    timer.join()
    result = proxy.get(f"/jobs/{job_id}/result")
    assert result.headers["Content-Type"] == "image/png"
