"""The README's commands and Python blocks, run as they stand against a live service."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from base64 import b64encode
from pathlib import Path

import httpx
import pytest
from PIL import Image

from img2img.app.supervisor.supervisor import free_port
from img2img.app.webhooks.signing import WebhookSigner
from tests.support.processes import wait_for

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands(program: str) -> list[str]:
    return [block for block in blocks("bash") if block.startswith(f"{program} ") and block.count("\n") == 1]


def here(code: str, client: httpx.Client) -> str:
    assert "http://127.0.0.1:8000" in code
    return code.replace("http://127.0.0.1:8000", str(client.base_url).rstrip("/"))


def test_the_curl_command_queues_a_job(client: httpx.Client) -> None:
    (command,) = commands("curl")
    answer = subprocess.run(["bash", "-c", here(command, client)], cwd=ROOT, capture_output=True, check=True)
    assert json.loads(answer.stdout)["status"] == "queued"


@pytest.mark.parametrize("code", [block for block in blocks("python") if "http://127.0.0.1:8000" in block])
def test_every_python_block_writes_a_picture(client: httpx.Client, tmp_path: Path, code: str) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    subprocess.run([sys.executable, "-c", here(code, client)], cwd=tmp_path, check=True, timeout=120)
    assert (tmp_path / "sketch.png").read_bytes().startswith(b"\x89PNG")


def test_the_receiver_of_webhooks_takes_what_is_signed_and_nothing_else() -> None:
    (code,) = [block for block in blocks("python") if "standardwebhooks" in block]
    secret, port = f"whsec_{b64encode(b'x' * 32).decode()}", free_port()
    receiver = subprocess.Popen(
        [sys.executable, "-c", code.replace("9000", str(port))],
        env=os.environ | {"WEBHOOK_SECRET": secret},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        body = '{"type": "job.succeeded", "data": {"id": "3f0c"}}'
        headers = WebhookSigner((secret,)).headers("3f0c", body, time.time())

        def post(**more: str) -> int:
            assert receiver.poll() is None
            try:
                answer = httpx.post(f"http://127.0.0.1:{port}/", content=body, headers=headers | more, trust_env=False)
            except httpx.ConnectError:
                return 0
            return answer.status_code

        assert wait_for(post, 60) == 204
        assert receiver.stdout is not None
        assert receiver.stdout.readline() == "job.succeeded 3f0c\n"
        assert post(**{"webhook-id": "another"}) == 401
    finally:
        receiver.kill()
        receiver.wait()


@pytest.mark.skipif(not shutil.which("node"), reason="the TypeScript block needs Node")
def test_the_typescript_block_writes_a_picture(client: httpx.Client, tmp_path: Path) -> None:
    """It is JavaScript as well; `make test-clients` has the compiler look at it."""
    (code,) = blocks("typescript")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "block.mjs").write_text(here(code, client))
    subprocess.run(["node", "block.mjs"], cwd=tmp_path, check=True, timeout=120)
    assert (tmp_path / "sketch.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_saves_pictures(client: httpx.Client, tmp_path: Path) -> None:
    (command,) = commands("img2img")
    (tmp_path / "photos").mkdir()
    for name in "ab":
        Image.open(ROOT / "examples" / "input.png").save(tmp_path / "photos" / f"{name}.jpg")
    environment = os.environ | {"IMG2IMG_URL": str(client.base_url), "PATH": f"{BIN}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, check=True, timeout=120)
    assert sorted(path.name for path in (tmp_path / "paintings").iterdir()) == ["a.png", "b.png"]


def test_every_make_target_that_the_readme_names_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", README, re.MULTILINE)) <= targets


def test_every_file_that_the_readme_names_exists() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README) + re.findall(r"`((?:app|worker)/[a-z_/]+(?:\.py)?)`", README)
    missing = [link for link in links if not (ROOT / link).exists()]
    assert not missing
