"""The worker's watch of its models, with a real Redis and no models."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock

import pytest
from redis import Redis
from rq.worker import BaseWorker

from img2img.domain.model_card import ModelCard
from img2img.domain.model_config import ComponentSource, ModelConfig
from img2img.domain.model_status import ModelState, ModelStatus
from img2img.redis.job_queue import JobQueue
from img2img.redis.model_definitions import ModelDefinitions
from img2img.redis.model_registry import ModelRegistry
from img2img.redis.model_reports import WorkerReports
from img2img.worker.errors import StartupError
from img2img.worker.pipelines.loading.served_models import ModelSelection
from img2img.worker.queue.heartbeat import Heartbeat
from img2img.worker.queue.reaper import Reaper
from img2img.worker.runtime.model_watch import ModelWatch
from tests.support.model_cards import CARD
from tests.support.specs import make_spec

WORKER = "test-worker"
PHOTO = ModelConfig(source="org/photo")
OTHER_CARD = CARD.model_copy(update={"name": "other"})


class Defined:
    """Keeps how the models were defined last."""

    def __init__(self) -> None:
        self.configs: dict[str, ModelConfig] = {}
        self.finishing: frozenset[str] = frozenset()
        self.count = 0
        self.status = ModelStatus(state=ModelState.LOADED)

    def define(self, configs: Mapping[str, ModelConfig], finishing: Collection[str] = ()) -> None:
        self.configs, self.finishing, self.count = dict(configs), frozenset(finishing), self.count + 1

    def statuses(self) -> dict[str, ModelStatus]:
        return dict.fromkeys(self.configs, self.status)


@pytest.fixture
def defined() -> Defined:
    return Defined()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "models.toml"
    path.write_text('[models.demo]\nsource = "org/demo"')
    return path


@pytest.fixture
def watch(redis: Redis, file: Path, defined: Defined) -> ModelWatch:
    redis.flushall()
    ModelRegistry(redis).register(WORKER, [CARD], ttl_s=60)
    watch = ModelWatch(
        redis, ModelSelection(None, (file.parent,)), model="demo", revision=None, file=file, models=defined
    )
    watch.start()
    return watch


def test_changes_by_request_are_followed(watch: ModelWatch, redis: Redis, defined: Defined) -> None:
    watch.poll(WORKER)
    assert (list(defined.configs), defined.count) == (["demo"], 1)
    definitions = ModelDefinitions(redis)
    definitions.put("org/photo", PHOTO)
    definitions.put_lora("demo", "ink", ComponentSource(source="./ink"))
    watch.poll(WORKER)
    assert (list(defined.configs), defined.count) == (["demo", "org/photo"], 2)
    assert defined.configs["demo"].loras["ink"].source.startswith("/")
    # The revision is reported after the states that belong to it.
    assert WorkerReports(redis).read([WORKER])[WORKER].revision == 0
    watch.poll(WORKER)
    assert WorkerReports(redis).read([WORKER])[WORKER].revision == 2
    definitions.put("org/photo", ModelConfig(source="/etc/passwd"))
    watch.poll(WORKER)
    assert list(defined.configs) == ["demo"]
    assert "IMG2IMG_MODEL_FOLDERS" in WorkerReports(redis).read([WORKER])[WORKER].refused["org/photo"]


def test_lora_that_cannot_be_loaded_is_left_out_alone(
    watch: ModelWatch, redis: Redis, file: Path, defined: Defined
) -> None:
    definitions = ModelDefinitions(redis)
    for name in ("brush", "ink", "pen"):
        definitions.put_lora("demo", name, ComponentSource(source=f"./{name}.safetensors"))
    watch.poll(WORKER)
    assert list(defined.configs["demo"].loras) == ["brush", "ink", "pen"]
    error = "model 'demo': LoRA 'ink': ink.safetensors is damaged"
    defined.status = ModelStatus(state=ModelState.LOADED, error=error, changing=True)
    watch.poll(WORKER)
    assert list(defined.configs["demo"].loras) == ["brush", "ink", "pen"], "the error may be of the file before"
    defined.status = ModelStatus(state=ModelState.LOADED, error=error)
    for _ in range(2):
        watch.poll(WORKER)
    assert list(defined.configs["demo"].loras) == ["brush", "pen"]
    left_out = {"demo": {"ink": "ink.safetensors is damaged"}}
    assert WorkerReports(redis).read([WORKER])[WORKER].loras_left_out == left_out
    (file.parent / "ink.safetensors").write_bytes(b"repaired")
    defined.status = ModelStatus(state=ModelState.LOADED)
    watch.poll(WORKER)
    assert list(defined.configs["demo"].loras) == ["brush", "ink", "pen"]


def test_model_that_names_a_damaged_lora_itself_fails(redis: Redis, watch: ModelWatch, defined: Defined) -> None:
    pen, ink = (ComponentSource(source=f"org/{name}") for name in ("pen", "ink"))
    ModelDefinitions(redis).put("org/photo", PHOTO.model_copy(update={"loras": {"pen": pen}}))
    ModelDefinitions(redis).put_lora("org/photo", "ink", ink)
    watch.poll(WORKER)
    for name, left in (("pen", ["pen", "ink"]), ("ink", ["pen"])):
        defined.status = ModelStatus(state=ModelState.FAILED, error=f"LoRA {name!r}: does not exist")
        watch.poll(WORKER)
        assert list(defined.configs["org/photo"].loras) == left


def test_removed_model_is_served_until_no_job_waits(watch: ModelWatch, redis: Redis, defined: Defined) -> None:
    job = JobQueue(redis).submit(make_spec(model="demo"))
    ModelDefinitions(redis).remove("demo")
    # A worker that has not followed yet registers the model again.
    ModelRegistry(redis).register(WORKER, [CARD], ttl_s=60)
    watch.poll(WORKER)
    assert (list(defined.configs), defined.finishing) == (["demo"], {"demo"})
    assert ModelRegistry(redis).find("demo") is None
    JobQueue(redis).cancel(job.id)
    watch.poll(WORKER)
    assert (defined.configs, defined.finishing) == ({}, frozenset())
    ModelDefinitions(redis).reset("demo")
    watch.poll(WORKER)
    assert (list(defined.configs), defined.finishing) == (["demo"], frozenset())


def test_worker_that_starts_runs_the_jobs_of_a_removed_model(redis: Redis, file: Path, defined: Defined) -> None:
    redis.flushall()
    ModelDefinitions(redis).put("photo", PHOTO)
    JobQueue(redis).submit(make_spec(model="photo"))
    ModelDefinitions(redis).remove("photo")
    selection = ModelSelection(None, ())
    ModelWatch(redis, selection, model="demo", revision=None, file=file, models=defined).start()
    assert (list(defined.configs), defined.finishing) == (["demo", "photo"], {"photo"})


def test_model_file_is_followed(watch: ModelWatch, redis: Redis, file: Path, defined: Defined) -> None:
    JobQueue(redis).submit(make_spec(model="demo"))
    file.write_text('[models.demo]\nsource = "org/dem')
    for _ in range(3):
        watch.poll(WORKER)
    assert (list(defined.configs), defined.count) == (["demo"], 1)
    error = WorkerReports(redis).read([WORKER])[WORKER].file_error
    assert error is not None
    assert "cannot read the model file" in error
    file.write_text('[models.photo]\nsource = "org/photo"')
    for _ in range(3):
        watch.poll(WORKER)
    assert (list(defined.configs), defined.finishing) == (["photo", "demo"], {"demo"})
    assert WorkerReports(redis).read([WORKER])[WORKER].file_error is None


def test_invalid_model_file_prevents_the_start(redis: Redis, file: Path, defined: Defined) -> None:
    file.write_text("[models.")
    selection = ModelSelection(None, ())
    watch = ModelWatch(redis, selection, model="demo", revision=None, file=file, models=defined)
    with pytest.raises(StartupError, match="cannot read the model file"):
        watch.start()


def test_two_changes_at_the_same_time_are_both_made(redis: Redis) -> None:
    redis.flushall()
    first, second = ModelDefinitions(redis), ModelDefinitions(redis)
    assert first.put_lora("demo", "ink", ComponentSource(source="org/ink"))
    assert second.put_lora("demo", "pen", ComponentSource(source="org/pen"))
    change = first.find("demo")
    assert (sorted(change.loras), change.revision, second.revision()) == (["ink", "pen"], 2, 2)
    redis.hset("i2i:models:changes", "later", '{"model": {"source": "a", "key_of_a_later_version": 1}}')
    assert list(first.read().by_model) == ["demo"]


class RemovedMeanwhile:
    """Models of which one is removed while it is announced."""

    def __init__(self) -> None:
        self.announced = [[CARD, OTHER_CARD], [OTHER_CARD]]

    @property
    def announced_cards(self) -> list[ModelCard]:
        return self.announced.pop(0)

    def statuses(self) -> dict[str, ModelStatus]:
        return {}


def test_model_that_is_removed_while_it_is_announced_is_forgotten(redis: Redis) -> None:
    redis.flushall()
    registry, worker, models = ModelRegistry(redis), Mock(BaseWorker, connection=redis), RemovedMeanwhile()
    worker.name = WORKER
    heartbeat = Heartbeat(worker, registry, Mock(Reaper), cast("Any", models), {}, lease_s=60, live_file=None)
    heartbeat.announce()
    assert registry.known().keys() == {OTHER_CARD.name}


def test_card_stays_while_another_worker_serves_the_model_by_its_file(
    watch: ModelWatch, redis: Redis, file: Path
) -> None:
    registry = ModelRegistry(redis)
    registry.register("another-worker", [CARD], ttl_s=60)
    file.write_text('[models.photo]\nsource = "org/photo"')
    watch.poll(WORKER)
    assert registry.known_names() == ["demo"]
    registry.unregister("another-worker")
    watch.poll(WORKER)
    assert registry.known_names() == []


def test_card_of_a_model_removed_by_request_is_dropped_at_once(watch: ModelWatch, redis: Redis) -> None:
    registry = ModelRegistry(redis)
    registry.register("another-worker", [CARD], ttl_s=60)
    ModelDefinitions(redis).remove("demo")
    watch.poll(WORKER)
    assert registry.known_names() == []
