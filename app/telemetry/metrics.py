"""Prometheus metrics of the API server, at `/metrics`."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

from fastapi import FastAPI, Request, Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder, start_http_server

from img2img.moderation import MODERATION_CHECKS
from img2img.stored_images import DAMAGED_IMAGES

PATH = "/metrics"
BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class HttpMetrics:
    """Metrics of requests, in a separate registry: several applications may run in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        Gauge("img2img_build_info", "Always 1; the version is a label.", ["version"], registry=self.registry).labels(
            version("img2img-server")
        ).set(1)
        self.registry.register(DAMAGED_IMAGES)
        self.registry.register(MODERATION_CHECKS)
        self.requests = Counter(
            "img2img_http_requests",
            "Requests by route template; route `none`: rejected before routing, or no such route.",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "img2img_http_request_duration_seconds",
            "Time from request headers received to response headers sent. Includes the wait of long polls.",
            ["method", "route"],
            buckets=BUCKETS_S,
            registry=self.registry,
        )
        self.in_progress = Gauge(
            "img2img_http_requests_in_progress", "Open requests, including streams.", registry=self.registry
        )

    @contextmanager
    def served(self, host: str, port: int | None) -> Iterator[None]:
        """Serve the metrics on a separate port while the context lasts; None: on no port. Raises OSError."""
        if port is None:
            yield
            return
        server, thread = start_http_server(port, host, self.registry)
        yield
        server.shutdown()
        server.server_close()
        thread.join()


def install_metrics(app: FastAPI, metrics: HttpMetrics) -> None:
    """Add the route `/metrics`. It needs a key with the scope `metrics` and is not part of the OpenAPI document."""

    def get_metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(metrics.registry), headers={"Content-Type": content_type})

    app.add_api_route(PATH, get_metrics, methods=["GET"], include_in_schema=False)
