"""Accuracy of ETAs: each `eta_s` under a random load on the whole service, compared with the actual time.

    python -m benchmarks.eta

Jobs of all three priorities arrive at random times, faster than the service finishes them. Estimates at submit and
while a job waits are compared with the time at which it finished. Later arrivals of a higher priority cannot be known;
they are part of the error.
"""

import argparse
import json
import os
import platform
import random
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import numpy as np

from benchmarks.workload import MIXES, Job, jobs, served_card
from img2img.app.schemas.responses import Job as JobView
from img2img.app.settings import ApiSettings
from img2img.app.supervisor.supervisor import Supervisor, free_port, running
from img2img.domain.job import JobStatus, Priority

TICK_S = 0.1
# Relative frequencies.
PRIORITIES = {Priority.LOW: 1, Priority.NORMAL: 3, Priority.HIGH: 1}
FIELDS = ("prompt", "strength", "guidance_scale", "num_inference_steps", "scheduler", "seed", "width", "height")


@dataclass(frozen=True)
class Estimate:
    """An ETA and the actual time."""

    priority: str
    at_submit: bool
    queue_position: int
    eta_s: float
    actual_s: float

    @property
    def error_s(self) -> float:
        return self.eta_s - self.actual_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="demo, or a diffusers folder")
    parser.add_argument("--jobs", type=int, default=60)
    parser.add_argument("--gap-s", type=float, default=0.25, help="mean time between two submits")
    parser.add_argument("--slots", type=int, default=4, help="slots of the worker")
    parser.add_argument("--poll-s", type=float, default=2.0, help="time between two polls of a waiting job")
    parser.add_argument("--warm-up", type=int, default=8, help="jobs before, for the throughput estimate of the worker")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write every estimate to this file")
    options = parser.parse_args()
    with TemporaryDirectory(prefix="i2i-") as folder:
        settings = ApiSettings(
            _env_file=None, data_dir=Path(folder), model=options.model, slots=options.slots, port=free_port()
        )
        with running(settings) as service, httpx.Client(base_url=settings.local_url, trust_env=False) as http:
            measured, passed_s = _measure(options, service, http)
    configuration = _configuration(options, passed_s)
    print(_markdown(configuration, measured))
    if options.json:
        estimates = [asdict(one) for one in measured]
        options.json.write_text(json.dumps({"configuration": configuration, "estimates": estimates}, indent=2) + "\n")


def _measure(options: argparse.Namespace, service: Supervisor, http: httpx.Client) -> tuple[list[Estimate], float]:
    """Return all estimates and the seconds until all jobs were finished."""
    card = served_card(http)
    choose = random.Random(options.seed)
    _log(f"warming up with {options.warm_up} jobs")
    warm_up = jobs("mixed", card, options.warm_up, 2 * options.seed)
    load = Load(service, http, options.poll_s)
    load.run([(0.0, Priority.NORMAL, job) for job in warm_up])

    arrivals, at_s = [], 0.0
    for job in jobs("mixed", card, options.jobs, 2 * options.seed + 1):
        [priority] = choose.choices(list(PRIORITIES), list(PRIORITIES.values()))
        arrivals.append((at_s, priority, job))
        at_s += choose.expovariate(1 / options.gap_s)
    _log(f"{options.jobs} jobs, the last after {arrivals[-1][0]:.0f} s")
    started_at = time.monotonic()
    load = Load(service, http, options.poll_s)
    load.run(arrivals)
    return load.estimates(), time.monotonic() - started_at


