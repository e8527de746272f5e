"""Priorities and deadlines on the whole service, with a worker that has more jobs than it can run.

    python -m benchmarks.preemption

1. Latency of jobs of high priority while jobs of normal priority take all slots, compared with the same job alone on
   the idle service. Both are measured in turns, from the times in the job records.
2. Share of deadlines that are met under a Poisson load, compared with the same arrivals without deadlines in the
   requests, which the service runs first in, first out. A deadline is a multiple of the measured time of this job alone
   on the idle service. Half of the jobs are urgent, half are not. A load of 1 is the throughput of full batches.
"""

import argparse
import json
import os
import platform
import random
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import numpy as np

from benchmarks.workload import MIXES, Job, jobs, served_card
from img2img.app.schemas.responses import Job as JobView
from img2img.app.settings import ApiSettings
from img2img.app.supervisor.supervisor import Supervisor, free_port, running
from img2img.domain.job import DeadlinePolicy, JobStatus, Priority

FIELDS = ("prompt", "strength", "guidance_scale", "num_inference_steps", "scheduler", "seed", "width", "height")
POLL_S = 0.05
ROUNDS = 2  # in which both sides are measured
TIMEOUT_S = 60
# Deadlines, as multiples of the time of a job alone.
URGENT, PATIENT = 3.0, 20.0
MIN_DEADLINE_S = 1.0  # the least that the API takes
FIFO, DEADLINE = ORDERS = ("first in, first out", "by deadline")
LOADS = (0.8, 1.0, 1.2)
# Parts of the time of a job in its `timings`. It is queued until a worker takes it, and waits for the engine.
STAGES = ("queued", "wait", "encode", "denoise", "decode")
GOAL_RATIO, GOAL_POINTS = 1.3, 30


