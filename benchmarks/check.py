"""Compares ratios and exactness with the baseline of this machine.

    python -m benchmarks.check                    # a few minutes on an idle machine
    python -m benchmarks.check --only step_cache  # a part
    python -m benchmarks.check --update           # write what was measured into the baseline

Speeds are measured as ratios of two sides in one run, so that a machine that is slower today does not matter. Exits
with 1 if a ratio is lower than that of the baseline by 10 %, or if a figure of exactness has changed, and with 2 if
there is no baseline for a machine with this processor and number of cores.
"""

import argparse
import json
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import host_cost, step_cache, throughput
from benchmarks.memory import measure_loss
from benchmarks.pixels import psnr
from benchmarks.sides import Stock, in_engine
from benchmarks.thin_models import thin_model
from benchmarks.workload import MIXES
from img2img.domain.parameters import Scheduler, Speed
from img2img.worker.pipelines.loading.served_models import config_for
from img2img.worker.pipelines.model import load_model
from img2img.worker.runtime.allocator import configure_malloc

BASELINES = Path(__file__).parent / "baselines"
LARGEST_FALL = 0.10
SLOTS, JOBS, ROUNDS = 16, 16, 2
# Pixels of each side of the images.
SIZE = 128
LIBRARIES = ("torch", "diffusers", "transformers")

# By name. Ratios may rise; figures of exactness may not change.
Figures = dict[str, float]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to measure")
    parser.add_argument("--update", action="store_true", help="write the figures into the baseline of this machine")
    options = parser.parse_args()
    machine = this_machine()
    file = BASELINES / f"{name_of(machine)}.json"
    if not options.update and not file.exists():
        print(f"There is no baseline for {machine['processor']} with {machine['cores']} cores: {file} is missing.")
        print("To make one, run this on the idle machine and commit the file: python -m benchmarks.check --update")
        return 2
    baseline = json.loads(file.read_text()) if file.exists() else {"ratios": {}, "exactness": {}}
    configure_malloc()
    ratios: Figures = {}
    exactness: Figures = {}
    for part in options.only:
        print(f"measuring {part}", file=sys.stderr, flush=True)
        more_ratios, more_exactness = PARTS[part]()
        ratios |= more_ratios
        exactness |= more_exactness
    lines, failures = compare(baseline, ratios, exactness)
    print("\n".join(lines))
    if options.update:
        content = {
            "machine": machine,
            "libraries": {name: version(name) for name in LIBRARIES},
            "ratios": dict(sorted({**baseline["ratios"], **ratios}.items())),
            "exactness": dict(sorted({**baseline["exactness"], **exactness}.items())),
        }
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(content, indent=2) + "\n")
        print(f"\nwrote {file}")
        return 0
    for name, was in baseline.get("libraries", {}).items():
        if was != version(name):
            print(f"note: the baseline was measured with {name} {was}, this is {version(name)}")
    print("\n".join(f"FAILED: {failure}" for failure in failures) or "nothing has become worse")
    return 1 if failures else 0


def compare(
    baseline: Mapping[str, Mapping[str, float]], ratios: Figures, exactness: Figures
) -> tuple[list[str], list[str]]:
    """Return the lines of a table, and what has become worse."""
    lines = ["| | baseline | now | change |", "|---|---:|---:|---:|"]
    failures = []
    for name, now in ratios.items():
        was = baseline["ratios"].get(name)
        if was is None:
            lines.append(f"| {name} | | {now:.3g} | new |")
            continue
        change = now / was - 1
        lines.append(f"| {name} | {was:.3g} | {now:.3g} | {change:+.0%} |")
        if change < -LARGEST_FALL:
            failures.append(f"{name} fell from {was:.3g} to {now:.3g}")
    for name, now in exactness.items():
        was = baseline["exactness"].get(name)
        change_in_words = "new" if was is None else "" if was == now else "CHANGED"
        lines.append(f"| {name} | {'' if was is None else f'{was:g}'} | {now:g} | {change_in_words} |")
        if was is not None and was != now:
            failures.append(f"{name} was {was:g} and is {now:g}")
    return lines, failures


