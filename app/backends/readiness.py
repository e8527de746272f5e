"""Checks of Redis, the workers and the blob store, which all clients share: any number of them cost one check."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from obstore.exceptions import BaseError as StoreError
from redis import Redis
from redis.exceptions import RedisError

from img2img.blobs import BlobStore, is_disk_full
from img2img.domain.model_status import ModelState, ModelStatus
from img2img.errors import StorageFull
from img2img.free_disk import FreeDisk
from img2img.redis import outage
from img2img.redis.clock import redis_clock
from img2img.redis.model_registry import ModelRegistry
from img2img.redis.model_reports import IN_THE_LOG, WorkerReports
from img2img.redis.webhook_outbox import WebhookOutbox
from img2img.redis.worker_starts import WorkerStarts

from ..schemas.responses import DependencyStatus, ModelAvailability, NamedModel, Readiness, by_model

# A result is used for this long.
MAX_AGE_S = 1.0
# A check that takes longer counts as failed. It continues, and no other one starts before it has ended.
WAIT_S = 1.8
# Room that the inputs of a job need on the disk.
INPUT_BYTES = 1024 * 1024
NO_RESPONSE = DependencyStatus(ok=False, detail=f"no response within {WAIT_S:g} s")
UNKNOWN = DependencyStatus(ok=False, detail="unknown without Redis")

T = TypeVar("T")


class SharedCheck(Generic[T]):
    """Runs a check on one thread at a time, and keeps its result for a while.

    Args:
        check: Blocks and raises nothing.
        no_response: Result while the check takes too long.
    """

    def __init__(self, check: Callable[[], T], no_response: T) -> None:
        self._check = check
        self._no_response = no_response
        self._limiter = CapacityLimiter(1)
        self._result = no_response
        self._ended_at = self._started_at = -MAX_AGE_S
        self._running: asyncio.Task[None] | None = None

    async def read(self) -> T:
        """Return a result that is at most `MAX_AGE_S` old, after at most `WAIT_S`."""
        if self._running is None and time.monotonic() - self._ended_at < MAX_AGE_S:
            return self._result
        if self._running is None:
            self._started_at = time.monotonic()
            self._running = asyncio.create_task(self._run())
        running, left_s = self._running, self._started_at + WAIT_S - time.monotonic()
        if not running.done():
            await asyncio.wait((running,), timeout=max(0.0, left_s))
        return self._result if running.done() else self._no_response

    async def _run(self) -> None:
        try:
            self._result = await run_sync(self._check, limiter=self._limiter)
        finally:
            self._ended_at = time.monotonic()
            self._running = None


class RedisReadiness(NamedTuple):
    """The state that Redis gives. `webhooks` is None if the service sends none."""

    redis: DependencyStatus
    workers: DependencyStatus
    webhooks: DependencyStatus | None
    models: Sequence[NamedModel] = ()


def combined(cells: Mapping[str, Readiness]) -> Readiness:
    """Return the state of a service with these cells: it is ready if one of them is."""
    if "" in cells:
        return cells[""]

    def status(part: str) -> DependencyStatus:
        found: dict[str, DependencyStatus] = {name: getattr(cell, part) for name, cell in cells.items()}
        detail = "; ".join(f"{name}: {one.detail}" for name, one in found.items())
        return DependencyStatus(ok=any(one.ok for one in found.values()), detail=detail)

    models = {model.name: model for cell in cells.values() for model in cell.models}
    has_webhooks = all(cell.webhooks for cell in cells.values())
    return Readiness(
        ready=any(cell.ready for cell in cells.values()),
        redis=status("redis"),
        store=status("store"),
        workers=status("workers"),
        models=list(models.values()),
        webhooks=status("webhooks") if has_webhooks else None,
        cells={name: cell.ready for name, cell in cells.items()},
    )


class ReadinessChecks:
    """The checks of `GET /readyz`.

    Args:
        outbox: None if the service sends no webhooks.
        default_model: Returns the model of requests that name none. Raises RedisError.
        with_errors: Whether to report why workers did not start and models were not loaded. Otherwise clients without
            an API key would read it.
    """

    def __init__(
        self,
        redis: Redis,
        models: ModelRegistry,
        starts: WorkerStarts,
        outbox: WebhookOutbox | None,
        store: BlobStore,
        free_disk: FreeDisk,
        *,
        default_model: Callable[[], str],
        with_errors: bool,
    ) -> None:
        self._redis = redis
        self._models = models
        self._clock = redis_clock(redis)
        self._starts = starts
        self._reports = WorkerReports(redis)
        self._default_model = default_model
        self._with_errors = with_errors
        self._outbox = outbox
        self._store = store
        self._free_disk = free_disk
        no_redis = RedisReadiness(NO_RESPONSE, UNKNOWN, UNKNOWN if outbox else None)
        self._redis_check = SharedCheck(self._check_redis, no_redis)
        self._store_check = SharedCheck(self._check_store, NO_RESPONSE)

    async def read(self) -> Readiness:
        """Return the state of all parts of the service, after at most `WAIT_S`."""
        found, store = await asyncio.gather(self._redis_check.read(), self._store_check.read())
        ready = found.redis.ok and store.ok and found.workers.ok
        return Readiness(
            ready=ready,
            redis=found.redis,
            store=store,
            workers=found.workers,
            models=list(found.models),
            webhooks=found.webhooks,
        )

    def _check_redis(self) -> RedisReadiness:
        try:
            self._clock.now()
            outage.check_writable(self._redis)
            states, default = self._read_states(), self._default_model()
            starting = self._starts.all().values()
            reports = self._reports.read(states).values()
            webhooks = self._check_webhooks(self._outbox) if self._outbox else None
        except RedisError as error:
            status = DependencyStatus(ok=False, detail=outage.reason_of(error) or type(error).__name__)
            return RedisReadiness(status, UNKNOWN, UNKNOWN if self._outbox else None)
        models = [
            NamedModel(name=name, state=ModelAvailability.best_of(s.state for s in statuses), statuses=statuses)
            for name, statuses in sorted(by_model(states, with_paths=True).items())
        ]
        details = [f"{len(states)} live", *(start.describe(with_error=self._with_errors) for start in starting)]
        details += [notice for report in reports for notice in report.notices(with_reason=self._with_errors)]
        # A default model that no worker knows may be served by one that starts later: its jobs wait.
        has_failed = (default, ModelState.FAILED) in [(model.name, model.state) for model in models]
        if has_failed:
            details.append(f"the default model {default} could not be loaded")
        workers = DependencyStatus(ok=bool(states) and not has_failed, detail="; ".join(details))
        detail = f"responds; {self._clock.warning}" if self._clock.warning else "responds"
        return RedisReadiness(DependencyStatus(ok=True, detail=detail), workers, webhooks, models)

    def _read_states(self) -> Mapping[str, Mapping[str, ModelStatus]]:
        states = self._models.states()
        if self._with_errors:
            return states
        return {
            worker: {
                name: status.model_copy(update={"error": IN_THE_LOG}) if status.error else status
                for name, status in statuses.items()
            }
            for worker, statuses in states.items()
        }

    def _check_webhooks(self, outbox: WebhookOutbox) -> DependencyStatus:
        is_running, pending = outbox.has_dispatcher(), outbox.pending_count()
        dispatcher = "dispatcher running" if is_running else "no dispatcher running"
        return DependencyStatus(ok=is_running, detail=f"{dispatcher}; {pending} webhook{'s' * (pending != 1)} pending")

    def _check_store(self) -> DependencyStatus:
        try:
            self._store.check()
            self._free_disk.check(INPUT_BYTES)
        except StorageFull as error:
            return DependencyStatus(ok=False, detail=error.message)
        except (StoreError, OSError) as error:
            return DependencyStatus(
                ok=False, detail="the disk is full" if is_disk_full(error) else type(error).__name__
            )
        return DependencyStatus(ok=True, detail="responds")
