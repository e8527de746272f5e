"""Remembered encodings of images: bit for bit what would be computed, for one owner, while the image exists."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from img2img.domain.model_config import ModelConfig
from img2img.domain.parameters import Task
from img2img.domain.spec import JobSpec
from img2img.worker.engine import content
from img2img.worker.engine.content import content_digest, derived_digest, digest_of, with_digest
from img2img.worker.engine.engine import Engine
from img2img.worker.engine.gate import Gate
from img2img.worker.engine.output_memory import AllMemories
from img2img.worker.engine.task import NO_ORIGIN, EngineTask, Origin
from img2img.worker.images.inputs import Inputs
from img2img.worker.pipelines.denoise import make_task_function
from img2img.worker.pipelines.model import Model, load_model
from img2img.worker.pipelines.preparation import Preparation
from tests.support.engines import one_thread, random_tensor  # noqa: F401
from tests.support.models.tiny_models import tiny_sd, tiny_sdxl
from tests.support.pretend_device import counting_syncs, pretend_device
from tests.support.specs import make_spec

SIDE = 32
IMAGE, OTHER = random_tensor(1, SIDE, SIDE), random_tensor(2, SIDE, SIDE)
MASK = (random_tensor(3, SIDE, SIDE)[:, :1] > 0.5).float()


def load(folder: Path, dtype: str, device: str = "cpu") -> Model:
    return load_model(ModelConfig(name="tiny", source=str(folder), dtype=dtype), device=device)


def job(seed: int, task: Task = Task.IMG2IMG) -> JobSpec:
    region = {"canvas": (SIDE, SIDE), "box": (0, 0, SIDE, SIDE)}
    return make_spec(
        task, seed=seed, strength=0.6, num_inference_steps=3, scheduler="euler", width=SIDE, height=SIDE, region=region
    )


def run(model: Model, spec: JobSpec, image: torch.Tensor = IMAGE) -> tuple[torch.Tensor, int]:
    """Run a job alone. Return its result, and how often it encoded an image."""
    engine = Engine(slots=1)
    inputs = Inputs(image, MASK if spec.task is Task.INPAINT else None)
    task = EngineTask(make_task_function(model, spec, inputs, 0), lambda _task: None)
    engine.submit([task])
    # Inference mode, which a worker uses, cannot be combined with the pretend device.
    with torch.no_grad():
        while engine.is_busy:
            engine.step()
    if task.error is not None:
        raise task.error
    return task.result, engine.calls_run["encode"]


@pytest.mark.parametrize(("make", "dtype"), [(tiny_sd, "float32"), (tiny_sd, "bfloat16"), (tiny_sdxl, "bfloat16")])
def test_remembered_encoding_changes_no_bit(make: Any, dtype: str, tmp_path: Path) -> None:
    model, forgetful = load(make(tmp_path), dtype), load(tmp_path, dtype)
    forgetful.vae.encode = Gate("encode", forgetful.vae.encode.run, merges=False)
    results = []
    for spec, image, encoded in (
        (job(1), IMAGE, 1),
        (job(1), IMAGE, 0),
        # The latents are sampled from the distribution, with the generator of each job.
        (job(2), IMAGE, 0),
        (job(2), OTHER, 1),
        (job(3, Task.INPAINT), IMAGE, 1),
        (job(4, Task.INPAINT), IMAGE, 0),
    ):
        result, encodings = run(model, spec, image)
        expected, computed = run(forgetful, spec, image)
        assert torch.equal(result, expected), spec
        # Of an inpainting job that starts from the image, the image without its masked part is another one.
        assert (encodings, computed) == (encoded, 2 if spec.task is Task.INPAINT else 1), spec
        results.append(result)
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[1], results[2])


def call(gate: Gate, value: torch.Tensor, origin: Origin = NO_ORIGIN) -> Any:
    """Return the output of a gate in a task."""
    engine = Engine(slots=1)
    task = EngineTask(lambda _task: gate(value), lambda _task: None, origin=origin)
    engine.submit([task])
    while engine.is_busy:
        engine.step()
    if task.error is not None:
        raise task.error
    return task.result


class Counting:
    """A function that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, value: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return value * 2


def image_gate(run: Any, **options: Any) -> Gate:
    return Gate("encode", run, merges=False, remember_bytes=1000, reads_images=True, **options)


def test_each_owner_has_a_memory_of_its_own() -> None:
    encode, value = Counting(), torch.ones(1, 4)
    gate = image_gate(encode)
    for owner in ("ada", "bob", "ada", "bob"):
        call(gate, value, Origin(owner, frozenset({"a" * 64})))
    assert encode.calls == 2


