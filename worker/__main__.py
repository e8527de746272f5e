"""`python -m worker`: settings, models, engine, RQ worker; put together here and nowhere else."""

import logging
import os
import sys
import threading
from collections.abc import Iterable
from concurrent.futures import Future
from hashlib import sha256
from typing import Any

import torch
from obstore.exceptions import BaseError as StoreError
from pydantic import ValidationError
from redis import Redis
from redis.exceptions import RedisError

from img2img.blobs import ObjectStore, UnusableStore
from img2img.domain.conditioning import InpaintRegion
from img2img.domain.model_card import ModelCard
from img2img.domain.parameters import Task
from img2img.domain.spec import EditSpec, Img2ImgSpec, InpaintSpec, JobSpec
from img2img.settings import without_password
from img2img.telemetry import logging as logs
from img2img.telemetry.tracing import Tracer, TracingError

from .engine.engine import Engine
from .engine.task import EngineTask
from .errors import StartupError, WorkerDied
from .images.inputs import Inputs
from .pipelines.denoise import make_task_function
from .pipelines.loading.model_config import ModelConfig, configs_to_serve
from .pipelines.model import Model, load_model
from .queue.batch_worker import BatchWorker
from .queue.job_metrics import JobMetrics
from .runner import JobRunner
from .runtime.allocator import configure_malloc, freeze_gc, gpu_memory, run_malloc_trim
from .runtime.engine_metrics import EngineCollector
from .runtime.watchdog import Watchdog
from .settings import WorkerSettings


def main() -> int:
    """Exit code 0 after a drain, 1 when the process must be replaced or Redis is away, 2 when it cannot start."""
    configure_malloc()
    try:
        settings = WorkerSettings()
        logs.configure("worker", level=settings.log_level, log_format=settings.log_format)
        traces = Tracer.from_environment("worker")
        try:
            run(settings, traces)
        finally:
            traces.close()
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:
            return _complain(first["msg"].removeprefix("Value error, "), 2)
        return _complain(f"IMG2IMG_{str(first['loc'][0]).upper()}: {first['msg']}, got {first['input']!r}", 2)
    except (StartupError, TracingError) as error:
        return _complain(str(error), 2)
    except WorkerDied as error:
        return _complain(str(error), 1)
    except RedisError as error:
        return _complain(f"Redis: {error}", 1)
    return 0


def run(settings: WorkerSettings, traces: Tracer) -> None:
    place = without_password(settings.resolved_redis_url)
    try:
        redis = Redis.from_url(settings.resolved_redis_url)
    except ValueError as error:
        raise StartupError(f"no Redis at {place}: {error}") from error
    try:
        redis.ping()
    except RedisError as error:  # it may be back soon: whoever replaces this process tries again
        raise WorkerDied(f"no Redis at {place}: {error}") from error
    store = open_store(settings.resolved_store_url)
    entries = configs_to_serve(settings.model, settings.revision, settings.models_file, settings.serve)
    engine = Engine(slots=settings.slots, max_rows=settings.max_rows)
    ready: Future[list[Model]] = Future()
    device = settings.device if settings.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    thread = threading.Thread(target=run_engine, args=(engine, device, entries, ready), name="engine", daemon=True)
    thread.start()
    runner = JobRunner(engine, {model.card.name: model for model in ready.result()})
    telemetry = JobMetrics(traces)
    telemetry.registry.register(EngineCollector(engine, device, gpu_memory))
    try:
        telemetry.serve(settings.metrics_host, settings.metrics_port)
    except OSError as error:
        raise StartupError(f"no metrics at {settings.metrics_host} port {settings.metrics_port}: {error}") from error
    freeze_gc()
    threading.Thread(target=run_malloc_trim, name="trim", daemon=True).start()
    watchdog = Watchdog(engine, stall_s=settings.stall_s)

    def check_engine() -> None:
        if not thread.is_alive():
            raise WorkerDied("the engine has died")
        watchdog.look()

    worker = BatchWorker(
        redis, store, runner, lease_s=settings.lease_s, telemetry=telemetry, live_file=settings.live_file
    )
    worker.serve(check_engine)
    engine.shut_down()
    thread.join()


def open_store(url: str) -> ObjectStore:
    """The store, in which the first writer wins. One that does not answer now may later. Raises StartupError."""
    try:
        ObjectStore(url, retry_timeout_s=1).check_first_writer_wins()
    except UnusableStore as error:
        raise StartupError(str(error)) from None
    except StoreError as error:
        logging.getLogger(__name__).warning("the store %s does not answer: %s", url, str(error).split("\n", 1)[0])
    return ObjectStore(url)


def run_engine(engine: Engine, device: str, entries: Iterable[ModelConfig], ready: Future[list[Model]]) -> None:
    """Loads the models, warms them up, and runs the engine: all on one thread, so that only it has OpenMP threads.

    With more of them than cores, GNU OpenMP lets them sleep after each of the thousand parallel loops of a UNet pass.
    """
    try:
        models = [load_model(entry, device=device) for entry in entries]
        for model in models:
            model.fit_preview()
            warm_up(model)
    except Exception as error:
        ready.set_exception(error)
        return
    ready.set_result(models)
    engine.run()


@torch.inference_mode()
def warm_up(model: Model) -> None:
    """Make one image with one step, so that memory is allocated and kernels are chosen before the first job."""
    size = model.card.native_size
    inputs = Inputs(torch.zeros(1, 3, size, size), torch.ones(1, 1, size, size))
    work = make_task_function(model, _warm_up_spec(model.card), inputs, 0)
    work(EngineTask(work, lambda _ticket: None))


def _warm_up_spec(card: ModelCard) -> JobSpec:
    size = card.native_size
    generation: dict[str, Any] = {
        "model": card.name,
        "image": sha256(b"").hexdigest(),
        "width": size,
        "height": size,
        "guidance_scale": 2 if card.guidance else 1,
        "num_inference_steps": 1,
        "scheduler": card.default_scheduler,
        "seed": 0,
    }
    match card.tasks[0]:
        case Task.EDIT:
            scale = 1.5 if card.image_guidance else None
            return EditSpec(instruction="", image_guidance_scale=scale, **generation)
        case Task.INPAINT:
            region = InpaintRegion(canvas=(size, size), box=(0, 0, size, size))
            return InpaintSpec(prompt="", strength=1, region=region, **generation)
    return Img2ImgSpec(prompt="", strength=1, **generation)


def _complain(line: str, code: int) -> int:
    print(f"img2img worker: {line}", file=sys.stderr)  # noqa: T201
    return code


if __name__ == "__main__":
    exit_code = main()
    logging.shutdown()
    sys.stderr.flush()
    os._exit(exit_code)  # not sys.exit: it aborts the process if the engine is in the middle of a forward pass
