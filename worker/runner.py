"""Renders jobs on the engine: a JobSpec and its input PNGs in, result PNGs out.

Connects the queue, which knows no tensors, to the engine, which knows no jobs.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from img2img.domain.geometry import visible_box
from img2img.domain.infotext import infotext
from img2img.domain.parameters import Background
from img2img.domain.presigned_upload import PresignedUpload
from img2img.domain.reuse import result_digest
from img2img.domain.spec import GenerationSpec, Img2ImgSpec, InpaintSpec, JobSpec
from img2img.errors import Cancelled, JobError
from img2img.imaging.sandbox_pool import DecoderPool
from img2img.printable import without_paths

from .engine.engine import Engine
from .engine.errors import is_device_lost, is_out_of_memory
from .engine.task import EngineTask, Origin, TaskFunction, TaskStopped, Urgency
from .engine.timeline import Timeline
from .errors import DeviceLost, first_line
from .images.inputs import Inputs, load_inputs, to_pixels
from .images.png import Pixels, decode_png, encode_png
from .images.sent_images import decode_sent_image
from .moderation import ResultModeration
from .pipelines.conditioning.matting import FOREGROUND
from .pipelines.model import Model
from .pipelines.safety_checker import ImageChecker
from .pipelines.tiled_denoise import make_task_functions


@dataclass(frozen=True)
class RenderedImage:
    """One result image. Without a PNG, it was flagged and is not delivered.

    Attributes:
        categories: why moderation flagged it.
    """

    index: int
    png: bytes | None
    categories: tuple[str, ...] = ()


class Rendering:
    """The rendering of a job's images: one engine task per image, or per tile of an image.

    Args:
        engine: runs the tasks.
        model: the job's model.
        spec: the job.
        inputs: the decoded inputs of the job.
        indices: indices of the images to render.
        moderation: checks the images; None: they are not moderated.
        deterministic: whether the calls of the job are not merged with those of others, even if it did not ask.
        metadata: whether the images hold the parameters of the job.
        urgency: how soon the tasks should run.
        owner: owner of the job.
        on_task_done: called on the engine's thread when a task has ended, except for the last one.
    """

    def __init__(
        self,
        engine: Engine,
        model: Model,
        spec: JobSpec,
        inputs: Inputs,
        indices: Sequence[int],
        moderation: ResultModeration | None = None,
        urgency: Urgency = Urgency(),  # noqa: B008  # frozen
        *,
        deterministic: bool = False,
        metadata: bool = True,
        owner: str = "",
        on_task_done: Callable[[], object] | None = None,
    ) -> None:
        self.indices = indices
        self._engine = engine
        self._model = model
        self._spec = spec
        self._inputs = inputs
        self._moderation = moderation
        self._has_metadata = metadata
        self._urgency = urgency
        self._on_task_done = on_task_done
        self._tasks_per_image = spec.passes // spec.num_images
        fingerprint = model.card.fingerprint
        functions = [function for i in indices for function in make_task_functions(model, spec, inputs, i)]
        # LoRAs can be replaced in between.
        is_unchanged = fingerprint == model.card.fingerprint
        # By which later requests find the result; None: not at all.
        self.digest = result_digest(spec, fingerprint, is_moderated=moderation is not None) if is_unchanged else None
        self._runs_alone = deterministic or (isinstance(spec, GenerationSpec) and spec.deterministic)
        origin = Origin(owner, frozenset(spec.inputs))
        # Image by image.
        self.tasks = [
            EngineTask(
                f,
                self._task_done,
                runs_alone=self._runs_alone,
                urgency=urgency,
                steps=spec.total_steps // spec.passes,
                origin=origin,
            )
            for f in functions
        ]
        self.remaining = len(self.tasks)  # tasks that have not ended
        self._checks: list[EngineTask] = []  # of the safety checker and of the matting

    def start(self, on_done: Callable[[], None]) -> None:
        """Submit the tasks. `on_done` is called on the engine's thread when all of them have ended."""
        self._on_done = on_done
        self._engine.submit(self.tasks)

    def stop(self) -> None:
        """Request the end of all tasks at the engine's next iteration. Safe from any thread, also before `start`."""
        for task in (*self.tasks, *self._checks):
            task.stop()

    def _task_done(self, task: EngineTask) -> None:
        """Count a task that has ended. An error stops the other tasks of the job. Called on the engine's thread."""
        self.remaining -= 1
        if task.error is not None:
            self.stop()
        if self.remaining == 0:
            on_done = self._on_done
            # The callback refers to this rendering: see `EngineTask.end`.
            del self._on_done
            on_done()
        elif self._on_task_done is not None:
            self._on_task_done()

    @property
    def steps_done(self) -> int:
        """Denoising steps done, summed over all tasks."""
        return sum(task.step for task in self.tasks)

    def timeline(self) -> Timeline:
        """Return the time by stage, merged over all tasks."""
        timeline = Timeline()
        timeline.merge(task.timeline for task in self.tasks)
        return timeline

    def preview(self) -> bytes | None:
        """Return a small JPEG of the first unfinished image, or None if there is no preview.

        There is none where images can be withheld: it would show an image that is not checked yet.
        """
        if self._moderation or (self._model.safety_checker and self._model.safety_checker.withholds):
            return None
        latents = next((t.latents for t in self.tasks if t.latents is not None and t.result is None), None)
        if latents is None or self._model.preview is None or latents.dim() != 4 or self._inputs.tiled_image:
            return None
        return self._model.preview.jpeg(latents)

    def render(self) -> list[RenderedImage]:
        """Return the finished images. Call it once all tasks have ended, and not on the engine's thread.

        Raises:
            JobError: the job failed or was stopped.
            DeviceLost: the device failed while the results were copied from it.
        """
        errors = [task.error for task in self.tasks if task.error is not None]
        if errors:
            raise _to_job_error(next((error for error in errors if not isinstance(error, TaskStopped)), errors[0]))
        images = self._checked_images()
        return self._moderated(self._moderation, images) if self._moderation else images

    @property
    def waits(self) -> bool:
        """Whether `render` waits for the engine or for moderation."""
        return self._model.safety_checker is not None or self._moderation is not None or self._is_transparent

    @property
    def _is_transparent(self) -> bool:
        return isinstance(self._spec, GenerationSpec) and self._spec.background is Background.TRANSPARENT

    def _checked_images(self) -> list[RenderedImage]:
        checker = self._model.safety_checker
        with _raising_device_lost():
            images = [self._pixels(i) for i in range(len(self.indices))]
            flags = self._check(checker, images) if checker is not None else [False] * len(images)
            if self._is_transparent:
                images = self._cut_out(images)
        withholds = checker is not None and checker.withholds
        return [
            RenderedImage(index, None)
            if is_flagged and withholds
            else self._image(index, pixels, {"flagged": True} if is_flagged else {})
            for index, pixels, is_flagged in zip(self.indices, images, flags, strict=True)
        ]

    def _moderated(self, moderation: ResultModeration, images: Sequence[RenderedImage]) -> list[RenderedImage]:
        """Return the images, without the PNGs that moderation flags."""
        pngs = {image.index: image.png for image in images if image.png is not None}
        verdicts = dict(zip(pngs, moderation.verdicts(list(pngs.values())), strict=True))
        flagged = {index: verdict.categories for index, verdict in verdicts.items() if verdict.flagged}
        return [
            RenderedImage(image.index, None, flagged[image.index]) if image.index in flagged else image
            for image in images
        ]

    def _check(self, checker: ImageChecker, images: Sequence[Pixels]) -> list[bool]:
        """Return which images the safety checker flags. The engine checks them together with those of other jobs."""
        prepared = [checker.prepare(pixels) for pixels in images]
        return self._run_short([partial(_ignoring_task, checker.is_flagged, one) for one in prepared])

    def _cut_out(self, images: Sequence[Pixels]) -> list[Pixels]:
        """Return the images with an alpha channel: their background is transparent."""
        matting = self._model.matting
        if matting is None:
            raise JobError("the model has no `matting` any more; submit the job again without `background`")
        pictures = [Image.fromarray(pixels) for pixels in images]
        prepared = [(picture, matting.prepare(picture)) for picture in pictures]
        alphas = self._run_short([partial(_ignoring_task, matting.alpha, *one) for one in prepared])
        return [np.dstack(pair) for pair in zip(images, alphas, strict=True)]

    def _run_short(self, functions: Sequence[TaskFunction]) -> list[Any]:
        """Return the results of functions that the engine runs for this job beside its images."""
        ended = threading.Semaphore(0)
        self._checks = [
            EngineTask(f, lambda _task: ended.release(), runs_alone=self._runs_alone, urgency=self._urgency)
            for f in functions
        ]
        if any(task.is_stopping for task in self.tasks):
            self.stop()
        self._engine.submit_short(self._checks)
        for _ in self._checks:
            ended.acquire()
        for task in self._checks:
            if task.error is not None:
                raise _to_job_error(task.error)
        return [task.result for task in self._checks]

    def _image(self, index: int, pixels: Pixels, more: Mapping[str, object]) -> RenderedImage:
        """Return an image as a PNG.

        Args:
            more: metadata besides the parameters.
        """
        if not self._has_metadata:
            return RenderedImage(index, encode_png(pixels, None))
        return RenderedImage(index, encode_png(pixels, {**self._metadata(index), **more}, self._infotext(index)))

    def _pixels(self, i: int) -> Pixels:
        """Return the pixels of the i-th rendered image."""
        count = self._tasks_per_image
        results = [task.result for task in self.tasks[i * count : (i + 1) * count]]
        if self._inputs.tiled_image:
            return self._inputs.tiled_image.merge(results)
        if isinstance(results[0], np.ndarray):
            return results[0]
        pixels = to_pixels(results[0])
        return self._inputs.canvas.paste(pixels) if self._inputs.canvas else pixels

    def _metadata(self, index: int) -> dict[str, object]:
        parameters = self._spec.without_inputs().model_dump(
            mode="json", exclude={"seed", "num_images", "resize"}, exclude_none=True, exclude_defaults=True
        )
        seeds = {"seed": self._spec.image_seed(index)}
        if isinstance(self._spec, GenerationSpec) and (subseed := self._spec.image_subseed(index)) is not None:
            seeds["subseed"] = subseed
        return {"task": self._spec.task, **parameters, **seeds}

    def _infotext(self, index: int) -> str | None:
        if isinstance(self._spec, GenerationSpec):
            return infotext(self._spec, self._spec.image_seed(index), self._spec.image_subseed(index))
        return None


