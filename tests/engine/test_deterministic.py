"""Results that do not depend on other jobs to the last bit: of `deterministic` jobs in company, of any job alone."""

import os
import random
from collections import Counter, deque
from collections.abc import Sequence
from hashlib import sha256

import pytest
import torch
from PIL import Image

from img2img.domain.conditioning import Control, InpaintRegion, Lora
from img2img.domain.model_config import ModelConfig
from img2img.domain.parameters import Scheduler, Task
from img2img.domain.spec import JobSpec
from img2img.worker.engine.engine import Engine
from img2img.worker.pipelines.model import Model, load_model
from img2img.worker.runner import JobRunner, Rendering
from tests.support.engines import one_thread  # noqa: F401  # a fixture
from tests.support.images import encoded, gradient
from tests.support.models.tiny_adapters import tiny_lora
from tests.support.models.tiny_controlnets import tiny_controlnet
from tests.support.models.tiny_models import tiny_sd
from tests.support.specs import make_spec

# MIXED_JOBS=1000 takes ten minutes.
JOBS = int(os.environ.get("MIXED_JOBS", "120"))
SIDE = 32
IMAGE, MASK, MAP = "0" * 64, "1" * 64, "2" * 64
REGION = InpaintRegion(mask=MASK, blur=2, canvas=(SIDE, SIDE), box=(0, 0, SIDE, SIDE))
SHAPES = (
    {},
    {"guidance_scale": 1.0},
    {"guidance_until": 0.5},
    {"task": Task.INPAINT, "region": REGION},
    {"controls": (Control(type="canny", image=MAP, preprocess=False),)},
    {"loras": (Lora(name="ink", scale=0.7),)},
)
SCHEDULERS = (Scheduler.EULER, Scheduler.DDIM, Scheduler.DPMPP_2M, Scheduler.EULER_A, Scheduler.LCM, Scheduler.HEUN)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("model")
    base = tiny_sd(folder / "base")
    parts = {
        "loras": {"ink": str(tiny_lora(base, folder / "ink.safetensors", seed=1))},
        "controlnets": {"canny": str(tiny_controlnet(base, folder / "canny", seed=2))},
    }
    config = {"name": "tiny", "source": str(base), "dtype": request.param, **parts}
    return load_model(ModelConfig.model_validate(config), device="cpu")


@pytest.fixture(scope="module")
def images() -> dict[str, bytes]:
    mask = Image.new("L", (SIDE, SIDE))
    mask.paste(255, (8, 8, 24, 24))
    return {IMAGE: encoded(gradient(SIDE, SIDE)), MASK: encoded(mask), MAP: encoded(gradient(SIDE, SIDE, 200))}


def mixed_job(rng: random.Random, **changes: object) -> JobSpec:
    return make_spec(
        **{
            "scheduler": rng.choice(SCHEDULERS),
            "seed": rng.randrange(100),
            "prompt": rng.choice(("a red house", "a tree", "")),
            "guidance_scale": rng.choice((2.0, 5.0)),
            "num_inference_steps": rng.choice((1, 2, 3)),
            "strength": 1.0,
            **rng.choice(SHAPES),
            **changes,
        }
    )


def run_stream(
    model: Model, images: dict[str, bytes], specs: Sequence[JobSpec], *, deterministic: bool = False
) -> tuple[list[str], Engine]:
    """Return a hash of each result, before rounding to pixels. The jobs arrive at random, in groups and one by one."""
    engine, rng = Engine(slots=8), random.Random(7)
    runner = JobRunner(engine, deterministic=deterministic)
    arriving = deque(specs)
    renderings: list[Rendering] = []
    with torch.inference_mode():
        while arriving or engine.is_busy:
            for _ in range(min(rng.choice((0, 0, 1, 4)), len(arriving))):
                renderings.append(runner.prepare(arriving.popleft(), images, range(1), model))
                renderings[-1].start(lambda: None)
            engine.step()
    return [digest(rendering) for rendering in renderings], engine


def digest(rendering: Rendering) -> str:
    [task] = rendering.tasks
    assert task.error is None
    return sha256(task.result.float().numpy().tobytes()).hexdigest()


def largest_batch(engine: Engine) -> int:
    return max(rows for name, rows in engine.batches_run if name == "denoise")


def test_deterministic_jobs_and_jobs_alone_do_not_depend_on_others(
    model: Model,
    images: dict[str, bytes],
) -> None:
    rng = random.Random(3)
    chosen = [mixed_job(rng, deterministic=True) for _ in range(12)]
    expected = {spec: run_stream(model, images, [spec])[0][0] for spec in chosen}
    plain = chosen[0].model_copy(update={"deterministic": False})
    [before], _ = run_stream(model, images, [plain])
    assert before == expected[chosen[0]]
    stream = [rng.choice(chosen) if rng.random() < 0.5 else mixed_job(rng) for _ in range(JOBS)]
    results, engine = run_stream(model, images, stream)
    assert largest_batch(engine) > 2
    found = Counter(
        (spec, result == expected[spec]) for spec, result in zip(stream, results, strict=True) if spec in expected
    )
    assert sum(found.values()) > JOBS / 3
    assert all(is_equal for _, is_equal in found)
    [after], _ = run_stream(model, images, [plain])
    assert after == before


def test_setting_makes_all_jobs_deterministic(model: Model, images: dict[str, bytes]) -> None:
    rng = random.Random(5)
    specs = [mixed_job(rng) for _ in range(8)]
    results, engine = run_stream(model, images, specs, deterministic=True)
    assert largest_batch(engine) <= 2
    assert results == [run_stream(model, images, [spec])[0][0] for spec in specs]
