"""A Redis as managed services offer it: TLS only, and a user who may run no administrative command, such as CONFIG."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import pytest
import trustme
from redis import Redis
from redis.exceptions import RedisError

from img2img.app.settings import ApiSettings
from img2img.app.supervisor.redis_server import find_redis_server
from img2img.app.supervisor.supervisor import free_port
from img2img.redis.durability import Durability, DurableWrites, UnsupportedDurability
from img2img.redis.model_registry import ModelRegistry
from tests.support.images import encoded, gradient
from tests.support.processes import MODEL, Forked, wait_for
from tests.support.redis_servers import find_redis_7
from tests.support.servers import http_server

PASSWORD = "pass word/%"
IN_URL = "pass%20word%2F%25"
# PSUBSCRIBE is permitted only for a pattern that is listed as it is.
KEYS = "~i2i:* ~rq:* &i2i:* &i2i:waiting:* &rq:pubsub:*"


@dataclass(frozen=True)
class Managed:
    """URLs of the server, for the service and for the test."""

    folder: Path
    url: str
    root_url: str


@pytest.fixture
def managed() -> Iterator[Managed]:
    with TemporaryDirectory(prefix="i2i-") as name:
        folder, port = Path(name), free_port()
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(folder / "ca.pem"))
        certificate = authority.issue_cert("localhost")
        certificate.private_key_and_cert_chain_pem.write_to_path(str(folder / "server.pem"))
        rules = f"#{sha256(PASSWORD.encode()).hexdigest()} {KEYS} +@all -@admin -@dangerous +info"
        (folder / "users.acl").write_text(
            f"user default off\nuser service on {rules}\nuser root on nopass ~* &* +@all\n"
        )
        options = {
            "port": "0",
            "tls-port": str(port),
            "tls-cert-file": "server.pem",
            "tls-key-file": "server.pem",
            "tls-ca-cert-file": "ca.pem",
            "tls-auth-clients": "no",
            "dir": name,
            "aclfile": str(folder / "users.acl"),
            "appendonly": "yes",
            "save": "",
            "logfile": "redis.log",
        }
        words = [part for option, value in options.items() for part in (f"--{option}", value)]
        process = subprocess.Popen([find_redis_server(), *words, "--rename-command", "CONFIG", ""], cwd=folder)
        address = f"localhost:{port}/0?ssl_ca_certs={folder}/ca.pem"
        server = Managed(folder, f"rediss://service:{IN_URL}@{address}", f"rediss://root:any@{address}")

        def is_ready() -> bool:
            if process.poll() is not None:
                pytest.skip("this redis-server has no TLS")
            with suppress(RedisError), Redis.from_url(server.root_url) as redis:
                return bool(redis.ping())
            return False

        try:
            wait_for(is_ready)
            yield server
        finally:
            process.kill()
            process.wait()


def test_service_works_without_administrative_commands(managed: Managed, tiny_model: Path) -> None:
    settings = ApiSettings(
        _env_file=None, data_dir=managed.folder, redis_url=managed.url, model=MODEL, port=free_port()
    )
    worker_settings = {
        "IMG2IMG_DATA_DIR": str(managed.folder),
        "IMG2IMG_MODEL": str(tiny_model),
        "IMG2IMG_REDIS_URL": managed.url,
        "IMG2IMG_DEVICE": "cpu",
    }
    worker = Forked(worker_settings, managed.folder / "worker.log")
    try:
        with (
            Redis.from_url(managed.root_url) as root,
            http_server(settings) as url,
            httpx.Client(base_url=url, timeout=60) as http,
        ):
            wait_for(lambda: ModelRegistry(root).live().get(MODEL), 180)
            fields = {"prompt": "a house", "width": 32, "height": 32, "num_inference_steps": 4}
            response = http.post("/img2img", files={"image": encoded(gradient(32, 32))}, data=fields)
            assert response.status_code == 202, response.text
            job = response.json()
            assert http.get(f"/jobs/{job['id']}?wait=60").json()["status"] == "succeeded"
            assert http.get(f"/jobs/{job['id']}/result").content.startswith(b"\x89PNG")
            assert http.get("/readyz").status_code in (200, 503)
            assert http.delete(f"/jobs/{job['id']}").status_code == 204
            denied = {entry["object"] for entry in root.acl_log()}
        assert denied <= {"client|kill", "client", "bgrewriteaof"}
    finally:
        os.kill(worker.pid, 9)
        worker.wait()


def test_durability_that_cannot_be_checked_is_refused(managed: Managed) -> None:
    has_waitaof = find_redis_server() == find_redis_7()
    refused = pytest.raises(UnsupportedDurability, match="CONFIG GET")
    with Redis.from_url(managed.url) as redis, nullcontext() if has_waitaof else refused:
        DurableWrites(redis, Durability.ALWAYS).check()