class Load:
    """Submits jobs when they are due and polls them until they are finished."""

    def __init__(self, service: Supervisor, http: httpx.Client, poll_s: float) -> None:
        self._service = service
        self._http = http
        self._poll_s = poll_s
        # Time of the last poll by job id.
        self._open: dict[str, float] = {}
        # Time, whether the view came from the submit, and the view.
        self._views: list[tuple[float, bool, JobView]] = []
        self._ended: dict[str, JobView] = {}

    def run(self, arrivals: Iterable[tuple[float, Priority, Job]]) -> None:
        """Run until all jobs are finished.

        Args:
            arrivals: (seconds after the start, priority, job), sorted.
        """
        started_at = time.monotonic()
        due = list(arrivals)
        while due or self._open:
            self._service.tick()
            while due and due[0][0] <= time.monotonic() - started_at:
                self._submit(*due.pop(0)[1:])
            for job_id, polled_at in list(self._open.items()):
                if time.monotonic() - polled_at >= self._poll_s:
                    self._poll(job_id)
            time.sleep(TICK_S)

    def estimates(self) -> list[Estimate]:
        """Return the estimates with the actual times."""
        found = []
        for received_at, at_submit, view in self._views:
            end = self._ended[view.id]
            if end.status is not JobStatus.SUCCEEDED or end.finished_at is None:
                raise SystemExit(f"job {view.id} {end.status}: {end.error}")
            if view.eta_s is not None and view.queue_position is not None:
                actual_s = end.finished_at.timestamp() - received_at
                found.append(Estimate(view.priority, at_submit, view.queue_position, view.eta_s, actual_s))
        return found

    def _submit(self, priority: Priority, job: Job) -> None:
        fields = {name: str(getattr(job.spec, name)) for name in FIELDS} | {"priority": priority.value}
        response = self._http.post("/img2img", files={"image": job.png}, data=fields, timeout=60)
        self._record(response, at_submit=True)

    def _poll(self, job_id: str) -> None:
        self._record(self._http.get(f"/jobs/{job_id}", timeout=60), at_submit=False)

    def _record(self, response: httpx.Response, *, at_submit: bool) -> None:
        if response.is_error:
            raise SystemExit(f"the service responded with {response.status_code}: {response.text}")
        view = JobView.model_validate_json(response.content)
        self._views.append((time.time(), at_submit, view))
        self._open[view.id] = time.monotonic()
        if view.status.is_terminal:
            del self._open[view.id]
            self._ended[view.id] = view


def _configuration(options: argparse.Namespace, passed_s: float) -> dict[str, str]:
    cores = len(os.sched_getaffinity(0))
    load = os.getloadavg()[0]
    priorities = ", ".join(f"{weight} {name}" for name, weight in PRIORITIES.items())
    return {
        "machine": f"{cores} CPU cores ({platform.machine()}), with load {load:.1f} at the end",
        "service": f"model {options.model}, one worker with {options.slots} slots, after {options.warm_up} jobs",
        "load": f"{options.jobs} jobs, one every {options.gap_s} s on average, done in {passed_s:.0f} s",
        "priorities": f"drawn {priorities}; one client",
        "jobs": f"{MIXES['mixed']}, seed {options.seed}",
        "polls": f"every {options.poll_s} s while a job waits",
    }


def _markdown(configuration: dict[str, str], estimates: Sequence[Estimate]) -> str:
    groups = {"at submit": [one for one in estimates if one.at_submit]}
    groups |= {f"at submit, {p}": [one for one in groups["at submit"] if one.priority == p] for p in PRIORITIES}
    groups["while waiting"] = [one for one in estimates if not one.at_submit]
    lines = [
        "| ETA given | estimates | actual wait, median | error, median | p90 | relative error, median | p90 "
        "| ETA / wait |"
    ]
    lines.append("|---|---:|---:|---:|---:|---:|---:|---:|")
    for name, group in groups.items():
        if group:
            lines.append(f"| {name} | {len(group)} | {_cells(group)} |")
    return "\n".join([*lines, "", *(f"- {name}: {value}" for name, value in configuration.items())])


def _cells(group: Sequence[Estimate]) -> str:
    actual_s = np.array([one.actual_s for one in group])
    error_s = np.abs([one.error_s for one in group])
    seconds = (np.median(actual_s), np.median(error_s), np.percentile(error_s, 90))
    part = error_s / actual_s
    ratio = np.median([one.eta_s / one.actual_s for one in group])
    parts = f"{np.median(part):.0%} | {np.percentile(part, 90):.0%} | {ratio:.2f}"
    return " | ".join(f"{value:.1f} s" for value in seconds) + f" | {parts}"


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