def this_machine() -> dict[str, Any]:
    """Return the processor and the number of cores that this process may use."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.exists() else None
    processor = found[1].strip() if found else platform.processor() or platform.machine()
    return {"processor": processor, "cores": len(os.sched_getaffinity(0))}


def name_of(machine: Mapping[str, Any]) -> str:
    """Return the name of the baseline of a machine."""
    words = re.sub(r"\((R|TM|C)\)", "", machine["processor"], flags=re.IGNORECASE).lower()
    return f"{re.sub(r'[^a-z0-9]+', '-', words).strip('-')}-{machine['cores']}-cores"


def measure_throughput() -> tuple[Figures, Figures]:
    """Compare the engine with the stock pipeline and with its limit, on the demo model."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    folder = str(files("img2img.demo_model") / "weights")
    model = load_model(config_for("demo"), device="cpu")
    side = f"this engine, {SLOTS} in flight"
    sides: dict[str, throughput.Side] = {
        throughput.STOCK: Stock.from_folder(folder).one_by_one,
        side: partial(in_engine, model, SLOTS),
    }
    ratios: Figures = {}
    exactness: Figures = {}
    for mix in MIXES:
        results = throughput.measure(mix, sides, model, JOBS, ROUNDS, size=SIZE)
        found, limit = results[side], results[throughput.LIMIT]
        ratios[f"{mix} jobs: engine to stock"] = found["ratio"]
        ratios[f"{mix} jobs: engine to limit"] = found["images_per_s"] / limit["images_per_s"]
        exactness[f"{mix} jobs: largest difference to stock, in 1/255"] = found["largest_difference"]
    return ratios, exactness


def measure_host_cost() -> tuple[Figures, Figures]:
    """Compare the time of the host for a step of a job with that of a loop without pipelines, schedulers and engine."""
    torch.set_num_threads(1)
    model = thin_model("sd15")
    loop = min(_hand_written_loop() for _ in range(5))
    found = {
        "euler": (Scheduler.EULER,),
        "mixed": host_cost.MIXED,
    }
    costs = {name: host_cost.step_cost(model, schedulers, SLOTS, 5) for name, schedulers in found.items()}
    return {f"host time of a step: plain loop to engine, {name}": loop / cost for name, cost in costs.items()}, {}


def _hand_written_loop(steps: int = 200) -> float:
    """Return the microseconds per step and job of guidance and an Euler step, for a batch of jobs in few operations."""
    latents = [torch.randn(1, 4, 64, 64) for _ in range(SLOTS)]
    predictions = torch.randn(2 * SLOTS, 4, 64, 64)
    factors = torch.rand(SLOTS, 1, 1, 1)
    with torch.inference_mode():
        start = time.thread_time()
        for _ in range(steps):
            batch = torch.cat(latents)
            _ = torch.cat([batch, batch]) * 0.5
            without, guided = predictions.chunk(2)
            latents = list((batch + factors * (without + 5.0 * (guided - without))).split(1))
        return 1e6 * (time.thread_time() - start) / steps / SLOTS


def measure_step_cache() -> tuple[Figures, Figures]:
    """Return saved calls and loss of `speed` with one scheduler."""
    torch.set_num_threads(1)
    model = load_model(config_for("demo"), device="cpu")
    cases = list(step_cache.cases_of(model, [Scheduler.EULER]))
    exact, _ = step_cache.run(model, cases, Speed.EXACT)
    calls = sum(step_cache.denoiser_calls(case.spec) for case in cases)
    ratios: Figures = {}
    for speed in (Speed.FAST, Speed.TURBO):
        results, _ = step_cache.run(model, cases, speed)
        pairs = zip(exact, results, strict=True)
        losses = [min(psnr(one.pixels, other.pixels), step_cache.EQUAL_DB) for one, other in pairs]
        ratios[f"{speed}: calls without it to calls with it"] = calls / (calls - sum(r.skipped for r in results))
        ratios[f"{speed}: mean PSNR, dB"] = float(np.mean(losses))
    return ratios, {}


def measure_exactness() -> tuple[Figures, Figures]:
    """Return the differences of the demo model in bfloat16: from float32, and in company from alone."""
    torch.set_num_threads(1)
    names = ("mean difference to float32", "99 % of values", "largest", "in company to alone")
    cells = measure_loss("", {"dtype": "bfloat16"})
    return {}, {f"bfloat16: {name}, in 1/255": float(cell) for name, cell in zip(names, cells, strict=True)}


PARTS: Mapping[str, Callable[[], tuple[Figures, Figures]]] = {
    "throughput": measure_throughput,
    "host_cost": measure_host_cost,
    "step_cache": measure_step_cache,
    "exactness": measure_exactness,
}


if __name__ == "__main__":
    sys.exit(main())
