"""OpenTelemetry traces, one per job, across all processes that work on it.

Needs the extra `img2img-server[otel]`, and is enabled by OTEL_EXPORTER_OTLP_ENDPOINT; otherwise OpenTelemetry is not
imported. The job record stores the trace of its request, as a W3C traceparent.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
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
# How long a process that ends waits for the collector.
FLUSH_MS = 3000

Value = str | int | float | bool


class TracingError(ValueError):
    """The environment enables traces that this installation cannot send."""


@dataclass(frozen=True)
class SpanData:
    """A finished span. Times are seconds since the epoch."""

    name: str
    started_at: float
    ended_at: float


class Tracer:
    """Creates the spans of one process. Does nothing without a provider."""

    def __init__(self, provider: TracerProvider | None = None) -> None:
        self.provider = provider
        self._tracer = provider.get_tracer("img2img", version("img2img-server")) if provider else None

    @classmethod
    def from_environment(cls, service: str) -> Tracer:
        """Return a tracer that is configured by the OTEL_* variables.

        Args:
            service: Name of the process: api, worker or webhooks.

        Raises:
            TracingError: The protocol is not supported, or OpenTelemetry is not installed.
        """
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
        name = {} if environ.get("OTEL_SERVICE_NAME") else {"service.name": f"img2img-{service}"}
        resource = Resource.create({**name, "service.version": version("img2img-server")})
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        return cls(provider)

    @contextmanager
    def span(self, name: str, traceparent: str | None = None) -> Iterator[None]:
        """Run the context in a span.

        Args:
            name: Name of the span.
            traceparent: Trace of a job; by default the current trace.
        """
        if self._tracer is None:
            yield
            return
        # Exceptions are not recorded, because they may quote a prompt.
        with self._tracer.start_as_current_span(
            name, _context(traceparent), record_exception=False, set_status_on_exception=False
        ):
            yield

    def traceparent(self) -> str | None:
        """Return the current span as a W3C traceparent, or None without traces."""
        if self._tracer is None:
            return None
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier)
        return carrier.get("traceparent")

    def record(
        self,
        span: SpanData,
        traceparent: str | None,
        attributes: Mapping[str, Value],
        children: Iterable[SpanData] = (),
        error: str | None = None,
    ) -> None:
        """Record a finished span.

        Args:
            span: The span.
            traceparent: Trace of the job; by default the current trace.
            attributes: Attributes of the span.
            children: Parts of the span.
            error: Error code, if the operation failed.
        """
        if self._tracer is None:
            return
        from opentelemetry.trace import StatusCode, set_span_in_context

        parent = self._tracer.start_span(
            span.name, _context(traceparent), attributes=attributes, start_time=_ns(span.started_at)
        )
        for child in children:
            inner = self._tracer.start_span(child.name, set_span_in_context(parent), start_time=_ns(child.started_at))
            inner.end(_ns(child.ended_at))
        if error is not None:
            parent.set_status(StatusCode.ERROR, error)
        parent.end(_ns(span.ended_at))

    def close(self) -> None:
        """Send the remaining spans."""
        if self.provider is not None:
            self.provider.force_flush(FLUSH_MS)
            self.provider.shutdown()


def _context(traceparent: str | None) -> Context | None:
    """Return the context of a job's trace, or None for the current one."""
    if traceparent is None:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({"traceparent": traceparent})


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
