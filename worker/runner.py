"""Jobs on the engine: a spec and PNGs in, PNGs out. Between the queue, which knows no tensors, and the engine, which
knows no jobs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from img2img.domain.model_card import ModelCard
from img2img.domain.spec import JobSpec
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
class Rendered:
    """One finished picture."""

    index: int
    png: bytes


class RunningJob:
    """A job's pictures in the engine."""

    def __init__(
        self, model: Model, spec: JobSpec, inputs: Inputs, indices: Sequence[int], on_done: Callable[[], None]
    ) -> None:
        self.spec = spec
        self._model = model
        self._inputs = inputs
        self._passes = spec.passes // spec.num_images  # tickets of each picture
        self.indices = indices
        self.tickets: list[EngineTask] = []  # picture by picture
        self.left = len(indices) * self._passes  # tickets that have not ended
        self._on_done = on_done

    @property
    def step(self) -> int:
        """Denoising steps done, over all pictures; those that an earlier run had finished count as done."""
        before = (self.spec.num_images - len(self.indices)) * self._passes * self.spec.steps_run
        return before + sum(ticket.step for ticket in self.tickets)

    def stop(self) -> None:
        """Frees this job's rows at the engine's next tick."""
        for ticket in self.tickets:
            ticket.stop()

    def ticket_done(self, ticket: EngineTask) -> None:
        """On the engine's thread, for each picture or tile. One that fails takes the others with it."""
        self.left -= 1
        if ticket.error is not None:
            self.stop()
        if self.left == 0:
            on_done = self._on_done
            del self._on_done  # which knows this job: see `Ticket.end`
            on_done()

    def preview(self) -> bytes | None:
        """A small JPEG of the first unfinished picture as it forms; None where there is nothing to show."""
        latents = next((t.latents for t in self.tickets if t.latents is not None and t.result is None), None)
        if latents is None or self._model.preview is None or latents.dim() != 4 or self._inputs.enlarged:
            return None
        return self._model.preview.jpeg(latents)

    def seconds(self) -> dict[str, float]:
        """Wall-clock by stage, of the picture that spent the most in it."""
        return self._timeline().seconds()

    def spans(self) -> dict[str, tuple[float, float]]:
        """By stage, when its first picture came into it and when its last was through, by perf_counter."""
        return {name: (stage.start, stage.end) for name, stage in self._timeline().stages.items()}

    def _timeline(self) -> Timeline:
        timeline = Timeline()
        timeline.merge(ticket.timeline for ticket in self.tickets)
        return timeline

    def render(self) -> list[Rendered]:
        """The finished pictures as PNG. Raises JobError if the job did not produce them, or DeviceLost."""
        errors = [ticket.error for ticket in self.tickets if ticket.error is not None]
        if errors:
            raise _explain(next((error for error in errors if not isinstance(error, TaskStopped)), errors[0]))
        with _telling_device_lost():
            return [
                Rendered(index, encode_png(self._finished(place), self._metadata(index)))
                for place, index in enumerate(self.indices)
            ]

    def _finished(self, place: int) -> Pixels:
        results = [ticket.result for ticket in self.tickets[place * self._passes : (place + 1) * self._passes]]
        if self._inputs.enlarged:
            return self._inputs.enlarged.joined(results)
        pixels = to_pixels(results[0])
        return self._inputs.canvas.paste(pixels) if self._inputs.canvas else pixels

    def _metadata(self, index: int) -> dict[str, object]:
        parameters = self.spec.without_inputs().model_dump(
            mode="json", exclude={"seed", "num_images", "resize"}, exclude_none=True, exclude_defaults=True
        )
        return {"task": self.spec.task, **parameters, "seed": self.spec.image_seed(index)}


class JobRunner:
    """Starts jobs on an engine that a thread of its own runs."""

    def __init__(self, engine: Engine, models: Mapping[str, Model]) -> None:
        self._engine = engine
        self._models = models

    @property
    def slots(self) -> int:
        return self._engine.slots

    @property
    def cards(self) -> list[ModelCard]:
        return [model.card for model in self._models.values()]

    def start(
        self, spec: JobSpec, pngs: Mapping[str, bytes], indices: Sequence[int], on_done: Callable[[], None]
    ) -> RunningJob:
        """Hands the pictures `indices` of a job to the engine.

        pngs: its input blobs, by sha256. on_done: called on the engine's thread when all have ended.
        Raises JobError or DeviceLost.
        """
        model = self._models[spec.model]
        with _telling_device_lost():
            inputs = load_inputs(spec, pngs, model.annotators)
        job = RunningJob(model, spec, inputs, indices, on_done)
        works = [work for index in indices for work in make_task_functions(model, spec, inputs, index)]
        job.tickets = [EngineTask(work, job.ticket_done) for work in works]
        self._engine.submit(job.tickets)
        return job


@contextmanager
def _telling_device_lost() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if is_device_lost(error):
            raise DeviceLost(str(error)) from error
        raise


def _explain(error: BaseException) -> JobError:
    if isinstance(error, JobError):
        return error
    if isinstance(error, TaskStopped):
        return Cancelled()
    if is_out_of_memory(error):
        return JobError("the picture does not fit into the worker's memory; ask for a smaller one")
    explained = JobError(f"the pipeline failed: {type(error).__name__}: {error}")
    explained.__cause__ = error
    return explained
