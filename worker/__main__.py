"""`python -m worker`: settings, models, engine, RQ worker; put together here and nowhere else."""

import logging
import os
import sys
import threading
from collections.abc import Iterable
from concurrent.futures import Future

import torch
from pydantic import ValidationError
from redis import Redis
from redis.exceptions import RedisError

from app.contract.spec import JobSpec, Resize, Task
from app.contract.store import ObjectStore
from worker.engine import Engine, Ticket
from worker.errors import StartupError, WorkerDied
from worker.inputs import Inputs
from worker.memory import keep_freed_memory
from worker.pipelines.model_file import ModelEntry, entries_to_serve
from worker.pipelines.models import Model, load_model
from worker.pipelines.tasks import make_work
from worker.rq_worker import BatchWorker
from worker.runner import JobRunner
from worker.settings import WorkerSettings


def main() -> int:
    """Exit code 0 after a drain, 1 when the process must be replaced, 2 when it cannot start."""
    keep_freed_memory()
    try:
        settings = WorkerSettings()
        logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        logging.getLogger("rq.worker").setLevel(logging.WARNING)
        run(settings)
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:
            return _complain(first["msg"].removeprefix("Value error, "), 2)
        return _complain(f"IMG2IMG_{str(first['loc'][0]).upper()}: {first['msg']}, got {first['input']!r}", 2)
    except StartupError as error:
        return _complain(str(error), 2)
    except WorkerDied as error:
        return _complain(str(error), 1)
    return 0


def run(settings: WorkerSettings) -> None:
    redis = Redis.from_url(settings.resolved_redis_url)
    try:
        redis.ping()
    except (RedisError, ValueError) as error:
        place = settings.resolved_redis_url.rpartition("@")[2]  # without a password
        raise StartupError(f"no Redis at {place}: {error}") from error
    store = ObjectStore(settings.resolved_store_url)
    entries = entries_to_serve(settings.model, settings.revision, settings.models_file, settings.serve)
    engine = Engine(slots=settings.slots, max_rows=settings.max_rows)
    ready: Future[list[Model]] = Future()
    thread = threading.Thread(target=run_engine, args=(engine, settings, entries, ready), name="engine", daemon=True)
    thread.start()
    runner = JobRunner(engine, {model.card.name: model for model in ready.result()})
    BatchWorker(redis, store, runner, lease_s=settings.lease_s, live_file=settings.live_file).serve(thread.is_alive)
    engine.shut_down()
    thread.join()


def run_engine(
    engine: Engine, settings: WorkerSettings, entries: Iterable[ModelEntry], ready: Future[list[Model]]
) -> None:
    """Loads the models, warms them up, and runs the engine: all on one thread, so that only it has OpenMP threads.

    With more of them than cores, GNU OpenMP lets them sleep after each of the thousand parallel loops of a UNet pass.
    """
    device = settings.device if settings.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
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
    """One picture of one step: a worker that says it is ready has allocated, compiled and chosen its kernels."""
    card = model.card
    size, task = card.native_size, card.tasks[0]
    spec = JobSpec(
        task=task,
        model=card.name,
        image="0" * 64,
        prompt="",
        negative_prompt="",
        strength=1,
        guidance_scale=2 if card.guidance else 1,
        image_guidance_scale=1.5 if task is Task.EDIT and card.image_guidance else None,
        num_inference_steps=1,
        scheduler=card.default_scheduler,
        seed=0,
        num_images=1,
        width=size,
        height=size,
        resize=Resize.CROP,
    )
    picture, mask = torch.zeros(1, 3, size, size), torch.ones(1, 1, size, size)
    work = make_work(model, spec, Inputs(picture, mask), 0)
    work(Ticket(work, lambda _ticket: None))


def _complain(line: str, code: int) -> int:
    print(f"img2img worker: {line}", file=sys.stderr)  # noqa: T201
    return code


if __name__ == "__main__":
    exit_code = main()
    logging.shutdown()
    sys.stderr.flush()
    os._exit(exit_code)  # not sys.exit: it aborts the process if the engine is in the middle of a forward pass
