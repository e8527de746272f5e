"""stay_down: keeps a worker that cannot start from being started again and again, and its reason at /readyz."""

import logging
import os
import socket
import time
from contextlib import suppress

from pydantic import ValidationError
from redis.exceptions import RedisError

from img2img.file_watch import FileWatch
from img2img.redis.connection import connect
from img2img.redis.model_definitions import ModelDefinitions
from img2img.redis.worker_starts import WorkerStarts

from ..settings import WorkerSettings

POLL_S = 2.0
# The reason is published again after this time, before it expires.
REPORT_S = 60.0

log = logging.getLogger(__name__)


def stay_down(retry_s: float | None) -> None:
    """Return when another start may succeed: when the model file or a model by request has changed. A signal ends it.

    Args:
        retry_s: return after this time in any case; None: never.
    """
    give_up_at = time.monotonic() + retry_s if retry_s is not None else float("inf")
    try:
        settings = WorkerSettings()
        redis = connect(settings.resolved_redis_url)
    except (ValidationError, ValueError):
        # The settings of this process do not change.
        while time.monotonic() < give_up_at:
            time.sleep(POLL_S)
        return
    log.warning("the worker stays down until its model file or a model by request changes, or it is restarted")
    watch = FileWatch(settings.models_file) if settings.models_file else None
    starts, worker = WorkerStarts(redis), f"{socket.gethostname()}:{os.getpid()}"
    reason, reported_at = None, time.monotonic()
    revision = None
    while time.monotonic() < give_up_at:
        time.sleep(POLL_S)
        if settings.live_file:
            # For the liveness check of a container: see docker/worker/worker-is-live.
            settings.live_file.with_name(f"{settings.live_file.name}.down").touch()
        if watch and watch.has_changed():
            return
        with suppress(RedisError):
            current = ModelDefinitions(redis).revision()
            revision = current if revision is None else revision
            if current != revision:
                return
            reason = reason or starts.find(worker)
            if reason and time.monotonic() - reported_at > REPORT_S:
                starts.report(worker, reason)
                reported_at = time.monotonic()
