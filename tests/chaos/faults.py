"""Faults that are injected into the deployment, in an order that is drawn from a seed."""

import errno
import logging
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.deployment import Deployment, Process, store_of
from tests.chaos.failover import Primary
from tests.chaos.proxy import ProxyFault
from tests.chaos.recovery import RecoveryMonitor
from tests.chaos.uploads import fill_disk_by_uploads

DISK_BYTES = 192 * 1024 * 1024
KILLS = {"worker": 34, "api": 10, "redis": 10, "webhooks": 8}  # shares of all kills
KILLS_WITH_REPLICAS = {"worker": 12, "api": 6, "redis": 10, "webhooks": 4}
READY_S = 60.0  # time for a worker to become ready before it is killed or paused
PAUSE_S = (0.5, 2.5)  # between two faults
CLOCK_OFFSET_S = 40.0
SYNC_S = 1.5  # an fsync of a slow disk
STOP_S = 60.0  # time for a process to end after SIGTERM; workers finish their jobs

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fault:
    """One fault."""

    kind: str  # kill, stop, pause, a ProxyFault, a fault of the clock or of the disk
    target: str  # kind of process, or `{kind} store` for its connections to the S3 server
    duration_s: float  # until the process runs again
    pause_s: float  # before the next fault

    def __str__(self) -> str:
        return f"{self.kind} {self.target}"


def make_faults(
    kills: int,
    others: int,
    lease_s: float,
    seed: int,
    *,
    disk: bool,
    preload: bool,
    bucket: bool,
    replicas: bool = False,
) -> list[Fault]:
    """Return the faults in order.

    Args:
        kills: number of kills.
        others: maximum number of other faults; they include every kind if it is large enough.
        lease_s: lease of the workers.
        seed: seed of the order and the durations.
        disk: whether the disk can be filled.
        preload: whether clocks can be wrong and the disk can be slow.
        bucket: whether images are in a bucket.
        replicas: whether Redis has replicas, so that more of the kills are of its primary.
    """
    choose = random.Random(f"faults {seed}")
    shares = KILLS_WITH_REPLICAS if replicas else KILLS
    total = sum(shares.values())
    targets = [target for target, share in shares.items() for _ in range(round(kills * share / total))]
    targets += ["worker"] * (kills - len(targets))
    faults = [("kill", target, choose.uniform(0, 2)) for target in targets[:kills]]
    past_lease = lease_s + 2
    different = [("full disk", "data", 6.0)] if disk else []
    different += [("slow disk", "redis", 6.0)] if preload else []
    different += [("hang", "worker store", 12.0), ("hang", "api store", 12.0)] if bucket else []
    different += [("pause", "worker", past_lease), ("pause", "redis", past_lease)]
    different += [("clock ahead", "worker", past_lease)] if preload else []
    different += [("disk full of uploads", "data", 0.0)] if disk and not bucket else []
    different += [("pause", "worker", 3.0)]
    different += [("pause", "api", 4.0), ("pause", "webhooks", 9.0), ("pause", "redis", 2.0)]
    different += [("stop", "api", 0.0), ("stop", "worker", 0.0), ("stop", "webhooks", 0.0)]
    if preload:
        different += [("clock behind", "worker", past_lease), ("clock ahead", "api", past_lease)]
        different += [("clock behind", "api", past_lease), ("clock ahead", "webhooks", past_lease)]
        different += [("slow disk", kind, 4.0) for kind in ("worker", "api", "redis")]
    different += [
        (fault.value, target, choose.uniform(1, 5))
        for fault in ProxyFault
        if fault is not ProxyFault.NONE
        for target in ("worker", "api", "webhooks", *(("worker store", "api store") if bucket else ()))
    ]
    different += [("pause", "worker", past_lease)] * 3
    faults += different[:others]
    choose.shuffle(faults)
    return [Fault(kind, target, duration_s, choose.uniform(*PAUSE_S)) for kind, target, duration_s in faults]


def _runs_in_background(fault: Fault) -> bool:
    return (fault.kind, fault.target) == ("pause", "worker") or fault.kind.startswith("clock")


