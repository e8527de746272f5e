"""`img2img keys`, and `serve` and `api` on addresses that require keys, as processes."""

import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from img2img.app.supervisor.supervisor import free_port
from tests.e2e.test_cli import COMMAND, environment, folder, img2img, last_line, one_line, serving

__all__ = ["folder"]

KEY = re.compile(r"i2i_[A-Za-z0-9_-]{43}")
ALL_ADDRESSES = ("--host", "0.0.0.0")
NO_KEY = "on 0.0.0.0 requests need an API key, and none exists yet: create one with `img2img keys create --name NAME`"


def create(folder: Path, *options: str) -> str:
    """Create a key, which must be the only output on stdout, and return it."""
    result = img2img(folder, "keys", "create", "--name", "Ada", *options)
    assert result.returncode == 0, result.stderr
    assert KEY.fullmatch(result.stdout.strip())
    assert result.stdout.strip() not in result.stderr
    return result.stdout.strip()


def listed(folder: Path) -> list[str]:
    result = img2img(folder, "keys", "list")
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


@contextmanager
def api(folder: Path, *options: str) -> Iterator[httpx.Client]:
    """Run `img2img api` on all addresses, with its log in the file `log`."""
    port = free_port()
    command = [*COMMAND, "api", *ALL_ADDRESSES, "--port", str(port), *options]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment(IMG2IMG_LOG_LEVEL="debug"), stdout=log, stderr=log
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
            while not is_live(client):
                assert process.poll() is None, (folder / "log").read_text()
                time.sleep(0.1)
            yield client
    finally:
        process.terminate()
        process.wait()


def is_live(client: httpx.Client) -> bool:
    try:
        return client.get("/healthz").status_code == 200
    except httpx.TransportError:
        return False


def test_keys_are_created_listed_and_revoked_without_a_service(folder: Path) -> None:
    first, second = create(folder), create(folder, "--scope", "read")
    assert first != second
    [one, other] = listed(folder)
    assert re.fullmatch(r"[0-9a-f]{16}  \d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ  read,submit  Ada", one)
    assert other.endswith("Z  read  Ada")
    assert img2img(folder, "keys", "revoke", one[:16]).returncode == 0
    assert listed(folder) == [other]
    assert one_line(img2img(folder, "keys", "revoke", one[:16])) == f"img2img: there is no key {one[:16]}"
    stored = b"".join(path.read_bytes() for path in (folder / "data").rglob("*") if path.is_file())
    # Redis has written the keys to disk, without the secrets.
    assert b"read" in stored
    assert first.encode() not in stored
    assert second.encode() not in stored


def test_serve_on_all_addresses_requires_keys(folder: Path) -> None:
    assert NO_KEY in last_line(img2img(folder, "serve", *ALL_ADDRESSES, "--port", free_port()), 2)
    key = create(folder)
    with serving(folder, *ALL_ADDRESSES) as (_, url):
        assert one_line(img2img(folder, "submit", "in.png", "--url", url)).startswith("img2img: An API key is needed")
        result = img2img(folder, "submit", "in.png", "--url", url, IMG2IMG_API_KEY=key)
        assert (result.returncode, result.stdout) == (0, "out.png\n"), result.stderr
        with httpx.Client(base_url=url, headers={"X-API-Key": create(folder, "--scope", "admin")}) as admin:
            assert len(admin.get("/jobs").json()["jobs"]) == 1
        assert len(listed(folder)) == 2


def test_api_on_all_addresses_requires_keys(folder: Path) -> None:
    create(folder)
    # `img2img api` uses the Redis of `serve`.
    with serving(folder):
        keys = [line[:16] for line in listed(folder)]
        for key in keys:
            img2img(folder, "keys", "revoke", key)
        assert NO_KEY in one_line(img2img(folder, "api", *ALL_ADDRESSES, "--port", free_port()), 2)
        assert NO_KEY.replace("0.0.0.0", "127.0.0.1") in one_line(
            img2img(folder, "api", "--port", free_port(), IMG2IMG_KEYS="required"), 2
        )
        with api(folder, "--insecure") as client:
            assert client.get("/jobs").status_code == 200
        key = create(folder)
        with api(folder) as client:
            assert client.get("/jobs").status_code == 401
            assert client.get("/jobs", headers={"X-API-Key": key}).status_code == 200
            assert client.get("/jobs/x", headers={"Authorization": f"Bearer {key}"}).status_code == 404
    log = (folder / "log").read_text()
    assert "GET /jobs/{job_id}" in log
    assert not KEY.search(log)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"IMG2IMG_KEYS": "required", "IMG2IMG_INSECURE": "true"}, "IMG2IMG_INSECURE: "),
        ({"IMG2IMG_RATE_LIMIT": "much"}, "IMG2IMG_RATE_LIMIT: "),
        ({"IMG2IMG_MAX_QUEUED": "0"}, "IMG2IMG_MAX_QUEUED: "),
        ({"IMG2IMG_CORS_ORIGINS": "studio.example"}, "IMG2IMG_CORS_ORIGINS: "),
    ],
)
def test_invalid_setting_is_reported(folder: Path, settings: dict[str, str], message: str) -> None:
    assert one_line(img2img(folder, "api", **settings), 2).startswith(f"img2img: {message}")


def test_keys_report_errors(folder: Path) -> None:
    unreachable = one_line(img2img(folder, "keys", "list", "--redis-url", "redis://:secret@127.0.0.1:1/0"))
    assert unreachable.startswith("img2img: 127.0.0.1:1/0: ")
    assert "secret" not in unreachable
    unknown = img2img(folder, "keys", "create", "--name", "x", "--scope", "all")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert "submit" in unknown.stderr
