"""The logs of every process: a line for each record, as text or JSON, with the id of the job that it concerns.

What clients sent does not come into them: no prompts, no keys. Exceptions of libraries quote what they were given
(pydantic whole documents, pipelines a prompt), so of an exception the logs hold where it was raised and its type; its
words only where they are of machinery. Our own messages name ids, states, numbers and codes. The hash of an input is
left out of store keys, which the store's errors name.
"""

import logging
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Literal, TextIO

from obstore.exceptions import BaseError as StoreError
from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter
from redis.exceptions import RedisError

from img2img.domain.spec import without_input_keys

LogFormat = Literal["text", "json"]
ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]

OWN_LOGGERS = ("img2img",)
INFRASTRUCTURE_ERRORS = (OSError, RedisError, StoreError, MemoryError)  # their words are of hosts, files and numbers
# What ends a line somewhere, or steers a terminal: written as an escape, so that nobody can forge a line.
CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))} | {0x2028: "\\u2028", 0x2029: "\\u2029"}

_about: ContextVar[dict[str, str] | None] = ContextVar("about", default=None)


@contextmanager
def job_context(job_id: str, traceparent: str | None = None) -> Iterator[None]:
    """Lines written in here, whoever writes them, name this job; and its trace, where it has one."""
    token = _about.set(job_extra(job_id) | ({"trace_id": traceparent.split("-")[1]} if traceparent else {}))
    try:
        yield
    finally:
        _about.reset(token)


def job_extra(job_id: str) -> dict[str, str]:
    """`extra` of one line about a job."""
    return {"job_id": job_id}


def configure(side: str, *, level: str, form: LogFormat) -> None:
    """Writes the logs of this process to stderr. side: api, worker or webhooks. level: ours; libraries have to warn.

    Raises ValueError for an unknown level.
    """
    logging.root.handlers[:] = [make_handler(side, form)]
    logging.root.setLevel(max(logging.WARNING, logging.getLevelNamesMapping().get(level, logging.WARNING)))
    logging.getLogger("rq.worker").setLevel(logging.root.level)  # RQ sets it to INFO: a line a job beside ours
    for name in OWN_LOGGERS:
        logging.getLogger(name).setLevel(level)
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = lambda args: _log_uncaught(args.exc_type, args.exc_value, args.exc_traceback)


def make_handler(side: str, form: LogFormat, stream: TextIO | None = None) -> logging.Handler:
    """What writes the lines; by default to stderr."""
    handler = logging.StreamHandler(stream)
    handler.addFilter(_stamp)
    handler.setFormatter(_Json(side) if form == "json" else _Text())
    return handler


def _stamp(record: logging.LogRecord) -> bool:
    for name, value in (_traced() | (_about.get() or {})).items():
        if not hasattr(record, name):
            setattr(record, name, value)
    return True


def _traced() -> dict[str, str]:
    """The trace at hand, where OpenTelemetry is loaded."""
    trace = sys.modules.get("opentelemetry.trace")
    context = trace.get_current_span().get_span_context() if trace else None
    return {"trace_id": f"{context.trace_id:032x}"} if context and context.is_valid else {}


def _log_uncaught(kind: type[BaseException], error: BaseException | None, where: TracebackType | None) -> None:
    if error is None or issubclass(kind, KeyboardInterrupt):
        return
    logging.getLogger(OWN_LOGGERS[0]).critical("uncaught", exc_info=(kind, error, where))


def _frames(error: BaseException) -> Iterator[str]:
    """The traceback, oldest cause first, with types for words."""
    earlier = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if earlier is not None:
        yield from _frames(earlier)
        yield "then:"
    yield from "".join(traceback.format_tb(error.__traceback__)).rstrip("\n").split("\n")
    words = f": {error}".translate(CONTROL) if isinstance(error, INFRASTRUCTURE_ERRORS) else ""
    yield f"{type(error).__module__}.{type(error).__qualname__}{words}"
    for one in error.exceptions if isinstance(error, BaseExceptionGroup) else ():
        yield from _frames(one)


def _format_exception(info: ExcInfo) -> str:
    return "\n".join(_frames(info[1])) if info[1] is not None else ""


class _Json(JsonFormatter):
    """One JSON object a line, ASCII only."""

    def __init__(self, side: str) -> None:
        super().__init__(
            ["levelname", "name", "message"],
            rename_fields={"levelname": "level", "name": "logger", "exc_info": "exception"},
            static_fields={"service": side},
            reserved_attrs=[*RESERVED_ATTRS, "color_message"],  # the message again, from uvicorn
            timestamp="time",
        )

    def format(self, record: logging.LogRecord) -> str:
        return without_input_keys(super().format(record))

    def formatException(self, info: ExcInfo) -> str:  # noqa: N802
        return _format_exception(info)


class _Text(logging.Formatter):
    """A line for people: time, level, logger, the job, the message."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        return without_input_keys(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        given: dict[str, Any] = vars(record)
        message = f"job {given['job_id']}: {record.message}" if "job_id" in given else record.message
        return self._style._fmt % {**given, "message": message.translate(CONTROL)}

    def formatException(self, info: ExcInfo) -> str:  # noqa: N802
        return _format_exception(info)
