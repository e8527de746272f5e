"""Entry point of the webhook dispatcher: `python -m img2img.app.webhooks`."""

import asyncio
import signal
import sys

from pydantic import ValidationError

from img2img.printable import printable
from img2img.redis.connection import connect
from img2img.redis.interim_events import InterimEvents
from img2img.redis.webhook_outbox import WebhookOutbox
from img2img.settings import describe_errors
from img2img.telemetry import logging
from img2img.telemetry.tracing import Tracer, TracingError

from ..settings import ApiSettings
from .dispatcher import WebhookDispatcher
from .http_sender import HttpSender
from .pinned_transport import PinnedTransport
from .signing import WebhookSigner

REDIS_TIMEOUT_S = 5.0


def main() -> int:
    """Run the dispatcher; return exit code 0 after a signal to stop, 2 if it cannot start."""
    try:
        settings = ApiSettings()
    except ValidationError as error:
        return _fail(describe_errors(error))
    if not settings.webhook_secrets:
        return _fail("set IMG2IMG_WEBHOOK_SECRET, which signs webhooks, to the same value as for the API server")
    logging.configure("webhooks", level=settings.log_level, log_format=settings.log_format)
    try:
        tracer = Tracer.from_environment("webhooks")
    except TracingError as error:
        return _fail(str(error))
    asyncio.run(run(settings, tracer))
    tracer.close()
    return 0


async def run(settings: ApiSettings, tracer: Tracer) -> None:
    """Deliver until SIGTERM or SIGINT, then wait for the attempts in flight."""
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    allow_private, timeout_s = settings.webhook_allow_private, settings.webhook_timeout_s
    sender = HttpSender(PinnedTransport(allow_private=allow_private), timeout_s=timeout_s, allow_http=allow_private)
    signer = WebhookSigner(settings.webhook_secrets)
    with connect(
        settings.resolved_redis_url, socket_timeout=REDIS_TIMEOUT_S, socket_connect_timeout=REDIS_TIMEOUT_S
    ) as redis:
        dispatcher = WebhookDispatcher(
            WebhookOutbox(redis), InterimEvents(redis), sender, signer, timeout_s=timeout_s, tracer=tracer
        )
        await dispatcher.run(stop)


def _fail(reason: str) -> int:
    sys.stderr.write(f"img2img webhooks: {printable(reason)}\n")
    return 2


if __name__ == "__main__":
    sys.exit(main())
