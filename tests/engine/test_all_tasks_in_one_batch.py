"""Jobs of every task in one engine: they are batched where possible, and each result equals that of the job alone."""

import io
from collections import Counter
from typing import Any

import numpy as np
import pytest
from PIL import Image

from img2img.domain.conditioning import Control, ControlType, ImagePrompt, InpaintRegion, Lora, Padding
from img2img.domain.model_config import ModelConfig
from img2img.domain.parameters import Scheduler, Task
from img2img.domain.spec import JobSpec
from img2img.domain.tiling import Tiling
from img2img.worker.engine.engine import Engine
from img2img.worker.pipelines.model import Model, load_model
from img2img.worker.runner import JobRunner, Rendering
from tests.support.models.tiny_adapters import tiny_ip_adapter, tiny_lora
from tests.support.models.tiny_controlnets import tiny_controlnet
from tests.support.models.tiny_models import tiny_sd, tiny_unet, tiny_x4_upscaler
from tests.support.specs import make_spec

SIDE = 64
IMAGE, MASK, MAP, IMAGE_PROMPT, SMALL = (digit * 64 for digit in "01234")
INK = (Lora(name="ink", scale=0.7),)
CANNY = (Control(type="canny", image=MAP, preprocess=False),)
BOTH = (*CANNY, Control(type="lineart", image=MAP, preprocess=False, scale=0.5, end=0.6))
X4 = Tiling(upscaler=True, side=64, overlap=16, multiple=16)


def region(**changes: Any) -> InpaintRegion:
    whole = {"mask": MASK, "blur": 2, "margins": Padding(), "canvas": (SIDE, SIDE), "box": (0, 0, SIDE, SIDE)}
    return InpaintRegion(**{**whole, **changes})


def job(task: Task = Task.IMG2IMG, **changes: Any) -> JobSpec:
    defaults = {
        "task": task,
        "image": IMAGE,
        "strength": 0.8,
        "num_inference_steps": 5,
        "width": SIDE,
        "height": SIDE,
    }
    return make_spec(**{**defaults, **changes})


OUTPAINT = region(mask=None, margins=Padding(left=16), canvas=(SIDE + 16, SIDE), box=(0, 0, SIDE + 16, SIDE))
JOBS = {
    "variation": job(),
    "another, with no guidance": job(seed=8, strength=0.4, guidance_scale=1.0, scheduler=Scheduler.DPMPP_2M),
    "inpainting": job(Task.INPAINT, strength=1.0, region=region()),
    "outpainting": job(Task.INPAINT, strength=1.0, region=OUTPAINT),
    "structure": job(controls=CANNY),
    "from controls alone": job(Task.CONTROL, image=None, strength=1.0, controls=CANNY, seed=9),
    "several controls and a mask": job(Task.INPAINT, region=region(), controls=BOTH),
    "LoRA": job(loras=INK),
    "the same LoRA": job(loras=INK, seed=11, prompt="a blue tree"),
    "LoRA, mask and control": job(Task.INPAINT, region=region(), loras=INK, controls=CANNY),
    "image prompt": job(image_prompts=(ImagePrompt(image=IMAGE_PROMPT, scale=0.6),)),
    "edit": job(Task.EDIT, strength=1.0, image_guidance_scale=1.5),
    "upscaler": job(
        Task.UPSCALE, image=SMALL, width=20, height=24, strength=1.0, upscale=4, tiling=X4, num_inference_steps=3
    ),
    "upscaling in tiles": job(
        Task.UPSCALE, upscale=2, tiling=Tiling(upscaler=False, side=64, overlap=8, multiple=8), strength=0.6
    ),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("models")
    base = tiny_sd(folder / "base")
    tiny_unet(in_channels=8).save_pretrained(folder / "edit")
    return load_model(
        ModelConfig.model_validate(
            {
                "name": "tiny",
                "source": str(base),
                "edit": str(folder / "edit"),
                "upscale": {4: str(tiny_x4_upscaler(folder / "x4"))},
                "loras": {"ink": str(tiny_lora(base, folder / "ink.safetensors", seed=1))},
                "ip_adapter": str(tiny_ip_adapter(base, folder / "ip")),
                "controlnets": {
                    kind: str(tiny_controlnet(base, folder / kind, seed=seed))
                    for seed, kind in enumerate((ControlType.CANNY, ControlType.LINEART))
                },
            }
        ),
        device="cpu",
    )


@pytest.fixture(scope="module")
def blobs() -> dict[str, bytes]:
    rng = np.random.default_rng(4)
    mask = Image.new("L", (SIDE, SIDE))
    mask.paste(255, (8, 20, 40, 60))
    images = {
        IMAGE: Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)),
        MASK: mask,
        MAP: Image.radial_gradient("L").resize((SIDE, SIDE)).convert("RGB"),
        IMAGE_PROMPT: Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)),
        SMALL: Image.fromarray(rng.integers(0, 256, (24, 20, 3), np.uint8)),
    }
    return {name: encoded(image) for name, image in images.items()}


def encoded(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def run_jobs(model: Model, blobs: dict[str, bytes], *specs: JobSpec) -> tuple[Counter[str], list[np.ndarray]]:
    """Run the jobs in one engine; return the calls by gate and the pixels of the results."""
    engine = Engine(slots=64)
    runner = JobRunner(engine)
    running = [runner.prepare(spec, blobs, range(1), model) for spec in specs]
    for rendering in running:
        rendering.start(lambda: None)
    engine.shut_down()
    engine.run()
    return engine.calls_run, [pixels(job) for job in running]


def pixels(running: Rendering) -> np.ndarray:
    with Image.open(io.BytesIO(running.render()[0].png)) as image:
        return np.asarray(image).astype(int)


def test_jobs_of_all_tasks_give_the_same_pixels_alone_and_batched(model: Model, blobs: dict[str, bytes]) -> None:
    calls, together = run_jobs(model, blobs, *JOBS.values())
    calls_alone: Counter[str] = Counter()
    alone = {}
    for name, spec in JOBS.items():
        job_calls, [alone[name]] = run_jobs(model, blobs, spec)
        calls_alone += job_calls
    for (name, spec), batched in zip(JOBS.items(), together, strict=True):
        assert batched.shape == (*reversed(spec.result_size), 3)
        assert np.abs(batched - alone[name]).max() <= 1, name
    assert len({result.tobytes() for result in together}) == len(JOBS)
    assert calls["denoise"] < 0.7 * calls_alone["denoise"], (calls, calls_alone)
    inpainted = together[list(JOBS).index("inpainting")]
    with Image.open(io.BytesIO(blobs[IMAGE])) as image, Image.open(io.BytesIO(blobs[MASK])) as mask:
        outside = np.asarray(mask) == 0
        assert np.array_equal(inpainted[outside], np.asarray(image)[outside])


def test_tasks_with_the_same_denoiser_share_every_call(model: Model, blobs: dict[str, bytes]) -> None:
    plain = [JOBS["variation"], job(Task.INPAINT, region=region()), job(seed=5, scheduler=Scheduler.EULER)]
    calls, _ = run_jobs(model, blobs, *plain)
    assert calls["denoise"] == plain[0].steps_run
    controlled = [JOBS["structure"], job(Task.INPAINT, region=region(), controls=CANNY)]
    calls, _ = run_jobs(model, blobs, *controlled)
    assert calls["denoise"] == controlled[0].steps_run
    calls, _ = run_jobs(model, blobs, JOBS["LoRA"], JOBS["the same LoRA"])
    assert calls["denoise"] == JOBS["LoRA"].steps_run
