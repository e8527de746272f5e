"""The engine on a GPU, with random weights of the shapes of published models: pixels, speed, waiting, memory, leaks.

    python -m benchmarks.gpu                          # throughput, host time, waiting for the device, memory
    python -m benchmarks.gpu --only pixels            # compared with the stock pipeline in each dtype
    python -m benchmarks.gpu --levers                 # channels_last, compile, fp8: each against the one before
    python -m benchmarks.gpu --only endurance         # leaks, running out of memory, latency
    python -m benchmarks.gpu --only service           # the whole service
    python -m benchmarks.gpu --tiny                   # rehearse with tiny models; without CUDA the default

Nothing is downloaded, and nothing but PyTorch and the packages of a worker is needed; the project need not be
installed. Parts for which no time is left are skipped, and that is printed. Exits with 1 if a goal for pixels, leaks or
waiting is missed, or a part fails.
"""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.gpu import endurance, levers, pixels, service, speed
from benchmarks.gpu.budget import Budget
from benchmarks.gpu.report import Report, describe_machine
from benchmarks.gpu.shapes import SHAPES, Shape
from benchmarks.gpu.target import Target
from img2img.worker.runtime.allocator import configure_malloc
from img2img.worker.runtime.torch_options import configure_cuda, configure_environment

Part = Callable[[Target, Shape, Budget, Report], None]
PARTS = ("pixels", "speed", "levers", "endurance", "service")
# Models of parts that do not need all of them.
FIRST = {"levers": ("sdxl", "flux"), "endurance": ("sd15",), "service": ("sd15",)}


def main() -> int:
    options = _parse()
    configure_malloc()
    # Without kept compilations, so that the time is that of a first start.
    with TemporaryDirectory(prefix="i2i-", ignore_cleanup_errors=True) as folder:
        configure_environment(Path(folder))
        return run(options)


def run(options: argparse.Namespace) -> int:
    """Run the parts. Return the exit status."""
    is_cuda = torch.cuda.is_available() and options.device != "cpu"
    if is_cuda:
        configure_cuda(allow_tf32=None, benchmark=False)
    else:
        torch.set_num_threads(1)
    target = Target("cuda:0" if is_cuda else "cpu", tiny=options.tiny or not is_cuda)
    report = Report(options.json, describe_machine(target.device))
    if target.tiny:
        report.note("a rehearsal with tiny models: its times say nothing about a GPU")
    in_flight = tuple(options.in_flight or ((1, 2, 4) if target.tiny else (1, 4, 8, 16)))
    budget = Budget(options.budget_s)
    work = [(part, SHAPES[name]) for part in options.only for name in options.models or FIRST.get(part, tuple(SHAPES))]
    parts: dict[str, Part] = {
        "pixels": pixels.run,
        "speed": lambda *arguments: speed.run(*arguments, in_flight),
        "levers": lambda *arguments: levers.run(*arguments, max(in_flight)),
        "endurance": lambda *arguments: endurance.run(*arguments, max(in_flight)),
        "service": lambda *arguments: service.run(*arguments, max(in_flight)),
    }
    for (part, shape), share in zip(work, budget.shares([shape.weight for _, shape in work]), strict=True):
        with report.part(f"{part} of {shape.name}"):
            parts[part](target, shape, share, report)
        target.release()
    report.note(f"{options.budget_s - budget.left:.0f} of {options.budget_s:.0f} s used")
    return 0 if report.is_good else 1


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=["speed"], help="parts to run")
    parser.add_argument("--levers", dest="only", action="store_const", const=["levers"], help="--only levers")
    parser.add_argument("--models", nargs="+", choices=SHAPES, help="default: those for which a part has goals")
    parser.add_argument("--in-flight", type=int, nargs="+", help="slots of the engine; default: 1 4 8 16")
    parser.add_argument("--budget-s", type=float, default=300, help="seconds in all; default: 300")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="models of a few hundred thousand parameters")
    out = os.environ.get("OUT")
    default = Path(out) / "gpu.json" if out else None
    parser.add_argument(
        "--json", type=Path, default=default, help="write all results to this file; default: gpu.json in $OUT"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
