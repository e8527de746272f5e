"""The commands and code blocks of README and docs, and the programs of `examples/`, run against a live service."""

import json
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
from tests.support.pages import blocks, fences
from tests.support.processes import wait_for

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
PNG = b"\x89PNG"


def commands(start: str) -> list[str]:
    """Return the blocks of a single shell command that begin with `start`."""
    return [block for block in blocks("bash") if block.startswith(f"{start} ") and block.count("\n") == 1]


def for_service(code: str, client: httpx.Client) -> str:
    """Return the code with the URL and the model of the service under test."""
    assert "http://127.0.0.1:8000" in code
    [model] = [model["name"] for model in client.get("/models").json()["models"]]
    code = code.replace("/hf/demo", f"/hf/{model}").replace("img2img/demo", f"img2img/{model}")
    return code.replace("http://127.0.0.1:8000", str(client.base_url).rstrip("/"))


def test_curl_command_queues_a_job(client: httpx.Client) -> None:
    (command,) = commands("curl")
    done = subprocess.run(["bash", "-c", for_service(command, client)], cwd=ROOT, capture_output=True, check=True)
    assert json.loads(done.stdout)["status"] == "queued"


def test_curl_script_writes_an_image(client: httpx.Client, tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    subprocess.run(["bash", "-euc", for_service(curl_script(), client)], cwd=tmp_path, check=True, timeout=120)
    assert (tmp_path / "painting.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize(
    ("was", "becomes", "shown"),
    [
        ("strength=0.6", "strength=2", "less than or equal to 1"),
        ("input.png", "curl.sh", "not a PNG, JPEG"),
        ("input.png", "missing.png", ""),
    ],
)
def test_curl_script_shows_errors(client: httpx.Client, tmp_path: Path, was: str, becomes: str, shown: str) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    script = for_service(curl_script(), client).replace(was, becomes)
    done = subprocess.run(
        ["bash", "-euc", script], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
    )
    assert shown in done.stdout
    assert "curl: (" in done.stderr
    assert not (tmp_path / "painting.png").exists()


def curl_script() -> str:
    (script,) = [block for _, _, block in fences(ROOT / "README.md") if block.startswith("if job=$(curl")]
    return script


@pytest.mark.parametrize("code", [block for block in blocks("python") if "http://127.0.0.1:8000" in block])
def test_python_block_writes_an_image(client: httpx.Client, tmp_path: Path, code: str) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    subprocess.run([sys.executable, "-c", for_service(code, client)], cwd=tmp_path, check=True, timeout=120)
    [result] = tmp_path.glob("*sketch.png")
    assert result.read_bytes().startswith(PNG)


RECEIVERS = [block for block in blocks("python") if "standardwebhooks" in block]
RECEIVERS.append((EXAMPLES / "webhook_receiver.py").read_text("utf-8"))


@pytest.mark.parametrize("code", RECEIVERS)
def test_webhook_receiver_accepts_signed_events_only(code: str) -> None:
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

        def post(**extra_headers: str) -> int:
            assert receiver.poll() is None
            try:
                response = httpx.post(
                    f"http://127.0.0.1:{port}/", content=body, headers=headers | extra_headers, trust_env=False
                )
            except httpx.ConnectError:
                return 0
            return response.status_code

        assert wait_for(post, 60) == 204
        assert receiver.stdout is not None
        assert receiver.stdout.readline() == "job.succeeded 3f0c\n"
        assert post(**{"webhook-id": "another"}) == 401
    finally:
        receiver.kill()
        receiver.wait()


@pytest.mark.skipif(not shutil.which("node"), reason="the TypeScript block needs Node")
def test_typescript_block_writes_an_image(client: httpx.Client, tmp_path: Path) -> None:
    """Run the block as JavaScript; `make test-clients` compiles it as TypeScript."""
    (code,) = blocks("typescript")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "block.mjs").write_text(for_service(code, client))
    subprocess.run(["node", "block.mjs"], cwd=tmp_path, check=True, timeout=120)
    assert (tmp_path / "sketch.png").read_bytes().startswith(PNG)