class FaultInjector:
    """Injects the faults one after another. A worker stays paused while other faults follow."""

    def __init__(self, deployment: Deployment, recovery: RecoveryMonitor, faults: Sequence[Fault], seed: int) -> None:
        self._deployment = deployment
        self._faults = faults
        self._recovery = recovery
        self._choose = random.Random(f"targets {seed}")
        self._background: list[threading.Thread] = []
        self.done: list[Fault] = []
        self.violations: list[str] = []
        self.figures: dict[str, object] = {}

    @property
    def progress(self) -> float:
        """Share of the faults that have been injected."""
        return len(self.done) / max(1, len(self._faults))

    def run(self) -> None:
        """Inject all faults, and return when every process runs again."""
        for number, fault in enumerate(self._faults, 1):
            log.info("%d/%d %s, %.1f s", number, len(self._faults), fault, fault.duration_s)
            self._inject(fault)
            self.done.append(fault)
            time.sleep(fault.pause_s)
        for thread in self._background:
            thread.join()

    def _inject(self, fault: Fault) -> None:
        match fault.kind:
            case "full disk":
                self._fill_disk(fault.duration_s)
            case "disk full of uploads":
                self._fill_disk_by_uploads()
            case "slow disk":
                self._slow_disk(fault)
            case "clock ahead" | "clock behind":
                self._move_clock(self._choose_process(fault.target), fault)
            case "kill":
                self._kill(self._choose_process(fault.target), fault.duration_s)
            case "stop":
                self._stop(self._choose_process(fault.target))
            case "pause":
                self._pause(self._choose_process(fault.target), fault)
            case _:
                self._inject_proxy_fault(fault)

    def _choose_process(self, kind: str) -> Process:
        group = [p for p in self._deployment.processes if p.kind == kind]
        chosen = self._choose.choice([p for p in group if not p.faulted.locked()] or group)
        give_up_at = time.monotonic() + READY_S
        while kind == "worker" and time.monotonic() < give_up_at and not self._deployment.is_live(chosen):
            time.sleep(0.1)
        return chosen

    def _kill(self, process: Process, duration_s: float) -> None:
        if isinstance(process, Primary):
            # The start of an API server that was killed before is no part of the failover.
            process.wait_until_accepting()
        with process.faulted, self._outage(process.kind == "redis"):
            process.kill()
            if process.kind == "worker":
                self._recovery.worker_lost(process)
            time.sleep(duration_s)
            process.begin()

    def _pause(self, process: Process, fault: Fault) -> None:
        def pause() -> None:
            with process.faulted, self._outage(process.kind == "redis"):
                process.send(signal.SIGSTOP)
                if process.kind == "worker" and fault.duration_s > 5:
                    self._recovery.worker_lost(process)
                time.sleep(fault.duration_s)
                if fault.duration_s > self._deployment.lease_s / 2:
                    process.no_recovery_until = time.monotonic() + self._deployment.lease_s
                process.send(signal.SIGCONT)

        if _runs_in_background(fault):
            self._run_in_background(pause)
        else:
            pause()

    def _run_in_background(self, inject: Callable[[], None]) -> None:
        self._background.append(threading.Thread(target=inject, name="fault"))
        self._background[-1].start()

    def _stop(self, process: Process) -> None:
        """Stop a process as an operator does, and start it again."""
        with process.faulted:
            process.send(signal.SIGTERM)
            started = time.monotonic()
            while process.handle.poll() is None and time.monotonic() - started < STOP_S:
                time.sleep(0.05)
            if process.handle.poll() is None:
                self.violations.append(f"{process.name} has not ended {STOP_S:g} s after SIGTERM")
                process.kill()
            process.begin()

    def _move_clock(self, process: Process, fault: Fault) -> None:
        """Set the clock of a running process ahead or behind, and back later."""

        def move() -> None:
            with process.faulted:
                assert process.preloaded is not None
                process.preloaded.set_clock(CLOCK_OFFSET_S if fault.kind == "clock ahead" else -CLOCK_OFFSET_S)
                time.sleep(fault.duration_s)
                process.preloaded.set_clock(0)

        self._run_in_background(move)

    def _slow_disk(self, fault: Fault) -> None:
        """Slow down the disk for all processes of a kind."""
        group = [p for p in self._deployment.processes if p.kind == fault.target]
        with self._outage(fault.target == "redis"):
            for process in group:
                assert process.preloaded is not None
                process.preloaded.set_sync_delay(SYNC_S)
            time.sleep(fault.duration_s)
            for process in group:
                assert process.preloaded is not None
                process.preloaded.set_sync_delay(0)

    def _inject_proxy_fault(self, fault: Fault) -> None:
        """Disturb the connections of all processes of a kind, or of one of them, to Redis or to the S3 server."""
        kind, _, server = fault.target.partition(" ")
        group = [p.name for p in self._deployment.processes if p.kind == kind]
        chosen = group if server or self._choose.random() < 0.5 else [self._choose.choice(group)]
        names = list(map(store_of, chosen)) if server else chosen
        with self._outage(kind == "worker"):
            for name in names:
                self._deployment.proxies.inject(name, ProxyFault(fault.kind))
            time.sleep(fault.duration_s)
            for name in names:
                self._deployment.proxies.inject(name, ProxyFault.NONE)

    def _fill_disk_by_uploads(self) -> None:
        deployment = self._deployment
        with self._outage(True):
            filled = fill_disk_by_uploads(deployment.upload_url, deployment.upload_key)
        self.violations += filled.violations
        self.figures |= filled.figures

    def _fill_disk(self, duration_s: float) -> None:
        ballast = self._deployment.data / "ballast"
        with self._outage(True):
            try:
                with ballast.open("wb", buffering=0) as file:
                    while True:
                        file.write(b"\0" * 65536)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
            time.sleep(duration_s)
            ballast.unlink()

    @contextmanager
    def _outage(self, is_one: bool) -> Iterator[None]:
        started = time.monotonic()
        yield
        if is_one:
            end = time.monotonic()
            grace_s = self._deployment.lease_s if end - started > self._deployment.lease_s / 2 else 0
            self._recovery.outages.append((started, end + grace_s))


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Mount a small file system on the folder if that is permitted, and return whether it is."""
    mounted = (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)], capture_output=True, check=False
        ).returncode
    )
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=False)
