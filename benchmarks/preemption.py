"""Priorities and deadlines on the whole service, with a worker that has more jobs than it can run.

    python -m benchmarks.preemption

1. Latency of jobs of high priority while jobs of normal priority take all slots, compared with the same job alone on
   the idle service. Both are measured in turns, from the times in the job records.
2. Share of deadlines that are met under a Poisson load, compared with the same arrivals without deadlines in the
   requests, which the service runs first in, first out. Half of the jobs are urgent, half are not.
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

from benchmarks.workload import MIXES, Job, jobs
from img2img.app.schemas.responses import Job as JobView
from img2img.app.settings import ApiSettings
from img2img.app.supervisor.supervisor import Supervisor, free_port, running
from img2img.domain.job import DeadlinePolicy, JobStatus, Priority
from img2img.domain.model_card import ModelCard

FIELDS = ("prompt", "strength", "guidance_scale", "num_inference_steps", "scheduler", "seed", "width", "height")
POLL_S = 0.05
ROUNDS = 2  # in which both sides are measured
TIMEOUT_S = 60
# Deadlines, as multiples of the time of a job alone.
URGENT, PATIENT = 3.0, 20.0
GOAL_RATIO, GOAL_POINTS = 1.3, 30


class Client:
    """Submits jobs to a service that runs in this process."""

    def __init__(self, service: Supervisor, http: httpx.Client) -> None:
        self._service = service
        self._http = http
        [model] = self._get("/models")["models"]
        self.card = ModelCard.model_validate({name: model[name] for name in ModelCard.model_fields if name in model})

    def submit(self, job: Job, **more: object) -> str:
        """Return the id of a new job."""
        fields = {name: str(getattr(job.spec, name)) for name in FIELDS} | {k: str(v) for k, v in more.items()}
        response = self._http.post("/img2img", files={"image": job.png}, data=fields, timeout=TIMEOUT_S)
        return str(self._body(response)["id"])

    def job(self, job_id: str) -> JobView:
        return JobView.model_validate(self._get(f"/jobs/{job_id}"))

    def seconds(self, job_id: str) -> float:
        """Wait for the end of a job. Return the seconds from its submit to its end."""
        while (view := self.job(job_id)).finished_at is None:
            self._service.tick()
            time.sleep(POLL_S)
        if view.status is not JobStatus.SUCCEEDED:
            raise SystemExit(f"job {view.id} {view.status}: {view.error}")
        return (view.finished_at - view.created_at).total_seconds()

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
    parser.add_argument("--high", type=int, default=40, help="jobs of high priority")
    parser.add_argument("--jobs", type=int, default=60, help="jobs with deadlines")
    parser.add_argument("--load", type=float, default=1.2, help="arrivals as a part of the measured throughput")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write all times to this file")
    options = parser.parse_args()
    started_at = time.monotonic()
    with _client(options.model, options.slots) as client:
        high = _measure_priority(client, options)
        print("\n".join([*_priority_table(high), ""]), flush=True)
        deadlines = _measure_deadlines(client, options, float(np.median(high["alone"])))
    load = os.getloadavg()[0]
    configuration = {
        "machine": f"{len(os.sched_getaffinity(0))} CPU cores ({platform.machine()}), with load {load:.1f} at the end",
        "threads of the engine": os.environ.get("OMP_NUM_THREADS", "one per core"),
        "service": f"model {options.model}, one worker with {options.slots} slots",
        "jobs of high priority": MIXES["uniform"],
        "other jobs": MIXES["mixed"],
        "time": f"{time.monotonic() - started_at:.0f} s in all",
    }
    print("\n".join([*_deadline_table(deadlines), ""]))
    print("\n".join(f"- {name}: {value}" for name, value in configuration.items()))
    if options.json:
        result = {"configuration": configuration, "priority": high, "deadlines": deadlines}
        options.json.write_text(json.dumps(result, indent=2) + "\n")


@contextmanager
def _client(model: str, slots: int) -> Iterator[Client]:
    with TemporaryDirectory(prefix="i2i-") as folder:
        settings = ApiSettings(_env_file=None, data_dir=Path(folder), model=model, slots=slots, port=free_port())
        with running(settings) as service, httpx.Client(base_url=settings.local_url, trust_env=False) as http:
            yield Client(service, http)


def _measure_priority(client: Client, options: argparse.Namespace) -> dict[str, list[float]]:
    """Return the seconds of jobs of high priority, alone on the service and on one whose slots are all taken."""
    choose = random.Random(options.seed)
    probes = jobs("uniform", client.card, 3 * options.high, 100 * options.seed)
    background = iter(jobs("mixed", client.card, 20 * options.slots, 100 * options.seed + 1))
    found: dict[str, list[float]] = {"alone": [], "saturated": [], "saturated, normal": []}
    for warm_up in [client.submit(next(background)) for _ in range(options.slots)]:
        client.seconds(warm_up)
    for part in range(ROUNDS):
        _log(f"priorities: round {part + 1} of {ROUNDS}")
        for _ in range(options.high // ROUNDS):
            found["alone"].append(client.seconds(client.submit(probes.pop())))
        waiting: list[str] = []
        for _ in range(options.high // ROUNDS):
            # As many jobs wait as there are slots, and the jobs in the slots are at different steps.
            while client.queued() < options.slots:
                waiting.append(client.submit(next(background)))
            time.sleep(choose.uniform(0.0, 1.0))
            found["saturated"].append(client.seconds(client.submit(probes.pop(), priority=Priority.HIGH)))
        normal = client.submit(probes.pop())
        found["saturated, normal"].append(client.seconds(normal))
        for job_id in waiting:
            client.seconds(job_id)
    return found


def _measure_deadlines(client: Client, options: argparse.Namespace, alone_s: float) -> dict[str, Any]:
    """Return the lateness of each job in seconds, first in first out and by deadline, for the same arrivals."""
    calibration = jobs("mixed", client.card, 3 * options.slots, 100 * options.seed + 2)
    started_at = time.monotonic()
    for job_id in [client.submit(job) for job in calibration]:
        client.seconds(job_id)
    rate = options.load * len(calibration) / (time.monotonic() - started_at)
    choose = random.Random(options.seed)
    arrivals, at_s = [], 0.0
    for job in jobs("mixed", client.card, options.jobs, 100 * options.seed + 3):
        arrivals.append((at_s, job, alone_s * choose.choice((URGENT, PATIENT))))
        at_s += choose.expovariate(rate)
    _log(f"deadlines: {options.jobs} jobs, {rate:.2f} a second")
    return {
        "alone_s": alone_s,
        "rate": rate,
        "deadline_s": [deadline_s for *_, deadline_s in arrivals],
        "first in, first out": _run(client, arrivals, with_deadlines=False),
        "by deadline": _run(client, arrivals, with_deadlines=True),
    }


def _run(client: Client, arrivals: Sequence[tuple[float, Job, float]], *, with_deadlines: bool) -> list[float]:
    started_at, ids = time.monotonic(), []
    for at_s, job, deadline_s in arrivals:
        time.sleep(max(0.0, started_at + at_s - time.monotonic()))
        more = {"deadline_s": deadline_s, "deadline_policy": DeadlinePolicy.BEST_EFFORT} if with_deadlines else {}
        ids.append(client.submit(job, **more))
    return [client.seconds(job_id) for job_id in ids]


def _priority_table(found: dict[str, list[float]]) -> list[str]:
    lines = ["| a job of 20 steps | jobs | p50 | p95 | p95 / p50 alone |", "|---|---:|---:|---:|---:|"]
    alone_s = np.median(found["alone"])
    for name, seconds in found.items():
        label = "saturated worker, `high`" if name == "saturated" else name.replace("saturated", "saturated worker")
        p50, p95 = np.percentile(seconds, (50, 95))
        lines.append(f"| {label} | {len(seconds)} | {p50:.2f} s | {p95:.2f} s | {p95 / alone_s:.2f}x |")
    ratio = np.percentile(found["saturated"], 95) / alone_s
    return [*lines, "", f"Goal: p95 of `high` at most {GOAL_RATIO}x, {'met' if ratio <= GOAL_RATIO else 'missed'}."]


def _deadline_table(found: dict[str, Any]) -> list[str]:
    due = np.array(found["deadline_s"])
    is_urgent = due < found["alone_s"] * (URGENT + PATIENT) / 2
    lines = ["| order | deadlines met | urgent | not urgent | mean latency |", "|---|---:|---:|---:|---:|"]
    met = {}
    for name in ("first in, first out", "by deadline"):
        seconds = np.array(found[name])
        in_time = seconds <= due
        met[name] = in_time.mean()
        parts = " | ".join(f"{part.mean():.0%}" for part in (in_time, in_time[is_urgent], in_time[~is_urgent]))
        lines.append(f"| {name} | {parts} | {seconds.mean():.1f} s |")
    points = 100 * (met["by deadline"] - met["first in, first out"])
    goal = f"Goal: {GOAL_POINTS} points more, {'met' if points >= GOAL_POINTS else 'missed'}: {points:.0f}."
    deadlines = f"{URGENT:g} or {PATIENT:g} times the {found['alone_s']:.2f} s of a job alone"
    return [*lines, "", f"{goal} {len(due)} jobs, {found['rate']:.2f} a second; deadlines {deadlines}."]


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
