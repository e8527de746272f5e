"""Logging of all processes: one line per record, as text or JSON, with the id of the job that it concerns.

Logs contain no input of clients: no prompts, no keys. Exceptions of libraries quote their arguments (pydantic whole
documents, pipelines a prompt), so of an exception only its type and traceback are logged; its message only if the type
is about infrastructure, or if no input reaches the code that raised it (`quoting_exceptions`). Our own messages name
ids, statuses, numbers and codes. Every SHA-256 is left out: errors of the blob store contain those of input images.
"""

import logging
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Literal, TextIO

from obstore.exceptions import BaseError as StoreError
from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter
from redis.exceptions import RedisError

from img2img.domain.blob_keys import without_hashes
from img2img.printable import printable

LogFormat = Literal["text", "json"]
ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]

OWN_LOGGERS = ("img2img",)
# Logged at any level: administration, and the address of the API server.
START_LOGGER = "img2img.start"
LOGGED_AT_ANY_LEVEL = ("img2img.redis.audit", START_LOGGER)
# Messages of these errors name only hosts, files and numbers.
INFRASTRUCTURE_ERRORS = (OSError, RedisError, StoreError, MemoryError)

_context: ContextVar[dict[str, str] | None] = ContextVar("context", default=None)
_quotes_exceptions: ContextVar[bool] = ContextVar("quotes_exceptions", default=False)


def job_context(job_id: str, traceparent: str | None = None) -> AbstractContextManager[None]:
    """Add the job's id, and its trace id if it has one, to all log records within this context."""
    return _context_of(job_extra(job_id) | ({"trace_id": traceparent.split("-")[1]} if traceparent else {}))


def request_context(request_id: str) -> AbstractContextManager[None]:
    """Add the id of the HTTP request to all log records within this context."""
    return _context_of({"request_id": request_id})


@contextmanager
def _context_of(fields: dict[str, str]) -> Iterator[None]:
    token = _context.set(fields)
    try:
        yield
    finally:
        _context.reset(token)


@contextmanager
def quoting_exceptions() -> Iterator[None]:
    """Log the messages of all exceptions within this context. Only for code that no input of clients reaches."""
    token = _quotes_exceptions.set(True)
    try:
        yield
    finally:
        _quotes_exceptions.reset(token)


def job_extra(job_id: str) -> dict[str, str]:
    """Return the `extra` of a log record about a job."""
    return {"job_id": job_id}


def configure(service: str, *, level: str, log_format: LogFormat) -> None:
    """Write the logs of this process to stderr.

    Args:
        service: Name of the process: api, worker or webhooks.
        level: Lowest level of our own loggers. Libraries log warnings and errors only.
        log_format: Text or JSON.

    Raises:
        ValueError: The level is unknown.
    """
    logging.root.handlers[:] = [make_handler(service, log_format)]
    logging.root.setLevel(max(logging.WARNING, logging.getLevelNamesMapping().get(level, logging.WARNING)))
    # RQ sets its logger to INFO, which would repeat our own messages about each job.
    logging.getLogger("rq.worker").setLevel(logging.root.level)
    for name in OWN_LOGGERS:
        logging.getLogger(name).setLevel(level)
    for name in LOGGED_AT_ANY_LEVEL:
        logging.getLogger(name).setLevel(min(logging.getLogger(OWN_LOGGERS[0]).level, logging.INFO))
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = lambda args: _log_uncaught(args.exc_type, args.exc_value, args.exc_traceback)


def make_handler(service: str, log_format: LogFormat, stream: TextIO | None = None) -> logging.Handler:
    """Return a handler that writes to a stream, by default to stderr."""
    handler = logging.StreamHandler(stream)
    handler.addFilter(_add_context)
    handler.setFormatter(_JsonFormatter(service) if log_format == "json" else _TextFormatter())
    return handler


def _add_context(record: logging.LogRecord) -> bool:
    for name, value in (_current_trace() | (_context.get() or {})).items():
        if not hasattr(record, name):
            setattr(record, name, value)
    return True


def _current_trace() -> dict[str, str]:
    """Return the id of the current trace, if OpenTelemetry is loaded."""
    trace = sys.modules.get("opentelemetry.trace")
    context = trace.get_current_span().get_span_context() if trace else None
    return {"trace_id": f"{context.trace_id:032x}"} if context and context.is_valid else {}


def _log_uncaught(kind: type[BaseException], error: BaseException | None, where: TracebackType | None) -> None:
    if error is None or issubclass(kind, KeyboardInterrupt):
        return
    logging.getLogger(OWN_LOGGERS[0]).critical("uncaught", exc_info=(kind, error, where))


def _frames(error: BaseException) -> Iterator[str]:
    """Yield the lines of the traceback, oldest cause first, without messages that may quote input."""
    earlier = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if earlier is not None:
        yield from _frames(earlier)
        yield "then:"
    yield from "".join(traceback.format_tb(error.__traceback__)).rstrip("\n").split("\n")
    message = printable(f": {error}") if _shows_message(error) else ""
    yield f"{type(error).__module__}.{type(error).__qualname__}{message}"
    for inner in error.exceptions if isinstance(error, BaseExceptionGroup) else ():
        yield from _frames(inner)


def _shows_message(error: BaseException) -> bool:
    return bool(str(error)) and (_quotes_exceptions.get() or isinstance(error, INFRASTRUCTURE_ERRORS))


def _format_exception(info: ExcInfo) -> str:
    return "\n".join(_frames(info[1])) if info[1] is not None else ""


class _JsonFormatter(JsonFormatter):
    """One JSON object per line, ASCII only."""

    def __init__(self, service: str) -> None:
        super().__init__(
            ["levelname", "name", "message"],
            rename_fields={"levelname": "level", "name": "logger", "exc_info": "exception"},
            static_fields={"service": service},
            # uvicorn's second copy of the message.
            reserved_attrs=[*RESERVED_ATTRS, "color_message"],
            timestamp="time",
        )

    def format(self, record: logging.LogRecord) -> str:
        return without_hashes(super().format(record))

    def formatException(self, info: ExcInfo) -> str:  # noqa: N802
        return _format_exception(info)


class _TextFormatter(logging.Formatter):
    """Time, level, logger, job, message and request."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        return without_hashes(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        attributes: dict[str, Any] = vars(record)
        message = f"job {attributes['job_id']}: {record.message}" if "job_id" in attributes else record.message
        if "request_id" in attributes:
            message += f" [request {attributes['request_id']}]"
        return self._style._fmt % {**attributes, "message": printable(message)}

    def formatException(self, info: ExcInfo) -> str:  # noqa: N802
        return _format_exception(info)
