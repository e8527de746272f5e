"""Heartbeat of a worker: renews leases, registers its models, and requeues jobs of dead workers."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from redis.exceptions import RedisError
from rq.worker import BaseWorker

from img2img.redis.clock import redis_clock
from img2img.redis.model_registry import ModelRegistry

from .execution import JobExecution
from .reaper import Reaper
from .served_models import ServedModels

log = logging.getLogger(__name__)


class Heartbeat:
    """Keeps a worker's registration and leases alive.

    Args:
        worker: the RQ worker.
        registry: where the worker registers its models.
        reaper: requeues the jobs of dead workers.
        models: the models that the worker serves.
        in_flight: the worker's executions by id.
        lease_s: seconds without a heartbeat after which a job goes to another worker.
        live_file: a file that is touched at each heartbeat, for health checks.
        on_clock_skew: called at each heartbeat with the seconds by which this host's clock is ahead of that of Redis.
    """

    def __init__(
        self,
        worker: BaseWorker,
        registry: ModelRegistry,
        reaper: Reaper,
        models: ServedModels,
        in_flight: Mapping[str, JobExecution],
        *,
        lease_s: int,
        live_file: Path | None,
        on_clock_skew: Callable[[float], object] = lambda _skew_s: None,
    ) -> None:
        self._worker = worker
        self._registry = registry
        self._reaper = reaper
        self._models = models
        self._in_flight = in_flight
        self._lease_s = lease_s
        self._live_file = live_file
        self._on_clock_skew = on_clock_skew
        self._clock = redis_clock(worker.connection)

    def register(self) -> None:
        """Announce the models of this worker for the time of a lease, and compare the clocks."""
        self.announce()
        self._clock.read()
        self._on_clock_skew(self._clock.skew_s or 0.0)
        if self._live_file:
            self._live_file.touch()
            self._mark_completeness(self._live_file)

    def _mark_completeness(self, live_file: Path) -> None:
        """Create a file beside the live file while all models have all of their files, so that they need no hub."""
        complete = live_file.with_name(f"{live_file.name}.complete")
        if all(status.disk_bytes is not None for status in self._models.statuses().values()):
            complete.touch()
        else:
            complete.unlink(missing_ok=True)

    def announce(self) -> None:
        """Announce the models of this worker and their states. Raises RedisError."""
        models = self._models
        cards = models.announced_cards
        self._registry.register(self._worker.name, cards, self._lease_s, models.statuses())
        # Those that were removed meanwhile, on another thread.
        for name in {card.name for card in cards} - {card.name for card in models.announced_cards}:
            if not self._registry.is_served_by_others(name, self._worker.name):
                self._registry.forget(name)

    def run(self, closed: threading.Event) -> None:
        """Renew the leases four times per lease, until `closed` is set."""
        last_beat = time.monotonic()
        reap_after = 0.0
        while not closed.wait(self._lease_s / 4):
            try:
                self._worker.heartbeat()
                for execution in list(self._in_flight.values()):
                    self._worker.maintain_heartbeats(execution.job, execution.rq_execution)
                self.register()
                previous_beat, last_beat = last_beat, time.monotonic()
                # After an outage of Redis, or a pause of this process, other workers may be late as well: give them
                # the time of a lease before their jobs are requeued.
                if last_beat - previous_beat > self._lease_s / 2:
                    reap_after = last_beat + self._lease_s
                if last_beat >= reap_after:
                    self._reaper.reap()
            except RedisError as error:
                log.warning("Redis is unavailable, retrying the heartbeat: %s", error)
            except Exception:
                log.exception("the heartbeat failed, retrying")

    def unregister(self) -> None:
        """Remove the live file and the registration. Raises RedisError."""
        if self._live_file:
            self._live_file.unlink(missing_ok=True)
        self._registry.unregister(self._worker.name)
