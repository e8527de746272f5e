"""Chaos test: mixed jobs over real processes, and faults of processes, networks, clocks and disks.

    python -m tests.chaos                   # images in a directory, whose disk becomes full
    python -m tests.chaos --store bucket    # images in a bucket, which hangs and disconnects
    python -m tests.chaos --redis sentinel  # a Redis with replicas; each kill of Redis kills the primary
    python -m tests.chaos --release v0.1.0  # every second process is of an earlier release

Every acknowledged job is recorded. After the last fault it is checked that no job was lost, published twice or reported
differently to two clients. Prints a table. The exit code is 1 if a guarantee was violated.
"""

import argparse
import json
import logging
import os
import platform
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory, mkdtemp
from typing import Literal

from redis import Redis
from redis.exceptions import RedisError

from img2img.redis.job_queue import MAX_ATTEMPTS
from img2img.redis.job_store import JobStore
from img2img.redis.keys import OUTBOX
from tests.chaos import checks
from tests.chaos.deadlines import StatusTimes
from tests.chaos.deployment import Deployment
from tests.chaos.failover import Primary, check_failovers
from tests.chaos.faults import FaultInjector, make_faults, small_disk
from tests.chaos.load import LoadGenerator, plan_jobs
from tests.chaos.observations import Figures, Observations
from tests.chaos.preload import compile_library
from tests.chaos.recovery import RecoveryMonitor
from tests.support.buckets import s3_server
from tests.support.processes import MODEL, make_tiny_model
from tests.support.releases import install_release
from tests.support.replicated_redis import ReplicatedRedis
from tests.support.webhook_receivers import receiving

LIBRARY = "CHAOS_LIBRARY"  # environment variable with the path of the loaded library
MAX_STALL_S = 180.0  # after the last fault, time without any progress before the wait is given up

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """Amounts and seed of a run."""

    jobs: int = 1000
    kills: int = 62
    others: int = 42  # all other faults
    poisons: int = 3
    workers: int = 3
    lease_s: int = 20
    seed: int = 0
    store: Literal["directory", "bucket"] = "directory"
    redis: Literal["single", "sentinel"] = "single"
    release: str = ""  # revision of an earlier release, of which every second process is; none by default


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in vars(Plan()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    parser.add_argument("--logs", type=Path, help="keep the logs of all processes in this folder")
    parser.add_argument("--figures", type=Path, help="write figures and violations to this file, as JSON")
    options = vars(parser.parse_args())
    preload = load_library()
    # Stop all processes also when this one is terminated.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    logs, file = options.pop("logs"), options.pop("figures")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    plan = Plan(**options)
    figures, violations = run(plan, logs, preload=preload)
    if file:
        file.write_text(json.dumps({"figures": figures, "violations": violations}))
    print(table(plan, figures))
    for violation in violations[:50]:
        print(f"VIOLATION: {violation}")
    print(f"{len(violations)} violations" if violations else "no violations")
    return 1 if violations else 0


def load_library() -> bool:
    """Start this process again with the library of `preload.c`. Its children inherit it, also those that it forks.

    Returns whether the library is loaded; without a C compiler it is not.
    """
    if LIBRARY in os.environ:
        return True
    folder = Path(mkdtemp(prefix="i2i-"))
    library = compile_library(folder)
    if library:
        environment = os.environ | {LIBRARY: str(library), "LD_PRELOAD": str(library)}
        os.execve(sys.executable, [sys.executable, "-m", "tests.chaos", *sys.argv[1:]], environment)
    rmtree(folder)
    return False


def run(plan: Plan, logs: Path | None = None, *, preload: bool) -> tuple[Figures, Sequence[str]]:
    """Do a run, and return its figures and the violations.

    Args:
        logs: folder for the logs of all processes.
        preload: whether this process has loaded the library of `preload.c`.
    """
    started_at = time.monotonic()
    observations = Observations(may_repeat_ends=plan.redis == "sentinel")
    with ExitStack() as stack:
        if preload:
            stack.callback(rmtree, Path(os.environ[LIBRARY]).parent)
        else:
            log.warning("SKIPPED: wrong clocks and a slow disk; they need a C compiler")
        bucket = stack.enter_context(s3_server() if plan.store == "bucket" else nullcontext())
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="i2i-")))
        data = folder / "data"
        data.mkdir()
        has_disk = stack.enter_context(small_disk(data))
        if not has_disk and plan.others:
            log.warning("SKIPPED: the full disk; it needs a small file system, which only root can mount")
        receiver = stack.enter_context(receiving())
        replicated = ReplicatedRedis(folder) if plan.redis == "sentinel" else None
        primary = Primary(replicated) if replicated else None
        model = folder / MODEL
        make_tiny_model(model)
        if logs:
            logs.mkdir(parents=True, exist_ok=True)
        deployment = Deployment(
            logs or folder,
            data,
            model,
            receiver.url,
            lease_s=plan.lease_s,
            workers=plan.workers,
            bucket=bucket,
            preload=preload,
            replicated=replicated,
            redis_server=primary,
            earlier=install_release(plan.release, folder / "earlier") if plan.release else None,
        )
        stack.callback(deployment.stop)
        deployment.start()
        recovery = RecoveryMonitor(deployment.redis, deployment.can_recover)
        stack.callback(recovery.stop)
        recovery.start()
        for worker in deployment.workers:
            worker.on_killed = recovery.worker_lost
        times = StatusTimes(deployment.redis)
        stack.callback(times.stop)
        times.start()
        has_bucket = bucket is not None
        # The other faults are of the proxies to Redis, of its disk and of its one process.
        others, replicas = 0 if replicated else plan.others, replicated is not None
        faults = make_faults(
            plan.kills,
            others,
            plan.lease_s,
            plan.seed,
            disk=has_disk,
            preload=preload,
            bucket=has_bucket,
            replicas=replicas,
        )
        injector = FaultInjector(deployment, recovery, faults, plan.seed)
        jobs = plan_jobs(plan.jobs, plan.poisons, receiver.url, plan.seed)
        load = LoadGenerator(jobs, deployment.urls, deployment.keys, observations, lambda: injector.progress)
        stack.callback(load.stop)
        if primary:
            primary.wait_until_accepting = load.wait_until_accepting
        log.info("%d jobs and %d faults", len(jobs), len(faults))
        load.start()
        injector.run()
        faults_over_at = time.monotonic()
        log.info("all faults are over: %d jobs acknowledged", len(observations.jobs))
        wait_for_ends(deployment.redis, load)
        load.stop()
        wait_s = time.monotonic() - faults_over_at
        # A late worker could still end a job a second time.
        time.sleep(1)

        redis, losses = deployment.redis, recovery.losses
        figures = checks.check_jobs(observations, deployment.urls[0], deployment.keys, redis, losses)
        figures |= checks.check_webhooks(observations, list(receiver.got))
        figures |= checks.check_recovery(observations, recovery)
        figures |= checks.check_deadlines(observations, times)
        figures |= checks.check_store(observations, deployment.store, deployment.redis)
        observations.violations += injector.violations
        for process in deployment.processes:
            process.faulted.acquire()
            process.kill()
        if primary:
            figures |= check_failovers(observations, primary)
        else:
            figures |= checks.check_states(observations, data)
        figures |= injector.figures | count_faults(injector, deployment, observations)
        figures |= dict(sorted(observations.counts.items()))
        figures["from the last fault to the last end"] = f"{wait_s:.1f} s"
        figures["total"] = f"{time.monotonic() - started_at:.0f} s"
        return figures, observations.violations


