"""Faults of the denoiser of a tiny Stable Diffusion: one job of a batch fails, the others do not."""

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
from img2img.worker.engine.engine import Engine
from img2img.worker.engine.gate import Gate, TaskGreenlet
from img2img.worker.errors import DeviceLost
from img2img.worker.pipelines.loading.served_models import config_for
from img2img.worker.pipelines.model import Model, load_model
from img2img.worker.runner import JobRunner, Rendering
from tests.support.specs import make_spec

SIDE = 32
STRONG = 500  # only the job of strength 1 has timesteps above this


class Fault:
    """Wraps the denoiser, and finds the rows of the job of strength 1 by their timestep."""

    def __init__(self, denoise: Callable[..., Any]) -> None:
        self.denoise = denoise
        self.rows: list[int] = []  # rows of each call, failed ones included

    def strong_rows(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return (torch.as_tensor(timestep).expand(len(sample)) > STRONG).nonzero().flatten()

    def __call__(self, sample: torch.Tensor, timestep: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        self.rows.append(len(sample))
        self.before(self.strong_rows(sample, timestep), len(sample))
        return self.after(self.denoise(sample, timestep, *args, **kwargs), self.strong_rows(sample, timestep))

    def before(self, strong: torch.Tensor, rows: int) -> None:
        return

    def after(self, output: Any, strong: torch.Tensor) -> Any:
        return output


class DenoisesToNaN(Fault):
    """Overflows, as half precision may."""

    def after(self, output: Any, strong: torch.Tensor) -> Any:
        output[0][strong] = torch.nan
        return output


class RaisesForOneJob(Fault):
    def before(self, strong: torch.Tensor, rows: int) -> None:
        if len(strong):
            raise RuntimeError("a shape that does not fit")


class RunsOutOfMemoryOnGpu(Fault):
    def before(self, strong: torch.Tensor, rows: int) -> None:
        if rows > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")


class RunsOutOfMemoryOnCpu(Fault):
    """Raises the error of torch's CPU allocator, which is a plain RuntimeError."""

    def before(self, strong: torch.Tensor, rows: int) -> None:
        if rows > 2:
            torch.empty(2**50)


class LosesDevice(Fault):
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
    """Return four jobs. The second has strength 1."""
    strengths = (0.4, 1.0, 0.3, 0.5)
    return [
        make_spec(strength=strength, seed=seed, width=SIDE, height=SIDE, guidance_scale=1)
        for seed, strength in enumerate(strengths)
    ]


def run(model: Model, specs: list[JobSpec]) -> list[np.ndarray | JobError]:
    """Run the jobs in one engine, and return the pixels or the error of each."""
    engine = Engine(slots=8)
    runner = JobRunner(engine)
    png = BytesIO()
    Image.linear_gradient("L").resize((SIDE, SIDE)).convert("RGB").save(png, "PNG")
    renderings = [runner.prepare(spec, {spec.inputs[0]: png.getvalue()}, [0], model) for spec in specs]
    for rendering in renderings:
        rendering.start(lambda: None)
    engine.shut_down()
    engine.run()
    return [_outcome(rendering) for rendering in renderings]


def _outcome(rendering: Rendering) -> np.ndarray | JobError:
    try:
        [rendered] = rendering.render()
    except JobError as error:
        return error
    return np.asarray(Image.open(BytesIO(rendered.png))).astype(int)


def assert_close(found: list[np.ndarray | JobError], expected: list[np.ndarray | JobError], but: int | None) -> None:
    for i, (one, other) in enumerate(zip(found, expected, strict=True)):
        if i != but:
            assert isinstance(one, np.ndarray), one
            assert np.abs(one - other).max() <= 1


@pytest.mark.parametrize("kind", [DenoisesToNaN, RaisesForOneJob])
def test_one_job_of_batch_fails_alone(kind: type[Fault], model: Model, denoise: Gate) -> None:
    expected = run(model, jobs())
    denoise.run = fault = kind(denoise.run)
    found = run(model, jobs())
    assert max(fault.rows) == 4, "the jobs were in one batch"
    assert_close(found, expected, but=1)
    failed = found[1]
    assert isinstance(failed, JobError)
    if kind is DenoisesToNaN:
        assert isinstance(failed, InvalidPixels)
    else:
        assert failed.message == "the pipeline failed: RuntimeError: a shape that does not fit"


def test_error_for_clients_is_one_line_without_paths(model: Model, denoise: Gate) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(f"cannot open /srv/models/photo/unet.bin {'x' * 500}\na second line")

    denoise.run = fail
    [failed] = run(model, jobs()[:1])
    assert isinstance(failed, JobError)
    assert failed.message.startswith("the pipeline failed: RuntimeError: cannot open unet.bin xxx")
    assert len(failed.message) < 300
    assert "second" not in failed.message


@pytest.mark.parametrize("kind", [RunsOutOfMemoryOnGpu, RunsOutOfMemoryOnCpu])
def test_out_of_memory_makes_batches_smaller_and_fails_no_job(kind: type[Fault], model: Model, denoise: Gate) -> None:
    expected = run(model, jobs())
    denoise.run = fault = kind(denoise.run)
    assert_close(run(model, jobs()), expected, but=None)
    assert sum(rows > 2 for rows in fault.rows) == 1, "a batch that is too large is tried once"
    assert fault.rows.count(2) > 2


def test_lost_device_ends_engine_and_fails_no_job(model: Model, denoise: Gate) -> None:
    denoise.run = LosesDevice(denoise.run)
    with pytest.raises(torch.AcceleratorError, match="illegal memory access"):
        run(model, jobs())


def test_device_lost_while_images_are_copied_fails_no_job(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(_tensor: torch.Tensor) -> None:
        raise torch.AcceleratorError("CUDA error: unspecified launch failure")

    monkeypatch.setattr("img2img.worker.runner.to_pixels", lost)
    with pytest.raises(DeviceLost, match="launch failure"):
        run(model, jobs()[:1])


@pytest.mark.parametrize("kind", [RaisesForOneJob, RunsOutOfMemoryOnGpu])
def test_ended_jobs_leave_no_greenlets(
    kind: type[Fault], model: Model, denoise: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    denoise.run = kind(denoise.run)
    # The test of a lost device leaves some, as intended.
    before = _task_greenlets()
    # pytest keeps log records, and with an error also the frames of its traceback.
    with caplog.at_level("CRITICAL"):
        run(model, jobs())
    assert [found for found in _task_greenlets() if not any(found is other for other in before)] == []


def _task_greenlets() -> list[TaskGreenlet]:
    gc.collect()
    return [found for found in gc.get_objects() if type(found) is TaskGreenlet]
