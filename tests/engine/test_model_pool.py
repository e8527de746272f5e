"""The pool of models with tiny models: loading, unloading, and changes while jobs run."""

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch
from diffusers import DiffusionPipeline
from prometheus_client import CollectorRegistry
from transformers import CLIPTextModel

from img2img.domain.model_config import ComponentSource, ModelConfig
from img2img.domain.model_status import ModelState
from img2img.domain.spec import JobSpec
from img2img.worker.engine.engine import Engine
from img2img.worker.engine.task import EngineTask
from img2img.worker.errors import StartupError
from img2img.worker.images.inputs import Inputs
from img2img.worker.pipelines.denoise import make_task_function
from img2img.worker.pipelines.memory import memory_by_device
from img2img.worker.pipelines.model import Model
from img2img.worker.runtime import model_loader
from img2img.worker.runtime.allocator import trim_malloc
from img2img.worker.runtime.engine_thread import start_engine
from img2img.worker.runtime.model_loader import ModelLoader
from img2img.worker.runtime.model_memory import MemoryBudget
from img2img.worker.runtime.model_pool import ModelLease, ModelPool
from img2img.worker.runtime.pool_metrics import PoolMetrics
from tests.support.engines import run_together
from tests.support.models.tiny_adapters import tiny_lora
from tests.support.models.tiny_models import text_config, tiny_sd
from tests.support.models.tiny_safety_checkers import FLAG_NONE, tiny_sd_with_checker
from tests.support.processes import wait_for
from tests.support.specs import make_spec

LOADED, UNLOADED, FAILED = ModelState.LOADED, ModelState.UNLOADED, ModelState.FAILED
SPEC = make_spec(width=64, height=64, num_inference_steps=3)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three models with different weights."""
    root = tmp_path_factory.mktemp("models")
    return {name: tiny_sd(root / name, seed=seed) for seed, name in enumerate("abc")}


@dataclass
class Served:
    """A pool with its engine on another thread."""

    pool: ModelPool
    engine: Engine
    configs: dict[str, ModelConfig]
    metrics: CollectorRegistry

    def states(self) -> dict[str, ModelState]:
        return {name: status.state for name, status in self.pool.statuses().items()}

    def load(self, name: str, keep: tuple[str, ...] = ()) -> None:
        # The last load may not have ended quite yet.
        wait_for(lambda: self.pool.request(name, keep))
        wait_for(lambda: self.states()[name] is not ModelState.LOADING)

    def lease(self, name: str) -> ModelLease:
        lease = self.pool.lease(name)
        assert lease is not None
        return lease


@pytest.fixture
def serve(folders: dict[str, Path]) -> Iterator[Callable[..., Served]]:
    """Return a function that starts a pool with the models a, b and c, of which the first one is loaded."""
    started: list[tuple[Served, threading.Thread]] = []

    def start(
        max_loaded: int | None = None,
        max_bytes: int | None = None,
        mend: Callable[[Served], bool] = lambda _served: False,
        **changes: ModelConfig,
    ) -> Served:
        engine, registry = Engine(slots=4), CollectorRegistry()
        configs = {name: ModelConfig(name=name, source=str(folder)) for name, folder in folders.items()} | changes
        pool = ModelPool(
            ModelLoader(engine, "cpu", lambda _stage: None),
            MemoryBudget(max_bytes, None, 0),
            max_loaded=max_loaded,
            metrics=PoolMetrics(registry),
        )
        served = Served(pool, engine, configs, registry)
        started.append((served, start_engine(engine)))
        pool.define(configs)
        pool.start(["a"], mend=lambda: mend(served))
        wait_for(lambda: len(pool.cards) + list(served.states().values()).count(FAILED) >= len(configs))
        return served

    yield start
    for served, thread in started:
        served.pool.close()
        served.engine.shut_down()
        thread.join()


def images() -> Inputs:
    return Inputs(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(7)), torch.ones(1, 1, 64, 64))


def render(engine: Engine, model: Model, spec: JobSpec = SPEC) -> torch.Tensor:
    """Run a job on the engine's thread."""
    ended = threading.Event()
    task = EngineTask(make_task_function(model, spec, images(), 0), lambda _: ended.set())
    engine.submit([task])
    assert ended.wait(60)
    assert task.error is None
    return task.result


