"""The lines that processes write, each in a process of its own: `configure` is for the whole of it."""

import json
import subprocess
import sys

import pytest

FORGED = "no\n2026-01-01 ERROR root: job 1: forged\r\x1b[31m\u2028\x85"
BEGIN = "import logging; from app.contract import logs; log = logging.getLogger('worker.x')\n"


def said(form: str, code: str, level: str = "INFO") -> str:
    program = f"{BEGIN}logs.configure('worker', level={level!r}, form={form!r})\n{code}"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True)
    return run.stderr.decode()


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_message_cannot_forge_a_line(form: str) -> None:
    (line,) = said(form, f"log.warning('%s', {FORGED!r}, extra=logs.of_job({FORGED!r}))").split("\n")[:-1]
    assert line.isprintable()
    if form == "json":
        assert json.loads(line)["message"] == json.loads(line)["job_id"] == FORGED


QUOTING = """
from pydantic import BaseModel
class Spec(BaseModel):
    steps: int
def parse():
    try:
        Spec.model_validate({"prompt": "a marked prompt"})
    except ValueError as error:
        raise RuntimeError("cannot use a marked prompt") from error
"""


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("how", ["log.exception('broken')", "raise", "uncaught in a thread"])
def test_what_an_exception_quotes_is_not_said(form: str, how: str) -> None:
    body = {
        "raise": "parse()",
        "uncaught in a thread": "import threading; t = threading.Thread(target=parse); t.start(); t.join()",
    }.get(how, f"try:\n    parse()\nexcept Exception:\n    {how}")
    lines = said(form, QUOTING + body)
    assert "marked" not in lines.replace("raise RuntimeError", "")
    assert "pydantic_core._pydantic_core.ValidationError" in lines
    assert "builtins.RuntimeError" in lines
    assert "in parse" in lines


def test_words_of_machinery_are_said() -> None:
    code = "try:\n    open('/nowhere/at all')\nexcept OSError:\n    log.exception('broken')"
    assert "builtins.FileNotFoundError: [Errno 2] No such file or directory: '/nowhere/at all'" in said("text", code)


def test_lines_in_a_jobs_context_name_it() -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    code = (
        f"with logs.about_job('a' * 32, '00-{trace}-b7ad6b7169203331-01'):\n"
        "    log.info('inside'); logging.getLogger('a.library').warning('as well')\n"
        "log.info('outside')"
    )
    inside, library, outside = map(json.loads, said("json", code).splitlines())
    for line in (inside, library):
        assert (line["job_id"], line["trace_id"], line["service"]) == ("a" * 32, trace, "worker")
    assert "job_id" not in outside
    assert f"job {'a' * 32}: inside" in said("text", code)


def test_libraries_have_to_warn_to_be_heard() -> None:
    lines = said("text", "logging.getLogger('httpcore').info('url'); log.debug('ours')", level="DEBUG")
    assert "ours" in lines
    assert "url" not in lines
