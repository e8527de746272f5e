"""A job in a worker's hands: its input fetched, its pictures rendered and stored. Knows the store; not Redis."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rq import Queue
from rq.executions import Execution
from rq.job import Job

from img2img.blobs import BlobStore
from img2img.domain.job import ImageInfo, JobRecord
from img2img.domain.spec import input_key, result_key, without_input_keys
from img2img.errors import JobError
from img2img.redis.job_queue import MAX_ATTEMPTS
from img2img.telemetry.logging import job_context

from ..errors import DeviceLost

if TYPE_CHECKING:
    from ..runner import JobRunner, Rendered, RunningJob

log = logging.getLogger(__name__)


class StorageUnavailable(JobError):
    """The pictures could not be stored."""

    code = "storage_unavailable"


@dataclass(eq=False)
class JobExecution:
    """One execution of one job, from the queue to its pictures."""

    job: Job
    queue: Queue
    execution: Execution
    record: JobRecord
    on_rendered: Callable[[JobExecution], None]  # called once, from any thread, when there is nothing more to wait for
    running: RunningJob | None = None
    stopping: bool = False
    rendered: bool = False  # out of the engine
    error: JobError | DeviceLost | None = None  # why it never came into the engine
    loaded_s: float = 0.0
    load_started: float = 0.0  # by perf_counter
    saved: tuple[float, float] | None = None  # from the engine to the store, by perf_counter
    left_as: JobRecord | None = None  # the record when this claim was over
    rendered_at: float | None = None  # seconds since the epoch
    pictures: list[Rendered] | None = None  # what the engine made, once it is rendered
    kept: dict[int, bytes] = field(default_factory=dict)  # pictures that an earlier run of this job had stored
    loaded: threading.Event = field(default_factory=threading.Event)  # the fields above are set, as far as they will be

    @property
    def is_last_attempt(self) -> bool:
        return self.record.attempts >= MAX_ATTEMPTS

    @property
    def left(self) -> int:
        """Pictures, or tiles of them, that the engine has still to make."""
        return self.running.left if self.running is not None else self.record.spec.passes

    def load(self, store: BlobStore, runner: JobRunner) -> None:
        with job_context(self.record.id, self.record.traceparent):
            self._load(store, runner)

    def _load(self, store: BlobStore, runner: JobRunner) -> None:
        """Fetches and decodes the input, and hands the job to the engine.

        The engine may be through with it before `running` is set here; whoever ends the claim waits for `loaded`.
        """
        spec = self.record.spec
        self.load_started = started = time.perf_counter()
        try:
            if self.record.attempts > 1:
                found = {i: store.get(result_key(self.record.id, i)) for i in range(spec.num_images)}
                self.kept = {i: png for i, png in found.items() if png is not None}
            missing = [i for i in range(spec.num_images) if i not in self.kept]
            if missing:
                blobs = {sha256: store.get(input_key(sha256)) for sha256 in spec.inputs}
                pngs = {sha256: png for sha256, png in blobs.items() if png is not None}
                if len(pngs) < len(blobs):
                    raise JobError("an input picture is no longer in the store")
                self.loaded_s = time.perf_counter() - started
                self.running = runner.start(spec, pngs, missing, self._leave_engine)
                if self.stopping:
                    self.stop()
                return
        except Exception as error:
            log.exception("could not be started")
            if isinstance(error, JobError | DeviceLost):
                self.error = error
            else:
                self.error = JobError(f"could not be started: {without_input_keys(str(error))}")
        finally:
            self.loaded.set()
        self._leave_engine()

    def _leave_engine(self) -> None:
        self.rendered = True
        self.rendered_at = time.time()
        self.on_rendered(self)

    def stop(self) -> None:
        """Frees the job's rows at the engine's next tick."""
        self.stopping = True
        if self.running is not None:
            self.running.stop()

    def publish(self, store: BlobStore) -> list[ImageInfo]:
        """Stores the pictures, the first writer of each winning; doing it again goes on where it failed.

        Raises JobError if there are none, StoreAway if the store does not take them, or DeviceLost.
        """
        if self.error is not None:
            raise self.error
        if self.pictures is None:
            self.pictures = self._render()
        pngs = dict(self.kept)
        try:
            for rendered in self.pictures:
                key = result_key(self.record.id, rendered.index)
                first = store.put(key, rendered.png)
                pngs[rendered.index] = rendered.png if first else store.get(key) or rendered.png
        except Exception as error:
            raise StorageUnavailable(f"the pictures could not be stored: {error}") from error
        return [self._describe(index, png) for index, png in sorted(pngs.items())]

    def _render(self) -> list[Rendered]:
        try:
            return self.running.render() if self.running is not None else []
        except (JobError, DeviceLost):
            raise
        except Exception as error:
            raise JobError(f"the pictures could not be rendered: {error}") from error

    def _describe(self, index: int, png: bytes) -> ImageInfo:
        spec = self.record.spec
        return ImageInfo(
            index=index,
            seed=spec.image_seed(index),
            width=spec.result_size[0],
            height=spec.result_size[1],
            sha256=hashlib.sha256(png).hexdigest(),
            bytes=len(png),
        )

    def seconds(self) -> dict[str, float]:
        """Wall-clock by stage."""
        stages = self.running.seconds() if self.running is not None else {}
        return {"load": self.loaded_s, **stages}

    def spans(self) -> dict[str, tuple[float, float]]:
        """The same as beginnings and ends, by perf_counter."""
        stages = self.running.spans() if self.running is not None else {}
        return {"load": (self.load_started, self.load_started + self.loaded_s), **stages}
