"""One execution of a job in a worker: load the inputs, render on the engine, store the images. Does not use Redis."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, TypeVar

from obstore.exceptions import BaseError as StoreError
from rq import Queue
from rq.executions import Execution
from rq.job import Job

from img2img.blobs import BlobStore
from img2img.domain.blob_keys import result_key, without_hashes
from img2img.domain.job import ImageInfo, JobRecord
from img2img.domain.presigned_upload import PresignedUpload
from img2img.errors import Cancelled, Flagged, JobError
from img2img.redis.job_queue import MAX_ATTEMPTS
from img2img.stored_images import read_input, read_upload, report_damage
from img2img.telemetry.logging import job_context

from ..engine.task import Urgency
from ..engine.timeline import Timeline
from ..errors import DeviceLost
from ..images.png import is_intact_png, read_metadata
from .served_models import ModelLease

if TYPE_CHECKING:
    from ..runner import JobRunner, RenderedImage, Rendering

log = logging.getLogger(__name__)

T = TypeVar("T")

STORE_TIMEOUT_S = 60.0  # outage of the blob store after which jobs fail
RETRY_INTERVAL_S = 0.5  # between attempts to reach Redis or the blob store


class ExecutionState(Enum):
    LOADING = "loading"  # the inputs are fetched and decoded
    RUNNING = "running"  # the engine renders
    RENDERED = "rendered"  # out of the engine: rendered, failed or stopped
    PUBLISHED = "published"  # the images are in the blob store
    ENDED = "ended"  # the outcome is in the job record and in RQ, or the lease is left to expire


TRANSITIONS: Mapping[ExecutionState, frozenset[ExecutionState]] = {
    # Straight to RENDERED: loading failed, or an earlier execution has stored all images.
    ExecutionState.LOADING: frozenset({ExecutionState.RUNNING, ExecutionState.RENDERED}),
    ExecutionState.RUNNING: frozenset({ExecutionState.RENDERED}),
    # Straight to ENDED: there are no images to store.
    ExecutionState.RENDERED: frozenset({ExecutionState.PUBLISHED, ExecutionState.ENDED}),
    ExecutionState.PUBLISHED: frozenset({ExecutionState.ENDED}),
    ExecutionState.ENDED: frozenset(),
}


class IllegalTransition(Exception):
    """A change of state that TRANSITIONS does not allow. A programming error."""


class StorageUnavailable(JobError):
    """The blob store did not respond."""

    code = "storage_unavailable"


class JobExecution:
    """One execution of one job, as a state machine.

    `load` is called on a loader thread, `check` on a thread for checks, `publish` and `end` on the finisher's thread,
    and `stop` on any. The engine's thread reports the end of the rendering. One lock guards the state and the fields
    that these threads share.

    Args:
        job: the job in RQ.
        queue: the RQ queue from which it was fetched.
        rq_execution: RQ's execution, which is this worker's lease on the job.
        record: the job record at the start of this execution.
        lease: keeps the job's model in memory until the execution ends.
        urgency: how soon its tasks should run.
        on_rendered: called once, on any thread, when the state becomes RENDERED.
    """

    def __init__(
        self,
        job: Job,
        queue: Queue,
        rq_execution: Execution,
        record: JobRecord,
        lease: ModelLease,
        urgency: Urgency,
        on_rendered: Callable[[JobExecution], None],
    ) -> None:
        self.job = job
        self.queue = queue
        self.rq_execution = rq_execution
        self.record = record
        self.timeline = Timeline()
        self.rendered_at: float | None = None  # by the monotonic clock
        self.final_record: JobRecord | None = None  # the job record after this execution
        self._lease = lease
        self._urgency = urgency
        self._on_rendered = on_rendered
        self._lock = threading.Lock()
        self._state = ExecutionState.LOADING
        self._stopping = False
        self._rendering: Rendering | None = None
        self._steps_done = 0  # of a rendering that has ended
        self._error: JobError | DeviceLost | None = None  # why loading failed
        self._stored: dict[int, bytes] = {}  # images that an earlier execution stored, by index
        self.withheld: tuple[int, ...] = ()  # indices of images that were flagged and are not delivered
        self._images: list[RenderedImage] | None = None
        # By which later requests find the result. None: an earlier execution has made some of the images, by a model
        # that may have been another one.
        self.digest: str | None = None

    @property
    def id(self) -> str:
        return str(self.rq_execution.id)

    @property
    def job_id(self) -> str:
        return self.record.id

    @property
    def is_last_attempt(self) -> bool:
        return self.record.attempts >= MAX_ATTEMPTS

    @property
    def state(self) -> ExecutionState:
        return self._state

    @property
    def is_stopping(self) -> bool:
        return self._stopping

    @property
    def is_running(self) -> bool:
        return self._state is ExecutionState.RUNNING

    @property
    def occupies_slots(self) -> bool:
        """Whether the execution is in the engine or on its way there."""
        return self._state in (ExecutionState.LOADING, ExecutionState.RUNNING)

    @property
    def remaining(self) -> int:
        """Images or tiles that the engine still has to render."""
        with self._lock:
            if not self.occupies_slots:
                return 0
            return self._rendering.remaining if self._rendering is not None else self.record.spec.passes

    @property
    def steps_done(self) -> int:
        """Denoising steps that this execution has done."""
        with self._lock:
            return self._rendering.steps_done if self._rendering is not None else self._steps_done

    @property
    def step(self) -> int:
        """Denoising steps of the job that are done, including those of images that an earlier execution stored."""
        spec = self.record.spec
        return len(self._stored) * spec.total_steps // spec.num_images + self.steps_done

    def preview(self) -> bytes | None:
        """Return a small JPEG of the first unfinished image, or None if there is no preview."""
        # Another thread may end the execution meanwhile.
        rendering = self._rendering
        return rendering.preview() if rendering is not None else None

    def load(self, store: BlobStore, runner: JobRunner) -> None:
        """Fetch and decode the inputs, and start the rendering."""
        with job_context(self.job_id, self.record.traceparent):
            started = time.perf_counter()
            try:
                rendering = self._prepare(store, runner)
                self.timeline.add("load", started, time.perf_counter())
                if rendering is not None:
                    self._start(rendering)
                    return
            except Cancelled as error:
                self._error = error
            except (JobError, DeviceLost) as error:
                log.exception("the job could not be started")
                self._error = error
            except Exception as error:
                log.exception("the job could not be started")
                self._error = JobError(f"the job could not be started: {without_hashes(str(error))}")
            self._leave_engine()

    def _prepare(self, store: BlobStore, runner: JobRunner) -> Rendering | None:
        """Return the rendering of the images that no earlier execution has stored, or None if there are none."""
        spec = self.record.spec
        if self.record.attempts > 1:
            self._stored = self._retry(lambda: self._earlier_images(store))
        missing = [i for i in range(spec.num_images) if i not in self._stored]
        if not missing:
            return None
        upload = PresignedUpload.parse(getattr(spec, "upload", None) or "")
        digests = [digest for digest in spec.inputs if upload is None or digest != upload.sha256]
        pngs = self._retry(lambda: {digest: self._read_input(store, digest) for digest in digests})
        if upload is not None:
            image = self._retry(lambda: self._read_upload(store, upload))
            pngs[upload.sha256] = runner.decode_upload(image, upload, spec)
        return runner.prepare(spec, pngs, missing, self._lease.model, self._urgency, self.record.owner)

    def _read_upload(self, store: BlobStore, upload: PresignedUpload) -> bytes:
        if self._stopping:
            raise Cancelled
        return read_upload(store, upload, self.job_id)

    def _read_input(self, store: BlobStore, digest: str) -> bytes:
        # The inputs of a job that is being deleted may be gone, which is no damage.
        if self._stopping:
            raise Cancelled
        return read_input(store, digest, self.job_id)

    def _earlier_images(self, store: BlobStore) -> dict[int, bytes]:
        """Return the undamaged images that earlier executions have stored, by index."""
        keys = {i: result_key(self.job_id, i) for i in range(self.record.spec.num_images)}
        found = {i: png for i, key in keys.items() if (png := store.get(key)) is not None}
        return {i: png for i, png in found.items() if self._is_intact(keys[i], png)}

    def _is_intact(self, key: str, png: bytes) -> bool:
        """Check an image that an earlier execution has stored. No record has its SHA-256 yet."""
        if is_intact_png(png, self.record.spec.result_size):
            return True
        report_damage("result", key, self.job_id)
        return False

    def _retry(self, read: Callable[[], T]) -> T:
        """Read from the blob store, and try again during an outage. Raises StorageUnavailable if it lasts too long."""
        give_up_at = time.monotonic() + STORE_TIMEOUT_S
        while True:
            try:
                return read()
            except (StoreError, OSError) as error:
                if self._stopping or time.monotonic() > give_up_at:
                    raise StorageUnavailable(f"the blob store is not available: {_first_line(error)}") from error
                log.warning("the blob store is not available, retrying: %s", _first_line(error))
                time.sleep(RETRY_INTERVAL_S)

    def _start(self, rendering: Rendering) -> None:
        with self._lock:
            self._transition(ExecutionState.RUNNING)
            self._rendering = rendering
            self.digest = None if self._stored else rendering.digest
            is_stopping = self._stopping
        # The state is RUNNING before the engine gets the tasks, because it may be done with them at once.
        if is_stopping:
            rendering.stop()
        rendering.start(self._leave_engine)

    def _leave_engine(self) -> None:
        with self._lock:
            if self._rendering is not None:
                self.timeline.merge([self._rendering.timeline()])
            self.rendered_at = time.monotonic()
            self._transition(ExecutionState.RENDERED)
        self._on_rendered(self)

    @property
    def waits_for_checks(self) -> bool:
        """Whether `check` has to be called before `publish`."""
        return self._rendering is not None and self._rendering.waits

    def check(self) -> None:
        """Prepare the images that `publish` stores. It may wait for the engine, so it is not for the finisher."""
        started = time.perf_counter()
        try:
            self._images = self._render()
        except (JobError, DeviceLost) as error:
            self._error = error
        else:
            self.timeline.add("check", started, time.perf_counter())

    def stop(self) -> None:
        """Free the job's rows at the engine's next iteration. Valid in every state."""
        with self._lock:
            self._stopping = True
            rendering = self._rendering
        if rendering is not None:
            rendering.stop()

    def publish(self, store: BlobStore) -> list[ImageInfo]:
        """Store the images and return their descriptions.

        The first writer of an image wins. After StorageUnavailable the call can be repeated.

        Raises:
            JobError: the job failed or was stopped.
            StorageUnavailable: the blob store does not accept the images.
            DeviceLost: the device failed.
        """
        if self._error is not None:
            raise self._error
        if self._images is None:
            self._images = self._render()
        pngs = dict(self._stored)
        self.withheld = tuple(image.index for image in self._images if image.png is None)
        if self.withheld and not pngs and len(self.withheld) == len(self._images):
            raise _flagged(self._images)
        try:
            for image in self._images:
                if image.png is not None:
                    pngs[image.index] = self._store(store, image.index, image.png)
        except Exception as error:
            raise StorageUnavailable(f"the images could not be stored: {error}") from error
        with self._lock:
            self._transition(ExecutionState.PUBLISHED)
        return [self._describe(index, png) for index, png in sorted(pngs.items())]

    def _store(self, store: BlobStore, index: int, png: bytes) -> bytes:
        """Store an image, and return the stored one: that of an earlier execution, unless it is damaged."""
        key = result_key(self.job_id, index)
        if store.put(key, png):
            return png
        earlier = store.get(key)
        if earlier is not None and self._is_intact(key, earlier):
            return earlier
        store.replace(key, png)
        return png

    def end(self) -> None:
        """Mark the execution as over. Its model may be unloaded now."""
        with self._lock:
            self._transition(ExecutionState.ENDED)
            # It refers to the model.
            if self._rendering is not None:
                self._steps_done = self._rendering.steps_done
                self._rendering = None
        self._lease.release()

    def _transition(self, to: ExecutionState) -> None:
        if to not in TRANSITIONS[self._state]:
            raise IllegalTransition(f"{self._state.value} -> {to.value}")
        self._state = to

    def _render(self) -> list[RenderedImage]:
        try:
            return self._rendering.render() if self._rendering is not None else []
        except (JobError, DeviceLost):
            raise
        except Exception as error:
            raise JobError(f"the images could not be rendered: {error}") from error

    def _describe(self, index: int, png: bytes) -> ImageInfo:
        spec = self.record.spec
        return ImageInfo(
            index=index,
            seed=spec.image_seed(index),
            width=spec.result_size[0],
            height=spec.result_size[1],
            sha256=hashlib.sha256(png).hexdigest(),
            bytes=len(png),
            # Of the file, because an earlier execution may have made it.
            flagged=bool(read_metadata(png).get("flagged")),
        )


def _flagged(images: Sequence[RenderedImage]) -> Flagged:
    categories = sorted({category for image in images for category in image.categories})
    reason = f"flagged ({', '.join(categories)})" if categories else "flagged"
    return Flagged(Flagged().message.replace("flagged", reason, 1))


def _first_line(error: Exception) -> str:
    return without_hashes(str(error)).partition("\n")[0]
