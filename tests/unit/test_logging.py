"""The lines that processes write, and what does not come into them."""

import io
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from pydantic import BaseModel

from img2img.domain.spec import input_key, upload_key
from img2img.telemetry.logging import job_context, job_extra, make_handler

FORGED = "no\n2026-01-01 ERROR root: job 1: forged\r\x1b[31m\u2028\x85"
TRACE = "0af7651916cd43dd8448eb211c80319c"
LOG = logging.getLogger("img2img.worker.test")
LIBRARY = logging.getLogger("library.test")


class Spec(BaseModel):
    steps: int


def quote_a_prompt() -> None:
    said = "a marked prompt"
    try:
        Spec.model_validate({"prompt": said})
    except ValueError as error:
        raise ExceptionGroup(said, [RuntimeError(said)]) from error


@pytest.fixture(params=["text", "json"])
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def said(form: str) -> Iterator[Callable[[], str]]:
    """What the two loggers have written."""
    stream = io.StringIO()
    handler = make_handler("worker", form, stream)  # type: ignore[arg-type]
    for log in (LOG, LIBRARY):
        log.addHandler(handler)
        log.setLevel("INFO")
    yield stream.getvalue
    for log in (LOG, LIBRARY):
        log.removeHandler(handler)
        log.setLevel(logging.NOTSET)


def test_a_message_cannot_forge_a_line(form: str, said: Callable[[], str]) -> None:
    LOG.warning("%s", FORGED, extra=job_extra(FORGED))
    line, rest = said().split("\n", 1)
    assert line.isprintable()
    assert not rest
    if form == "json":
        assert json.loads(line)["message"] == json.loads(line)["job_id"] == FORGED


def test_what_an_exception_quotes_is_not_said(said: Callable[[], str]) -> None:
    try:
        quote_a_prompt()
    except Exception:
        LOG.exception("broken")
    assert 'said = "a marked prompt"' not in said()
    assert "marked" not in said()
    for kind in ("pydantic_core._pydantic_core.ValidationError", "builtins.ExceptionGroup", "builtins.RuntimeError"):
        assert kind in said()
    assert "in quote_a_prompt" in said()


def test_words_of_machinery_are_said(said: Callable[[], str]) -> None:
    try:
        open("/nowhere/at all")  # noqa: PTH123, SIM115
    except OSError:
        LOG.exception("broken")
    assert "builtins.FileNotFoundError: [Errno 2] No such file or directory: '/nowhere/at all'" in said()


def test_no_line_names_the_hash_of_an_input(said: Callable[[], str]) -> None:
    digest = "0123456789abcdef" * 4
    for key in (input_key(digest), upload_key(digest)):
        try:
            open(f"/nowhere/{key}")  # noqa: PTH123, SIM115
        except OSError as error:
            LOG.exception("broken: %s", error)
    assert digest not in said()
    assert said().count("/nowhere/inputs/....png") == said().count("/nowhere/uploads/...'") == 2


def test_lines_in_a_jobs_context_name_it(form: str, said: Callable[[], str]) -> None:
    with job_context("a" * 32, f"00-{TRACE}-b7ad6b7169203331-01"):
        LOG.info("inside")
        LIBRARY.warning("as well")
    LOG.info("outside")
    lines = said().splitlines()
    assert len(lines) == 3
    assert ["a" * 32 in line for line in lines] == [True, True, False]
    if form == "json":
        line = json.loads(lines[1])
        assert (line["job_id"], line["trace_id"], line["service"]) == ("a" * 32, TRACE, "worker")
    else:
        assert lines[0].endswith(f"INFO img2img.worker.test: job {'a' * 32}: inside")


def test_a_process_logs_what_nobody_catches_and_libraries_have_to_warn() -> None:
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
