"""Time of the host: what a job and a step take on the engine's thread if the modules of the model take none.

    python -m benchmarks.host_cost
    python -m benchmarks.host_cost --step-tables       # a model with `step_tables = true`
    python -m benchmarks.host_cost --profile sdxl      # functions by time

The processor time of the engine's thread is measured, so that other programs disturb less. Jobs have prompts of their
own, which no cache knows.
"""

import argparse
import cProfile
import itertools
import pstats
import time

import torch

from benchmarks.thin_models import SIDE, thin_model
from img2img.domain.parameters import DIFFUSION_SCHEDULERS, Scheduler, Task
from img2img.domain.spec import Img2ImgSpec
from img2img.worker.engine.engine import Engine
from img2img.worker.engine.task import EngineTask
from img2img.worker.images.inputs import Inputs
from img2img.worker.pipelines.denoise import make_task_function
from img2img.worker.pipelines.model import Model
from img2img.worker.runtime.allocator import configure_malloc

# Steps of the short and the long job, whose difference is the cost of steps.
SHORT, LONG = 10, 30
MIXED = (
    Scheduler.DDIM,
    Scheduler.EULER,
    Scheduler.EULER_A,
    Scheduler.HEUN,
    Scheduler.DPMPP_2M,
    Scheduler.DPMPP_2M_KARRAS,
    Scheduler.UNIPC,
    Scheduler.DEIS,
)
_seeds = itertools.count()


def main() -> None:
    options = _parse()
    configure_malloc()
    torch.set_num_threads(1)
    if options.profile:
        _profile(thin_model(options.profile))
        return
    print("| model | one job, one step: ms of the engine's thread | of 8 jobs, each |\n|---|---:|---:|")
    models = {name: thin_model(name, step_tables=options.step_tables) for name in ("sd15", "sdxl")}
    for name, model in models.items():
        alone, several = (_best(model, (Scheduler.EULER,), 1, count, options.rounds) for count in (1, 8))
        print(f"| {name} | {1e3 * alone[0]:.1f} | {1e3 * several[0] / 8:.1f} |", flush=True)
    counts = options.in_flight
    print("\n| scheduler |" + "".join(f" us per job-step, {count} in flight |" for count in counts))
    print("|---|" + "---:|" * len(counts))
    for label, schedulers in {**{name.value: (name,) for name in options.schedulers}, "mixed": MIXED}.items():
        cells = [step_cost(models["sd15"], schedulers, count, options.rounds) for count in counts]
        print(f"| {label} |" + "".join(f" {cell:.0f} |" for cell in cells), flush=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="the fastest counts")
    parser.add_argument("--in-flight", type=int, nargs="*", default=[1, 16])
    parser.add_argument("--schedulers", type=Scheduler, nargs="*", default=list(DIFFUSION_SCHEDULERS))
    parser.add_argument("--step-tables", action="store_true", help="set the key of the model file")
    parser.add_argument("--profile", choices=("sd15", "sdxl"), help="print where the time of one-step jobs goes")
    return parser.parse_args()


def step_cost(model: Model, schedulers: tuple[Scheduler, ...], count: int, rounds: int) -> float:
    """Return the microseconds of one step of one job."""
    short, long = (_best(model, schedulers, steps, count, rounds) for steps in (SHORT, LONG))
    return 1e6 * (long[0] - short[0]) / (long[1] - short[1])


def _best(model: Model, schedulers: tuple[Scheduler, ...], steps: int, count: int, rounds: int) -> tuple[float, int]:
    """Return the seconds of the engine's thread in the fastest round, and the denoising steps of all jobs."""
    run(model, schedulers, steps, count)
    return min(run(model, schedulers, steps, count) for _ in range(rounds))


def run(
    model: Model, schedulers: tuple[Scheduler, ...], steps: int, count: int, profile: cProfile.Profile | None = None
) -> tuple[float, int]:
    """Run jobs together. Return the seconds of the engine's thread, and the denoising steps of all jobs.

    Raises:
        Exception: the error of a job.
    """
    engine = Engine(slots=count)
    names = itertools.islice(itertools.cycle(schedulers), count)
    tasks = [_task(model, _spec(name, steps)) for name in names]
    engine.submit(tasks)
    engine.shut_down()
    start = time.thread_time()
    if profile:
        profile.runcall(engine.run)
    else:
        engine.run()
    seconds = time.thread_time() - start
    for task in tasks:
        if task.error is not None:
            raise task.error
    # A step with guidance has two rows.
    return seconds, engine.rows_run["denoise"] // 2


def _task(model: Model, spec: Img2ImgSpec) -> EngineTask:
    image = torch.rand(1, 3, SIDE, SIDE).contiguous(memory_format=torch.channels_last)
    return EngineTask(make_task_function(model, spec, Inputs(image), 0), lambda _task: None)


def _spec(scheduler: Scheduler, steps: int) -> Img2ImgSpec:
    seed = next(_seeds)
    word = "".join(chr(ord("a") + int(digit)) for digit in str(seed))
    return Img2ImgSpec(
        task=Task.IMG2IMG,
        model="thin",
        image="0" * 64,
        prompt=f"a house {word}",
        negative_prompt="blurry",
        seed=seed,
        width=SIDE,
        height=SIDE,
        strength=1.0,
        num_inference_steps=steps,
        guidance_scale=5.0,
        scheduler=scheduler,
    )


def _profile(model: Model) -> None:
    profile = cProfile.Profile()
    for i in range(4):
        # The first jobs fill caches.
        run(model, (Scheduler.EULER,), 1, 8, profile if i else None)
    pstats.Stats(profile).sort_stats("tottime").print_stats(60)


if __name__ == "__main__":
    main()
