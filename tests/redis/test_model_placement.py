"""Which worker loads the model of a waiting job, on a real Redis server and with models that only record requests."""

from collections.abc import Collection
from typing import Any

import pytest

from img2img.domain.job import JobStatus
from img2img.domain.model_status import ModelState, ModelStatus
from img2img.redis.keys import JOB
from img2img.redis.model_registry import ModelRegistry
from img2img.worker.queue.model_placement import COURTESY_S, PATIENCE_S, UNAVAILABLE_S, ModelPlacement
from tests.support.model_cards import CARD
from tests.support.processes import MODEL, Service

LOADED, LOADING, UNLOADED, FAILED = ModelState.LOADED, ModelState.LOADING, ModelState.UNLOADED, ModelState.FAILED
OTHER = "other"


class RecordedModels:
    """The models of one worker, in states that a test sets."""

    def __init__(self, **states: ModelState) -> None:
        self.states = states
        self.requests: list[tuple[str, set[str]]] = []
        self.is_full = False
        self.loaded_s = 1e6

    def statuses(self) -> dict[str, ModelStatus]:
        error = "cannot load model 'tiny': /srv/models/tiny has no vae"
        return {n: ModelStatus(state=s, error=error if s is FAILED else None) for n, s in self.states.items()}

    def turn_s(self, name: str) -> tuple[float, float]:
        return self.loaded_s, 0.0

    def needs_eviction(self, name: str) -> bool:
        return self.is_full

    def can_load(self, name: str, keep: Collection[str] = ()) -> bool:
        return not self.is_full or LOADED in [state for other, state in self.states.items() if other not in keep]

    def request(self, name: str, keep: Collection[str] = ()) -> bool:
        self.requests.append((name, set(keep)))
        return True

    @property
    def requested(self) -> list[str]:
        return [name for name, _ in self.requests]


class Workers:
    """Workers of one service."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.registry = ModelRegistry(service.redis)
        self.placements: dict[str, ModelPlacement] = {}

    def place(self, worker: str, models: RecordedModels) -> list[str]:
        """Let a worker decide once, and return the models that it has requested so far."""
        self.announce(worker, **models.states)
        served: Any = models
        placement = self.placements.setdefault(worker, ModelPlacement(worker, self.service.jobs, self.registry, served))
        placement._models = served
        placement.place()
        return models.requested

    def announce(self, worker: str, **states: ModelState) -> None:
        statuses = {name: ModelStatus(state=state) for name, state in states.items()}
        cards = [CARD.model_copy(update={"name": name}) for name in states]
        self.registry.register(worker, cards, 60, statuses)

    def submit(self, model: str = MODEL, *, age_s: float = 0.0) -> str:
        """Queue a job that has waited for some seconds."""
        job_id = self.service.submit(model=model)
        self.service.redis.hincrbyfloat(JOB.format(id=job_id), "created_at", -age_s)
        return job_id


@pytest.fixture
def workers(idle_service: Service) -> Workers:
    return Workers(idle_service)


def test_model_without_jobs_is_not_loaded(workers: Workers) -> None:
    assert workers.place("a", RecordedModels(tiny=UNLOADED, other=LOADED)) == []


def test_one_of_two_workers_loads_a_model(workers: Workers) -> None:
    workers.submit()
    assert workers.place("a", RecordedModels(tiny=UNLOADED)) == [MODEL]
    assert workers.place("b", RecordedModels(tiny=UNLOADED)) == []


@pytest.mark.parametrize("state", [LOADED, LOADING])
def test_jobs_wait_for_the_worker_that_has_their_model(workers: Workers, state: ModelState) -> None:
    workers.announce("warm", tiny=state)
    workers.submit(age_s=PATIENCE_S / 2)
    assert workers.place("cold", RecordedModels(tiny=UNLOADED)) == []
    workers.submit(OTHER, age_s=PATIENCE_S + 1)
    assert workers.place("cold", RecordedModels(tiny=UNLOADED, other=UNLOADED)) == [OTHER]


def test_worker_helps_when_jobs_have_waited_for_long(workers: Workers) -> None:
    workers.announce("warm", tiny=LOADED)
    workers.submit(age_s=PATIENCE_S + 1)
    assert workers.place("cold", RecordedModels(tiny=UNLOADED)) == [MODEL]


def test_worker_with_room_comes_first(workers: Workers) -> None:
    full = RecordedModels(tiny=UNLOADED, other=LOADED)
    full.is_full = True
    workers.announce("roomy", tiny=UNLOADED)
    job_id = workers.submit()
    assert workers.place("full", full) == []
    workers.service.redis.hincrbyfloat(JOB.format(id=job_id), "created_at", -COURTESY_S - 1)
    assert workers.place("full", full) == [MODEL]


def test_model_with_jobs_keeps_its_turn(workers: Workers) -> None:
    models = RecordedModels(tiny=UNLOADED, other=LOADED)
    models.is_full, models.loaded_s = True, PATIENCE_S / 2
    workers.submit(age_s=PATIENCE_S + 1)
    waiting = workers.submit(OTHER)
    assert workers.place("a", models) == [], "its jobs wait and it was loaded a short time ago"
    workers.service.jobs.cancel(waiting)
    assert workers.place("a", models) == [MODEL], "it has no jobs"
    workers.service.redis.flushall()
    workers.submit(age_s=PATIENCE_S + 1)
    workers.submit(OTHER)
    models.loaded_s = PATIENCE_S + 1
    assert workers.place("a", models) == [MODEL, MODEL], "its turn is over"


def test_model_whose_job_has_waited_longest_is_loaded_first(workers: Workers) -> None:
    workers.submit(age_s=1)
    workers.submit(OTHER, age_s=2)
    assert workers.place("a", RecordedModels(tiny=UNLOADED, other=UNLOADED)) == [OTHER]


def test_jobs_of_a_failed_model_wait_for_other_workers_and_then_fail(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = workers.service.jobs.clock
    started_at = clock.now()
    models = RecordedModels(tiny=FAILED)
    workers.announce("other", tiny=UNLOADED)
    old, new = workers.submit(), workers.submit(age_s=-UNAVAILABLE_S)
    workers.place("a", models)
    monkeypatch.setattr(clock, "now", lambda: started_at + 1.5 * UNAVAILABLE_S)
    workers.place("a", models)
    assert workers.service.record(old).status is JobStatus.QUEUED, "the other worker may load it"
    workers.announce("other", tiny=FAILED)
    workers.place("a", models)
    assert workers.service.record(old).status is JobStatus.QUEUED, "a load may fail once"
    workers.place("a", RecordedModels(tiny=LOADING))
    monkeypatch.setattr(clock, "now", lambda: started_at + 2.6 * UNAVAILABLE_S)
    workers.service.redis.hincrbyfloat(JOB.format(id=new), "created_at", UNAVAILABLE_S)
    workers.place("a", models)
    record = workers.service.record(old)
    assert record.status is JobStatus.FAILED
    assert record.error is not None
    assert record.error.code == "model_unavailable"
    assert record.error.message == "no worker can load the model tiny: cannot load model 'tiny': tiny has no vae"
    assert workers.service.record(new).status is JobStatus.QUEUED
    assert workers.service.jobs.claim(MODEL) == new.encode()
    assert workers.service.jobs.claim(MODEL) is None