def _ignoring_task(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function that an engine task runs; the last argument is the task."""
    return function(*arguments[:-1])


class JobRunner:
    """Prepares jobs for an engine that runs on another thread.

    Args:
        engine: runs the tasks.
        moderation: checks all results; None: they are not moderated.
        deterministic: whether no job shares calls of the models with another one.
        decoders: decode images that clients have sent to the bucket; None: there are none.
        metadata: whether images hold the parameters of their jobs.
    """

    def __init__(
        self,
        engine: Engine,
        moderation: ResultModeration | None = None,
        decoders: DecoderPool | None = None,
        *,
        deterministic: bool = False,
        metadata: bool = True,
    ) -> None:
        self._engine = engine
        self._moderation = moderation
        self._decoders = decoders
        self._deterministic = deterministic
        self._metadata = metadata
        # Called on the engine's thread when an image or tile has ended, unless the job has ended with it.
        self.on_slot_free: Callable[[], object] | None = None

    @property
    def slots(self) -> int:
        return self._engine.slots

    def decode_upload(self, image: bytes, upload: PresignedUpload, spec: JobSpec) -> bytes:
        """Return the PNG of an image that a client has sent to the bucket, as `prepare` takes it. Raises JobError."""
        assert self._decoders is not None
        assert isinstance(spec, Img2ImgSpec)
        return decode_sent_image(self._decoders, image, upload, spec)

    def prepare(
        self,
        spec: JobSpec,
        pngs: Mapping[str, bytes],
        indices: Sequence[int],
        model: Model,
        urgency: Urgency = Urgency(),  # noqa: B008  # frozen
        owner: str = "",
    ) -> Rendering:
        """Decode the inputs of a job and return a rendering that is ready to start.

        Args:
            spec: the job.
            pngs: its input images, by sha256.
            indices: indices of the images to render.
            model: the model that renders them.
            urgency: how soon they should be rendered.
            owner: owner of the job.

        Raises:
            JobError: an input does not fit the job.
            DeviceLost: the device failed.
        """
        with _raising_device_lost():
            loaded: JobSpec = spec
            if isinstance(spec, InpaintSpec) and spec.region.find is not None:
                spec, pngs = self._find_mask(spec, pngs, model, urgency)
                loaded = spec
            elif isinstance(spec, InpaintSpec) and spec.region.background:
                loaded, pngs = self._with_background(spec, pngs, model, urgency)
            inputs = load_inputs(loaded, pngs, model.annotators)
        return Rendering(
            self._engine,
            model,
            spec,
            inputs,
            indices,
            self._moderation,
            urgency,
            deterministic=self._deterministic,
            metadata=self._metadata,
            owner=owner,
            on_task_done=self.on_slot_free,
        )

    def _with_background(
        self, spec: InpaintSpec, pngs: Mapping[str, bytes], model: Model, urgency: Urgency
    ) -> tuple[InpaintSpec, Mapping[str, bytes]]:
        """Return a job whose mask is the background of its image, and its images. Waits for the engine."""
        matting = model.matting
        if matting is None:
            raise JobError("the model has no `matting` any more; submit the job again with a mask")
        assert spec.image is not None
        image = decode_png(pngs[spec.image]).convert("RGB")
        prepared = matting.prepare(image)
        is_background = self._run_short(lambda _task: matting.alpha(image, prepared), urgency) < FOREGROUND / 2
        if is_background.all():
            raise JobError("no foreground was found in the image; send a mask instead of a new `background`")
        if not is_background.any():
            raise JobError("the image has no background: all of it is foreground")
        return _with_mask(spec, pngs, is_background * np.uint8(255), background=False)

    def _find_mask(
        self, spec: InpaintSpec, pngs: Mapping[str, bytes], model: Model, urgency: Urgency
    ) -> tuple[InpaintSpec, Mapping[str, bytes]]:
        """Return the job with the mask that it asks for, and its images with that mask. Waits for the engine."""
        region = spec.region
        assert region.find is not None
        assert spec.image is not None
        image, find = decode_png(pngs[spec.image]), region.find
        mask = self._run_short(lambda _task: model.segmenters.mask(image, find), urgency)
        changes: dict[str, object] = {}
        if region.padding is not None:
            masked, size = mask.getbbox(), (spec.width, spec.height)
            changes["box"] = visible_box(masked, region.margins, region.canvas, region.padding, model.card, size)
        return _with_mask(spec, pngs, np.asarray(mask), **changes)

    def _run_short(self, function: TaskFunction, urgency: Urgency) -> Any:
        """Return the result of a task of a single call. Waits for the engine. Raises JobError."""
        task = self._engine.run_task(function, urgency=urgency, is_short=True)
        if task.error is not None:
            raise _to_job_error(task.error)
        return task.result


def _with_mask(
    spec: InpaintSpec, pngs: Mapping[str, bytes], mask: npt.NDArray[np.uint8], **changes: object
) -> tuple[InpaintSpec, Mapping[str, bytes]]:
    """Return a job with a mask (uint8, of shape (height, width)) and its images with it, as a PNG."""
    png = encode_png(np.repeat(mask[..., None], 3, axis=2), None)
    digest = sha256(png).hexdigest()
    region = spec.region.model_copy(update={"mask": digest, **changes})
    return spec.model_copy(update={"region": region}), {**pngs, digest: png}


@contextmanager
def _raising_device_lost() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if is_device_lost(error):
            raise DeviceLost(str(error)) from error
        raise


def _to_job_error(error: BaseException) -> JobError:
    if isinstance(error, JobError):
        return error
    if isinstance(error, TaskStopped):
        return Cancelled()
    if is_out_of_memory(error):
        return JobError("the image does not fit into the worker's memory; request a smaller one")
    # Clients get one line; the log has the whole error.
    job_error = JobError(f"the pipeline failed: {type(error).__name__}: {without_paths(first_line(error))}")
    job_error.__cause__ = error
    return job_error