def test_models_are_loaded_when_requested_and_the_least_recently_used_one_goes(serve: Callable[..., Served]) -> None:
    served = serve(max_loaded=2)
    assert served.states() == {"a": LOADED, "b": UNLOADED, "c": UNLOADED}
    assert [card.name for card in served.pool.cards] == ["a", "b", "c"]
    assert served.pool.lease("b") is None
    served.load("b")
    assert served.states() == {"a": LOADED, "b": LOADED, "c": UNLOADED}
    served.lease("a").release()
    served.load("c")
    assert served.states() == {"a": LOADED, "b": UNLOADED, "c": LOADED}
    # A poll of the queue is no use.
    served.lease("a").release(used=False)
    served.lease("c").release()
    served.load("b")
    assert served.states() == {"a": UNLOADED, "b": LOADED, "c": LOADED}
    sample = served.metrics.get_sample_value
    assert sample("img2img_model_loads_total", {"model": "b", "outcome": "loaded"}) == 2
    assert sample("img2img_model_evictions_total", {"model": "a"}) == 1
    assert sample("img2img_models_loaded") == 2
    size = served.pool.statuses()["b"].memory_bytes
    assert sample("img2img_model_memory_bytes", {"model": "b", "device": "cpu"}) == size
    assert sample("img2img_model_memory_bytes", {"model": "a", "device": "cpu"}) is None


def test_memory_limits_the_number_of_models(serve: Callable[..., Served]) -> None:
    size = serve().pool.statuses()["a"].memory_bytes
    assert size is not None
    served = serve(max_bytes=int(2.5 * size))
    served.load("b")
    assert served.states() == {"a": LOADED, "b": LOADED, "c": UNLOADED}
    assert served.pool.needs_eviction("c")
    assert not served.pool.can_load("c", keep=("a", "b"))
    assert not served.pool.request("c", keep=("a", "b"))
    served.load("c", keep=("a",))
    assert served.states() == {"a": LOADED, "b": UNLOADED, "c": LOADED}


def test_models_share_the_free_memory() -> None:
    free = 5_000
    budget = MemoryBudget(None, lambda: free, total_bytes=10_000)
    assert budget.fits(4_000, loaded=3_000)
    assert not budget.fits(4_001, loaded=3_000), "a tenth of the memory stays free"
    assert budget.fits(6_000, loaded=3_000, freed=2_000)
    free = 0
    assert not budget.fits(1, loaded=3_000)
    assert MemoryBudget(7_000, lambda: 0, total_bytes=10_000).fits(4_000, loaded=3_000), "a limit replaces the reading"
    assert budget.why_too_large(20_000) is None


