"""/metrics: what this process counts, and what Redis knows of the queue."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

from fastapi import FastAPI, Request, Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder, start_http_server

PATH = "/metrics"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class HttpMetrics:
    """What is counted of requests. A registry of its own: several applications may live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        Gauge("img2img_build_info", "1, with the version.", ["version"], registry=self.registry).labels(
            version("img2img-server")
        ).set(1)
        self.requests = Counter(
            "img2img_http_requests",
            "Requests, by the template of their route; `none` where they came to no route.",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "img2img_http_request_duration_seconds",
            "From a request's head to the head of its answer; long polling is what it is.",
            ["method", "route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.in_progress = Gauge(
            "img2img_http_requests_in_progress",
            "Requests that are being answered, streams too.",
            registry=self.registry,
        )

    @contextmanager
    def served(self, host: str, port: int | None) -> Iterator[None]:
        """Answers on a port of its own; None: on none. Raises OSError."""
        if port is None:
            yield
            return
        server, thread = start_http_server(port, host, self.registry)
        yield
        server.shutdown()
        server.server_close()
        thread.join()


def install_metrics(app: FastAPI, metrics: HttpMetrics) -> None:
    """Adds the route, which the door guards: it is for those who run the service, and no part of the HTTP contract."""

    def answer(request: Request) -> Response:
        encode, kind = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(metrics.registry), headers={"Content-Type": kind})

    app.add_api_route(PATH, answer, methods=["GET"], include_in_schema=False)
