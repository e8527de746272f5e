"""Images per second beside the stock pipeline and the limit, with what the device and the host do meanwhile."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.gpu import forward, occupancy
from benchmarks.gpu.budget import Budget
from benchmarks.gpu.report import Report
from benchmarks.gpu.shapes import Shape
from benchmarks.gpu.target import RunningEngine, Target
from benchmarks.limit import images_per_s
from benchmarks.pixels import largest_difference
from benchmarks.sides import Stock
from benchmarks.workload import Job
from img2img.worker.pipelines.model import Model

# Rounds of a side after the first, which is not counted: so many, or as many as end within so many seconds.
ROUNDS, ROUND_S = 5, 8.0
STOCK_JOBS = 4
ROWS = (1, 2, 4, 8, 16, 32)

Side = Callable[[Sequence[Job]], list[bytes]]


def run(target: Target, shape: Shape, budget: Budget, report: Report, in_flight: Sequence[int]) -> None:
    """Measure the most jobs in flight first, then what explains it, then fewer jobs in flight."""
    pipeline = target.pipeline(shape, shape.dtype)
    measured = Measured(target, shape, target.stock(pipeline), target.model(pipeline), budget, report)
    most = max(in_flight)
    target.warm(measured.model, most)
    with report.part(f"uniform jobs of {shape.name}"):
        measured.stock("uniform", STOCK_JOBS)
        measured.engine("uniform", most)
    with report.part(f"ticks of {shape.name}"):
        measured.ticks(most)
    with report.part(f"waiting of {shape.name}"):
        measured.waits()
    with report.part(f"mixed jobs of {shape.name}"):
        # The jobs of a mix differ in cost, so that both sides need the same.
        measured.stock("mixed", most)
        measured.engine("mixed", most, count=most)
    with report.part(f"limit of {shape.name}"):
        measured.limit(most)
    with report.part(f"fewer jobs of {shape.name}"):
        for slots in in_flight:
            if slots != most:
                measured.engine("uniform", slots)
    measured.print()
    with report.part(f"calls of {shape.name}"):
        measured.calls()
    measured.model.dismantle()


class Measured:
    """The sides of one model."""

    def __init__(
        self, target: Target, shape: Shape, stock: Stock, model: Model, budget: Budget, report: Report
    ) -> None:
        self.model = model
        self._target, self._shape, self._stock = target, shape, stock
        self._budget, self._report = budget, report
        self._rows: dict[tuple[str, str], dict[str, Any]] = {}
        self._expected: dict[str, list[bytes]] = {}
        self._number = 100  # of the last round

    def stock(self, mix: str, count: int) -> None:
        """Measure the stock pipeline, one job after another."""
        if self._has_no_time(f"stock with {mix} jobs", mix, count):
            return
        self._expected[mix] = self._stock.one_by_one(self._jobs(mix, count, 0))
        self._add("stock, one after another", mix, self._stock.one_by_one, count)

    def engine(self, mix: str, slots: int, count: int | None = None) -> None:
        """Measure the engine with all jobs sent at once, twice as many as there are slots by default."""
        count = count or max(2 * slots, STOCK_JOBS)
        side = f"engine, {slots} in flight"
        if mix not in self._expected or self._has_no_time(f"{side}, {mix} jobs", mix, count):
            return
        with RunningEngine(self._target.engine(slots)) as running:
            expected = self._expected[mix]
            pngs = running.run(self.model, self._jobs(mix, len(expected), 0))
            self._target.reset_peak()
            row = self._add(side, mix, lambda work: running.run(self.model, work), count)
            row["largest difference"] = largest_difference(pngs, expected)
            memory = self._target.memory()
            row |= {f"{kind} GB": memory[kind] for kind in ("peak", "reserved") if kind in memory}
        speed_up = row["to stock"]
        if mix == "mixed" and self._shape.speed_up:
            self._report.goal(f"{self._shape.name}: {side}, mixed, to stock", speed_up, at_least=self._shape.speed_up)
        if mix == "uniform" and self._shape.images_per_s and slots >= 16:
            rate = row["images/s"]
            self._report.goal(f"{self._shape.name}: images/s, {side}", rate, at_least=self._shape.images_per_s)

    def limit(self, slots: int) -> None:
        """Measure the forward passes alone."""
        row = self._rows.get((f"engine, {slots} in flight", "uniform"))
        if row is None or self._has_no_time("limit", "uniform", 2 * slots):
            return
        limit = images_per_s(self.model, self._jobs("uniform", slots, self._next()), slots)
        row["of the limit"] = row["images/s"] / limit
        self._rows["limit: forward passes alone", "uniform"] = {"images/s": limit}

    def ticks(self, slots: int) -> None:
        """Measure what the device and the host do."""
        row = self._rows.get((f"engine, {slots} in flight", "uniform"))
        if row is None or self._budget.left <= 0:
            self._report.note(f"{self._shape.name}: ticks skipped, the time is used up")
            return
        found = occupancy.measure(self._target, self._shape, self.model, slots)
        row |= {
            "device busy": found.busy,
            "host ms/tick": found.host_ms,
            "ms/tick": found.wall_ms,
            "launches/tick": found.launches,
            "rows/tick": found.rows,
        }
        if self._target.is_cuda:
            self._report.goal(f"{self._shape.name}: device busy, {slots} in flight", found.busy, at_least=0.95)

    def waits(self) -> None:
        """Count how often the thread of the engine waits for the device."""
        if self._budget.left <= 0:
            self._report.note(f"{self._shape.name}: waiting for the device skipped, the time is used up")
            return
        found = occupancy.waits_by_scheduler(self._target, self._shape)
        self._report.table(
            f"Waiting for the device: {self._shape.name}",
            [
                {
                    "scheduler": str(scheduler),
                    "per step": waits.per_step,
                    "per job": waits.per_job,
                    "where": ", ".join(waits.places),
                }
                for scheduler, waits in found.items()
            ],
        )
        most = max(waits.per_step for waits in found.values())
        self._report.goal(f"{self._shape.name}: waits per step", most, at_most=0, decides=True)

    def calls(self) -> None:
        """Measure single calls of the modules."""
        rows = []
        for stage, counts in (("denoise", ROWS), ("encode", (1, 4)), ("decode", (1, 4))):
            if self._budget.left <= 0:
                self._report.note(f"{self._shape.name}: calls of {stage} skipped, the time is used up")
                continue
            found = forward.milliseconds(
                self._target, self._shape, self.model, stage, counts, lambda: self._budget.left <= 0
            )
            rows += [{"stage": stage, "rows": n, "ms": ms, "ms per row": ms / n} for n, ms in found.items()]
        if rows:
            self._report.table(f"Calls: {self._shape.name}, {self._shape.dtype}", rows)

    def print(self) -> None:
        """Print the table of the sides."""
        side, dtype = self._target.side(self._shape), self._shape.dtype
        self._report.table(
            f"{self._shape.name}: {dtype}, {side} x {side}",
            [{"side": name, "jobs": mix, **row} for (name, mix), row in self._rows.items()],
        )

    def _add(self, name: str, mix: str, side: Side, count: int) -> dict[str, Any]:
        """Measure a side. The images per second are those of the median of its rounds."""
        side(self._jobs(mix, count, self._next()))
        times: list[float] = []
        while len(times) < ROUNDS and sum(times) < ROUND_S and (not times or self._budget.left > times[-1]):
            work = self._jobs(mix, count, self._next())
            start = time.perf_counter()
            side(work)
            times.append(time.perf_counter() - start)
        rate = count / statistics.median(times)
        row: dict[str, Any] = {"images/s": rate, "rounds": len(times)}
        reference = self._rows.get(("stock, one after another", mix), row)
        row["to stock"] = rate / reference["images/s"]
        self._rows[name, mix] = row
        return row

    def _has_no_time(self, what: str, mix: str, count: int) -> bool:
        """Return whether two rounds would take longer than is left, at the speed of the stock pipeline."""
        known = self._rows.get(("stock, one after another", mix)) or self._rows.get(
            ("stock, one after another", "uniform")
        )
        needed = 2 * count / known["images/s"] if known else 0.0
        if needed <= self._budget.left:
            return False
        self._report.note(
            f"{self._shape.name}: {what} skipped, needs up to {needed:.0f} s of {max(0.0, self._budget.left):.0f} s"
        )
        return True

    def _jobs(self, mix: str, count: int, number: int) -> list[Job]:
        return self._target.jobs(self._shape, self.model, mix, count, number)

    def _next(self) -> int:
        self._number += 1
        return self._number
