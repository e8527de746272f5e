"""BatchWorker: an RQ worker with many executions at once. Knows RQ, records and the store; not torch.

RQ's own workers fork or run one job at a time. This one claims while the engine has room (`intake`), keeps the lease of
every claim alive, and ends each claim in one place. It never calls a function whose name stands in Redis.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, TypeVar
from uuid import uuid4

from redis import Redis
from redis.exceptions import RedisError
from rq.job import Job
from rq.serializers import JSONSerializer
from rq.utils import now
from rq.worker import BaseWorker, WorkerStatus

from img2img.blobs import BlobStore
from img2img.domain.job import ImageInfo, JobFailure, JobStatus
from img2img.domain.model_card import WorkerThroughput
from img2img.errors import Cancelled, JobError
from img2img.redis.job_queue import JobQueue
from img2img.redis.job_store import Progress
from img2img.redis.model_registry import ModelRegistry
from img2img.redis.rq_adapter import InertJob, rq_queue
from img2img.telemetry.logging import job_context, job_extra

from ..errors import WorkerDied
from .execution import JobExecution, StorageUnavailable
from .job_fetcher import JobFetcher
from .job_metrics import JobMetrics
from .preview_publisher import PreviewPublisher
from .reaper import Reaper
from .retention import Retention
from .throughput import ThroughputMeter

if TYPE_CHECKING:
    from ..runner import JobRunner, RunningJob

log = logging.getLogger(__name__)

T = TypeVar("T")

PROGRESS_S = 0.2
IDLE_S = 0.02  # between two looks at the queues
SECOND_SIGNAL_S = 1  # a second signal sooner than this is the same Ctrl-C by another way
PACE_S = 1.0  # between two words on how fast this worker is
RETENTION_S = 2.0  # between two looks for what has expired or missed its deadline
OUTAGE_S = 0.5  # between two tries to reach Redis, or the store
STORE_OUTAGE_S = 60.0  # for which the store may be away, before jobs fail for it


class BatchWorker(BaseWorker):
    """Runs the jobs of a JobRunner's models. `work` returns when it was told to stop and has drained."""

    job_class = InertJob

    def __init__(
        self,
        redis: Redis,
        store: BlobStore,
        runner: JobRunner,
        *,
        lease_s: int,
        telemetry: JobMetrics | None = None,
        live_file: Path | None = None,
    ) -> None:
        """lease_s: a job whose worker is silent for this long goes to another one.

        live_file: touched whenever this worker says that it lives.
        """
        queues = [rq_queue(card.name, redis) for card in runner.cards]
        name = f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:8]}"
        super().__init__(queues, name=name, connection=redis, serializer=JSONSerializer, log_job_description=False)
        self._runner = runner
        self._store = store
        self._lease_s = lease_s
        self._live_file = live_file
        self._jobs = JobQueue(redis)
        self._records = self._jobs.job_store
        self._models = ModelRegistry(redis)
        self._telemetry = telemetry or JobMetrics()
        self._sweeper = Reaper(redis, lease_s=lease_s, on_lost=self._telemetry.lost.inc)
        self._retention = Retention(redis, store)
        self._ended: queue.SimpleQueue[JobExecution | None] = queue.SimpleQueue()
        self._draining = threading.Event()
        self._draining_since = 0.0
        self._closed = threading.Event()
        self._last_note = 0.0
        self._pace = ThroughputMeter()
        self._previewer = PreviewPublisher(redis)
        self._last_pace = 0.0
        self._store_away_since: float | None = None
        self._loaders = ThreadPoolExecutor(2, thread_name_prefix="load")
        self._intake = JobFetcher(
            self,
            self._jobs,
            runner,
            load=self._load,
            on_rendered=self._ended.put,
        )
        self._claims = self._intake.claims  # by execution id
        self._threads = [
            threading.Thread(target=self._beat, name="beat", daemon=True),
            threading.Thread(target=self._finish_all, name="finish", daemon=True),
            threading.Thread(target=self._retain, name="retain", daemon=True),
        ]

    # --- the story -------------------------------------------------------------------------------------------------

    def serve(self, check_engine: Callable[[], None]) -> None:
        """Start, loop, drain, stop. Raises WorkerDied on a second signal, or when `check_engine` does; whatever is
        raised, this worker's jobs go back to their queue first."""
        self._startup()
        try:
            while not (self._draining.is_set() and not self._claims):
                check_engine()
                self._tick()
        except BaseException:
            self._hand_back_all()
            raise
        finally:
            self._teardown()

    def _startup(self) -> None:
        self.register_birth()
        self.subscribe()
        self.set_state(WorkerStatus.IDLE)
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        self._announce()
        for thread in self._threads:
            thread.start()
        log.info("ready: %s on %s", ", ".join(card.name for card in self._runner.cards), self.name)

    def _announce(self) -> None:
        """Says that this worker lives, and what it serves."""
        self._models.register(self.name, self._runner.cards, self._lease_s)
        if self._live_file:
            self._live_file.touch()

    def _tick(self) -> None:
        try:
            if not self._draining.is_set() and self._intake.room > 0 and self._intake.claim_one():
                return
            self._note_progress()
            self._previewer.tick(self._in_engine())
            self._say_pace()
        except RedisError as error:
            log.warning("Redis: %s", error)
            time.sleep(OUTAGE_S)
        time.sleep(IDLE_S)

    def _teardown(self) -> None:
        self._closed.set()
        if self._live_file:
            self._live_file.unlink(missing_ok=True)
        self._loaders.shutdown()
        self._previewer.close()
        self._ended.put(None)
        try:
            self._models.unregister(self.name)
            self.register_death()
            self.unsubscribe()
        except RedisError as error:
            log.warning("Redis: %s", error)
        log.info("stopped")

    def _on_signal(self, signum: int, _frame: FrameType | None) -> None:
        if self._draining.is_set():
            if time.monotonic() - self._draining_since > SECOND_SIGNAL_S:
                raise WorkerDied("told twice to stop")
            return
        self._draining_since = time.monotonic()
        log.info("%s: draining %d jobs", signal.Signals(signum).name, len(self._claims))
        self._draining.set()

    def _load(self, claim: JobExecution) -> None:
        self._loaders.submit(claim.load, self._store, self._runner)
        self._telemetry.claimed(claim)

    # --- while they run --------------------------------------------------------------------------------------------

    def _note_progress(self) -> None:
        """Tells Redis of new steps, and learns from it which jobs are no longer ours: cancelled or given to another."""
        claims = {
            claim.execution.id: claim
            for claim in list(self._claims.values())
            if not claim.rendered and claim.running is not None
        }
        if not claims or time.monotonic() - self._last_note < PROGRESS_S:
            return
        self._last_note = time.monotonic()
        steps = {key: claim.record.spec.total_steps for key, claim in claims.items()}
        progress = [
            Progress(claim.record.id, key, claim.running.step, steps[key])
            for key, claim in claims.items()
            if claim.running is not None
        ]
        for lost in self._records.record_progress(progress):
            claims[lost.execution].stop()

    def _in_engine(self) -> dict[str, RunningJob]:
        claims = list(self._claims.values())
        return {c.record.id: c.running for c in claims if c.running is not None and not c.rendered}

    def _say_pace(self) -> None:
        """Tells the front end how fast this worker is, for it to say when a waiting job will be done."""
        now_s = time.monotonic()
        for key, claim in list(self._claims.items()):
            if claim.running is not None and not claim.rendered:
                self._telemetry.note_steps(claim)
                spec = claim.record.spec
                steps = (spec.steps_run + 1) * spec.passes  # as `cost` counts them
                self._pace.note(key, spec.cost * (1 - claim.running.step / steps))
        self._pace.tick(now_s, self._claims.keys())
        if now_s - self._last_pace >= PACE_S:
            self._last_pace = now_s
            pace = WorkerThroughput(per_second=self._pace.per_second, left=self._pace.left)
            self._models.report_throughput(self.name, pace, self._lease_s)

    def _beat(self) -> None:
        """On a thread of its own: renews leases, says what this worker serves, sweeps up after dead workers."""
        beaten = time.monotonic()
        sweep_after = 0.0
        while not self._closed.wait(self._lease_s / 4):
            try:
                self.heartbeat()
                for claim in list(self._claims.values()):
                    self.maintain_heartbeats(claim.job, claim.execution)
                self._announce()
                last, beaten = beaten, time.monotonic()
                if beaten - last > self._lease_s / 2:  # Redis was away, or we were: others may be late as well
                    sweep_after = beaten + self._lease_s
                if beaten >= sweep_after:
                    self._sweeper.sweep(self._models.known())
            except RedisError as error:
                log.warning("Redis: %s", error)
            except Exception:
                log.exception("beat")

    def _retain(self) -> None:
        """On a thread of its own, for a slow store must not keep leases from being renewed: deletes what is over."""
        while not self._closed.wait(RETENTION_S):
            try:
                self._retention.sweep()
            except RedisError as error:
                log.warning("Redis: %s", error)
            except Exception:
                log.exception("retention")

    def get_heartbeat_ttl(self, job: Job, working_time: float = 0.0) -> int:  # noqa: ARG002
        return self._lease_s

    def request_stop_execution(self, execution_id: str) -> None:
        """RQ's command channel: a client cancelled this execution's job."""
        claim = self._claims.get(execution_id)
        if claim is not None:
            claim.stop()

    # --- ending ----------------------------------------------------------------------------------------------------

    def _finish_all(self) -> None:
        while (claim := self._ended.get()) is not None:
            try:
                with job_context(claim.record.id, claim.record.traceparent):
                    self._finish(claim)
            except Exception:
                log.exception("could not be ended; its lease will run out", extra=job_extra(claim.record.id))
            finally:
                self._claims.pop(claim.execution.id, None)
                self._pace.end(claim.execution.id, done=not claim.stopping)
            self._tell(claim)

    def _tell(self, claim: JobExecution) -> None:
        try:
            self._telemetry.ended(claim)
        except Exception:  # not worth a thread that ends jobs
            log.exception("telemetry")

    def _finish(self, claim: JobExecution) -> None:
        """One claim to its one end: pictures, then the record, then RQ. A step that Redis refuses is tried again."""
        job_id, execution = claim.record.id, claim.execution.id
        claim.loaded.wait()
        started = time.perf_counter()
        try:
            images = self._publish(claim)
        except Cancelled:
            _insist(lambda: self._records.cancel(job_id, execution=execution))
        except JobError as error:
            log.warning("failed: %s", error.code, exc_info=error.__cause__)  # its words may quote a prompt
            failure = JobFailure(code=error.code, message=error.message)
            _insist(lambda: self._records.fail(job_id, failure, execution=execution))
        else:
            claim.saved = (started, time.perf_counter())
            timings = {**claim.seconds(), "save": claim.saved[1] - started}
            steps = claim.record.spec.total_steps
            ended = _insist(
                lambda: self._records.succeed(job_id, execution=execution, images=images, timings=timings, steps=steps)
            )
            if ended:
                log.info("%d pictures in %.2f s", len(images), time.time() - claim.record.created_at)
        _insist(lambda: self._end_in_rq(claim))

    def _publish(self, claim: JobExecution) -> list[ImageInfo]:
        """Stores the pictures: again and again while the store is away, for what is rendered is not thrown away for an
        outage. The time that it may be away is counted for all jobs together. Raises JobError or DeviceLost."""
        while True:
            try:
                images = claim.publish(self._store)
            except StorageUnavailable as error:
                now_s = time.monotonic()
                self._store_away_since = since = self._store_away_since or now_s
                if now_s - since > STORE_OUTAGE_S or claim.stopping:
                    raise
                log.warning("%s; trying again", error)
                time.sleep(OUTAGE_S)
            else:
                self._store_away_since = None
                return images

    def _end_in_rq(self, claim: JobExecution) -> None:
        """RQ's bookkeeping, after what the record says now. Of a job in other hands, only our own lease goes."""
        job, execution = claim.job, claim.execution
        record = claim.left_as = self._records.get(job.id)
        job.ended_at = now()
        if record is None:  # deleted meanwhile
            self._intake.drop(job, claim.queue, execution, record)
        elif not record.status.is_terminal or record.execution != execution.id:
            log.warning("given to another worker meanwhile")
            self._end_lease(claim)
        elif record.status is JobStatus.SUCCEEDED:
            self.handle_job_success(job, claim.queue, claim.queue.started_job_registry, execution=execution)
        else:
            if record.status is JobStatus.CANCELLED:
                self._stopped_job_id = job.id
            reason = record.error.message if record.error else ""
            self.handle_job_failure(job, claim.queue, exc_string=reason, execution=execution)

    def _end_lease(self, claim: JobExecution) -> None:
        with self.connection.pipeline() as pipe:
            self.cleanup_execution(claim.job, pipeline=pipe, execution=claim.execution)
            pipe.execute()

    def _hand_back_all(self) -> None:
        """Queues this worker's jobs again, at once rather than when their leases run out."""
        try:
            for claim in list(self._claims.values()):
                self._jobs.requeue(claim.record.id, execution=claim.execution.id)
                self._end_lease(claim)
        except RedisError as error:
            log.warning("Redis: %s; the jobs' leases will run out", error)


def _insist(do: Callable[[], T]) -> T:
    """Does it again until Redis answers: GPU work that is done is not thrown away for an outage."""
    while True:
        try:
            return do()
        except RedisError as error:
            log.warning("Redis: %s; trying again", error)
            time.sleep(OUTAGE_S)
