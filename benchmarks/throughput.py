"""Throughput of stock pipelines, this engine and a LitServe server with the same model, jobs and threads.

    python -m benchmarks.throughput                     # the demo model
    python -m benchmarks.throughput --model random      # its architecture with random weights
    python -m benchmarks.throughput --model FOLDER      # any diffusers folder
    python -m benchmarks.throughput --dtype bfloat16 --batch-sizes --in-flight 16     # and the engine in bfloat16
    python -m benchmarks.throughput --stock-compiled --batch-sizes --in-flight 16     # and torch.compile without it
    python -m benchmarks.throughput --speed fast turbo --batch-sizes --in-flight 16   # and with predicted steps

Every side takes and returns PNGs. Sides are measured in turns, once per round; the fastest round counts, because other
processes can only slow a side down. The images of every side are compared with those of the stock pipeline.
"""

import argparse
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypedDict

import torch

import img2img.demo_model
from benchmarks.limit import images_per_s
from benchmarks.pixels import largest_difference
from benchmarks.plot import draw
from benchmarks.random_model import make_random_model
from benchmarks.sides import Stock, in_engine, litserve
from benchmarks.workload import MIXES, Job, jobs
from img2img.domain.parameters import Speed
from img2img.worker.engine.engine import Engine
from img2img.worker.pipelines.loading.served_models import config_for
from img2img.worker.pipelines.model import Model, load_model
from img2img.worker.runtime.allocator import configure_malloc
from img2img.worker.runtime.engine_thread import start_engine
from img2img.worker.runtime.model_loader import warm_up


class Result(TypedDict):
    """The result of one side, or the limit: the time of the forward passes alone."""

    # In the fastest round.
    images_per_s: float
    # Speed relative to the stock pipeline, fastest round of each.
    ratio: float
    # The same for every round.
    ratios: list[float]
    # Of any channel of any pixel from the images of the stock pipeline, in 1/255.
    largest_difference: int


Side = Callable[[Sequence[Job]], list[bytes]]
STOCK = "stock diffusers, one after another"
LIMIT = "limit: the forward passes of 16 in flight alone"
# Concurrent clients of the LitServe server: the size of its largest batch.
CLIENTS = 16
WARM_UP_JOBS = 8


def main() -> None:
    options = _parse()
    # SIGTERM raises, so that servers are stopped.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    configure_malloc()
    torch.set_num_threads(options.threads)
    with ExitStack() as stack:
        folder = _folder(options.model, stack)
        stock, model = Stock.from_folder(folder), load_model(config_for(folder), device="cpu")
        configuration = _configuration(options, stock, model)
        _log("\n".join(f"{name}: {value}" for name, value in configuration.items()))
        sides: dict[str, Side] = {STOCK: stock.one_by_one}
        if options.stock_compiled:
            sides[f"{STOCK}, UNet compiled"] = Stock.from_folder(folder, compiled=True).one_by_one
        sides |= _sides(options, folder, model, stack)
        sides |= _variants(options, folder) | _speeds(options, model)
        results: dict[str, dict[str, Result]] = {}
        for mix in options.mixes:
            results[mix] = measure(mix, sides, model, options.jobs, options.rounds, size=options.size)
    if options.plot:
        draw(options.plot, {f"{mix} jobs": sides_of_mix for mix, sides_of_mix in results.items()}, STOCK)
    print(_markdown(configuration, results))
    if options.json:
        options.json.write_text(json.dumps({"configuration": configuration, "results": results}, indent=2) + "\n")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="demo, random, or a diffusers folder")
    parser.add_argument("--jobs", type=int, default=48, help="jobs per side and round")
    parser.add_argument("--size", type=int, help="pixels of each side of the images; default: those of the model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch threads of every side")
    parser.add_argument("--in-flight", type=int, nargs="*", default=[1, 4, 8, 16], help="slots of the engine")
    parser.add_argument("--dtype", nargs="*", choices=("bfloat16", "float16"), default=[], help="further dtypes")
    parser.add_argument("--compile", nargs="*", choices=("regional", "full"), default=[], help="compile the denoiser")
    parser.add_argument("--stock-compiled", action="store_true", help="and the stock pipeline with a compiled UNet")
    parser.add_argument(
        "--speed",
        nargs="*",
        type=Speed,
        choices=(Speed.FAST, Speed.TURBO),
        default=[],
        help="where a scheduler takes it",
    )
    parser.add_argument("--batch-sizes", type=int, nargs="*", default=[4, 8, 16], help="max_batch_size of LitServe")
    parser.add_argument("--mixes", nargs="*", choices=MIXES, default=list(MIXES))
    parser.add_argument("--plot", type=Path, help="draw the results to this SVG or PNG file")
    parser.add_argument("--json", type=Path, help="write all results to this file")
    return parser.parse_args()


def _folder(name: str, stack: ExitStack) -> str:
    if name == "random":
        folder = Path(stack.enter_context(TemporaryDirectory())) / "random"
        make_random_model(folder)
        return str(folder)
    return str(Path(img2img.demo_model.__file__).parent / "weights") if name == "demo" else str(Path(name).resolve())


