"""Composition root of the worker: settings, models, engine and RQ worker. Run as `python -m img2img.worker`."""

import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
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
from img2img.domain.model_config import ModelConfig
from img2img.domain.parameters import Task
from img2img.domain.spec import EditSpec, Img2ImgSpec, InpaintSpec, JobSpec
from img2img.printable import printable
from img2img.private_files import UMASK
from img2img.redis import keys
from img2img.settings import without_password
from img2img.telemetry import logging as logs
from img2img.telemetry.tracing import Tracer, TracingError

from .devices import choose_device, describe_device, device_memory, memory_in_words
from .engine.engine import Engine
from .engine.task import EngineTask
from .errors import StartupError, WorkerDied
from .images.inputs import Inputs
from .pipelines.denoise import make_task_function
from .pipelines.loading.downloads import count_downloads, download_progress
from .pipelines.loading.failures import reporting_failures
from .pipelines.loading.served_models import configs_to_serve
from .pipelines.model import Model, load_model
from .queue.batch_worker import BatchWorker
from .queue.job_metrics import JobMetrics
from .runner import JobRunner
from .runtime.allocator import configure_malloc, freeze_gc, run_malloc_trim
from .runtime.engine_metrics import EngineCollector
from .runtime.memory_meter import memory_meter
from .runtime.start_report import StartReport
from .runtime.watchdog import Watchdog
from .settings import WorkerSettings

CANNOT_START = 2
SMALLER = "set a `dtype` of 2 bytes, or serve a smaller model or fewer of them"


def main() -> int:
    """Run a worker and return the exit code of the process.

    0: stopped by a signal. 1: the process has to be replaced, or Redis is unreachable. 2: it cannot start.
    """
    configure_malloc()
    os.umask(UMASK)
    try:
        settings = WorkerSettings()
        logs.configure("worker", level=settings.log_level, log_format=settings.log_format)
        tracer = Tracer.from_environment("worker")
        try:
            run(settings, tracer)
        finally:
            tracer.close()
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:
            return _fail(first["msg"].removeprefix("Value error, "), CANNOT_START)
        return _fail(f"IMG2IMG_{str(first['loc'][0]).upper()}: {first['msg']}, got {first['input']!r}", CANNOT_START)
    except (StartupError, TracingError) as error:
        return _fail(str(error), CANNOT_START)
    except WorkerDied as error:
        return _fail(str(error), 1)
    except RedisError as error:
        return _fail(f"Redis: {error}", 1)
    return 0


def run(settings: WorkerSettings, tracer: Tracer) -> None:
    """Load the models and run jobs until a signal.

    Raises:
        StartupError: a setting, a model or the blob store cannot be used.
        WorkerDied: Redis is unreachable at the start, or the worker has to end.
    """
    redis = connect(settings.resolved_redis_url)
    count_downloads()
    with StartReport(redis, f"{socket.gethostname()}:{os.getpid()}", download_progress) as report:
        store = open_store(settings.resolved_store_url)
        configs = configs_to_serve(settings.model, settings.revision, settings.models_file, settings.serve)
        device = choose_device(settings.device)
        logging.getLogger(__name__).info("device: %s", describe_device(device))
        engine = Engine(slots=settings.slots, max_rows=settings.max_rows, meter=memory_meter(device))
        loaded: Future[list[Model]] = Future()
        engine_thread = threading.Thread(
            target=run_engine, args=(engine, device, configs, loaded, report.stage), name="engine", daemon=True
        )
        engine_thread.start()
        models = {model.card.name: model for model in loaded.result()}
        runner = JobRunner(engine, models)
        metrics = serve_metrics(settings, tracer, engine, device)
    freeze_gc()
    threading.Thread(target=run_malloc_trim, name="trim", daemon=True).start()
    watchdog = Watchdog(engine, stall_s=settings.stall_s)

    def check_engine() -> None:
        if not engine_thread.is_alive():
            raise WorkerDied("the engine thread has died")
        watchdog.check()

    BatchWorker(redis, store, runner, lease_s=settings.lease_s, metrics=metrics, live_file=settings.live_file).serve(
        check_engine
    )
    engine.shut_down()
    engine_thread.join()
    for model in models.values():
        model.close()


