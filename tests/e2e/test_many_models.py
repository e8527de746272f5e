"""Workers with more models than fit into their memory."""

import shutil
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from img2img.domain.job import JobStatus
from img2img.domain.model_status import ModelState
from img2img.redis.model_registry import ModelRegistry
from tests.support.processes import MODEL, Service, Worker, make_tiny_model, run_worker, wait_for

LOADED = ModelState.LOADED
TWENTY = [MODEL, *(f"tiny-{i}" for i in range(1, 20))]


@pytest.fixture(scope="module")
def models() -> Iterator[Path]:
    """A model file with 20 models: the same weights under different names."""
    with TemporaryDirectory(prefix="i2i-") as folder:
        make_tiny_model(Path(folder) / MODEL)
        file = Path(folder) / "models.toml"
        file.write_text("\n".join(f'[models."{name}"]\nsource = "./{MODEL}"' for name in TWENTY))
        yield file


def start(service: Service, models: Path, **settings: Any) -> Worker:
    return service.start_worker(IMG2IMG_MODELS_FILE=str(models), **settings)


def states(service: Service, worker: Worker) -> dict[str, ModelState]:
    found = ModelRegistry(service.redis).states().items()
    return {name: status.state for key, all_ in found if f"-{worker.pid}-" in key for name, status in all_.items()}


def test_twenty_models_of_which_two_fit(service: Service, models: Path) -> None:
    worker = start(service, models, IMG2IMG_MAX_LOADED_MODELS="2")
    wait_for(lambda: len(ModelRegistry(service.redis).live()) == len(TWENTY))
    assert Counter(states(service, worker).values()) == {ModelState.LOADED: 1, ModelState.UNLOADED: 19}
    ids = [service.submit(model=TWENTY[7 * i % 20], num_inference_steps=2, seed=i) for i in range(500)]
    records = service.wait_until_ended(ids, timeout_s=300)
    assert Counter(record.status for record in records) == {JobStatus.SUCCEEDED: 500}
    assert list(states(service, worker).values()).count(ModelState.LOADED) <= 2
    log = (service.folder / "workers.log").read_text()
    assert log.count("unloaded tiny") < 40, "each model was loaded for many jobs"


def test_two_workers_keep_their_models(service: Service, models: Path) -> None:
    """Jobs of two models alternate, and each of the workers has memory for one."""
    workers = [start(service, models, IMG2IMG_MAX_LOADED_MODELS="1", lease_s=20) for _ in range(2)]
    other = TWENTY[1]
    service.wait_until_ended([service.submit(model=other, num_inference_steps=2)])

    def loaded() -> list[list[str]]:
        return [[name for name, state in states(service, worker).items() if state is LOADED] for worker in workers]

    wait_for(lambda: sorted(loaded()) == [[MODEL], [other]])
    expected = loaded()
    records = []
    for _ in range(5):
        ids = [service.submit(model=(MODEL, other)[i % 2], num_inference_steps=2, seed=i) for i in range(10)]
        records += service.wait_until_ended(ids)
    service.assert_finished_once(records)
    for worker, names in zip(workers, expected, strict=True):
        assert {record.spec.model for record in records if worker.owns(record)} == set(names)
    log = (service.folder / "workers.log").read_text()
    assert log.count("INFO img2img.worker.runtime.pool_thread: loaded ") == 3
    assert log.count("INFO img2img.worker.runtime.pool_thread: unloaded ") == 1


def test_model_that_cannot_be_loaded_fails_its_jobs_and_no_others(
    service: Service, tmp_path: Path, models: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(models.parent / MODEL, broken)
    file = tmp_path / "models.toml"
    file.write_text(f'[models.tiny]\nsource = "{service.model}"\n[models.broken]\nsource = "{broken}"')
    worker = start(service, file, run=run_impatient_worker)
    wait_for(lambda: len(states(service, worker)) == 2 and ModelRegistry(service.redis).find("broken"))
    next(broken.glob("unet/*.safetensors")).write_bytes(b"no weights")
    doomed, fine = service.submit(model="broken"), service.submit()
    [failed, succeeded] = service.wait_until_ended([doomed, fine])
    assert succeeded.status is JobStatus.SUCCEEDED
    assert failed.status is JobStatus.FAILED
    assert failed.error is not None
    assert failed.error.code == "model_unavailable"
    assert "no worker can load the model broken" in failed.error.message
    assert "cannot be read as safetensors" in failed.error.message
    assert str(tmp_path) not in failed.error.message
    status = ModelRegistry(service.redis).states().popitem()[1]["broken"]
    assert status.state is ModelState.FAILED
    assert str(broken) in str(status.error)
    service.assert_finished_once(service.wait_until_ended([service.submit()]))


def test_busy_model_gives_way_to_another_and_comes_back(service: Service, models: Path) -> None:
    """Keep one model busy, in a worker that has memory for one."""
    start(service, models, run=run_impatient_worker, IMG2IMG_MAX_LOADED_MODELS="1")
    wait_for(lambda: len(ModelRegistry(service.redis).live()) == len(TWENTY))
    busy = [service.submit(num_inference_steps=20, seed=i) for i in range(200)]
    service.wait_until_running(busy[0], service.workers[0])
    other = service.submit(model=TWENTY[1], num_inference_steps=2)
    [record] = service.wait_until_ended([other])
    assert record.status is JobStatus.SUCCEEDED
    assert any(not record.status.is_terminal for record in service.all(busy)), "it has not waited for all of them"
    service.assert_finished_once(service.wait_until_ended(busy))


def run_impatient_worker(environment: dict[str, str], log: str) -> None:
    """Run a worker that waits for no other one: neither to load a model, nor before it fails the jobs of one."""
    from img2img.worker.queue import batch_worker, model_placement

    impatient = partial(model_placement.ModelPlacement, patience_s=1, unavailable_s=0)
    batch_worker.ModelPlacement = impatient  # type: ignore[misc, assignment]
    run_worker(environment, log)
