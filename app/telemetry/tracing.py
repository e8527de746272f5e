"""Spans of requests, by the OpenTelemetry instrumentation of FastAPI. They join the trace of the client, if any."""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI

from img2img.telemetry.tracing import Tracer, TracingError

# Polled every few seconds by machines.
EXCLUDED_URLS = "healthz,readyz,metrics"
# Attributes that hold the raw URL, in old and new semantic conventions.
URL_ATTRIBUTES = {"http.url", "http.target", "url.full", "url.path", "url.query"}


def install_tracing(app: FastAPI, tracer: Tracer) -> None:
    """Trace requests if tracing is on. Raises TracingError if a package is missing."""
    if tracer.provider is None:
        return
    try:
        from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
    except ImportError:
        raise TracingError("traces need: pip install 'img2img-server[otel]'") from None
    FastAPIInstrumentor.instrument_app(
        app,
        tracer_provider=tracer.provider,
        excluded_urls=EXCLUDED_URLS,
        exclude_spans=["receive", "send"],
        server_request_hook=_replace_url,
    )


def _replace_url(span: Any, _scope: Mapping[str, Any]) -> None:
    """Replace the raw URL, which may contain client data, by the route template."""
    attributes = getattr(span, "attributes", None) or {}
    for name in URL_ATTRIBUTES & attributes.keys():
        span.set_attribute(name, attributes.get("http.route", ""))
