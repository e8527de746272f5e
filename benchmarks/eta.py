"""How true an ETA is: a seeded mixed load on the whole service, and each `eta_s` against when its job was done.

    python -m benchmarks.eta

Jobs come at random moments, faster than the service works, in all three priorities. What was said of a job when it was
submitted and while it waited is compared with when it ended. Nobody knows who will come later with a higher priority:
such arrivals are part of the error.
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

from benchmarks.workload import MIXES, Job, jobs
from img2img.app.schemas.responses import Job as JobView
from img2img.app.settings import ApiSettings
from img2img.app.supervisor.supervisor import Supervisor, free_port, running
from img2img.domain.job import JobStatus, Priority
from img2img.domain.model_card import ModelCard

TICK_S = 0.1
PRIORITIES = {Priority.LOW: 1, Priority.NORMAL: 3, Priority.HIGH: 1}  # how often each comes
FIELDS = ("prompt", "strength", "guidance_scale", "num_inference_steps", "scheduler", "seed", "width", "height")


@dataclass(frozen=True)
class Said:
    """An ETA, and what became of it."""

    priority: str
    at_submit: bool
    queue_position: int
    eta_s: float
    real_s: float

    @property
    def error_s(self) -> float:
        return self.eta_s - self.real_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="demo, or a diffusers folder")
    parser.add_argument("--jobs", type=int, default=60)
    parser.add_argument("--gap-s", type=float, default=0.25, help="between two submits, on average")
    parser.add_argument("--slots", type=int, default=4, help="of the worker")
    parser.add_argument("--look-s", type=float, default=2.0, help="between two looks at a waiting job")
    parser.add_argument("--warm-up", type=int, default=8, help="jobs before, from which the worker learns its pace")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write every estimate to this file")
    options = parser.parse_args()
    with TemporaryDirectory(prefix="i2i-") as folder:
        settings = ApiSettings(
            _env_file=None, data_dir=Path(folder), model=options.model, slots=options.slots, port=free_port()
        )
        with running(settings) as service, httpx.Client(base_url=settings.local_url, trust_env=False) as http:
            said, passed_s = _measure(options, service, http)
    configuration = _configuration(options, passed_s)
    print(_markdown(configuration, said))
    if options.json:
        estimates = [asdict(one) for one in said]
        options.json.write_text(json.dumps({"configuration": configuration, "estimates": estimates}, indent=2) + "\n")


def _measure(options: argparse.Namespace, service: Supervisor, http: httpx.Client) -> tuple[list[Said], float]:
    """Every estimate with its truth, and how long all jobs took."""
    [model] = http.get("/models").raise_for_status().json()["models"]
    card = ModelCard.model_validate({name: model[name] for name in ModelCard.model_fields if name in model})
    choose = random.Random(options.seed)
    _say(f"warming up with {options.warm_up} jobs")
    warm_up = jobs("mixed", card, options.warm_up, 2 * options.seed)
    load = Load(service, http, options.look_s)
    load.run([(0.0, Priority.NORMAL, job) for job in warm_up])

    arrivals, at_s = [], 0.0
    for job in jobs("mixed", card, options.jobs, 2 * options.seed + 1):
        [priority] = choose.choices(list(PRIORITIES), list(PRIORITIES.values()))
        arrivals.append((at_s, priority, job))
        at_s += choose.expovariate(1 / options.gap_s)
    _say(f"{options.jobs} jobs, the last after {arrivals[-1][0]:.0f} s")
    started_at = time.monotonic()
    load = Load(service, http, options.look_s)
    load.run(arrivals)
    return load.said(), time.monotonic() - started_at


class Load:
    """Submits jobs when they are due, and looks at them until they have ended."""

    def __init__(self, service: Supervisor, http: httpx.Client, look_s: float) -> None:
        self._service = service
        self._http = http
        self._look_s = look_s
        self._open: dict[str, float] = {}  # when each was looked at
        self._views: list[tuple[float, bool, JobView]] = []  # when it was told, whether by a submit, what
        self._ended: dict[str, JobView] = {}

    def run(self, arrivals: Iterable[tuple[float, Priority, Job]]) -> None:
        """Until all have ended. arrivals: seconds after the start, sorted."""
        started_at = time.monotonic()
        due = list(arrivals)
        while due or self._open:
            self._service.tick()
            while due and due[0][0] <= time.monotonic() - started_at:
                self._submit(*due.pop(0)[1:])
            for job_id, looked_at in list(self._open.items()):
                if time.monotonic() - looked_at >= self._look_s:
                    self._look(job_id)
            time.sleep(TICK_S)

    def said(self) -> list[Said]:
        """The estimates that were given, with what became of them."""
        found = []
        for told_at, at_submit, view in self._views:
            end = self._ended[view.id]
            if end.status is not JobStatus.SUCCEEDED or end.finished_at is None:
                raise SystemExit(f"job {view.id} {end.status}: {end.error}")
            if view.eta_s is not None and view.queue_position is not None:
                real_s = end.finished_at.timestamp() - told_at
                found.append(Said(view.priority, at_submit, view.queue_position, view.eta_s, real_s))
        return found

    def _submit(self, priority: Priority, job: Job) -> None:
        fields = {name: str(getattr(job.spec, name)) for name in FIELDS} | {"priority": priority.value}
        answer = self._http.post("/img2img", files={"image": job.png}, data=fields, timeout=60)
        self._note(answer, at_submit=True)

    def _look(self, job_id: str) -> None:
        self._note(self._http.get(f"/jobs/{job_id}", timeout=60), at_submit=False)

    def _note(self, answer: httpx.Response, *, at_submit: bool) -> None:
        if answer.is_error:
            raise SystemExit(f"the service answered {answer.status_code}: {answer.text}")
        view = JobView.model_validate_json(answer.content)
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
        "looks": f"every {options.look_s} s while a job waits",
    }


def _markdown(configuration: dict[str, str], said: Sequence[Said]) -> str:
    groups = {"at submit": [one for one in said if one.at_submit]}
    groups |= {f"at submit, {p}": [one for one in groups["at submit"] if one.priority == p] for p in PRIORITIES}
    groups["while it waits"] = [one for one in said if not one.at_submit]
    lines = [
        "| ETA given | estimates | real wait, median | error, median | p90 | of the wait, median | p90 | ETA / wait |"
    ]
    lines.append("|---|---:|---:|---:|---:|---:|---:|---:|")
    for name, group in groups.items():
        if group:
            lines.append(f"| {name} | {len(group)} | {_cells(group)} |")
    return "\n".join([*lines, "", *(f"- {name}: {value}" for name, value in configuration.items())])


def _cells(group: Sequence[Said]) -> str:
    real_s = np.array([one.real_s for one in group])
    error_s = np.abs([one.error_s for one in group])
    seconds = (np.median(real_s), np.median(error_s), np.percentile(error_s, 90))
    part = error_s / real_s
    ratio = np.median([one.eta_s / one.real_s for one in group])
    parts = f"{np.median(part):.0%} | {np.percentile(part, 90):.0%} | {ratio:.2f}"
    return " | ".join(f"{value:.1f} s" for value in seconds) + f" | {parts}"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