def test_submit_command_saves_images(client: httpx.Client, tmp_path: Path) -> None:
    (command,) = [block for block in commands("img2img submit") if "*" in block]
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    environment = os.environ | {"IMG2IMG_URL": str(client.base_url), "PATH": f"{BIN}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, check=True, timeout=120)
    inputs = sorted(path.name for path in (ROOT / "examples").glob("*.png"))
    assert sorted(path.name for path in (tmp_path / "paintings").glob("*.png")) == inputs


def run_example(folder: Path, client: httpx.Client, *command: str | Path) -> list[str]:
    """Run a program of `examples/` until it exits, and return the lines of its output."""
    environment = os.environ | {"IMG2IMG_URL": str(client.base_url).rstrip("/")}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_example_of_the_python_client_writes_an_image(client: httpx.Client, tmp_path: Path) -> None:
    assert run_example(tmp_path, client, sys.executable, EXAMPLES / "python_client.py")[-1] == "result-0.png"
    assert (tmp_path / "result-0.png").read_bytes().startswith(PNG)


def test_example_of_inpainting_writes_an_image(client: httpx.Client, tmp_path: Path) -> None:
    assert run_example(tmp_path, client, sys.executable, EXAMPLES / "inpaint.py") == ["inpainted.png"]
    assert (tmp_path / "inpainted.png").read_bytes().startswith(PNG)


def test_example_of_a_batch_writes_all_images(client: httpx.Client, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for name in ("a.png", "b.png"):
        shutil.copy(EXAMPLES / "input.png", tmp_path / "photos" / name)
    program = EXAMPLES / "batch_of_photos.py"
    command = [sys.executable, program, "photos", "paintings", "a sketch"]
    output = run_example(tmp_path, client, *command)
    assert sorted(output) == ["paintings/a.png", "paintings/b.png"]
    assert (tmp_path / "paintings" / "b.png").read_bytes().startswith(PNG)
    (tmp_path / "photos" / "c.png").write_text("no image")
    environment = os.environ | {"IMG2IMG_URL": str(client.base_url)}
    refused = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert refused.stderr.startswith("items.2.image: ")
    assert refused.stderr.endswith("(got photos/c.png)\n")


@pytest.mark.skipif(not shutil.which("jq"), reason="needs jq")
def test_example_of_curl_writes_an_image(client: httpx.Client, tmp_path: Path) -> None:
    assert run_example(tmp_path, client, EXAMPLES / "curl.sh") == ["result.png"]
    assert (tmp_path / "result.png").read_bytes().startswith(PNG)


@pytest.mark.skipif(not shutil.which("node"), reason="needs Node")
def test_example_of_typescript_writes_an_image(client: httpx.Client, tmp_path: Path) -> None:
    """Run as JavaScript, which it is too: older versions of Node run no TypeScript."""
    folder = tmp_path / "examples" / "typescript"
    folder.mkdir(parents=True)
    shutil.copy(EXAMPLES / "input.png", folder.parent)
    shutil.copy(EXAMPLES / "typescript" / "image_to_image.ts", folder / "example.mjs")
    assert run_example(tmp_path, client, "node", folder / "example.mjs")[-1] == "result.png"
    assert (tmp_path / "result.png").read_bytes().startswith(PNG)


def test_example_of_a_notebook_writes_an_image(client: httpx.Client, tmp_path: Path) -> None:
    """Run the cells as one program."""
    notebook = json.loads((EXAMPLES / "notebook.ipynb").read_text("utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    (tmp_path / "examples").symlink_to(EXAMPLES)
    [rejected] = run_example(tmp_path, client, sys.executable, "-c", "\n".join(cells))
    assert rejected.startswith("invalid_parameter (FieldError(field='strength'")
    assert (tmp_path / "strip.png").read_bytes().startswith(PNG)


def test_every_example_is_run() -> None:
    tests = Path(__file__).read_text("utf-8") + (Path(__file__).parent / "test_control_service.py").read_text("utf-8")
    programs = {path.name for path in EXAMPLES.rglob("*") if path.suffix in (".py", ".sh", ".ts", ".ipynb")}
    assert {name for name in programs if f'"{name}"' not in tests} == set()
