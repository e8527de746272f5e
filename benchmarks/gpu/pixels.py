"""Pixels of the engine compared with those of the stock pipeline, alone and beside other jobs, in each dtype."""

from collections.abc import Sequence

import numpy as np
import torch

from benchmarks.gpu.budget import Budget
from benchmarks.gpu.report import Report, Row
from benchmarks.gpu.shapes import Shape
from benchmarks.gpu.target import RunningEngine, Target
from benchmarks.pixels import differences
from benchmarks.workload import Job
from img2img.worker.pipelines.model import Model
from img2img.worker.runtime.torch_options import configure_cuda

JOBS = 8
# Of the images, at most: float32 is slow.
SIDE = 512
# Per parameter, of two copies in float32, and as much again for the rest.
BYTES = 2 * 4 * 1.3


def run(target: Target, shape: Shape, budget: Budget, report: Report) -> None:
    """Compare images in float32, in the dtype in which the model is served, and in another one of 16 bits."""
    other = "bfloat16" if shape.dtype == "float16" else "float16"
    cases = [("float32", None), (shape.dtype, None), (other, None)]
    if target.is_cuda:
        # By default, PyTorch computes convolutions in TF32.
        cases.insert(1, ("float32", False))
    for (dtype, tf32), share in zip(cases, budget.shares([1] * len(cases)), strict=True):
        name = f"{shape.name} in {dtype}{' without TF32' if tf32 is False else ''}"
        if target.is_cuda and dtype == "float32" and (missing := _missing_gb(target, shape)) > 0:
            report.note(f"{name}: skipped, {missing:.0f} GB of memory are missing")
            continue
        with report.part(f"pixels of {name}"):
            configure_cuda(allow_tf32=tf32, benchmark=False)
            try:
                _compare(target, shape, dtype, name, share, report)
            finally:
                torch.backends.cudnn.allow_tf32 = True
        target.release()


def _missing_gb(target: Target, shape: Shape) -> float:
    """Return the memory that a comparison in float32 lacks."""
    parameters = {"sd15": 1.1, "turbo": 1.4, "sdxl": 3.5, "flux": 12.5}[shape.name]
    return 0.0 if target.tiny else parameters * BYTES - target.memory()["free"]


def _compare(target: Target, shape: Shape, dtype: str, name: str, budget: Budget, report: Report) -> None:
    pipeline = target.pipeline(shape, dtype)
    stock = target.stock(pipeline)
    model = target.model(pipeline)
    side = min(SIDE, target.side(shape))
    work = target.jobs(shape, model, "mixed", JOBS, 0, side)
    # Kernels are chosen, and the engine compares rows.
    _together(target, model, target.jobs(shape, model, "mixed", 2, 1, side))
    expected = stock.one_by_one(work)
    rows = [_row("stock, again", stock.one_by_one(work), expected)]
    alone = _alone(target, model, work)
    rows.append(_row("engine alone, to stock", alone, expected))
    company = _together(target, model, work)
    rows += [
        _row("engine in company, to stock", company, expected),
        _row("engine in company, to engine alone", company, alone),
    ]
    chosen = _together(target, model, work, deterministic=True)
    rows.append(_row("`deterministic` in company, to engine alone", chosen, alone))
    if budget.left > 0:
        pair = target.jobs(shape, model, "uniform", 2, 2, side)
        rows.append(_row("stock with two images, to stock", stock.call(pair), stock.one_by_one(pair)))
    else:
        report.note(f"{name}: stock with two images skipped, the time is used up")
    report.table(f"Pixels: {name}, {side} x {side}, {len(work)} mixed jobs", rows)
    largest = {str(row["images"]): row["largest"] for row in rows}
    is_full = dtype == "float32"
    in_company = "engine in company, to stock" if is_full else "engine in company, to engine alone"
    goals = {
        "engine alone, to stock": 1 if is_full else 0,
        in_company: 1 if is_full else 0,
        "`deterministic` in company, to engine alone": 0,
    }
    for images, limit in goals.items():
        report.goal(f"{name}: {images}, in 1/255", largest[images], at_most=limit, decides=True)
    model.dismantle()


def _alone(target: Target, model: Model, work: Sequence[Job]) -> list[bytes]:
    with RunningEngine(target.engine(1)) as engine:
        return [engine.run(model, [job])[0] for job in work]


def _together(target: Target, model: Model, work: Sequence[Job], *, deterministic: bool = False) -> list[bytes]:
    with RunningEngine(target.engine(len(work))) as engine:
        return engine.run(model, work, deterministic=deterministic)


def _row(images: str, pngs: Sequence[bytes], reference: Sequence[bytes]) -> Row:
    found = np.abs(np.stack(differences(pngs, reference)))
    error = float(np.square(found.astype(np.float64)).mean())
    return {
        "images": images,
        "largest": int(found.max()),
        "99.9 % of values": float(np.percentile(found, 99.9)),
        "PSNR, dB": 10 * float(np.log10(255**2 / error)) if error else "equal",
        "equal images": int(sum(not image.any() for image in found)),
    }
