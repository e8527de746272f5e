"""A tiny Stable Diffusion whose denoiser misbehaves for one of several jobs: the others do not notice."""

import gc
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from img2img.domain.spec import JobSpec
from img2img.errors import InvalidPixels, JobError
from img2img.worker.engine import Engine, Gate
from img2img.worker.engine.batch_limits import RETRY_AFTER_CALLS, BatchLimits
from img2img.worker.engine.engine import _TaskGreenlet
from img2img.worker.errors import DeviceLost
from img2img.worker.pipelines.loading.model_config import config_for
from img2img.worker.pipelines.model import Model, load_model
from img2img.worker.runner import JobRunner, RunningJob
from tests.support.specs import make_spec

SIDE = 32
STRONG = 500  # timesteps beyond this belong to the job of strength 1: the others start below


class Misbehaves:
    """Around the denoiser: knows the rows of the job of strength 1 by their timestep."""

    def __init__(self, denoise: Callable[..., Any]) -> None:
        self.denoise = denoise
        self.rows: list[int] = []  # of the calls that were tried

    def strong(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return (torch.as_tensor(timestep).expand(len(sample)) > STRONG).nonzero().flatten()

    def __call__(self, sample: torch.Tensor, timestep: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        self.rows.append(len(sample))
        self.before(self.strong(sample, timestep), len(sample))
        return self.after(self.denoise(sample, timestep, *args, **kwargs), self.strong(sample, timestep))

    def before(self, strong: torch.Tensor, rows: int) -> None:
        return

    def after(self, output: Any, strong: torch.Tensor) -> Any:
        return output


class DenoisesToNaN(Misbehaves):
    """As half precision does when it overflows."""

    def after(self, output: Any, strong: torch.Tensor) -> Any:
        output[0][strong] = torch.nan
        return output


class RaisesForOneJob(Misbehaves):
    def before(self, strong: torch.Tensor, rows: int) -> None:
        if len(strong):
            raise RuntimeError("a shape that does not fit")


class HasRoomForTwoRows(Misbehaves):
    def before(self, strong: torch.Tensor, rows: int) -> None:
        if rows > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")


class HasNoRoomOnTheCpu(Misbehaves):
    """Says so as torch's CPU allocator does, for which torch has no class."""

    def before(self, strong: torch.Tensor, rows: int) -> None:
        if rows > 2:
            torch.empty(2**50)


class LosesItsDevice(Misbehaves):
    def before(self, strong: torch.Tensor, rows: int) -> None:
        if len(strong):
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")


@pytest.fixture(scope="module")
def model(model_folder: Path) -> Model:
    return load_model(config_for(str(model_folder)), device="cpu")


@pytest.fixture
def denoise(model: Model) -> Iterator[Gate]:
    gate = model.pipeline(make_spec().task, make_spec().scheduler).unet.forward
    assert isinstance(gate, Gate)
    run = gate.run
    yield gate
    gate.run = run


def jobs() -> list[JobSpec]:
    """Of which the second is the one of strength 1."""
    strengths = (0.4, 1.0, 0.3, 0.5)
    return [
        make_spec(strength=strength, seed=seed, width=SIDE, height=SIDE, guidance_scale=1)
        for seed, strength in enumerate(strengths)
    ]


def run(model: Model, specs: list[JobSpec]) -> list[np.ndarray | JobError]:
    """The pixels of each job, all in the engine at the same time, or why there are none."""
    engine = Engine(slots=8)
    runner = JobRunner(engine, {spec.model: model for spec in specs})
    picture = BytesIO()
    Image.linear_gradient("L").resize((SIDE, SIDE)).convert("RGB").save(picture, "PNG")
    running = [runner.start(spec, {spec.inputs[0]: picture.getvalue()}, [0], lambda: None) for spec in specs]
    engine.shut_down()
    engine.run()
    return [_ended(job) for job in running]


def _ended(job: RunningJob) -> np.ndarray | JobError:
    try:
        [rendered] = job.render()
    except JobError as error:
        return error
    return np.asarray(Image.open(BytesIO(rendered.png))).astype(int)


def assert_alike(found: list[np.ndarray | JobError], expected: list[np.ndarray | JobError], but: int | None) -> None:
    for place, (one, other) in enumerate(zip(found, expected, strict=True)):
        if place != but:
            assert isinstance(one, np.ndarray), one
            assert np.abs(one - other).max() <= 1


@pytest.mark.parametrize("kind", [DenoisesToNaN, RaisesForOneJob])
def test_one_job_of_a_batch_fails_alone(kind: type[Misbehaves], model: Model, denoise: Gate) -> None:
    expected = run(model, jobs())
    denoise.run = fault = kind(denoise.run)
    found = run(model, jobs())
    assert max(fault.rows) == 4, "they were one batch"
    assert_alike(found, expected, but=1)
    failed = found[1]
    assert isinstance(failed, JobError)
    if kind is DenoisesToNaN:
        assert isinstance(failed, InvalidPixels)
    else:
        assert failed.message == "the pipeline failed: RuntimeError: a shape that does not fit"


@pytest.mark.parametrize("kind", [HasRoomForTwoRows, HasNoRoomOnTheCpu])
def test_where_memory_runs_out_batches_get_smaller_and_no_job_fails(
    kind: type[Misbehaves], model: Model, denoise: Gate
) -> None:
    expected = run(model, jobs())
    denoise.run = fault = kind(denoise.run)
    assert_alike(run(model, jobs()), expected, but=None)
    assert sum(rows > 2 for rows in fault.rows) == 1, "it is tried once"
    assert fault.rows.count(2) > 2


def test_a_lost_device_ends_the_engine_and_not_the_jobs(model: Model, denoise: Gate) -> None:
    denoise.run = LosesItsDevice(denoise.run)
    with pytest.raises(torch.AcceleratorError, match="illegal memory access"):
        run(model, jobs())


def test_a_device_that_is_lost_while_pictures_are_fetched_fails_no_job(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(_tensor: torch.Tensor) -> None:
        raise torch.AcceleratorError("CUDA error: unspecified launch failure")

    monkeypatch.setattr("img2img.worker.runner.to_pixels", lost)
    with pytest.raises(DeviceLost, match="launch failure"):
        run(model, jobs()[:1])


@pytest.mark.parametrize("kind", [RaisesForOneJob, HasRoomForTwoRows])
def test_no_greenlet_is_left_of_jobs_that_ended(
    kind: type[Misbehaves], model: Model, denoise: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    denoise.run = kind(denoise.run)
    before = _of_jobs()  # the lost device of another test has left some, as it should
    with caplog.at_level("CRITICAL"):  # pytest keeps what is logged, and with an error the frames that it came through
        run(model, jobs())
    assert [found for found in _of_jobs() if not any(found is other for other in before)] == []


def _of_jobs() -> list[_TaskGreenlet]:
    gc.collect()
    return [found for found in gc.get_objects() if type(found) is _TaskGreenlet]


def test_a_row_limit_halves_and_grows_again_after_a_while() -> None:
    limits = BatchLimits(16)
    assert limits.ran_out("a", 16, 2) == 8
    assert limits.ran_out("a", 8, 2) == 4
    assert limits.of("a") == 4
    assert limits.of("b") == 16
    for _ in range(RETRY_AFTER_CALLS):
        limits.passed("a", 2)  # too few rows to say anything
    assert limits.of("a") == 4
    for _ in range(RETRY_AFTER_CALLS):
        limits.passed("a", 4)
    assert limits.of("a") == 8
    limits.ran_out("a", 8, 2)  # in vain
    for _ in range(RETRY_AFTER_CALLS):
        limits.passed("a", 4)
    assert limits.of("a") == 4, "it takes twice as long"
    for _ in range(4 * RETRY_AFTER_CALLS):
        limits.passed("a", limits.of("a"))
    assert limits.of("a") == 16
    assert limits.ran_out("a", 3, 3) == 3, "never less than one job"
