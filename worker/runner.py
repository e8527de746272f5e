"""Renders jobs on the engine: a JobSpec and its input PNGs in, result PNGs out.

Connects the queue, which knows no tensors, to the engine, which knows no jobs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from img2img.domain.infotext import infotext
from img2img.domain.spec import GenerationSpec, JobSpec
from img2img.errors import Cancelled, JobError

from .engine.engine import Engine
from .engine.errors import is_device_lost, is_out_of_memory
from .engine.task import EngineTask, TaskStopped
from .engine.timeline import Timeline
from .errors import DeviceLost
from .images.inputs import Inputs, load_inputs, to_pixels
from .images.png import Pixels, encode_png
from .pipelines.model import Model
from .pipelines.tiled_denoise import make_task_functions


@dataclass(frozen=True)
class RenderedImage:
    """One result image."""

    index: int
    png: bytes


class Rendering:
    """The rendering of a job's images: one engine task per image, or per tile of an image.

    Args:
        engine: runs the tasks.
        model: the job's model.
        spec: the job.
        inputs: the decoded inputs of the job.
        indices: indices of the images to render.
    """

    def __init__(self, engine: Engine, model: Model, spec: JobSpec, inputs: Inputs, indices: Sequence[int]) -> None:
        self.indices = indices
        self._engine = engine
        self._model = model
        self._spec = spec
        self._inputs = inputs
        self._tasks_per_image = spec.passes // spec.num_images
        functions = [function for i in indices for function in make_task_functions(model, spec, inputs, i)]
        self.tasks = [EngineTask(function, self._task_done) for function in functions]  # image by image
        self.remaining = len(self.tasks)  # tasks that have not ended

    def start(self, on_done: Callable[[], None]) -> None:
        """Submit the tasks. `on_done` is called on the engine's thread when all of them have ended."""
        self._on_done = on_done
        self._engine.submit(self.tasks)

    def stop(self) -> None:
        """Request the end of all tasks at the engine's next iteration. Safe from any thread, also before `start`."""
        for task in self.tasks:
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
        """Return a small JPEG of the first unfinished image, or None if there is no preview."""
        latents = next((t.latents for t in self.tasks if t.latents is not None and t.result is None), None)
        if latents is None or self._model.preview is None or latents.dim() != 4 or self._inputs.tiled_image:
            return None
        return self._model.preview.jpeg(latents)

    def render(self) -> list[RenderedImage]:
        """Return the finished images. Call it once all tasks have ended.

        Raises:
            JobError: the job failed or was stopped.
            DeviceLost: the device failed while the results were copied from it.
        """
        errors = [task.error for task in self.tasks if task.error is not None]
        if errors:
            raise _to_job_error(next((error for error in errors if not isinstance(error, TaskStopped)), errors[0]))
        with _raising_device_lost():
            return [
                RenderedImage(index, encode_png(self._pixels(i), self._metadata(index), self._infotext(index)))
                for i, index in enumerate(self.indices)
            ]

    def _pixels(self, i: int) -> Pixels:
        """Return the pixels of the i-th rendered image."""
        count = self._tasks_per_image
        results = [task.result for task in self.tasks[i * count : (i + 1) * count]]
        if self._inputs.tiled_image:
            return self._inputs.tiled_image.merge(results)
        pixels = to_pixels(results[0])
        return self._inputs.canvas.paste(pixels) if self._inputs.canvas else pixels

    def _metadata(self, index: int) -> dict[str, object]:
        parameters = self._spec.without_inputs().model_dump(
            mode="json", exclude={"seed", "num_images", "resize"}, exclude_none=True, exclude_defaults=True
        )
        return {"task": self._spec.task, **parameters, "seed": self._spec.image_seed(index)}

    def _infotext(self, index: int) -> str | None:
        if isinstance(self._spec, GenerationSpec):
            return infotext(self._spec, self._spec.image_seed(index))
        return None


class JobRunner:
    """Prepares jobs for an engine that runs on another thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def slots(self) -> int:
        return self._engine.slots

    def prepare(self, spec: JobSpec, pngs: Mapping[str, bytes], indices: Sequence[int], model: Model) -> Rendering:
        """Decode the inputs of a job and return a rendering that is ready to start.

        Args:
            spec: the job.
            pngs: its input images, by sha256.
            indices: indices of the images to render.
            model: the model that renders them.

        Raises:
            JobError: an input does not fit the job.
            DeviceLost: the device failed.
        """
        with _raising_device_lost():
            inputs = load_inputs(spec, pngs, model.annotators)
        return Rendering(self._engine, model, spec, inputs, indices)


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
    job_error = JobError(f"the pipeline failed: {type(error).__name__}: {error}")
    job_error.__cause__ = error
    return job_error
