"""The device that is measured: models on it, and engines that run jobs as a worker does."""

import copy
import gc
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from diffusers import AutoPipelineForImage2Image

from benchmarks.gpu.shapes import Shape
from benchmarks.limit import waiting_for
from benchmarks.model_shapes import SHAPES as MAKERS
from benchmarks.model_shapes import calibrate
from benchmarks.sides import Stock
from benchmarks.workload import Job, jobs
from img2img.domain.model_config import ModelConfig
from img2img.worker.devices import device_memory, empty_cache
from img2img.worker.engine.engine import Engine
from img2img.worker.engine.task import EngineTask
from img2img.worker.images.inputs import load_inputs
from img2img.worker.pipelines.denoise import make_task_function
from img2img.worker.pipelines.families import family_of
from img2img.worker.pipelines.loading.compilation import check_compile
from img2img.worker.pipelines.loading.placement import Placement
from img2img.worker.pipelines.model import Model
from img2img.worker.runner import JobRunner, Rendering
from img2img.worker.runtime.device_events import device_clock
from img2img.worker.runtime.engine_thread import start_engine
from img2img.worker.runtime.memory_meter import memory_meter
from img2img.worker.runtime.model_loader import warm_up

# Threads of a worker: they read inputs, and write PNGs.
LOADERS, FINISHERS = 2, 4
TINY_SIDE = 64
GB = 1e9


class Target:
    """A device, and whether models on it are tiny."""

    def __init__(self, device: str, *, tiny: bool) -> None:
        self.device = torch.device(device)
        self.tiny = tiny
        self.wait = waiting_for(self.device)

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    def side(self, shape: Shape) -> int:
        """Return the side of images in pixels."""
        return TINY_SIDE if self.tiny else shape.side

    def pipeline(self, shape: Shape, dtype: str) -> Any:
        """Return a new pipeline on the device. Those of a shape are equal."""
        torch.manual_seed(0)
        with torch.device(self.device):
            pipeline = MAKERS[shape.name](tiny=self.tiny)
        pipeline.to(dtype=getattr(torch, dtype))
        for part in pipeline.components.values():
            if isinstance(part, torch.nn.Module):
                # As `from_pretrained` does: T5 has dropout otherwise.
                part.eval().requires_grad_(False)
        calibrate(pipeline)
        return pipeline

    def stock(self, pipeline: Any) -> Stock:
        """Return the stock pipeline with copies of the modules, so that nothing of a model changes them."""
        modules = {
            name: copy.deepcopy(part) for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)
        }
        # The first call gives it the class; its modules are replaced before it is used.
        stock = AutoPipelineForImage2Image.from_pipe(pipeline)
        stock.register_modules(**modules)
        return Stock(stock)

    def model(self, pipeline: Any, device: str | None = None, **keys: Any) -> Model:
        """Return a pipeline as a served model. Call it once per pipeline.

        Args:
            device: instead of that of the target.
            keys: of the model file.

        Raises:
            StartupError: the keys do not suit the model or the device.
        """
        name = type(pipeline).__name__
        family = family_of(name)
        assert family is not None
        config = ModelConfig.model_validate({"name": name, "source": name, **keys})
        placement = Placement(config, device or self.device)
        check_compile(config, placement.device, family.name, has_fixed_shapes=family.fixed_shapes)
        return Model(config, family, pipeline, placement)

    def engine(self, slots: int, **options: Any) -> Engine:
        """Return an engine with the memory meter and the clock of a worker."""
        device = str(self.device)
        return Engine(**{"slots": slots, "meter": memory_meter(device), "clock": device_clock(device), **options})

    def warm(self, model: Model, slots: int) -> None:
        """Warm a model up as a worker does before it is ready."""
        with RunningEngine(self.engine(slots)) as engine:
            warm_up(model, engine.engine)

    def jobs(self, shape: Shape, model: Model, mix: str, count: int, number: int, side: int | None = None) -> list[Job]:
        """Return the jobs of a round: `uniform` or `mixed`.

        Args:
            number: of the round. Those of another round have other prompts and seeds.
            side: of the images, instead of that of the model.
        """
        parameters = shape.mixed if mix == "mixed" else lambda _rng: shape.uniform
        return jobs(mix, model.card, count, number, parameters=parameters, side=side or self.side(shape))

    def tasks(self, model: Model, work: Sequence[Job]) -> list[EngineTask]:
        """Return the jobs as tasks whose results are left on the device."""
        return [
            EngineTask(
                make_task_function(
                    model, job.spec, load_inputs(job.spec, {job.spec.inputs[0]: job.png}, model.annotators), 0
                ),
                lambda _task: None,
            )
            for job in work
        ]

    def memory(self) -> dict[str, float]:
        """Return the memory of the device in GB. Empty for the CPU."""
        found = device_memory(str(self.device))
        return {kind: found[kind] / GB for kind in ("allocated", "reserved", "peak", "free", "total") if kind in found}

    def reset_peak(self) -> None:
        if self.is_cuda:
            torch.cuda.reset_peak_memory_stats(self.device)

    def release(self) -> None:
        """Free memory that nothing refers to any more."""
        gc.collect()
        empty_cache(self.device)

    def seconds(self, call: Any, repeats: int) -> float:
        """Return the mean time of a call, after two that are not counted."""
        for _ in range(2):
            call()
        self.wait()
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        self.wait()
        return (time.perf_counter() - start) / repeats


class RunningEngine:
    """An engine on a thread of its own, with threads that prepare and finish jobs, as in a worker."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._runner = JobRunner(engine)

    def __enter__(self) -> "RunningEngine":
        self._thread = start_engine(self.engine)
        self._loaders, self._finishers = ThreadPoolExecutor(LOADERS), ThreadPoolExecutor(FINISHERS)
        return self

    def __exit__(self, *_error: object) -> None:
        self.engine.shut_down()
        self._thread.join()
        self._loaders.shutdown()
        self._finishers.shutdown()

    def run(self, model: Model, work: Sequence[Job], *, deterministic: bool = False) -> list[bytes]:
        """Return the PNGs of jobs that are all sent at once. Raises JobError."""

        def prepare(job: Job) -> Future[bytes]:
            spec = job.spec.model_copy(update={"deterministic": deterministic})
            rendering = self._runner.prepare(spec, {spec.inputs[0]: job.png}, [0], model)
            png: Future[bytes] = Future()
            rendering.start(partial(self._end, rendering, png))
            return png

        return [png.result() for png in self._loaders.map(prepare, work)]

    def _end(self, rendering: Rendering, png: Future[bytes]) -> None:
        """Finish a job on another thread than the engine's."""
        self._finishers.submit(_finish, rendering, png)


def _finish(rendering: Rendering, png: Future[bytes]) -> None:
    try:
        [image] = rendering.render()
        assert image.png is not None
        png.set_result(image.png)
    except Exception as error:
        png.set_exception(error)
