"""Traces by OpenTelemetry, one for each job from its submit to its picture, whichever processes work on it.

An extra, `img2img-server[otel]`, which is on where OTEL_EXPORTER_OTLP_ENDPOINT names a collector; otherwise
neither its tracer nor its exporter is imported. A job carries its trace in its record, as a W3C traceparent.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
PROTOCOL = "http/protobuf"
FLUSH_MS = 3000  # how long the end of a process waits for a collector

Value = str | int | float | bool


class TracingError(ValueError):
    """Why the environment asks for traces that cannot be made."""


@dataclass(frozen=True)
class SpanData:
    """A part of a job's time, in seconds since the epoch."""

    name: str
    started_at: float
    ended_at: float


class Tracer:
    """What one process says of jobs. Without a provider: nothing, at no cost."""

    def __init__(self, provider: TracerProvider | None = None) -> None:
        self.provider = provider
        self._tracer = provider.get_tracer("img2img", version("img2img-server")) if provider else None

    @classmethod
    def from_environment(cls, side: str) -> Tracer:
        """As OTEL_* says. side: api, worker or webhooks. Raises CannotTrace."""
        environ = os.environ
        if environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or not any(map(environ.get, ENDPOINTS)):
            return cls()
        protocol = next((environ[name] for name in PROTOCOLS if environ.get(name)), PROTOCOL)
        if protocol != PROTOCOL:
            raise TracingError(f"OTEL_EXPORTER_OTLP_PROTOCOL: traces are sent by {PROTOCOL}, not {protocol}")
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError:
            raise TracingError(f"{ENDPOINTS[0]} is set, and traces need: pip install 'img2img-server[otel]'") from None
        name = {} if environ.get("OTEL_SERVICE_NAME") else {"service.name": f"img2img-{side}"}
        resource = Resource.create({**name, "service.version": version("img2img-server")})
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        return cls(provider)

    @contextmanager
    def span(self, name: str, traceparent: str | None = None) -> Iterator[None]:
        """A span around what is done in here, of the trace at hand or of the one that a job carries."""
        if self._tracer is None:
            yield
            return
        with self._tracer.start_as_current_span(
            name, _context(traceparent), record_exception=False, set_status_on_exception=False
        ):  # an exception may quote a prompt
            yield

    def traceparent(self) -> str | None:
        """Where the trace at hand stands, for a job to carry."""
        if self._tracer is None:
            return None
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier)
        return carrier.get("traceparent")

    def add(
        self,
        whole: SpanData,
        traceparent: str | None,
        attributes: Mapping[str, Value],
        parts: Iterator[SpanData] | tuple[SpanData, ...] = (),
        error: str | None = None,
    ) -> None:
        """A span of what is over, with its parts. error: the code of what went wrong."""
        if self._tracer is None:
            return
        from opentelemetry.trace import StatusCode, set_span_in_context

        span = self._tracer.start_span(
            whole.name, _context(traceparent), attributes=attributes, start_time=_ns(whole.started_at)
        )
        for part in parts:
            inner = self._tracer.start_span(part.name, set_span_in_context(span), start_time=_ns(part.started_at))
            inner.end(_ns(part.ended_at))
        if error is not None:
            span.set_status(StatusCode.ERROR, error)
        span.end(_ns(whole.ended_at))

    def close(self) -> None:
        """Sends what has not been sent."""
        if self.provider is not None:
            self.provider.force_flush(FLUSH_MS)
            self.provider.shutdown()


def _context(traceparent: str | None) -> Context | None:
    """Of a job's trace; None, which is the trace at hand, where it carries none."""
    if traceparent is None:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({"traceparent": traceparent})


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
