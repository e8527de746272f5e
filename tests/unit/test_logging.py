"""Format of log lines, and the input that they must not contain."""

import io
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from pydantic import BaseModel

from img2img.domain.blob_keys import input_key, upload_key
from img2img.telemetry.logging import job_context, job_extra, make_handler

FORGED = "no\n2026-01-01 ERROR root: job 1: forged\r\x1b[31m\u2028\x85"
TRACE = "0af7651916cd43dd8448eb211c80319c"
LOG = logging.getLogger("img2img.worker.test")
LIBRARY = logging.getLogger("library.test")


class Spec(BaseModel):
    steps: int


def quote_a_prompt() -> None:
    output = "a marked prompt"
    try:
        Spec.model_validate({"prompt": output})
    except ValueError as error:
        raise ExceptionGroup(output, [RuntimeError(output)]) from error


@pytest.fixture(params=["text", "json"])
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def output(form: str) -> Iterator[Callable[[], str]]:
    """Return a function that returns the output of both loggers."""
    stream = io.StringIO()
    handler = make_handler("worker", form, stream)  # type: ignore[arg-type]
    for log in (LOG, LIBRARY):
        log.addHandler(handler)
        log.setLevel("INFO")
    yield stream.getvalue
    for log in (LOG, LIBRARY):
        log.removeHandler(handler)
        log.setLevel(logging.NOTSET)


def test_message_cannot_forge_a_line(form: str, output: Callable[[], str]) -> None:
    LOG.warning("%s", FORGED, extra=job_extra(FORGED))
    line, rest = output().split("\n", 1)
    assert line.isprintable()
    assert not rest
    if form == "json":
        assert json.loads(line)["message"] == json.loads(line)["job_id"] == FORGED


def test_exception_messages_that_quote_input_are_left_out(output: Callable[[], str]) -> None:
    try:
        quote_a_prompt()
    except Exception:
        LOG.exception("broken")
    assert 'output = "a marked prompt"' not in output()
    assert "marked" not in output()
    for kind in ("pydantic_core._pydantic_core.ValidationError", "builtins.ExceptionGroup", "builtins.RuntimeError"):
        assert kind in output()
    assert "in quote_a_prompt" in output()


def test_messages_of_infrastructure_errors_are_logged(output: Callable[[], str]) -> None:
    try:
        open("/nowhere/at all")  # noqa: PTH123, SIM115
    except OSError:
        LOG.exception("broken")
    assert "builtins.FileNotFoundError: [Errno 2] No such file or directory: '/nowhere/at all'" in output()


def test_hashes_of_input_images_are_left_out(output: Callable[[], str]) -> None:
    digest = "0123456789abcdef" * 4
    for key in (input_key(digest), upload_key(digest)):
        try:
            open(f"/nowhere/{key}")  # noqa: PTH123, SIM115
        except OSError as error:
            LOG.exception("broken: %s", error)
    assert digest not in output()
    assert output().count("/nowhere/inputs/....png") == output().count("/nowhere/uploads/...'") == 2


def test_job_context_adds_the_job_id(form: str, output: Callable[[], str]) -> None:
    with job_context("a" * 32, f"00-{TRACE}-b7ad6b7169203331-01"):
        LOG.info("inside")
        LIBRARY.warning("as well")
    LOG.info("outside")
    lines = output().splitlines()
    assert len(lines) == 3
    assert ["a" * 32 in line for line in lines] == [True, True, False]
    if form == "json":
        line = json.loads(lines[1])
        assert (line["job_id"], line["trace_id"], line["service"]) == ("a" * 32, TRACE, "worker")
    else:
        assert lines[0].endswith(f"INFO img2img.worker.test: job {'a' * 32}: inside")


def test_uncaught_exceptions_and_only_warnings_of_libraries_are_logged() -> None:
    program = (
        "import logging, threading; from img2img.telemetry import logging as logs\n"
        "from tests.unit.test_logging import quote_a_prompt\n"
        "logs.configure('worker', level='DEBUG', log_format='json')\n"
        "import rq.worker; logging.getLogger('rq.worker').info('done')\n"
        "logging.getLogger('httpcore').info('url'); logging.getLogger('img2img.worker.x').debug('ours')\n"
        "thread = threading.Thread(target=quote_a_prompt); thread.start(); thread.join()\n"
        "quote_a_prompt()"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    ours, thread, main = map(json.loads, run.stderr.splitlines())
    assert run.returncode == 1
    assert ours["message"] == "ours"
    for line in (thread, main):
        assert line["level"] == "CRITICAL"
        assert "builtins.RuntimeError" in line["exception"]
        assert "marked" not in line["exception"]