def _configuration(options: argparse.Namespace, stock: Stock, model: Model) -> dict[str, str]:
    size, cores = options.size or model.card.native_size, len(os.sched_getaffinity(0))
    millions = ", ".join(f"{name} {count / 1e6:.1f} M" for name, count in stock.parameters.items())
    return {
        "machine": f"{cores} CPU cores ({platform.machine()}), each side with {options.threads} torch threads",
        "versions": ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "litserve")),
        "model": f"{options.model} ({millions}), {size} x {size}, float32",
        "rounds": f"{options.rounds} of {options.jobs} jobs per side, the fastest counts",
        **{f"{mix} jobs": MIXES[mix] for mix in options.mixes},
        "engine": "as in a worker, in the process of the stock pipelines, from PNG to PNG",
        "LitServe": f"dynamic batching, {CLIENTS} concurrent clients over loopback HTTP",
    }


def _sides(options: argparse.Namespace, folder: str, model: Model, stack: ExitStack) -> dict[str, Side]:
    sides: dict[str, Side] = {f"this engine, {n} in flight": partial(in_engine, model, n) for n in options.in_flight}
    for size in options.batch_sizes:
        _log(f"starting LitServe with max_batch_size={size}")
        server = stack.enter_context(litserve(folder, size, CLIENTS, options.threads))
        sides[f"LitServe, max_batch_size {size}"] = server
    return sides


def _variants(options: argparse.Namespace, folder: str) -> dict[str, Side]:
    """Return the engine with other options of the model, with the most jobs in flight."""
    slots = max(options.in_flight)
    variants = [{"dtype": dtype} for dtype in options.dtype] + [{"compile": mode} for mode in options.compile]
    sides: dict[str, Side] = {}
    for variant in variants:
        model = load_model(config_for(folder).model_copy(update=variant), device="cpu")
        engine = Engine(slots=slots)
        start_engine(engine)
        warm_up(model, engine, _log)
        engine.shut_down()
        [(key, value)] = variant.items()
        sides[f"this engine, {slots} in flight, {key} {value}"] = partial(in_engine, model, slots)
    return sides


def _speeds(options: argparse.Namespace, model: Model) -> dict[str, Side]:
    """Return the engine with `speed` where the scheduler of a job takes it, with the most jobs in flight."""
    slots = max(options.in_flight)
    takes = model.card.scheduler_parameters["speed"]

    def run(speed: Speed, work: Sequence[Job]) -> list[bytes]:
        return in_engine(
            model,
            slots,
            [
                Job(job.spec.model_copy(update={"speed": speed}), job.png) if job.spec.scheduler in takes else job
                for job in work
            ],
        )

    return {f"this engine, {slots} in flight, speed {speed}": partial(run, speed) for speed in options.speed}


def measure(
    mix: str, sides: dict[str, Side], model: Model, count: int, rounds: int, *, size: int | None = None
) -> dict[str, Result]:
    """Run the same jobs on all sides, in turns, and measure their limit as often.

    Args:
        size: of the images, in pixels; default: the native size of the model.
    """
    for name, side in sides.items():
        _log(f"{mix}: warming up {name}")
        side(jobs(mix, model.card, count, 0, side=size)[:WARM_UP_JOBS])
    seconds: dict[str, list[float]] = {name: [] for name in (*sides, LIMIT)}
    differences = dict.fromkeys(seconds, 0)
    for round_number in range(1, rounds + 1):
        round_jobs = jobs(mix, model.card, count, round_number, side=size)
        pngs = {}
        for name, side in sides.items():
            start = time.perf_counter()
            pngs[name] = side(round_jobs)
            seconds[name].append(time.perf_counter() - start)
            difference = largest_difference(pngs[name], pngs[STOCK])
            differences[name] = max(differences[name], difference)
            _log(f"{mix}, round {round_number}: {count / seconds[name][-1]:.2f} images/s, {name}")
        seconds[LIMIT].append(count / images_per_s(model, round_jobs))
        _log(f"{mix}, round {round_number}: {count / seconds[LIMIT][-1]:.2f} images/s, {LIMIT}")
    return {
        name: Result(
            images_per_s=count / min(seconds[name]),
            ratio=min(seconds[STOCK]) / min(seconds[name]),
            ratios=[stock / side for stock, side in zip(seconds[STOCK], seconds[name], strict=True)],
            largest_difference=differences[name],
        )
        for name in seconds
    }


def _markdown(configuration: dict[str, str], results: dict[str, dict[str, Result]]) -> str:
    lines = ["| |" + "".join(f" {mix}: images/s | vs stock |" for mix in results) + " largest difference |"]
    lines.append("|---|" + "---:|---:|" * len(results) + "---:|")
    for name in next(iter(results.values())):
        cells = "".join(f" {r[name]['images_per_s']:.2f} | {r[name]['ratio']:.2f}x |" for r in results.values())
        difference = max(r[name]["largest_difference"] for r in results.values())
        lines.append(f"| {name} |{cells} {'' if name == LIMIT else f'{difference}/255'} |")
    return "\n".join([*lines, "", *(f"- {name}: {value}" for name, value in configuration.items())])


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
