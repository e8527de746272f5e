"""Spans of requests, by OpenTelemetry's instrumentation of FastAPI. They join the trace that a client sends along."""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI

from img2img.telemetry.tracing import Tracer, TracingError

QUIET = "healthz,readyz,metrics"  # asked every few seconds, by machines
URLS = {"http.url", "http.target", "url.full", "url.path", "url.query"}  # by old conventions and new


def install_tracing(app: FastAPI, traces: Tracer) -> None:
    """Where traces are on. Raises CannotTrace."""
    if traces.provider is None:
        return
    try:
        from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
    except ImportError:
        raise TracingError("traces need: pip install 'img2img-server[otel]'") from None
    FastAPIInstrumentor.instrument_app(
        app,
        tracer_provider=traces.provider,
        excluded_urls=QUIET,
        exclude_spans=["receive", "send"],
        server_request_hook=_forget_url,
    )


def _forget_url(span: Any, _scope: Mapping[str, Any]) -> None:
    """The template of the route for the URL as it was sent: what clients put into a query is theirs."""
    attributes = getattr(span, "attributes", None) or {}
    for name in URLS & attributes.keys():
        span.set_attribute(name, attributes.get("http.route", ""))
