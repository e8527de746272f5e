"""How often the engine's thread waits for the device, counted on a device that computes on the CPU.

    python -m benchmarks.device_waits

Each family is a tiny model with random weights. Two jobs run together, with few and with more steps: the difference is
that of the steps, and the rest is that of the jobs.
"""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.waits import count_waits, run
from img2img.domain.model_config import ModelConfig
from img2img.domain.parameters import DIFFUSION_SCHEDULERS, Scheduler
from img2img.worker.pipelines.model import load_model
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
SIDE = 32


def main() -> None:
    torch.set_num_threads(1)
    print("| family | scheduler | per step | per job |\n|---|---|---:|---:|")
    with pretend_device() as device, torch.no_grad():
        for family, (make, schedulers) in FAMILIES.items():
            with TemporaryDirectory() as folder:
                config = ModelConfig(name="tiny", source=str(make(Path(folder))), dtype="float32")
                model = load_model(config, device=str(device))
                # The engine compares rows when it merges calls for the first time.
                run(model, schedulers[0], 2, counting_syncs, SIDE)
                for scheduler in schedulers:
                    found = count_waits(model, scheduler, counting_syncs, SIDE)
                    print(f"| {family} | {scheduler} | {found.per_step:.1f} | {found.per_job:.1f} |", flush=True)


if __name__ == "__main__":
    main()