def test_encoding_is_forgotten_with_any_of_its_images() -> None:
    encode, value, memories = Counting(), torch.ones(1, 4), AllMemories()
    gate, digests = image_gate(encode), ("a" * 64, "b" * 64)
    call(gate, value, Origin("ada", frozenset(digests)))
    assert memories.images >= set(digests)
    memories.forget({"c" * 64})
    call(gate, value, Origin("ada", frozenset(digests)))
    assert encode.calls == 1
    memories.forget({digests[1]})
    assert not memories.images & set(digests)
    call(gate, value, Origin("ada", frozenset(digests)))
    assert encode.calls == 2


def test_caller_may_write_to_what_is_remembered() -> None:
    gate, value = image_gate(Counting()), torch.ones(1, 4)
    for _ in range(3):
        output = call(gate, value)
        assert torch.equal(output, value * 2)
        output.zero_()


def test_memory_is_bounded() -> None:
    encode = Counting()
    gate = image_gate(encode)
    # 400 bytes each: two of them fit.
    for seed in (0, 1, 2, 2, 0):
        call(gate, torch.full((1, 100), float(seed)))
    assert encode.calls == 4
    encode.calls = 0
    for _ in range(2):
        call(gate, torch.zeros(1, 1000))
    assert encode.calls == 2, "larger than the memory"


def test_distribution_is_remembered_by_its_parameters() -> None:
    gate = image_gate(lambda value: DiagonalGaussianDistribution(value))
    value = torch.randn(1, 8, 2, 2)
    first, second = call(gate, value), call(gate, value)
    assert first is not second
    assert torch.equal(first.parameters, second.parameters)
    samples = [one.sample(torch.Generator().manual_seed(seed)) for seed, one in ((1, first), (1, second), (2, second))]
    assert torch.equal(samples[0], samples[1])
    assert not torch.equal(samples[1], samples[2])


def test_image_is_recognised_on_a_device_without_waiting_for_it(tmp_path: Path) -> None:
    with pretend_device() as device:
        model = load(tiny_sdxl(tmp_path), "float32", str(device))
        # How images are prepared is learned from the first job.
        assert run(model, job(1))[1] == 1
        with counting_syncs() as syncs:
            assert run(model, job(2))[1] == 0
        assert not syncs
        assert run(model, job(3), OTHER)[1] == 1


def test_image_is_recognised_after_pipelines_have_converted_it() -> None:
    """The VAE of SDXL in 16 bit works in float32, and those of videos take another dimension."""
    encode = Counting()
    gate = image_gate(encode, waits=False)
    for _ in range(2):
        for digest in (lambda: b"one", lambda: b"other"):
            image = with_digest(torch.ones(1, 4, dtype=torch.float16), digest)
            for converted in (image, image.float(), image.to(torch.float32), image.unsqueeze(1)):
                call(gate, converted)
    # Both ways to float32 are the same one.
    assert encode.calls == 2 * 3


def test_tensor_with_a_digest_can_be_converted_at_once() -> None:
    # Nothing refers to the tensor while it is converted.
    def digest() -> bytes:
        return b"1"

    doubled = with_digest(torch.ones(1, 2), digest).to(torch.float64)
    assert doubled.dtype == torch.float64
    assert content_digest(doubled, waits=False) == derived_digest(digest, torch.float64)()
    kept = with_digest(torch.ones(1, 2), digest)
    assert kept.to(torch.float32) is kept
    assert content_digest(with_digest(torch.ones(1, 2), digest).to(torch.float32), waits=False) == b"1"
    assert with_digest(torch.ones(1, 2), digest).float().to(torch.bfloat16).unsqueeze(2).shape == (1, 2, 1)


def test_image_is_read_at_the_first_use_of_its_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    read = []

    def counting(tensor: torch.Tensor) -> bytes:
        read.append(tensor)
        return digest_of(tensor)

    monkeypatch.setattr(content, "digest_of", counting)
    processor = VaeImageProcessor()
    pipeline: Any = SimpleNamespace(image_processor=processor)
    preparation = Preparation([pipeline], torch.device("cpu"))
    converted = processor.preprocess(IMAGE)
    assert converted.float().unsqueeze(2).to(torch.bfloat16).shape[2] == 1
    assert not read
    expected = digest_of(2 * IMAGE - 1)
    assert [content_digest(converted, waits=False) for _ in range(2)] == [expected, expected]
    assert len(read) == 1
    # A loader thread does it for the engine's thread.
    preparation.prepare(pipeline, [], [OTHER])
    assert len(read) == 2
    content_digest(processor.preprocess(OTHER), waits=False)
    assert len(read) == 2