def test_model_that_exceeds_the_limit_names_both(serve: Callable[..., Served], folders: dict[str, Path]) -> None:
    size = serve().pool.statuses()["a"].memory_bytes
    assert size is not None
    with pytest.raises(StartupError, match=r"it needs about 0\.0 GB for weights, and IMG2IMG_MODEL_MEMORY allows"):
        serve(max_bytes=size // 2)


def test_model_with_jobs_is_unloaded_only_when_they_have_ended(serve: Callable[..., Served]) -> None:
    served = serve(max_loaded=1)
    lease = served.lease("a")
    assert served.pool.request("b")
    assert served.pool.lease("a") is None, "a model that is to be unloaded gets no new jobs"
    image = render(served.engine, lease.model)
    assert served.states() == {"a": LOADED, "b": ModelState.LOADING, "c": UNLOADED}
    assert not served.pool.request("c"), "one load at a time"
    lease.release()
    wait_for(lambda: served.states() == {"a": UNLOADED, "b": LOADED, "c": UNLOADED})
    served.load("a")
    assert torch.equal(render(served.engine, served.lease("a").model), image)


def test_unloaded_model_leaves_no_memory(serve: Callable[..., Served], tmp_path: Path) -> None:
    """Unload a model of 200 MB."""
    config = text_config()
    config.intermediate_size = 400_000
    CLIPTextModel(config).save_pretrained(tiny_sd(tmp_path) / "text_encoder")
    served = serve(max_loaded=1, b=ModelConfig(name="b", source=str(tmp_path), dtype="bfloat16"))
    # What stays in memory after the first time, such as code, is not counted.
    served.load("b")
    served.load("a")
    growths = []
    for _ in range(3):
        before = resident_bytes()
        served.load("b")
        lease = served.lease("b")
        module = weakref.ref(lease.model)
        tensors = [weakref.ref(tensor) for part in lease.model.modules() for tensor in part.parameters()]
        size = memory_by_device(lease.model.modules())["cpu"]
        lease.release()
        del lease
        assert size > 100e6
        served.load("a")
        assert module() is None
        assert [tensor for tensor in tensors if tensor() is not None] == []
        growths.append(resident_bytes() - before)
    # The process also has memory of other tests, which comes and goes. A leak grows each time.
    assert min(growths) < 0.5 * size


def resident_bytes() -> int:
    """Return the resident memory of this process, without files and without what malloc has free."""
    trim_malloc()
    memory = psutil.Process(os.getpid()).memory_info()
    resident: int = memory.rss - memory.shared
    return resident


def test_jobs_run_while_a_model_is_loaded(serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve()
    may_load = threading.Event()
    load = model_loader.load_model

    def load_slowly(config: ModelConfig, *, device: str) -> Model:
        assert may_load.wait(60)
        return load(config, device=device)

    monkeypatch.setattr(model_loader, "load_model", load_slowly)
    alone = run_together(served.lease("a").model, [(SPEC, images())])[0]
    assert served.pool.request("b")
    image = render(served.engine, served.lease("a").model)
    assert served.states()["b"] is ModelState.LOADING
    assert served.pool.statuses()["b"].percent == 0
    may_load.set()
    wait_for(lambda: served.states()["b"] is LOADED)
    assert (torch.tensor(alone).float() / 255 - image[0].permute(1, 2, 0).clamp(0, 1)).abs().max() <= 1 / 255


def test_changed_model_serves_new_jobs_and_running_ones_keep_theirs(
    serve: Callable[..., Served], folders: dict[str, Path]
) -> None:
    served = serve()
    old = served.lease("a")
    image = render(served.engine, old.model)
    served.pool.define(served.configs | {"a": ModelConfig(name="a", source=str(folders["b"]), steps=9)})
    wait_for(lambda: served.states()["a"] is LOADED)
    new = served.lease("a")
    assert new.model is not old.model
    assert new.model.card.default_steps == 9
    assert served.pool.cards[0].default_steps == 9
    assert torch.equal(render(served.engine, old.model), image)
    assert not torch.equal(render(served.engine, new.model), image)
    model = weakref.ref(old.model)
    old.release()
    del old
    wait_for(lambda: model() is None)
    assert served.states()["a"] is LOADED


def test_removed_and_added_models(serve: Callable[..., Served], folders: dict[str, Path]) -> None:
    served = serve()
    lease = served.lease("a")
    served.pool.define({"d": ModelConfig(name="d", source=str(folders["c"])), "b": served.configs["b"]})
    wait_for(lambda: [card.name for card in served.pool.cards] == ["d", "b"])
    assert served.pool.lease("a") is None
    render(served.engine, lease.model)
    model = weakref.ref(lease.model)
    lease.release()
    del lease
    wait_for(lambda: model() is None)
    served.load("d")
    render(served.engine, served.lease("d").model)


def test_job_of_a_removed_model_delays_only_loads_that_need_its_memory(serve: Callable[..., Served]) -> None:
    served = serve(max_loaded=2)
    lease = served.lease("a")
    served.pool.define({name: served.configs[name] for name in "bc"})
    served.load("b")
    assert not served.pool.can_load("c", keep=["b"])
    assert not served.pool.request("c", keep=["b"]), "the removed model has the only other place"
    served.load("c")
    assert served.states() == {"b": UNLOADED, "c": LOADED}
    render(served.engine, lease.model)
    lease.release()
    served.load("b")
    assert served.states() == {"b": LOADED, "c": LOADED}


def test_model_that_cannot_be_used_is_failed_with_the_reason(
    serve: Callable[..., Served], folders: dict[str, Path], tmp_path: Path
) -> None:
    served = serve(b=ModelConfig(name="b", source=str(tmp_path / "nothing")))
    status = served.pool.statuses()["b"]
    assert status.state is FAILED
    assert status.error is not None
    assert "nothing does not exist" in status.error
    assert [card.name for card in served.pool.cards] == ["a", "c"]
    assert not served.pool.request("b")
    served.pool.define(served.configs | {"b": ModelConfig(name="b", source=str(folders["b"]))})
    wait_for(lambda: len(served.pool.cards) == 3)
    served.load("b")
    assert served.states()["b"] is LOADED


def test_start_needs_one_model(serve: Callable[..., Served], tmp_path: Path) -> None:
    broken = {name: ModelConfig(name=name, source=str(tmp_path / name)) for name in "abc"}
    served = serve(a=broken["a"])
    assert served.states() == {"a": FAILED, "b": LOADED, "c": UNLOADED}
    with pytest.raises(StartupError, match=r"^cannot load model 'a': .*/a does not exist"):
        serve(**broken)


class RunsOut:
    """Loads of models that run out of memory while another model is loaded."""

    def __init__(self, served: Served, monkeypatch: pytest.MonkeyPatch, *, always: bool = False) -> None:
        self.calls = 0
        load = model_loader.load_model

        def run_out(config: ModelConfig, *, device: str) -> Model:
            self.calls += 1
            if always or LOADED in served.states().values():
                monkeypatch.setattr(DiffusionPipeline, "to", self.raise_error)
            try:
                return load(config, device=device)
            finally:
                monkeypatch.undo()
                monkeypatch.setattr(model_loader, "load_model", run_out)

        monkeypatch.setattr(model_loader, "load_model", run_out)

    @staticmethod
    def raise_error(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")


def test_load_that_runs_out_of_memory_unloads_another_model(
    serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve()
    served.load("b")
    runs_out = RunsOut(served, monkeypatch)
    served.load("c")
    assert served.states() == {"a": UNLOADED, "b": UNLOADED, "c": LOADED}
    assert runs_out.calls == 3


def test_model_that_does_not_fit_alone_names_both_sizes(
    serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve()
    RunsOut(served, monkeypatch, always=True)
    served.load("c")
    status = served.pool.statuses()["c"]
    assert status.state is FAILED
    assert status.error is not None
    assert "out of memory: it needs about 0.0 GB for weights, this machine has " in status.error
    assert not served.pool.request("c"), "it is not tried again at once"


def test_loras_change_while_the_model_stays_loaded(
    serve: Callable[..., Served], folders: dict[str, Path], tmp_path: Path
) -> None:
    served = serve(max_loaded=1)
    lora = tiny_lora(folders["a"], tmp_path / "oil.safetensors", seed=3)
    lease = served.lease("a")
    plain = render(served.engine, lease.model)
    with_lora = {
        name: served.configs[name].model_copy(update={"loras": {"oil": ComponentSource(source=str(lora))}})
        for name in "ab"
    }
    served.pool.define(served.configs | with_lora)
    wait_for(lambda: [card.loras for card in served.pool.cards] == [("oil",), ("oil",), ()])
    assert served.lease("a").model is lease.model
    spec = make_spec(**SPEC.model_dump() | {"loras": [{"name": "oil", "scale": 1.0}]})
    assert not torch.equal(render(served.engine, lease.model, spec), plain)
    assert torch.equal(render(served.engine, lease.model), plain)

    lora.write_bytes(b"no LoRA")
    other = {"oil": ComponentSource(source=str(lora)), "ink": ComponentSource(source=str(lora))}
    served.pool.define(served.configs | {"a": served.configs["a"].model_copy(update={"loras": other})})
    wait_for(lambda: served.pool.statuses()["a"].error)
    assert served.states()["a"] is LOADED
    assert served.pool.cards[0].loras == ("oil",)
    render(served.engine, lease.model, spec)


def test_start_goes_on_without_a_lora_that_cannot_be_loaded(
    serve: Callable[..., Served], folders: dict[str, Path], tmp_path: Path
) -> None:
    files = {name: tmp_path / f"{name}.safetensors" for name in ("missing", "broken")}
    files["broken"].write_bytes(b"no LoRA")
    files["ink"] = tiny_lora(folders["a"], tmp_path / "ink.safetensors", seed=3)
    loras = {name: ComponentSource(source=str(file)) for name, file in files.items()}
    config = ModelConfig(name="a", source=str(folders["a"]), loras=dict(loras))
    errors: list[str] = []

    def mend(served: Served) -> bool:
        errors.append(str(served.pool.statuses()["a"].error))
        del loras["missing" if "'missing'" in errors[-1] else "broken"]
        served.pool.define(served.configs | {"a": config.model_copy(update={"loras": dict(loras)})})
        return True

    served = serve(mend=mend, a=config)
    assert served.states()["a"] is LOADED
    assert served.pool.cards[0].loras == ("ink",)
    for error, name, problem in zip(
        errors, ("missing", "broken"), ("does not exist", "download it again"), strict=True
    ):
        assert f"LoRA {name!r}" in error
        assert problem in error


def test_offloaded_model_is_loaded_again_for_other_loras(
    serve: Callable[..., Served], folders: dict[str, Path], tmp_path: Path
) -> None:
    offloaded = ModelConfig(name="a", source=str(folders["a"]), offload="layers", offload_folder=tmp_path / "offloaded")
    served = serve(a=offloaded)
    lora = tiny_lora(folders["a"], tmp_path / "oil.safetensors", seed=3)
    loras = {"oil": ComponentSource(source=str(lora))}
    served.pool.define(served.configs | {"a": offloaded.model_copy(update={"loras": loras})})
    wait_for(lambda: served.states()["a"] is LOADED)
    assert served.pool.cards[0].loras == ("oil",)
    plain, with_lora = (make_spec(**SPEC.model_dump() | {"loras": [{"name": "oil", "scale": s}]}) for s in (0, 1.0))
    lease = served.lease("a")
    images = [render(served.engine, lease.model, spec) for spec in (plain, with_lora)]
    assert not torch.equal(*images)


def test_unloaded_model_leaves_no_memory_after_a_change_of_loras(
    serve: Callable[..., Served], folders: dict[str, Path], tmp_path: Path
) -> None:
    served = serve(max_loaded=1)
    lora = tiny_lora(folders["a"], tmp_path / "oil.safetensors", seed=3)
    lease = served.lease("a")
    tensors = [weakref.ref(tensor) for part in lease.model.modules() for tensor in part.parameters()]
    lease.release()
    for loras in ({"oil": ComponentSource(source=str(lora))}, {}):
        served.pool.define(served.configs | {"a": served.configs["a"].model_copy(update={"loras": loras})})
        wait_for(lambda loras=loras: served.pool.cards[0].loras == tuple(loras))
    served.load("b")
    assert [tensor for tensor in tensors if tensor() is not None] == []


def test_model_keeps_its_memory_if_the_other_one_is_removed(serve: Callable[..., Served]) -> None:
    served = serve(max_loaded=1)
    lease = served.lease("a")
    assert served.pool.request("b")
    assert served.pool.lease("a") is None
    served.pool.define({name: config for name, config in served.configs.items() if name != "b"})
    other = served.lease("a")
    lease.release()
    render(served.engine, other.model)
    other.release()
    assert served.states() == {"a": LOADED, "c": UNLOADED}
    served.load("c")
    assert served.states() == {"a": UNLOADED, "c": LOADED}


def test_unloaded_model_leaves_no_memory_of_its_safety_checker(serve: Callable[..., Served], tmp_path: Path) -> None:
    tiny_sd_with_checker(tmp_path, threshold=FLAG_NONE)
    served = serve(max_loaded=1, b=ModelConfig(name="b", source=str(tmp_path)))
    served.load("b")
    lease = served.lease("b")
    checker = lease.model.safety_checker
    assert checker is not None
    tensors = [weakref.ref(tensor) for tensor in checker.module.parameters()]
    assert memory_by_device(lease.model.modules())["cpu"] == served.pool.statuses()["b"].memory_bytes
    assert set(checker.module.modules()) <= {part for module in lease.model.modules() for part in module.modules()}
    del checker
    lease.release()
    served.load("a")
    assert [tensor for tensor in tensors if tensor() is not None] == []