class Client:
    """Submits jobs to a service that runs in this process."""

    def __init__(self, service: Supervisor, http: httpx.Client) -> None:
        self._service = service
        self._http = http
        self.card = served_card(http)

    def submit(self, job: Job, **more: object) -> str:
        """Return the id of a new job."""
        fields = {name: str(getattr(job.spec, name)) for name in FIELDS} | {k: str(v) for k, v in more.items()}
        response = self._http.post("/img2img", files={"image": job.png}, data=fields, timeout=TIMEOUT_S)
        return str(self._body(response)["id"])

    def job(self, job_id: str) -> JobView:
        return JobView.model_validate(self._get(f"/jobs/{job_id}"))

    def seconds(self, job_id: str) -> float:
        """Wait for the end of a job. Return the seconds from its submit to its end."""
        return _seconds(self.ended(job_id))

    def ended(self, job_id: str) -> JobView:
        """Wait for the end of a job, and return it."""
        while (view := self.job(job_id)).finished_at is None:
            self._service.tick()
            time.sleep(POLL_S)
        if view.status is not JobStatus.SUCCEEDED:
            raise SystemExit(f"job {view.id} {view.status}: {view.error}")
        return view

    def queued(self) -> int:
        return len(self._get("/jobs?status=queued&limit=100")["jobs"])

    def _get(self, path: str) -> Any:
        return self._body(self._http.get(path, timeout=TIMEOUT_S))

    def _body(self, response: httpx.Response) -> Any:
        if response.is_error:
            raise SystemExit(f"the service responded with {response.status_code}: {response.text}")
        return response.json()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="demo, or a diffusers folder")
    parser.add_argument("--slots", type=int, default=16, help="slots of the worker")
    parser.add_argument("--high", type=int, default=40, help="jobs of high priority; 0: only deadlines")
    parser.add_argument("--jobs", type=int, default=60, help="jobs with deadlines, of each load; 0: only priorities")
    parser.add_argument(
        "--loads", type=float, nargs="+", default=LOADS, help="arrivals, as parts of the measured throughput"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write all times to this file")
    options = parser.parse_args()
    started_at = time.monotonic()
    with _client(options.model, options.slots) as client:
        _warm_up(client, options)
        high = _measure_priority(client, options) if options.high else {}
        if high:
            print("\n".join([*_priority_table(high), ""]), flush=True)
        deadlines = _measure_deadlines(client, options) if options.jobs else {}
        if deadlines:
            print("\n".join([*_deadline_table(deadlines), ""]))
    load = os.getloadavg()[0]
    configuration = {
        "machine": f"{len(os.sched_getaffinity(0))} CPU cores ({platform.machine()}), with load {load:.1f} at the end",
        "threads of the engine": os.environ.get("OMP_NUM_THREADS", "one per core"),
        "service": f"model {options.model}, one worker with {options.slots} slots",
        "jobs of high priority": MIXES["uniform"],
        "other jobs": MIXES["mixed"],
        "time": f"{time.monotonic() - started_at:.0f} s in all",
    }
    print("\n".join(f"- {name}: {value}" for name, value in configuration.items()))
    if options.json:
        stages = {name: [view.timings for view in views] for name, views in high.items()}
        seconds = {name: [_seconds(view) for view in views] for name, views in high.items()}
        result = {"configuration": configuration, "priority": seconds, "stages": stages, "deadlines": deadlines}
        options.json.write_text(json.dumps(result, indent=2) + "\n")


@contextmanager
def _client(model: str, slots: int) -> Iterator[Client]:
    with TemporaryDirectory(prefix="i2i-") as folder:
        settings = ApiSettings(_env_file=None, data_dir=Path(folder), model=model, slots=slots, port=free_port())
        with running(settings) as service, httpx.Client(base_url=settings.local_url, trust_env=False) as http:
            yield Client(service, http)


def _warm_up(client: Client, options: argparse.Namespace) -> None:
    for job_id in [client.submit(job) for job in jobs("mixed", client.card, options.slots, 100 * options.seed + 4)]:
        client.seconds(job_id)


def _measure_priority(client: Client, options: argparse.Namespace) -> dict[str, list[JobView]]:
    """Return jobs that have ended: of high priority, alone on the service and on one whose slots are all taken."""
    choose = random.Random(options.seed)
    probes = jobs("uniform", client.card, 3 * options.high, 100 * options.seed)
    background = iter(jobs("mixed", client.card, 20 * options.slots, 100 * options.seed + 1))
    found: dict[str, list[JobView]] = {"alone": [], "saturated": [], "saturated, normal": []}
    for part in range(ROUNDS):
        _log(f"priorities: round {part + 1} of {ROUNDS}")
        for _ in range(options.high // ROUNDS):
            found["alone"].append(client.ended(client.submit(probes.pop())))
        waiting: list[str] = []
        for _ in range(options.high // ROUNDS):
            # As many jobs wait as there are slots, and the jobs in the slots are at different steps.
            while client.queued() < options.slots:
                waiting.append(client.submit(next(background)))
            time.sleep(choose.uniform(0.0, 1.0))
            found["saturated"].append(client.ended(client.submit(probes.pop(), priority=Priority.HIGH)))
        found["saturated, normal"].append(client.ended(client.submit(probes.pop())))
        for job_id in waiting:
            client.seconds(job_id)
    return found


def _measure_deadlines(client: Client, options: argparse.Namespace) -> dict[str, Any]:
    """Return the seconds of each job by load, first in first out and by deadline, for the same arrivals."""

    def make(number: int) -> list[Job]:
        return jobs("mixed", client.card, options.jobs, 100 * options.seed + 10 + number)

    _log(f"deadlines: {options.jobs} jobs alone, then together")
    alone = [client.seconds(client.submit(job)) for job in make(0)]
    started_at = time.monotonic()
    for job_id in [client.submit(job) for job in make(1)]:
        client.seconds(job_id)
    per_second = options.jobs / (time.monotonic() - started_at)
    choose = random.Random(options.seed)
    factors = [URGENT, PATIENT] * (options.jobs // 2) + [URGENT] * (options.jobs % 2)
    choose.shuffle(factors)
    due = [max(MIN_DEADLINE_S, factor * seconds) for factor, seconds in zip(factors, alone, strict=True)]
    found: dict[str, Any] = {"alone_s": alone, "per_second": per_second, "factors": factors, "due_s": due, "loads": {}}
    for number, load in enumerate(options.loads):
        gaps = [0.0, *(choose.expovariate(load * per_second) for _ in due[1:])]
        at = [float(seconds) for seconds in np.cumsum(gaps)]
        found["loads"][load] = sides = {}
        for name in ORDERS if number % 2 else reversed(ORDERS):
            _log(f"deadlines: load {load}, {name}")
            arrivals = list(zip(at, make(2 + number), due, strict=True))
            sides[name] = _run(client, arrivals, with_deadlines=name != FIFO)
    return found


def _run(client: Client, arrivals: Sequence[tuple[float, Job, float]], *, with_deadlines: bool) -> list[float]:
    """Return the seconds of jobs.

    Args:
        arrivals: of each the time of its submit from now, and the seconds from there to its deadline.
    """
    started_at, ids = time.monotonic(), []
    for at_s, job, deadline_s in arrivals:
        time.sleep(max(0.0, started_at + at_s - time.monotonic()))
        more = {"deadline_s": deadline_s, "deadline_policy": DeadlinePolicy.BEST_EFFORT} if with_deadlines else {}
        ids.append(client.submit(job, **more))
    return [client.seconds(job_id) for job_id in ids]


def _seconds(view: JobView) -> float:
    assert view.finished_at is not None
    return (view.finished_at - view.created_at).total_seconds()


def _priority_table(found: dict[str, list[JobView]]) -> list[str]:
    head = ["a job of 20 steps", "jobs", "p50", "p95", "p95 / p50 alone", *(f"{stage} p50 / p95" for stage in STAGES)]
    lines = [f"| {' | '.join(head)} |", "|---" + "|---:" * (len(head) - 1) + "|"]
    alone_s = np.median([_seconds(view) for view in found["alone"]])
    for name, views in found.items():
        label = "saturated worker, `high`" if name == "saturated" else name.replace("saturated", "saturated worker")
        p50, p95 = np.percentile([_seconds(view) for view in views], (50, 95))
        stages = [np.percentile([view.timings.get(stage, 0.0) for view in views], (50, 95)) for stage in STAGES]
        parts = [label, str(len(views)), f"{p50:.2f} s", f"{p95:.2f} s", f"{p95 / alone_s:.2f}x"]
        lines.append(f"| {' | '.join([*parts, *(f'{low:.3f} / {high:.3f}' for low, high in stages)])} |")
    ratio = np.percentile([_seconds(view) for view in found["saturated"]], 95) / alone_s
    return [*lines, "", f"Goal: p95 of `high` at most {GOAL_RATIO}x, {'met' if ratio <= GOAL_RATIO else 'missed'}."]


def _deadline_table(found: dict[str, Any]) -> list[str]:
    factors, due_s = np.array(found["factors"]), np.array(found["due_s"])
    lines = ["| load | order | deadlines met | urgent | not urgent | mean latency |", "|---:|---|---:|---:|---:|---:|"]
    goals = []
    for load, sides in found["loads"].items():
        met = {}
        for name in ORDERS:
            seconds = np.array(sides[name])
            in_time = seconds <= due_s
            met[name] = in_time.mean()
            shares = [part.mean() for part in (in_time, in_time[factors == URGENT], in_time[factors == PATIENT])]
            parts = " | ".join(f"{share:.0%}" for share in shares)
            lines.append(f"| {load} | {name} | {parts} | {seconds.mean():.1f} s |")
        points = 100 * (met[DEADLINE] - met[FIFO])
        goals.append(f"{points:.0f} at load {load} ({'met' if points >= GOAL_POINTS else 'missed'})")
    rates = f"{len(factors)} jobs of each load, {found['per_second']:.2f} a second at load 1"
    times = (
        f"{URGENT:g} or {PATIENT:g} times the time of the job alone, {np.median(found['alone_s']):.2f} s at the median"
    )
    return [*lines, "", f"Goal: {GOAL_POINTS} points more: {', '.join(goals)}. {rates}; deadlines {times}."]


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