def serve_metrics(settings: WorkerSettings, tracer: Tracer, engine: Engine, device: str) -> JobMetrics:
    """Return the metrics of this worker, and serve them if a port is set. Raises StartupError."""
    metrics = JobMetrics(tracer)
    metrics.registry.register(EngineCollector(engine, device, device_memory))
    try:
        metrics.serve(settings.metrics_host, settings.metrics_port)
    except OSError as error:
        where = f"{settings.metrics_host} port {settings.metrics_port}"
        raise StartupError(f"cannot serve metrics at {where}: {error}") from error
    return metrics


def connect(url: str) -> Redis:
    """Return a client of the Redis at `url`.

    Raises:
        StartupError: the URL is invalid.
        WorkerDied: Redis does not respond. It may be back when the supervisor restarts this process.
    """
    safe_url = without_password(url)
    try:
        redis = Redis.from_url(url)
    except ValueError as error:
        raise StartupError(f"cannot connect to Redis at {safe_url}: {error}") from error
    try:
        # An answer is enough: PING fails while the disk of Redis is full.
        redis.exists(keys.WORKERS)
    except RedisError as error:
        raise WorkerDied(f"cannot connect to Redis at {safe_url}: {error}") from error
    return redis


def open_store(url: str) -> ObjectStore:
    """Return the blob store at `url`. A store that does not respond now may do so later.

    Raises:
        StartupError: the store does not support conditional writes, by which the first writer of a blob wins.
    """
    try:
        ObjectStore(url, retry_timeout_s=1).check_first_writer_wins()
    except UnusableStore as error:
        raise StartupError(str(error)) from None
    except StoreError as error:
        logging.getLogger(__name__).warning("the blob store %s does not respond: %s", url, str(error).split("\n", 1)[0])
    return ObjectStore(url)


def run_engine(
    engine: Engine,
    device: str,
    configs: Iterable[ModelConfig],
    loaded: Future[list[Model]],
    report: Callable[[str], None],
) -> None:
    """Load the models, warm them up, and run the engine.

    Everything happens on one thread, because each thread that calls torch has its own OpenMP threads. If there are more
    of them than cores, GNU OpenMP suspends them after each of the thousand parallel loops of a UNet pass.

    Args:
        engine: the engine to run.
        device: where the models are loaded.
        configs: the models to load.
        loaded: gets the models, or the error of loading them.
        report: gets a line at each stage.
    """
    try:
        models = []
        for config in configs:
            report(f"loading {config.name} on {device}")
            models.append(load_model(config, device=device))
        for model in models:
            report(f"warming up {model.card.name}")
            with reporting_failures(
                f"cannot warm up model {model.card.name!r}", lambda: f"{memory_in_words(device)}; {SMALLER}"
            ):
                model.fit_preview()
                warm_up(model, engine)
    except Exception as error:
        loaded.set_exception(error)
        return
    loaded.set_result(models)
    engine.run()


@torch.inference_mode()
def warm_up(model: Model, engine: Engine) -> None:
    """Render an image with one step: memory is allocated, kernels are chosen, and the memory of a row is measured.

    On a GPU also one of the largest size, because not all kernels need memory in proportion to the size. Offloaded
    weights would be measured as memory of a row, so the limit of such a model is only lowered when memory runs out.
    """
    card = model.card
    sizes = {card.native_size} if model.device.type == "cpu" else {card.native_size, card.max_size}
    for size in sorted(sizes):
        inputs = Inputs(torch.zeros(1, 3, size, size), torch.ones(1, 1, size, size))
        function = make_task_function(model, _warm_up_spec(card, size), inputs, 0)
        task = EngineTask(function, lambda _task: None, measures_memory=not model.is_offloaded)
        engine.submit([task])
        while engine.is_busy:
            engine.step()
        if task.error is not None:
            raise task.error


def _warm_up_spec(card: ModelCard, size: int) -> JobSpec:
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


def _fail(message: str, code: int) -> int:
    print(f"img2img worker: {printable(message)}", file=sys.stderr)  # noqa: T201
    return code


if __name__ == "__main__":
    exit_code = main()
    logging.shutdown()
    sys.stderr.flush()
    if exit_code == CANNOT_START:
        # Compose restarts a container at once, and each start may ask the model hub. A signal ends the pause.
        time.sleep(float(os.environ.get("START_RETRY_S") or 0))
    # `sys.exit` would abort the process if the engine is in a forward pass.
    os._exit(exit_code)
