"""Access log and request metrics.

Neither contains raw paths, queries or headers: they hold ids without bound, and data of clients.
"""

import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from img2img.telemetry.logging import job_extra

from .metrics import HttpMetrics

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# Label of requests that were rejected before routing, or match no route.
NO_ROUTE = "none"

log = logging.getLogger(__name__)


class AccessLogMiddleware:
    """Counts, times and logs every request. Outside of it, there is only the id of the request."""

    def __init__(self, app: ASGIApp, metrics: HttpMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status, headers_s = 500, None

        async def observed_send(message: Message) -> None:
            nonlocal status, headers_s
            if message["type"] == "http.response.start":
                status, headers_s = message["status"], time.perf_counter() - started
            await send(message)

        self._metrics.in_progress.inc()
        try:
            await self._app(scope, receive, observed_send)
        finally:
            self._metrics.in_progress.dec()
            total_s = time.perf_counter() - started
            self._record(scope, status, total_s if headers_s is None else headers_s, total_s)

    def _record(self, scope: Scope, status: int, headers_s: float, total_s: float) -> None:
        method = scope["method"] if scope["method"] in METHODS else "other"
        route = getattr(scope.get("route"), "path", NO_ROUTE)
        self._metrics.requests.labels(method, route, str(status)).inc()
        self._metrics.seconds.labels(method, route).observe(headers_s)
        job_id = scope.get("path_params", {}).get("job_id", "")
        # Other text is not one of our ids, and would be client data in the log.
        is_job_id = len(job_id) == 32 and job_id.isalnum()
        log.info("%s %s %d in %.3f s", method, route, status, total_s, extra=job_extra(job_id) if is_job_id else {})
