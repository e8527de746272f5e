"""Chaos: mixed jobs over real processes, which are killed, paused, cut off and robbed of their disk meanwhile.

    python -m tests.chaos

Every acknowledged id is written down. Then the faults stop, and it is checked that nothing was lost, done twice or
shown differently to two clients. Prints a table; exits with 1 if anything was breached.
"""

import argparse
import logging
import os
import platform
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from redis import Redis
from redis.exceptions import RedisError

from img2img.redis.job_store import JobStore
from img2img.redis.keys import OUTBOX
from tests.chaos import verdict
from tests.chaos.faults import Storm, make_storm, small_disk
from tests.chaos.ledger import Ledger
from tests.chaos.load import Load, make_orders
from tests.chaos.plant import Plant
from tests.chaos.recovery import RecoveryWatch
from tests.support.processes import MODEL, make_tiny_model
from tests.support.webhook_receivers import receiving

STILL_S = 180.0  # after the last fault something must end at least this often, until all have ended

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """How much is done, and by which seed."""

    jobs: int = 1000
    kills: int = 62
    others: int = 24  # pauses, misbehaving proxies, a full disk
    poisons: int = 3
    workers: int = 3
    lease_s: int = 20
    seed: int = 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, kind in Plan.__annotations__.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=getattr(Plan, name))
    parser.add_argument("--logs", type=Path, help="keep the logs of all processes in this folder")
    options = vars(parser.parse_args())
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # nothing is left behind by `kill` either
    logs = options.pop("logs")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    plan = Plan(**options)
    figures, breaches = run(plan, logs)
    print(table(plan, figures))
    for breach in breaches[:50]:
        print(f"BREACH: {breach}")
    print(f"{len(breaches)} breaches" if breaches else "no breach")
    return 1 if breaches else 0


def run(plan: Plan, logs: Path | None = None) -> tuple[verdict.Figures, Sequence[str]]:
    """The whole of it. Returns what was counted, and what should not have been."""
    started_at = time.monotonic()
    ledger = Ledger()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="i2i-")))
        data = folder / "data"
        data.mkdir()
        has_disk = stack.enter_context(small_disk(data))
        if not has_disk and plan.others:
            log.warning("SKIPPED: the full disk, for only root may mount the small file system that it needs")
        receiver = stack.enter_context(receiving())
        model = folder / MODEL
        make_tiny_model(model)
        if logs:
            logs.mkdir(parents=True, exist_ok=True)
        plant = Plant(logs or folder, data, model, receiver.url, lease_s=plan.lease_s, workers=plan.workers)
        stack.callback(plant.stop)
        plant.start()
        recovery = RecoveryWatch(plant.redis, plant.can_sweep)
        stack.callback(recovery.stop)
        recovery.start()
        faults = make_storm(plan.kills, plan.others, plan.lease_s, plan.seed, disk=has_disk)
        storm = Storm(plant, recovery, faults, plan.seed)
        orders = make_orders(plan.jobs, plan.poisons, receiver.url, plan.seed)
        load = Load(orders, plant.urls, plant.keys, ledger, lambda: storm.progress)
        stack.callback(load.stop)
        log.info("%d jobs and %d faults", len(orders), len(faults))
        load.start()
        storm.run()
        quiet_at = time.monotonic()
        log.info("the storm is over: %d jobs acknowledged", len(ledger.jobs))
        wait_for_quiet(plant.redis, load)
        load.stop()
        quiet_s = time.monotonic() - quiet_at
        time.sleep(1)  # a late worker that would end a job once more has its chance

        figures = verdict.check_jobs(ledger, plant.urls[0], plant.keys, plant.redis)
        figures |= verdict.check_webhooks(ledger, list(receiver.got))
        figures |= verdict.check_recovery(ledger, recovery)
        for process in plant.processes:
            process.held.acquire()
            process.kill()
        figures |= verdict.check_history(ledger, data)
        done = Counter(map(str, storm.done))
        kills = sum(count for fault, count in done.items() if fault.startswith("kill"))
        poisoned = sum(job.poison for job in ledger.jobs.values()) * 3
        figures |= {"kills -9": f"{kills}, and {poisoned} by poison"}
        figures |= {f"fault: {fault}": count for fault, count in sorted(done.items())}
        figures |= {
            f"died of poison, or found no Redis: {p.name}": p.own_deaths for p in plant.processes if p.own_deaths
        }
        figures |= dict(sorted(ledger.counts.items()))
        figures["from the last fault to quiet"] = f"{quiet_s:.1f} s"
        figures["in all"] = f"{time.monotonic() - started_at:.0f} s"
        return figures, ledger.breaches


def wait_for_quiet(redis: Redis, load: Load) -> None:
    """Until every order is served, every job has ended and every end is told; or nothing has come nearer to that for
    STILL_S: what then still runs, the verdict finds."""
    left, give_up_at = -1, time.monotonic() + STILL_S
    while left:
        try:
            now_left = load.left + len(JobStore(redis).active_ids()) + redis.zcard(OUTBOX)
        except RedisError:
            now_left = left
        if now_left != left:
            left, give_up_at = now_left, time.monotonic() + STILL_S
        if time.monotonic() > give_up_at:
            return
        time.sleep(0.2)


def table(plan: Plan, figures: verdict.Figures) -> str:
    rows = [f"| {name} | {value} |" for name, value in figures.items()]
    machine = (
        f"{len(os.sched_getaffinity(0))} CPU cores ({platform.machine()}), load {os.getloadavg()[0]:.1f} at the end"
    )
    return "\n".join(["| | |", "|---|---:|", *rows, "", f"- {plan}", f"- {machine}", ""])


if __name__ == "__main__":
    sys.exit(main())
