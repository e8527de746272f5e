"""Looks at every request from outside: counts it, times it, and writes its line. Never its raw path, query or headers:
they hold ids without bound, and whatever clients put there.
"""

import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from img2img.telemetry.logging import job_extra

from .metrics import HttpMetrics

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
NO_ROUTE = "none"  # refused before, or there is none

log = logging.getLogger(__name__)


class AccessLogMiddleware:
    """The outermost middleware."""

    def __init__(self, app: ASGIApp, metrics: HttpMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status, answered_s = 500, None

        async def noting_send(message: Message) -> None:
            nonlocal status, answered_s
            if message["type"] == "http.response.start":
                status, answered_s = message["status"], time.perf_counter() - started
            await send(message)

        self._metrics.in_progress.inc()
        try:
            await self._app(scope, receive, noting_send)
        finally:
            self._metrics.in_progress.dec()
            seconds = time.perf_counter() - started
            self._note(scope, status, seconds if answered_s is None else answered_s, seconds)

    def _note(self, scope: Scope, status: int, answered_s: float, seconds: float) -> None:
        method = scope["method"] if scope["method"] in METHODS else "other"
        route = getattr(scope.get("route"), "path", NO_ROUTE)
        self._metrics.requests.labels(method, route, str(status)).inc()
        self._metrics.seconds.labels(method, route).observe(answered_s)
        job_id = scope.get("path_params", {}).get("job_id", "")
        extra = job_extra(job_id) if len(job_id) == 32 and job_id.isalnum() else {}  # others are no ids of ours
        log.info("%s %s %d in %.3f s", method, route, status, seconds, extra=extra)
