"""Configuration of OpenTelemetry traces."""

import sys

import pytest

from img2img.settings import without_password
from img2img.telemetry.tracing import SpanData, Tracer, TracingError
from tests.support.trace_collectors import collecting

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
TRACE = "0af7651916cd43dd8448eb211c80319c"


def test_tracer_without_collector_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENDPOINT, raising=False)
    traces = Tracer.from_environment("worker")
    assert traces.provider is None
    with traces.span("any", f"00-{TRACE}-b7ad6b7169203331-01"):
        assert traces.traceparent() is None
    traces.record(SpanData("run", 1.0, 2.0), None, {})
    traces.close()


def test_tracer_respects_otel_sdk_disabled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert Tracer.from_environment("worker").provider is None


def test_tracer_refuses_unsupported_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(TracingError, match="http/protobuf, not grpc"):
        Tracer.from_environment("worker")
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_PROTOCOL")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(TracingError, match=r"pip install 'img2img-server\[otel\]'"):
        Tracer.from_environment("worker")


def test_spans_keep_their_trace_and_times(monkeypatch: pytest.MonkeyPatch) -> None:
    with collecting() as collector:
        monkeypatch.setenv(ENDPOINT, collector.url)
        traces = Tracer.from_environment("worker")
        carried = f"00-{TRACE}-b7ad6b7169203331-01"
        traces.record(
            SpanData("run", 10.0, 12.5), carried, {"img2img.end": "failed"}, (SpanData("encode", 11.0, 11.5),), "oops"
        )
        with traces.span("submit", carried):
            inside = traces.traceparent()
        traces.close()
    by_name = {span.name: span for span in collector.spans}
    assert {span.trace_id for span in collector.spans} == {TRACE}
    assert (by_name["run"].started_ns, by_name["run"].ended_ns) == (10_000_000_000, 12_500_000_000)
    assert by_name["encode"].parent_id == by_name["run"].span_id
    assert inside == f"00-{TRACE}-{by_name['submit'].span_id}-01"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://worker:s3cret@redis:6379/0", "redis://***@redis:6379/0"),
        ("redis://:s3cret@redis", "redis://***@redis"),
        ("redis://redis:6379/0", "redis://redis:6379/0"),
        ("unix:///tmp/redis.sock", "unix:///tmp/redis.sock"),
    ],
)
def test_without_password_hides_the_password(url: str, expected: str) -> None:
    assert without_password(url) == expected
