"""Soak test: the whole service under load for a long time, to find leaks.

    python -m benchmarks.soak

First the capacity is measured with all slots in use. Then jobs arrive at random times, at a share of the capacity.
Memory, threads and open files of all processes are sampled, and temporary files are counted. Under load the memory of a
worker depends on its current batches, so leaks are found by comparing memory at rest before and after. The growth per
hour under load is the slope of a least-squares line through the samples after the warm-up.
Exits with 1 if there is a leak.
"""

import argparse
import os
import platform
import random
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import numpy as np
import psutil

from benchmarks.eta import FIELDS
from benchmarks.trend import slope_per_hour
from benchmarks.workload import Job, jobs, served_card
from img2img.app.schemas.responses import Job as JobView
from img2img.app.settings import ApiSettings
from img2img.app.supervisor.supervisor import Supervisor, free_port, running
from img2img.worker.runtime.allocator import TRIM_INTERVAL_S

TICK_S = 0.05
SAMPLE_S = 2.0
# Share of the time in which caches fill and allocators settle.
WARM_UP = 0.25
# Seconds without load, in which a worker returns memory to the operating system.
REST_S = TRIM_INTERVAL_S + 10
# More growth of memory at rest is a leak; less can be caches that were not filled.
MAX_GROWTH_MB = 32.0
# Names of processes by a word of their command.
PROCESSES = {
    "img2img.app.cli": "api",
    "img2img.worker": "worker",
    "img2img.app.webhooks": "webhooks",
    "redis-server": "redis",
}


@dataclass(frozen=True)
class Sample:
    """Resources of one process, or of all decoders together, at one time."""

    at_s: float
    rss_mb: float
    threads: int
    # Open file descriptors, including connections.
    files: int


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--share", type=float, default=0.8, help="share of the capacity")
    parser.add_argument("--model", default="demo", help="demo, or a diffusers folder")
    parser.add_argument("--slots", type=int, default=8, help="slots of the worker")
    parser.add_argument("--capacity-jobs", type=int, default=48, help="jobs for measuring the capacity")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with TemporaryDirectory(prefix="i2i-") as folder:
        temporary = Path(folder) / "tmp"
        temporary.mkdir()
        # Temporary files of the service are counted here.
        os.environ["TMPDIR"] = str(temporary)
        settings = ApiSettings(
            _env_file=None,
            data_dir=Path(folder),
            model=options.model,
            slots=options.slots,
            port=free_port(),
            # Jobs expire as fast as they arrive, so Redis and the blob store do not grow.
            result_ttl=300,
        )
        with running(settings) as service, httpx.Client(base_url=settings.local_url, trust_env=False) as http:
            soak = Soak(service, http, options)
            per_s = soak.measure_capacity()
            soak.rest()
            # Caches of libraries, such as torch.
            before = set(temporary.iterdir())
            soak.run(per_s * options.share)
            soak.rest()
            left = [entry.name for entry in set(temporary.iterdir()) - before]
        print(soak.report(per_s))
        leaks = soak.leaks() + ([f"{len(left)} temporary files: {left[:3]}"] if left else [])
    for leak in leaks:
        print(f"LEAK: {leak}")
    print(f"{len(leaks)} leaks" if leaks else "no leaks")
    return 1 if leaks else 0


