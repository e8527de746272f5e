"""How often the engine's thread waits for the device, counted on a device that computes on the CPU.

    python -m benchmarks.device_waits

Each family is a tiny model with random weights. Two jobs run together, with few and with more steps: the difference is
that of the steps, and the rest is that of the jobs.
"""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from img2img.domain.model_config import ModelConfig
from img2img.domain.parameters import DIFFUSION_SCHEDULERS, Scheduler
from img2img.domain.spec import Img2ImgSpec
from img2img.worker.engine.engine import Engine
from img2img.worker.engine.task import EngineTask
from img2img.worker.images.inputs import Inputs
from img2img.worker.pipelines.denoise import make_task_function
from img2img.worker.pipelines.model import Model, load_model
from tests.support.models.tiny_families import tiny_flux, tiny_sd3, tiny_z_image
from tests.support.models.tiny_models import tiny_sd, tiny_sdxl
from tests.support.pretend_device import counting_syncs, pretend_device

FLOW = (Scheduler.FLOW_EULER,)
FAMILIES: dict[str, tuple[Callable[[Path], Path], tuple[Scheduler, ...]]] = {
    "Stable Diffusion 1": (tiny_sd, DIFFUSION_SCHEDULERS),
    "Stable Diffusion XL": (tiny_sdxl, (Scheduler.EULER,)),
    "Stable Diffusion 3": (tiny_sd3, FLOW),
    "FLUX.1": (tiny_flux, FLOW),
    "Z-Image": (tiny_z_image, FLOW),
}
SIDE, JOBS, SHORT, LONG = 32, 2, 5, 10


def main() -> None:
    torch.set_num_threads(1)
    print("| family | scheduler | per step | per job |\n|---|---|---:|---:|")
    with pretend_device() as device, torch.no_grad():
        for family, (make, schedulers) in FAMILIES.items():
            with TemporaryDirectory() as folder:
                config = ModelConfig(name="tiny", source=str(make(Path(folder))), dtype="float32")
                model = load_model(config, device=str(device))
                # The engine compares rows when it merges calls for the first time.
                _waits(model, schedulers[0], 2)
                for scheduler in schedulers:
                    short, long = _waits(model, scheduler, SHORT), _waits(model, scheduler, LONG)
                    per_step = (long[0] - short[0]) / (long[1] - short[1])
                    per_job = (short[0] - per_step * short[1]) / JOBS
                    print(f"| {family} | {scheduler} | {per_step:.1f} | {per_job:.1f} |", flush=True)


def _waits(model: Model, scheduler: Scheduler, steps: int) -> tuple[int, int]:
    """Run jobs. Return how often the thread would wait, and the steps of all jobs."""
    engine = Engine(slots=JOBS)
    image = torch.rand(1, 3, SIDE, SIDE)
    specs = [
        Img2ImgSpec(
            model="tiny",
            image="0" * 64,
            prompt=f"house {'abc'[i]} {'x' * steps}",
            negative_prompt="blurry" if model.card.negative_prompt else "",
            seed=i,
            width=SIDE,
            height=SIDE,
            strength=1.0,
            num_inference_steps=steps,
            guidance_scale=3.0,
            scheduler=scheduler,
        )
        for i in range(JOBS)
    ]
    tasks = [EngineTask(make_task_function(model, spec, Inputs(image), 0), lambda _task: None) for spec in specs]
    engine.submit(tasks)
    with counting_syncs() as syncs:
        while engine.is_busy:
            engine.step()
    for task in tasks:
        if task.error is not None:
            raise task.error
    return sum(syncs.values()), sum(task.step for task in tasks)


if __name__ == "__main__":
    main()
