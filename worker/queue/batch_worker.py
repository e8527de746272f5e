"""BatchWorker: an RQ worker that runs many jobs at once.

RQ's workers fork, or run one job at a time. This one fetches jobs while the engine has room for them, renews the lease
of each execution, and ends executions on a few threads (`finisher`). It never calls a function that is named in Redis.
It uses RQ, the job store and the blob store, but not torch.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING
from uuid import uuid4

from redis import Redis
from redis.exceptions import RedisError
from rq.job import Job
from rq.serializers import JSONSerializer
from rq.worker import BaseWorker, WorkerStatus

from img2img.blobs import BlobStore
from img2img.domain.model_card import ModelCard
from img2img.domain.model_status import ModelState, ModelStatus
from img2img.redis.job_queue import JobQueue
from img2img.redis.model_registry import ModelRegistry
from img2img.redis.rq_adapter import InertJob, rq_queue
from img2img.telemetry.logging import job_context

from ..engine.output_memory import AllMemories
from ..errors import WorkerDied
from .execution import JobExecution
from .finisher import Finisher
from .heartbeat import Heartbeat
from .job_arrivals import JobArrivals
from .job_fetcher import JobFetcher
from .job_metrics import JobMetrics
from .leases import release_lease
from .model_placement import ModelPlacement
from .progress import ProgressPublisher
from .reaper import Reaper
from .retention import Retention
from .served_models import ServedModels
from .throughput import ThroughputMeter

if TYPE_CHECKING:
    from ..runner import JobRunner

log = logging.getLogger(__name__)

# The main thread waits this long, unless a job was queued or a slot is free: with jobs in flight to publish their
# progress, and otherwise because a notification can be lost.
BUSY_S, IDLE_S = 0.1, 0.25
OUTAGE_S = 0.5  # pause while Redis is unreachable
SECOND_SIGNAL_S = 1  # a second signal sooner than this is the same Ctrl-C, delivered twice
LOADER_THREADS = 2
# More than one, because most of the time a finisher waits for the blob store or for Redis.
FINISHER_THREADS = 4
PLACEMENT_INTERVAL_S = 0.25  # between looks at the queues of models that are not loaded
LOG_S = 10.0  # between lines about the progress of loading a model


class BatchWorker(BaseWorker):
    """Runs jobs.

    Args:
        redis: client of the Redis with the queues.
        store: blob store for inputs and results.
        runner: prepares jobs for the engine.
        models: the models to serve.
        lease_s: seconds without a heartbeat after which a job goes to another worker.
        metrics: gets the outcomes of jobs.
        live_file: a file that is touched at each heartbeat, for health checks.
    """

    job_class = InertJob

    def __init__(
        self,
        redis: Redis,
        store: BlobStore,
        runner: JobRunner,
        models: ServedModels,
        *,
        lease_s: int,
        metrics: JobMetrics | None = None,
        live_file: Path | None = None,
    ) -> None:
        queues = [rq_queue(card.name, redis) for card in models.cards]
        name = f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:8]}"
        super().__init__(queues, name=name, connection=redis, serializer=JSONSerializer, log_job_description=False)
        metrics = metrics or JobMetrics()
        self._runner = runner
        self._store = store
        self._lease_s = lease_s
        self._metrics = metrics
        self._jobs = jobs = JobQueue(redis)
        self._in_flight: dict[str, JobExecution] = {}  # by execution id
        registry, throughput = ModelRegistry(redis), ThroughputMeter()
        reaper = Reaper(redis, lease_s=lease_s, on_lost=metrics.lost_leases.inc)
        self._wake = threading.Event()  # there may be a job to fetch
        self._arrivals = JobArrivals(redis, self._on_arrival)
        runner.on_slot_free = self._wake.set
        self._finisher = Finisher(self, jobs, store, self._in_flight, throughput, metrics, on_ended=self._wake.set)
        self._models = models
        self._fetcher = JobFetcher(
            self, jobs, models, runner.slots, self._in_flight, load=self._load, on_rendered=self._check
        )
        self._placement = ModelPlacement(name, jobs, registry, models)
        self._heartbeat = Heartbeat(
            self,
            registry,
            reaper,
            models,
            self._in_flight,
            lease_s=lease_s,
            live_file=live_file,
            on_clock_skew=metrics.clock_skew.set,
        )
        self._progress = ProgressPublisher(
            redis, jobs.job_store, registry, self._in_flight, throughput, metrics, worker_name=name, lease_s=lease_s
        )
        self._retention = Retention(redis, store, AllMemories())
        self._loaders = ThreadPoolExecutor(LOADER_THREADS, thread_name_prefix="load")
        # Checks wait: more threads than slots would have nothing to do.
        self._checkers = ThreadPoolExecutor(runner.slots, thread_name_prefix="check")
        self._draining = threading.Event()
        self._draining_since = 0.0
        self._closed = threading.Event()
        self._announced: tuple[dict[str, ModelStatus], list[ModelCard]] = {}, []
        self._placed_at = self._logged_at = 0.0

    def serve(self, check_engine: Callable[[], None]) -> None:
        """Run jobs until a signal, then finish the jobs in flight.

        Args:
            check_engine: called in each iteration; raises if the engine does not work any more.

        Raises:
            WorkerDied: on a second signal, or from `check_engine`. As for any other exception, the jobs in flight are
                requeued first.
        """
        self._retention.wait_until_writable()
        self._start_up()
        try:
            while not (self._draining.is_set() and not self._in_flight):
                check_engine()
                self._poll()
        except BaseException:
            self._requeue_all()
            raise
        finally:
            self._tear_down()

    def _start_up(self) -> None:
        self.register_birth()
        self.subscribe()
        self.set_state(WorkerStatus.IDLE)
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        self._heartbeat.register()
        # Retention has its own thread, because a slow blob store must not delay the heartbeat.
        threading.Thread(target=self._heartbeat.run, args=(self._closed,), name="heartbeat", daemon=True).start()
        threading.Thread(target=self._retention.run, args=(self._closed,), name="retention", daemon=True).start()
        threading.Thread(target=self._arrivals.run, args=(self._closed,), name="arrivals", daemon=True).start()
        for number in range(FINISHER_THREADS):
            threading.Thread(target=self._finisher.run, name=f"finisher-{number}", daemon=True).start()
        log.info("worker %s is ready; models: %s", self.name, ", ".join(card.name for card in self._models.cards))

    def _poll(self) -> None:
        """Fetch a job, or publish progress and wait until there may be another job to fetch."""
        self._wake.clear()
        try:
            self._place_models()
            if not self._draining.is_set() and self._fetcher.fetch():
                return
            self._progress.publish()
        except RedisError as error:
            log.warning("Redis is unavailable, retrying: %s", error)
            time.sleep(OUTAGE_S)
        self._wake.wait(BUSY_S if self._in_flight else IDLE_S)

    def _on_arrival(self, model: str | None) -> None:
        if model is None or any(card.name == model for card in self._models.cards):
            self._wake.set()

    def _place_models(self) -> None:
        """Load models whose jobs wait, and announce changes of states. Both at intervals. Raises RedisError."""
        now = time.monotonic()
        if now - self._placed_at < PLACEMENT_INTERVAL_S:
            return
        self._placed_at = now
        if not self._draining.is_set():
            self._placement.place()
        models = dict(self._models.statuses()), self._models.announced_cards
        if models != self._announced:
            self._heartbeat.announce()
            self._announced = models
            self._log_progress(models[0], now)

    def _log_progress(self, statuses: Mapping[str, ModelStatus], now: float) -> None:
        loading = {name: status for name, status in statuses.items() if status.state is ModelState.LOADING}
        if loading and now - self._logged_at >= LOG_S:
            self._logged_at = now
            for name, status in loading.items():
                log.info("loading %s: %s %%", name, "?" if status.percent is None else status.percent)

    def _load(self, execution: JobExecution) -> None:
        self._loaders.submit(execution.load, self._store, self._runner)
        self._metrics.record_start(execution)

    def _check(self, execution: JobExecution) -> None:
        """Let an execution that has left the engine be checked, where needed, and ended. Called on any thread."""
        self._wake.set()
        if execution.waits_for_checks:
            self._checkers.submit(self._check_and_finish, execution)
        else:
            self._finisher.put(execution)

    def _check_and_finish(self, execution: JobExecution) -> None:
        try:
            with job_context(execution.job_id, execution.record.traceparent):
                execution.check()
        finally:
            self._finisher.put(execution)

    def _tear_down(self) -> None:
        self._closed.set()
        self._loaders.shutdown()
        # Without an engine, the last checks would wait forever.
        self._checkers.shutdown(wait=False, cancel_futures=True)
        self._progress.close()
        self._finisher.close()
        try:
            self._heartbeat.unregister()
            self.register_death()
            self.unsubscribe()
        except RedisError as error:
            log.warning("Redis is unavailable, so the worker stays registered until its entry expires: %s", error)
        log.info("worker %s has stopped", self.name)

    def _on_signal(self, signum: int, _frame: FrameType | None) -> None:
        if self._draining.is_set():
            if time.monotonic() - self._draining_since > SECOND_SIGNAL_S:
                raise WorkerDied("stopped by a second signal; the jobs in flight are requeued")
            return
        self._draining_since = time.monotonic()
        log.info("received %s; jobs in flight to finish: %d", signal.Signals(signum).name, len(self._in_flight))
        self._draining.set()

    def _requeue_all(self) -> None:
        """Requeue the jobs in flight at once, rather than when their leases expire."""
        try:
            for execution in list(self._in_flight.values()):
                self._jobs.requeue(execution.job_id, execution=execution.id)
                release_lease(self, execution.job, execution.rq_execution)
        except RedisError as error:
            log.warning("Redis is unavailable, so jobs in flight are requeued when their leases expire: %s", error)

    def get_heartbeat_ttl(self, job: Job, working_time: float = 0.0) -> int:  # noqa: ARG002
        """Return the seconds of a lease. Overrides RQ's."""
        return self._lease_s

    def request_stop_execution(self, execution_id: str) -> None:
        """Stop an execution whose job was cancelled. Called by RQ's command channel."""
        execution = self._in_flight.get(execution_id)
        if execution is not None:
            execution.stop()
