"""Entry point of the webhook dispatcher: `python -m img2img.app.webhooks`."""

import asyncio
import signal
import sys

from pydantic import ValidationError
from redis import Redis

from img2img.redis.webhook_outbox import WebhookOutbox
from img2img.telemetry import logging as logs
from img2img.telemetry.tracing import Tracer, TracingError

from ..settings import ApiSettings, complaint
from .dispatcher import WebhookDispatcher
from .http_sender import HttpSender
from .pinned_transport import PinnedTransport
from .signing import WebhookSigner

REDIS_TIMEOUT_S = 5.0


def main() -> int:
    """Exit code 0 after it was told to stop, 2 when it cannot start."""
    try:
        settings = ApiSettings()
    except ValidationError as error:
        return _complain(complaint(error))
    if not settings.webhook_secrets:
        return _complain("set IMG2IMG_WEBHOOK_SECRET, which signs webhooks, to the same value as for the API")
    logs.configure("webhooks", level=settings.log_level, log_format=settings.log_format)
    try:
        traces = Tracer.from_environment("webhooks")
    except TracingError as error:
        return _complain(str(error))
    asyncio.run(run(settings, traces))
    traces.close()
    return 0


async def run(settings: ApiSettings, traces: Tracer) -> None:
    """Delivers until SIGTERM or SIGINT; attempts in flight end first."""
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    allow_private, timeout_s = settings.webhook_allow_private, settings.webhook_timeout_s
    poster = HttpSender(PinnedTransport(allow_private=allow_private), timeout_s=timeout_s, allow_http=allow_private)
    with Redis.from_url(
        settings.resolved_redis_url, socket_timeout=REDIS_TIMEOUT_S, socket_connect_timeout=REDIS_TIMEOUT_S
    ) as redis:
        dispatcher = WebhookDispatcher(
            WebhookOutbox(redis), poster, WebhookSigner(settings.webhook_secrets), timeout_s=timeout_s, traces=traces
        )
        await dispatcher.run(stop)


def _complain(reason: str) -> int:
    sys.stderr.write(f"img2img webhooks: {reason}\n")
    return 2


if __name__ == "__main__":
    sys.exit(main())
