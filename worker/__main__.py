"""Composition root of the worker: settings, models, engine and RQ worker. Run as `python -m img2img.worker`."""

import logging
import os
import socket
import sys
import threading

from obstore.exceptions import BaseError as StoreError
from pydantic import ValidationError
from redis import Redis
from redis.exceptions import RedisError

from img2img.blobs import ObjectStore, UnusableStore
from img2img.imaging.sandbox_limits import SandboxLimits
from img2img.imaging.sandbox_pool import DecoderPool
from img2img.moderation import moderator_for
from img2img.printable import printable
from img2img.private_files import UMASK
from img2img.redis import connection, keys
from img2img.settings import describe_errors, without_password
from img2img.telemetry import logging as logs
from img2img.telemetry.tracing import Tracer, TracingError

from .devices import choose_device, describe_device, device_memory
from .engine.engine import Engine
from .errors import HubUnavailable, StartupError, WorkerDied
from .moderation import ResultModeration
from .pipelines.loading.downloads import count_downloads, download_progress
from .pipelines.loading.served_models import ModelSelection, models_to_preload
from .queue.batch_worker import BatchWorker
from .queue.job_metrics import JobMetrics
from .runner import JobRunner
from .runtime.allocator import configure_malloc, run_malloc_trim
from .runtime.device_events import device_clock
from .runtime.engine_metrics import EngineCollector
from .runtime.engine_thread import start_engine
from .runtime.memory_meter import memory_meter
from .runtime.model_loader import ModelLoader
from .runtime.model_memory import MemoryBudget, reader_of, total_memory
from .runtime.model_pool import ModelPool
from .runtime.model_watch import ModelWatch
from .runtime.pool_metrics import PoolMetrics
from .runtime.start_report import StartReport
from .runtime.stay_down import stay_down
from .runtime.torch_options import configure_cuda, configure_environment
from .runtime.watchdog import Watchdog
from .settings import WorkerSettings

CANNOT_START = 2
# Not an exit code of the process, which ends with 1.
MAY_START_LATER = 75


def main() -> int:
    """Run a worker and return the exit code of the process.

    0: stopped by a signal. 1: the process has to be replaced, or Redis or the model hub is unreachable. 2: it cannot
    start.
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
        return _fail(describe_errors(error), CANNOT_START)
    except (StartupError, TracingError) as error:
        return _fail(str(error), MAY_START_LATER if isinstance(error, HubUnavailable) else CANNOT_START)
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
    configure_environment(settings.data_dir)
    configure_cuda(allow_tf32=settings.allow_tf32, benchmark=settings.cudnn_benchmark)
    redis = connect(settings.resolved_redis_url)
    count_downloads()
    with StartReport(redis, f"{socket.gethostname()}:{os.getpid()}", download_progress) as report:
        store = open_store(settings.resolved_store_url)
        device = choose_device(settings.device)
        # Not the name of this module, which is `__main__`.
        logging.getLogger("img2img.worker").info("device: %s", describe_device(device))
        meter = memory_meter(device)
        engine = Engine(slots=settings.slots, max_rows=settings.max_rows, meter=meter, clock=device_clock(device))
        metrics = serve_metrics(settings, tracer, engine, device)
        pool = ModelPool(
            loader := ModelLoader(engine, device, report.stage, mode=settings.mode),
            MemoryBudget(settings.model_memory, reader_of(device, meter), total_memory(device)),
            max_loaded=settings.max_loaded_models,
            metrics=PoolMetrics(metrics.registry),
        )
        watch = ModelWatch(
            redis,
            ModelSelection(settings.serve, settings.resolved_model_folders, settings.model_defaults),
            model=settings.model,
            revision=settings.revision,
            file=settings.models_file,
            models=pool,
        )
        watch.start()
        report.percent = pool.percent
        engine_thread = start_engine(engine)

        def check_threads() -> None:
            if not engine_thread.is_alive():
                raise WorkerDied("the engine thread has died")
            pool.check()

        preload = models_to_preload(settings.preload, watch.names, watch.removed)
        pool.start(preload, check_threads, watch.leave_out_unusable_loras)
        loader.report = logging.getLogger(__name__).info
    threading.Thread(target=run_malloc_trim, name="trim", daemon=True).start()
    watchdog = Watchdog(engine, stall_s=settings.stall_s)

    def check() -> None:
        check_threads()
        watchdog.check()

    moderator = moderator_for(settings, "result")
    decoders = DecoderPool(SandboxLimits(settings.max_pixels, settings.max_body_bytes))
    worker = BatchWorker(
        redis,
        store,
        JobRunner(
            engine,
            ResultModeration(moderator) if moderator else None,
            decoders,
            deterministic=settings.deterministic,
            metadata=settings.png_metadata,
        ),
        pool,
        lease_s=settings.lease_s,
        metrics=metrics,
        live_file=settings.live_file,
    )
    with watch.running(worker.name):
        worker.serve(check)
    decoders.close()
    pool.close()
    engine.shut_down()
    engine_thread.join()
    pool.unload()


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
        redis = connection.connect(url)
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


def _fail(message: str, code: int) -> int:
    print(f"img2img worker: {printable(message)}", file=sys.stderr)  # noqa: T201
    return code


if __name__ == "__main__":
    exit_code = main()
    logging.shutdown()
    sys.stderr.flush()
    if exit_code in (CANNOT_START, MAY_START_LATER) and (retry_s := os.environ.get("START_RETRY_S")):
        # A container is restarted at once, whatever the exit code is.
        stay_down(float(retry_s) if exit_code == MAY_START_LATER else None)
    # `sys.exit` would abort the process if the engine is in a forward pass.
    os._exit(1 if exit_code == MAY_START_LATER else exit_code)
