"""Commands print no characters that control a terminal, whatever the service, other users and file names contain."""

import json
import os
import pty
import re
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any
from unicodedata import category

import httpx
import pytest
from redis import Redis
from typer.testing import CliRunner

from img2img.app.cli import app
from img2img.printable import printable
from img2img.redis.model_registry import ModelRegistry
from tests.support.cli_command import COMMAND, environment
from tests.support.images import encoded, gradient
from tests.support.model_cards import CARD

# Clears the screen, sets the title, writes the clipboard, moves up, and forges a line; C1, DEL, bidi, separators.
HOSTILE = (
    "a\x1b[2J\x1b]0;title\x07\x1b]52;c;ZXZpbA==\x1b\\\x1b[1A\rimg2img: done\nimg2img: forged\x9b31m\x85\x7f"
    "\u202egnp.exe\u2066x\u2069\u200f\u061c\ufeff\u2028line\u2029\U000e0041\u00ad[red]é日\u0000"
)
ID, DIGEST = "0a" * 16, "0b" * 32
# They use no service, or speak a protocol instead of writing to a terminal.
RUN = {"serve", "api", "worker", "webhooks", "demo", "doctor", "forget", "audit", "mcp"}

JOB: dict[str, Any] = {
    "id": HOSTILE,
    "status": "failed",
    "priority": HOSTILE,
    "request": {"prompt": HOSTILE, "model": HOSTILE, "loras": [{"name": HOSTILE}], HOSTILE: HOSTILE},
    "error": {"code": HOSTILE, "message": HOSTILE},
    "worker": HOSTILE,
    "webhook": {"url": HOSTILE, "delivery": {"last_error": HOSTILE}},
    "images": [],
    HOSTILE: HOSTILE,
}
BATCH = {"id": HOSTILE, "status": HOSTILE, "total": 1, "counts": {HOSTILE: 1}, HOSTILE: HOSTILE}
MODEL = {"name": HOSTILE, "tasks": [HOSTILE], "workers": [HOSTILE], "default": True, HOSTILE: HOSTILE}
PROBLEMS: list[Any] = [
    {"detail": HOSTILE, "code": HOSTILE},
    {"errors": [{"field": HOSTILE, "message": HOSTILE, "got": HOSTILE}] * 2, HOSTILE: HOSTILE},
    {"errors": [{HOSTILE: HOSTILE}]},
    {"errors": HOSTILE},
    [HOSTILE],
    HOSTILE,
]


