"""Spans of requests, by OpenTelemetry's instrumentation of FastAPI. They join the trace that a client sends along."""

from fastapi import FastAPI

from app.contract.traces import CannotTrace, Traces

QUIET = "healthz,readyz,metrics"  # asked every few seconds, by machines


def install(app: FastAPI, traces: Traces) -> None:
    """Where traces are on. Raises CannotTrace."""
    if traces.provider is None:
        return
    try:
        from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
    except ImportError:
        raise CannotTrace("traces need: pip install 'img2img[otel]'") from None
    FastAPIInstrumentor.instrument_app(
        app, tracer_provider=traces.provider, excluded_urls=QUIET, exclude_spans=["receive", "send"]
    )
