"""Reports of workers that do not exist, about the models that they serve."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from redis import Redis

from img2img.domain.model_change import apply_changes
from img2img.domain.model_config import ModelConfig
from img2img.domain.model_status import ModelState, ModelStatus
from img2img.redis.model_definitions import ModelDefinitions
from img2img.redis.model_registry import ModelRegistry
from img2img.redis.model_reports import WorkerReport, WorkerReports
from tests.support.model_cards import CARD

WORKER = "test-worker"
LOADED = ModelStatus(state=ModelState.LOADED, memory_bytes=2_500_000_000)
BROKEN = "/srv/broken.safetensors is damaged; download it again"
# Of the worker.
MODEL_FILE = {"demo": ModelConfig(source="./demo")}


def definitions(redis: Redis) -> dict[str, ModelConfig]:
    """The models that a worker serves whose model file has only the demo model."""
    return apply_changes(MODEL_FILE, ModelDefinitions(redis).read().by_model)


def report(redis: Redis, *models: str, **states: ModelStatus) -> None:
    """Report as a worker that follows the latest change, without LoRAs of the name `broken`.

    Args:
        models: models that are loaded.
        states: states of further models.
    """
    configs = definitions(redis)
    loras = {name: tuple(configs[name].loras) if name in configs else () for name in models}
    left_out = {name: {"broken": BROKEN} for name, names in loras.items() if "broken" in names}
    loras = {name: tuple(lora for lora in names if lora != "broken") for name, names in loras.items()}
    cards = [CARD.model_copy(update={"name": name, "loras": loras[name]}) for name in models]
    statuses = dict.fromkeys(models, LOADED) | states
    ModelRegistry(redis).register(WORKER, cards, ttl_s=60, statuses=statuses)
    following = WorkerReport(revision=ModelDefinitions(redis).revision(), loras_left_out=left_out)
    WorkerReports(redis).publish(WORKER, following)


@contextmanager
def following_worker(redis: Redis) -> Iterator[None]:
    """Report all models as loaded as they are defined, and those named `bad` as failed."""
    stopped = threading.Event()

    def follow() -> None:
        while not stopped.wait(0.1):
            names = list(definitions(redis))
            failed = ModelStatus(state=ModelState.FAILED, error="org/bad has only pickle files")
            report(redis, *(n for n in names if n != "bad"), **{name: failed for name in names if name == "bad"})

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