class Handler(BaseHTTPRequestHandler):
    """Responds to every request with hostile text."""

    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, HostileServer)
        self.rfile.read(int(self.headers.get("content-length", 0)))
        path = self.path.partition("?")[0]
        if server.problem is not None:
            self.respond(422, "application/problem+json", json.dumps(server.problem))
        elif path == "/batches":
            self.respond(200, "application/json", json.dumps({"batches": [BATCH], "next_cursor": None}))
        elif path.startswith("/batches/") and path.endswith("/events"):
            data = f"event: job\nid: 1\ndata: {json.dumps(JOB)}\n\nevent: ended\nid: 2\ndata: {json.dumps(BATCH)}\n\n"
            self.respond(200, "text/event-stream", data)
        elif path.startswith("/batches/") and self.command != "DELETE":
            self.respond(200, "application/json", json.dumps(BATCH))
        elif path.endswith("/events"):
            data = json.dumps(JOB)
            self.respond(200, "text/event-stream", f"event: failed\nid: 1\ndata: {data}\n\n")
        elif path in ("/jobs", "/models"):
            self.respond(200, "application/json", json.dumps({"jobs": [JOB], "models": [MODEL], "next_cursor": None}))
        elif path.startswith("/models/"):
            self.respond(200, "application/json", json.dumps(MODEL))
        elif "dry_run" in self.path:
            self.respond(200, "application/json", json.dumps({"request": JOB["request"], HOSTILE: HOSTILE}))
        elif self.command == "DELETE":
            self.respond(204, "text/plain", "")
        else:
            self.respond(202 if self.command == "POST" else 200, "application/json", json.dumps(JOB))

    do_POST = do_DELETE = do_GET  # noqa: N815

    def respond(self, status: int, media_type: str, text: str) -> None:
        self.send_response(status)
        self.send_header("content-type", media_type)
        if status != 204:
            self.send_header("content-length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


class HostileServer(ThreadingHTTPServer):
    """A server that responds with `problem`, or if that is None with success."""

    problem: Any = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def hostile() -> Iterator[HostileServer]:
    with HostileServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file with a hostile name, in the working directory."""
    monkeypatch.chdir(tmp_path)
    name = HOSTILE.replace("/", "").replace("\0", "") + ".png"
    Path(name).write_bytes(encoded(gradient(64, 64)))
    return name


# Arguments of every command that uses a service.
ARGUMENTS: dict[str, list[list[str]]] = {
    "submit": [[], ["--no-wait"], ["--dry-run"]],
    "result": [[ID]],
    "jobs": [[]],
    "show": [[ID]],
    "cancel": [[ID], [HOSTILE]],
    "delete": [[ID], [HOSTILE]],
    "delete-image": [[DIGEST], [HOSTILE]],
    "batches": [
        [],
        ["list"],
        *([command, ID] for command in ("show", "wait", "cancel", "download")),
        ["delete", HOSTILE],
    ],
    "models": [[], ["list"], ["show", ID], ["show", HOSTILE]],
}


def test_every_command_is_tried() -> None:
    names = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    groups = {group.name for group in app.registered_groups} - {"keys"}
    assert set(ARGUMENTS) == (names | groups) - RUN


def assert_harmless(text: str) -> None:
    found = {character for character in text if category(character) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")}
    assert found <= {"\n"}, found


def outputs(command: str, url: str, *options: str, image: str) -> Iterator[tuple[str, str]]:
    """Run a command with each of its arguments. Yields stdout and stderr."""
    for arguments in ARGUMENTS[command]:
        inputs = [image] if command == "submit" else []
        run = CliRunner().invoke(app, [command, *inputs, *arguments, *options, "--url", url])
        if run.exception and not isinstance(run.exception, SystemExit):
            raise run.exception
        yield run.stdout, run.stderr


@pytest.mark.parametrize("command", ARGUMENTS)
def test_output_of_a_command_is_harmless(command: str, hostile: HostileServer, image: str) -> None:
    shown = False
    for problem in (None, *PROBLEMS):
        hostile.problem = problem
        for stdout, stderr in outputs(command, hostile.url, image=image):
            assert_harmless(stdout + stderr)
            assert not [line for line in (stdout + stderr).split("\n") if line.startswith("img2img: forged")]
            shown |= "\\x1b[2J" in stdout + stderr
    # `delete` prints the hostile id that it was given.
    assert shown, "the hostile text is visible"


@pytest.mark.parametrize("command", ARGUMENTS)
def test_json_output_is_harmless_and_complete(command: str, hostile: HostileServer, image: str) -> None:
    for problem in (None, *PROBLEMS):
        hostile.problem = problem
        for stdout, stderr in outputs(command, hostile.url, "--json", image=image):
            assert_harmless(stdout + stderr)
            for line in stdout.splitlines():
                if "\\u001b" in line:
                    # The name of a file cannot contain the last character.
                    assert any(HOSTILE.rstrip("\0") in one for one in strings_in(json.loads(line)))


def strings_in(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set().union(*(strings_in(item) for pair in value.items() for item in pair))
    return set().union(*map(strings_in, value)) if isinstance(value, list) else {str(value)}


def test_progress_on_a_terminal_is_harmless(hostile: HostileServer, image: str) -> None:
    """The only escape sequences are those of the progress display."""
    ours, theirs = pty.openpty()
    command = [*COMMAND, "submit", image, "--url", hostile.url]
    process = subprocess.Popen(command, env=environment(TERM="xterm"), stdout=theirs, stderr=theirs, stdin=theirs)
    os.close(theirs)
    shown = b""
    while True:
        try:
            shown += os.read(ours, 65536)
        except OSError:  # the command has ended
            break
    os.close(ours)
    assert process.wait(60) == 1
    text = shown.decode()
    assert "\\x1b[2J" in text
    sequences = re.compile(r"\x1b\[[?0-9;]*[a-zA-Z]")
    assert "\x1b[2J" not in text
    assert_harmless(sequences.sub("", text).replace("\r", ""))


def test_prompt_of_another_user_is_escaped(
    http: httpx.Client, redis: Redis, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the real service, which does not restrict the text of a prompt."""
    prompt = HOSTILE.replace("\0", "")
    job = http.post("/img2img", files={"image": Path(image).read_bytes()}, data={"prompt": prompt}).json()
    ModelRegistry(redis).register("w", [CARD.model_copy(update={"name": "x\x1b[2Jy"})], ttl_s=60)
    for command in (["jobs"], ["show", job["id"]], ["models"]):
        run = CliRunner().invoke(app, [*command, "--url", str(http.base_url)])
        assert run.exit_code == 0
        assert_harmless(run.stdout + run.stderr)
        assert "\\x1b[2J" in run.stdout
    [line] = CliRunner().invoke(app, ["jobs", "--json", "--url", str(http.base_url)]).stdout.splitlines()
    assert json.loads(line)["request"]["prompt"] == prompt


def test_printable_keeps_text_of_all_languages() -> None:
    for text in (
        "",
        "plain",
        "naïve “quotes” — 日本語 עברית हिन्दी 🏠",
        "👩\u200d🚀",
        "\u0645\u06cc\u200c\u062e\u0648",
        "a\u00a0b",
    ):
        assert printable(text) == text
    assert printable("\x1b\x7f\x9b\n\u202e\u2028\U000e0041\ud800") == (
        "\\x1b\\x7f\\x9b\\x0a\\u202e\\u2028\\U000e0041\\ud800"
    )


@pytest.mark.parametrize("process", ["app.webhooks", "worker"])
def test_errors_at_the_start_of_a_process_are_escaped(process: str, capsys: pytest.CaptureFixture[str]) -> None:
    fail = import_module(f"img2img.{process}.__main__")._fail
    fail(*[HOSTILE, 2][: len(signature(fail).parameters)])
    assert_harmless(capsys.readouterr().err)


def test_only_the_printing_module_writes_text_of_others() -> None:
    folder = Path(__file__).parents[2] / "app" / "cli"
    writes = re.compile(r"typer\.echo\(|(?<![.\w])print\(|sys\.std(out|err)\.write")
    found = {path.name for path in folder.glob("*.py") if writes.search(path.read_text())}
    # The others print the version and the name of a file.
    assert found == {"printing.py", "__init__.py", "openapi.py"}
