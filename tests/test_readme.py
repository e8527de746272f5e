"""The README's commands and Python blocks, run as they stand against a live service."""

import json
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def here(code: str, client: httpx.Client) -> str:
    assert "http://127.0.0.1:8000" in code
    return code.replace("http://127.0.0.1:8000", str(client.base_url).rstrip("/"))


def test_the_curl_command_queues_a_job(client: httpx.Client) -> None:
    (command,) = [block for block in blocks("bash") if block.startswith("curl")]
    answer = subprocess.run(["bash", "-c", here(command, client)], cwd=ROOT, capture_output=True, check=True)
    assert json.loads(answer.stdout)["status"] == "queued"


@pytest.mark.parametrize("code", blocks("python"))
def test_every_python_block_writes_a_picture(client: httpx.Client, tmp_path: Path, code: str) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    subprocess.run([sys.executable, "-c", here(code, client)], cwd=tmp_path, check=True, timeout=120)
    assert (tmp_path / "sketch.png").read_bytes().startswith(b"\x89PNG")


def test_every_make_target_that_the_readme_names_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`?make ([a-z]+)", README)) <= targets


def test_every_file_that_the_readme_names_exists() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README) + re.findall(r"`((?:app|worker)/[a-z_/]+(?:\.py)?)`", README)
    missing = [link for link in links if not (ROOT / link).exists()]
    assert not missing