class Soak:
    """Runs the load and samples the processes."""

    def __init__(self, service: Supervisor, http: httpx.Client, options: argparse.Namespace) -> None:
        self._service, self._http, self._options = service, http, options
        self._jobs = jobs("mixed", served_card(http), 64, options.seed)
        self._choose = random.Random(options.seed)
        self._open: list[str] = []
        self._ended: list[JobView] = []
        self._processes = _processes_of(os.getpid())
        self.samples: defaultdict[str, list[Sample]] = defaultdict(list)
        self._at_rest: list[dict[str, Sample]] = []

    def measure_capacity(self) -> float:
        """Return the jobs per second with all slots in use."""
        todo = [self._choose.choice(self._jobs) for _ in range(self._options.capacity_jobs)]
        _log(f"measuring the capacity with {len(todo)} jobs")
        # The first round warms up.
        for _ in range(2):
            self._ended.clear()
            started_at, due = time.monotonic(), list(todo)
            while due or self._open:
                while due and len(self._open) < 2 * self._options.slots:
                    self._submit(due.pop())
                self._poll()
            per_s = len(todo) / (time.monotonic() - started_at)
        self._ended.clear()
        return per_s

    def run(self, per_s: float) -> None:
        seconds = self._options.minutes * 60
        _log(f"{seconds:.0f} s at {per_s:.2f} jobs/s")
        started_at = time.monotonic()
        due_at = sample_at = 0.0
        while (now_s := time.monotonic() - started_at) < seconds or self._open:
            if now_s < seconds and now_s >= due_at:
                self._submit(self._choose.choice(self._jobs))
                due_at += self._choose.expovariate(per_s)
            if now_s >= sample_at:
                self._sample(now_s)
                sample_at = now_s + SAMPLE_S
            self._poll()

    def _submit(self, job: Job) -> None:
        fields = {name: str(getattr(job.spec, name)) for name in FIELDS} | {"seed": str(self._choose.randrange(2**31))}
        response = self._http.post("/img2img", files={"image": job.png}, data=fields, timeout=60).raise_for_status()
        self._open.append(response.json()["id"])

    def _poll(self) -> None:
        self._service.tick()
        time.sleep(TICK_S)
        for job_id in self._open[: self._options.slots]:
            view = JobView.model_validate_json(self._http.get(f"/jobs/{job_id}", timeout=60).raise_for_status().content)
            if view.status.is_terminal:
                if view.error:
                    raise SystemExit(f"job {job_id}: {view.error}")
                self._http.get(view.images[0].url, timeout=60).raise_for_status()
                self._open.remove(job_id)
                self._ended.append(view)

    def rest(self) -> None:
        """Wait without load, then sample."""
        over_at = time.monotonic() + REST_S
        while time.monotonic() < over_at:
            self._poll()
        self._at_rest.append(self._samples(0))

    def _samples(self, at_s: float) -> dict[str, Sample]:
        found = {name: sample([process], at_s) for name, process in self._processes.items()}
        # A decoder may just have been replaced; the next sample includes the new one.
        with suppress(psutil.NoSuchProcess):
            found["decoders"] = sample(self._processes["api"].children(), at_s)
        return found

    def _sample(self, at_s: float) -> None:
        for name, found in self._samples(at_s).items():
            self.samples[name].append(found)

    def _settled(self, name: str) -> list[Sample]:
        samples = self.samples[name]
        return [sample for sample in samples if sample.at_s >= WARM_UP * samples[-1].at_s]

    def leaks(self) -> list[str]:
        """Return a description of everything that grows by more than noise."""
        found = []
        for name in self.samples:
            samples = self._settled(name)
            before_mb, after_mb = self._mb_at_rest(name)
            if after_mb > before_mb + MAX_GROWTH_MB:
                found.append(f"{name}: {before_mb:.0f} MB at rest before, {after_mb:.0f} MB after")
            half = len(samples) // 2
            for resource in ("threads", "files"):
                before, after = (max(getattr(s, resource) for s in part) for part in (samples[:half], samples[half:]))
                if after > before + 4:
                    found.append(f"{name}: {resource} grow from {before} to {after}")
        return found

    def _mb_at_rest(self, name: str) -> list[float]:
        return [samples[name].rss_mb for samples in self._at_rest]

    def report(self, per_s: float) -> str:
        lines = [
            "| process | MB at rest before | after | MB at work | MB/h | +- | threads | files |",
            "|---|---:|---:|---:|---:|---:|---:|---:|",
        ]
        for name in self.samples:
            samples = self._settled(name)
            slope, error = slope_per_hour([s.at_s for s in samples], [s.rss_mb for s in samples])
            threads, files = (
                f"{min(values)}-{max(values)}" for values in ([s.threads for s in samples], [s.files for s in samples])
            )
            before_mb, after_mb = self._mb_at_rest(name)
            at_work = f"{min(s.rss_mb for s in samples):.0f}-{max(s.rss_mb for s in samples):.0f}"
            memory = f"{before_mb:.0f} | {after_mb:.0f} | {at_work} | {slope:+.1f} | {error:.1f}"
            lines.append(f"| {name} | {memory} | {threads} | {files} |")
        lines += ["", "| stage | p50 | p95 | p99 |", "|---|---:|---:|---:|", *self._stages(), ""]
        options = self._options
        lines.append(
            f"- {options.minutes:g} minutes at {options.share:.0%} of {per_s:.2f} jobs/s: {len(self._ended)} jobs, "
            f"model {options.model}, {options.slots} slots, seed {options.seed}"
        )
        lines.append(
            f"- {len(os.sched_getaffinity(0))} CPU cores ({platform.machine()}), load {os.getloadavg()[0]:.1f}"
        )
        return "\n".join(lines)

    def _stages(self) -> list[str]:
        seconds: defaultdict[str, list[float]] = defaultdict(list)
        for view in self._ended:
            for stage, took_s in view.timings.items():
                seconds[stage].append(took_s)
            if view.finished_at:
                seconds["from submit to end"].append((view.finished_at - view.created_at).total_seconds())
        return [
            f"| {stage} | " + " | ".join(f"{1000 * np.percentile(values, p):.0f} ms" for p in (50, 95, 99)) + " |"
            for stage, values in seconds.items()
        ]


def sample(processes: Iterable[psutil.Process], at_s: float) -> Sample:
    """Return the summed resources of processes."""
    memory, threads, files = 0, 0, 0
    for process in processes:
        with process.oneshot():
            memory += process.memory_info().rss
            threads += process.num_threads()
            files += process.num_fds()
    return Sample(at_s, memory / 2**20, threads, files)


def _processes_of(supervisor: int) -> Mapping[str, psutil.Process]:
    """Return the processes of the service by name."""
    found = {}
    for process in psutil.Process(supervisor).children():
        for word in process.cmdline():
            if name := PROCESSES.get(Path(word.partition(" ")[0]).name):
                found[name] = process
    return found


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
