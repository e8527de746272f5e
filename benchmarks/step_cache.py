"""Loss and saved calls of `speed`: `python -m benchmarks.step_cache` prints tables.

Jobs of the demo model, 30 steps, run in one engine: those of each scheduler that takes `speed` at four strengths and
three guidance scales, and inpainting, editing and ControlNets. Their images are compared with those of
`speed: "exact"` by the peak signal-to-noise ratio.
"""

import argparse
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.pixels import psnr
from img2img.demo_model.scenes import HELD_OUT_SEED, sample_scene
from img2img.demo_model.styles import render
from img2img.domain.conditioning import Control, ControlType, InpaintRegion
from img2img.domain.parameters import Scheduler, Speed
from img2img.domain.spec import DenoisingSpec, EditSpec, Img2ImgSpec, InpaintSpec
from img2img.worker.engine.engine import Engine
from img2img.worker.engine.task import EngineTask
from img2img.worker.images.inputs import Inputs, to_tensor
from img2img.worker.pipelines.denoise import make_task_function
from img2img.worker.pipelines.loading.served_models import config_for
from img2img.worker.pipelines.model import Model, load_model
from img2img.worker.runner import to_pixels

STEPS = 30
STRENGTHS = (0.3, 0.5, 0.7, 1.0)
GUIDANCE_SCALES = (1.0, 4.0, 8.0)
SLOTS = 16
# Above this, images are as good as equal. Means count them as this.
EQUAL_DB = 60.0
PROMPTS = (
    "a photo of a red house by a lake at sunset",
    "a watercolor painting of a yellow cottage with pine trees in winter",
    "a pencil sketch of a blue house by the sea, mountains",
    "an oil painting of a purple house, trees, in autumn at night",
)
TASK_SCHEDULERS = (Scheduler.EULER,)


@dataclass(frozen=True)
class Case:
    """One job, and the row of the table that it belongs to."""

    row: str
    spec: DenoisingSpec
    inputs: Inputs


@dataclass(frozen=True)
class Result:
    pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
    skipped: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schedulers", nargs="*", type=Scheduler, help="only image-to-image with these schedulers")
    arguments = parser.parse_args()
    model = load_model(config_for("demo"), device="cpu")
    cases = list(cases_of(model, arguments.schedulers))
    exact, seconds = run(model, cases, Speed.EXACT)
    print(f"{len(cases)} jobs; `exact` took {seconds:.0f} s", flush=True)
    results = {}
    for speed in (Speed.FAST, Speed.TURBO):
        results[speed], seconds = run(model, cases, speed)
        print(f"`{speed}` took {seconds:.0f} s", flush=True)
    columns = " | ".join(f"`{speed}`: fewer calls | mean PSNR | lowest" for speed in results)
    print(f"\n| | {columns} |\n|---|{'---:|' * 3 * len(results)}")
    labels = [*dict.fromkeys(case.row for case in cases), "all"]
    for label in labels:
        indices = [index for index, case in enumerate(cases) if label in (case.row, "all")]
        cells = " | ".join(_cells(indices, cases, exact, results[speed]) for speed in results)
        print(f"| {label} | {cells} |")


def _cells(indices: Sequence[int], cases: Sequence[Case], exact: Sequence[Result], results: Sequence[Result]) -> str:
    losses = [min(psnr(exact[index].pixels, results[index].pixels), EQUAL_DB) for index in indices]
    calls = sum(denoiser_calls(cases[index].spec) for index in indices)
    made = calls - sum(results[index].skipped for index in indices)
    return f"{calls / made:.2f} x | {np.mean(losses):.1f} dB | {min(losses):.1f} dB"


def run(model: Model, cases: Sequence[Case], speed: Speed) -> tuple[list[Result], float]:
    """Run all jobs in one engine. Returns their results, and the seconds taken."""
    functions = [
        make_task_function(model, case.spec.model_copy(update={"speed": speed}), case.inputs, 0) for case in cases
    ]
    tasks = [EngineTask(function, lambda _task: None) for function in functions]
    engine = Engine(slots=SLOTS)
    engine.submit(tasks)
    engine.shut_down()
    started = time.perf_counter()
    loop = threading.Thread(target=engine.run)
    loop.start()
    loop.join()
    seconds = time.perf_counter() - started
    for task in tasks:
        if task.error is not None:
            raise task.error
    return [Result(to_pixels(task.result), task.timeline.skipped_calls) for task in tasks], seconds


def denoiser_calls(spec: DenoisingSpec) -> int:
    """Return the calls of the denoiser that a job makes without `speed`."""
    if spec.scheduler is Scheduler.HEUN:
        return 2 * spec.steps_run - 1
    return spec.steps_run


def cases_of(model: Model, schedulers: Sequence[Scheduler] | None) -> Iterator[Case]:
    """Yield the jobs of the tables: all of them, or image-to-image with some schedulers."""
    suitable = model.card.scheduler_parameters["speed"]
    size = model.card.native_size
    images = [to_tensor(render(sample_scene(HELD_OUT_SEED + index), "photo", size)) for index in range(4)]
    for scheduler in schedulers or suitable:
        for parameters, index in _grid(scheduler):
            spec = Img2ImgSpec(**_common(size, parameters, index))
            yield Case(f"`{scheduler}`", spec, Inputs(images[index % len(images)]))
    if schedulers:
        return
    mask = torch.zeros(1, 1, size, size)
    mask[:, :, size // 4 :, size // 4 :] = 1
    region = InpaintRegion(mask="1" * 64, canvas=(size, size), box=(0, 0, size, size))
    control = Control(type=ControlType.CANNY, image=None, preprocess=False)
    for scheduler in TASK_SCHEDULERS:
        for parameters, index in _grid(scheduler):
            common, image = _common(size, parameters, index), images[index % len(images)]
            yield Case("inpainting", InpaintSpec(**common, region=region), Inputs(image, mask=mask))
            edges = (image.diff(dim=3, append=image[:, :, :, -1:]).abs().amax(1, keepdim=True) > 0.1).float()
            controlled = Img2ImgSpec(**common, controls=(control,))
            yield Case(
                "image-to-image with a ControlNet", controlled, Inputs(image, controls=(edges.expand(1, 3, -1, -1),))
            )
            if parameters["strength"] == 1:
                edit = {name: value for name, value in common.items() if name not in ("strength", "prompt")}
                spec = EditSpec(**edit, instruction="make it night", image_guidance_scale=1.5)
                yield Case("editing", spec, Inputs(image))


def _grid(scheduler: Scheduler) -> Iterator[tuple[dict[str, Any], int]]:
    for index, strength in enumerate(STRENGTHS):
        for other, guidance_scale in enumerate(GUIDANCE_SCALES):
            parameters = {"scheduler": scheduler, "strength": strength, "guidance_scale": guidance_scale}
            yield parameters, index * len(GUIDANCE_SCALES) + other


def _common(size: int, parameters: Mapping[str, Any], index: int) -> dict[str, Any]:
    return {
        "model": "demo",
        "image": "0" * 64,
        "prompt": PROMPTS[index % len(PROMPTS)],
        "width": size,
        "height": size,
        "num_inference_steps": STEPS,
        "seed": index,
        **parameters,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