def count_faults(injector: FaultInjector, deployment: Deployment, observations: Observations) -> Figures:
    """Return the numbers of faults by kind, and of exits without a fault."""
    done = Counter(map(str, injector.done))
    kills = sum(count for fault, count in done.items() if fault.startswith("kill"))
    poisoned = sum(job.is_poison for job in observations.jobs.values()) * MAX_ATTEMPTS
    exits = {p.name: p.unexpected_exits for p in deployment.processes if p.unexpected_exits}
    return {
        "kills -9": f"{kills}, and {poisoned} by jobs that kill their worker",
        **{f"fault: {fault}": count for fault, count in sorted(done.items())},
        **{f"unexpected exits: {name}": count for name, count in exits.items()},
    }


def wait_for_ends(redis: Redis, load: LoadGenerator) -> None:
    """Wait until every client is done, every job has ended and every webhook is delivered.

    Returns without an error if there is no progress for MAX_STALL_S: the checks find the jobs that still run.
    """
    remaining, give_up_at = -1, time.monotonic() + MAX_STALL_S
    while remaining:
        try:
            now_remaining = load.unfinished + len(JobStore(redis).active_ids()) + redis.zcard(OUTBOX)
        except RedisError:
            now_remaining = remaining
        if now_remaining != remaining:
            remaining, give_up_at = now_remaining, time.monotonic() + MAX_STALL_S
        if time.monotonic() > give_up_at:
            return
        time.sleep(0.2)


def table(plan: Plan, figures: Figures) -> str:
    rows = [f"| {name} | {value} |" for name, value in figures.items()]
    machine = (
        f"{len(os.sched_getaffinity(0))} CPU cores ({platform.machine()}), load {os.getloadavg()[0]:.1f} at the end"
    )
    return "\n".join(["| | |", "|---|---:|", *rows, "", f"- {plan}", f"- {machine}", ""])


if __name__ == "__main__":
    sys.exit(main())
