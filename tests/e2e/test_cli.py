"""The `img2img` command as a process, with the echo worker of `tests/support/fakes`."""

import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import psutil
import pytest
from PIL import Image

from img2img.app.supervisor.supervisor import ServeError, check_torch, free_port
from tests.support.cli_command import COMMAND, environment, img2img, last_line, one_line
from tests.support.images import gradient
from tests.support.webhook_receivers import receiving, verified


@pytest.fixture
def folder() -> Iterator[Path]:
    """A working directory with one image."""
    with TemporaryDirectory(prefix="i2i-") as name:
        gradient(160, 120).save(Path(name) / "in.png")
        yield Path(name)


def command_line(process: psutil.Process) -> str:
    """Return the command line, or "" for a process that has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def child_named(serve: psutil.Process, name: str) -> psutil.Process:
    """Wait for a child with `name` in its command line, and return it."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        found = [process for process in serve.children() if name in command_line(process)]
        if len(found) == 1:
            return found[0]
        time.sleep(0.05)
    raise AssertionError(f"no child with {name}")


@contextmanager
def serving(folder: Path, *arguments: object, **settings: str) -> Iterator[tuple[psutil.Popen, str]]:
    """Run `img2img serve`; yield its process and its URL when it is ready."""
    command = [*COMMAND, "serve", "--port", str(free_port()), *map(str, arguments)]
    serve = psutil.Popen(
        command, cwd=folder, env=environment(**settings), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        line = serve.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert found, line + serve.stderr.read()
        yield serve, found[0]
    finally:
        serve.terminate() if serve.is_running() else None
        serve.wait()


def assert_stops(serve: psutil.Popen, signum: signal.Signals) -> None:
    """Assert that all processes end and that the exit code is 0."""
    children = serve.children(recursive=True)
    # Redis, webhook dispatcher, worker and API server.
    assert len(serve.children()) == 4
    # And the decoder processes of the API server.
    assert len(children) > 4
    serve.send_signal(signum)
    assert serve.wait(20) == 0
    assert ended(children)


def ended(processes: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=5)
    return not alive


def test_serve_keeps_jobs_across_a_restart(folder: Path) -> None:
    with serving(folder) as (serve, url):
        result = img2img(folder, "submit", "in.png", "--prompt", "x", "-o", "out.png", "--url", url)
        assert (result.returncode, result.stdout) == (0, "out.png\n")
        assert Image.open(folder / "out.png").size == (72, 56)
        job = httpx.post(f"{url}/img2img", files={"image": (folder / "in.png").read_bytes()}).json()
        assert_stops(serve, signal.SIGINT)
    with serving(folder) as (serve, url):
        assert httpx.get(f"{url}/jobs/{job['id']}").json()["request"] == job["request"]
        assert_stops(serve, signal.SIGTERM)


def test_submit_sends_every_field(folder: Path) -> None:
    options = (
        "--negative-prompt blurry --strength 0.5 --guidance-scale 2 --steps 10 --scheduler euler --seed 3 "
        "--num-images 2 --width 64 --height 72 --resize pad --model tiny"
    )
    with serving(folder, "--model", "tiny", "--data-dir", "elsewhere") as (_, url):
        result = img2img(folder, "submit", "in.png", "--prompt", "a house", *options.split(), IMG2IMG_URL=url)
        assert result.stdout == "out-0.png\nout-1.png\n"
    assert Image.open(folder / "out-1.png").size == (64, 72)
    assert (folder / "elsewhere" / "store").is_dir()


def test_serve_restarts_a_dead_process(folder: Path) -> None:
    with serving(folder) as (serve, url):
        for name in ("redis-server", "-m img2img.worker", "-m img2img.app.cli", "-m img2img.app.webhooks"):
            child = child_named(serve, name)
            child.kill()
            deadline = time.monotonic() + 60
            while child.is_running() or not any(name in command_line(p) for p in serve.children()):
                assert time.monotonic() < deadline
                time.sleep(0.05)
        result = img2img(folder, "submit", "in.png", "--url", url)
        while "cannot be reached" in result.stderr and time.monotonic() < deadline:
            result = img2img(folder, "submit", "in.png", "--url", url)
        assert result.returncode == 0, result.stderr


def test_serve_signs_webhooks_with_a_generated_secret(folder: Path) -> None:
    image = (folder / "in.png").read_bytes()
    with receiving() as receiver, serving(folder, IMG2IMG_WEBHOOK_ALLOW_PRIVATE="true") as (serve, url):
        job = httpx.post(f"{url}/img2img", files={"image": image}, data={"webhook": receiver.url}).json()
        [received] = receiver.wait(1)
        assert_stops(serve, signal.SIGTERM)
    event = verified(received, (folder / "data" / "webhook-secret").read_text().strip())
    assert (event["type"], event["data"]["id"]) == ("job.succeeded", job["id"])


def test_killed_serve_leaves_no_process(folder: Path) -> None:
    with serving(folder) as (serve, _):
        children = serve.children(recursive=True)
        serve.kill()
        assert ended(children)


def test_second_interrupt_kills_processes_of_serve(folder: Path) -> None:
    with serving(folder, "--model", "stubborn") as (serve, _):
        children = serve.children()
        serve.send_signal(signal.SIGINT)
        assert any("stopping" in line for line in serve.stderr)
        time.sleep(0.5)
        assert serve.is_running()
        serve.send_signal(signal.SIGINT)
        assert serve.wait(5) == 0
        assert ended(children)


def test_serve_and_api_report_a_port_in_use(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        remedy = "Address already in use; choose another with --port or IMG2IMG_PORT"
        assert one_line(img2img(folder, "serve", "--port", port)).endswith(f"port {port}: {remedy}")
        assert one_line(img2img(folder, "api", IMG2IMG_PORT=str(port))).endswith(f"port {port}: {remedy}")


def test_second_serve_on_a_data_directory_is_refused(folder: Path) -> None:
    with serving(folder):
        message = one_line(img2img(folder, "serve", "--port", free_port()))
    assert message == "img2img: another `img2img serve` is using the data directory data"


@pytest.mark.parametrize(
    ("options", "message", "code"),
    [
        ("--data-dir in.png", "img2img: the data directory in.png cannot be written: ", 2),
        ("--data-dir /proc/data", "img2img: the data directory /proc/data cannot be written: ", 2),
        (f"--data-dir {'x' * 100}", "img2img: the path of the data directory is too long for a unix socket: ", 2),
        ("--model missing", "img2img worker: there is no model `missing`", 2),
        ("--host 192.0.2.1", "img2img: cannot listen on 192.0.2.1 port ", 1),
        ("--host no.such.host.invalid", "img2img: cannot listen on no.such.host.invalid port ", 1),
    ],
)
def test_serve_reports_why_it_cannot_start(folder: Path, options: str, message: str, code: int) -> None:
    result = img2img(folder, "serve", "--port", free_port(), *options.split())
    assert last_line(result, code).startswith(message)


def test_worker_reports_why_it_cannot_start(folder: Path) -> None:
    result = img2img(folder, "worker", "--model", "missing")
    assert one_line(result, code=2) == "img2img worker: there is no model `missing`"


def test_options_environment_and_dotenv_have_the_same_validation(folder: Path) -> None:
    prefix = "img2img: IMG2IMG_PORT: Input should be less than or equal to 65535, got "
    assert one_line(img2img(folder, "api", "--port", 65536), 2) == f"{prefix}65536"
    assert one_line(img2img(folder, "api", IMG2IMG_PORT="65537"), 2) == f"{prefix}'65537'"
    (folder / ".env").write_text("IMG2IMG_PORT=65538\n")
    assert one_line(img2img(folder, "api"), 2) == f"{prefix}'65538'"
    assert one_line(img2img(folder, "api", "--port", 65539, IMG2IMG_PORT="1"), 2) == f"{prefix}65539"


@pytest.mark.parametrize("command", ["serve", "api", "worker", "webhooks", "demo", "doctor", "keys list"])
def test_misspelt_setting_stops_every_command(folder: Path, command: str) -> None:
    misspelt = img2img(folder, *command.split(), IMG2IMG_PROT="9")
    assert one_line(misspelt, 2) == (
        "img2img: IMG2IMG_PROT in the environment is not a setting; did you mean IMG2IMG_PORT?"
    )
    (folder / ".env").write_text("img2img_webhook_secrt=x\n")
    assert one_line(img2img(folder, *command.split()), 2) == (
        "img2img: IMG2IMG_WEBHOOK_SECRT in .env is not a setting; did you mean IMG2IMG_WEBHOOK_SECRET?"
    )


@pytest.mark.parametrize("module", ["img2img.worker", "img2img.app.webhooks"])
def test_misspelt_setting_stops_a_process_that_is_started_directly(folder: Path, module: str) -> None:
    inherited = environment(IMG2IMG_SLOST="x") | {"PYTHONPATH": ""}
    done = subprocess.run(
        [*COMMAND[:3], module], cwd=folder, env=inherited, capture_output=True, text=True, timeout=120
    )
    assert one_line(done, 2).endswith("IMG2IMG_SLOST in the environment is not a setting; did you mean IMG2IMG_SLOTS?")


def test_serve_says_what_it_starts_and_where_it_is(folder: Path) -> None:
    with serving(folder) as (serve, url):
        assert_stops(serve, signal.SIGINT)
        data, starting, ready, note, *_ = serve.stderr.read().splitlines()
    assert re.fullmatch(rf"img2img: data in {folder.resolve()}/data; \w+ \d+\.\d+\.\d+ \(.+/redis-server\)", data)
    assert starting == "img2img: starting a worker, which loads PyTorch and then demo"
    assert re.fullmatch(rf"img2img: ready after \d+ s; page: {url}, API reference: {url}/docs", ready)
    assert "landscapes" in note
    assert "img2img serve --model " in note


def test_submit_reports_errors(folder: Path) -> None:
    unreachable = f"http://127.0.0.1:{free_port()}"
    assert one_line(img2img(folder, "submit", "in.png", "--url", unreachable), code=3).startswith(
        f"img2img: {unreachable} cannot be reached"
    )
    with serving(folder) as (_, url):
        message = one_line(img2img(folder, "submit", "in.png", "--strength", 2, "--url", url))
    assert message == "img2img: strength: Input should be less than or equal to 1 (got 2.0)"


def test_demo_writes_an_image(folder: Path) -> None:
    result = img2img(folder, "demo")
    assert result.returncode == 0, result.stderr
    assert re.search(rf"{folder.resolve()}/demo-output\.png in \d+\.\d s\nNext: img2img serve, .*\n$", result.stdout)
    assert Image.open(folder / "demo-output.png").format == "PNG"
    assert sorted(path.name for path in folder.iterdir()) == ["demo-output.png", "in.png"]


def test_serve_with_a_missing_model_file_fails_at_once(tmp_path: Path) -> None:
    failed = img2img(tmp_path, "serve", "--model", "./missing.safetensors", "--data-dir", str(tmp_path / "data"))
    assert one_line(failed, 2) == f"img2img: --model (IMG2IMG_MODEL): {tmp_path}/missing.safetensors does not exist"
    assert not (tmp_path / "data").exists()


def test_check_torch_without_torch_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("img2img.app.supervisor.supervisor.find_spec", lambda _name: None)
    with pytest.raises(ServeError, match=r"img2img-server\[worker\]"):
        check_torch()


def test_version_is_that_of_the_distribution(folder: Path) -> None:
    assert img2img(folder, "--version").stdout == f"{version('img2img-server')}\n"
