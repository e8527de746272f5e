"""Faults that are injected into the deployment, in an order that is drawn from a seed."""

import errno
import logging
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.deployment import Deployment, Process
from tests.chaos.proxy import ProxyFault
from tests.chaos.recovery import RecoveryMonitor

DISK_BYTES = 192 * 1024 * 1024
KILLS = {"worker": 34, "api": 10, "redis": 10, "webhooks": 8}  # shares of all kills
READY_S = 60.0  # time for a worker to become ready before it is killed or paused
PAUSE_S = (0.5, 2.5)  # between two faults

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fault:
    """One fault."""

    kind: str  # kill, pause, disk, or a ProxyFault
    target: str  # kind of process
    duration_s: float  # until the process runs again
    pause_s: float  # before the next fault

    def __str__(self) -> str:
        return f"{self.kind} {self.target}"


def make_faults(kills: int, others: int, lease_s: float, seed: int, *, disk: bool) -> list[Fault]:
    """Return the faults in order.

    Args:
        kills: number of kills.
        others: maximum number of other faults; they include every kind if it is large enough.
        lease_s: lease of the workers.
        seed: seed of the order and the durations.
        disk: whether the disk can be filled.
    """
    choose = random.Random(f"faults {seed}")
    targets = [target for target, share in KILLS.items() for _ in range(round(kills * share / sum(KILLS.values())))]
    targets += ["worker"] * (kills - len(targets))
    faults = [("kill", target, choose.uniform(0, 2)) for target in targets[:kills]]
    past_lease = lease_s + 2
    different = [("disk", "data", 6.0)] if disk else []
    different += [("pause", "worker", past_lease), ("pause", "redis", past_lease), ("pause", "worker", 3.0)]
    different += [("pause", "api", 4.0), ("pause", "webhooks", 9.0), ("pause", "redis", 2.0)]
    different += [
        (fault.value, target, choose.uniform(1, 5))
        for fault in ProxyFault
        if fault is not ProxyFault.NONE
        for target in ("worker", "api", "webhooks")
    ]
    different += [("pause", "worker", past_lease)] * 3
    faults += different[:others]
    choose.shuffle(faults)
    return [Fault(kind, target, duration_s, choose.uniform(*PAUSE_S)) for kind, target, duration_s in faults]


def _runs_in_background(fault: Fault) -> bool:
    return fault.kind == "pause" and fault.target == "worker"


class FaultInjector:
    """Injects the faults one after another. A worker stays paused while other faults follow."""

    def __init__(self, deployment: Deployment, recovery: RecoveryMonitor, faults: Sequence[Fault], seed: int) -> None:
        self._deployment = deployment
        self._faults = faults
        self._recovery = recovery
        self._choose = random.Random(f"targets {seed}")
        self._background: list[threading.Thread] = []
        self.done: list[Fault] = []

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
        if fault.kind == "disk":
            self._fill_disk(fault.duration_s)
        elif fault.kind == "kill":
            self._kill(self._choose_process(fault.target), fault.duration_s)
        elif fault.kind == "pause":
            self._pause(self._choose_process(fault.target), fault)
        else:
            self._inject_proxy_fault(fault)

    def _choose_process(self, kind: str) -> Process:
        group = [p for p in self._deployment.processes if p.kind == kind]
        chosen = self._choose.choice([p for p in group if not p.faulted.locked()] or group)
        give_up_at = time.monotonic() + READY_S
        while kind == "worker" and time.monotonic() < give_up_at and not self._deployment.is_live(chosen):
            time.sleep(0.1)
        return chosen

    def _kill(self, process: Process, duration_s: float) -> None:
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

        if not _runs_in_background(fault):
            pause()
            return
        self._background.append(threading.Thread(target=pause, name="pause"))
        self._background[-1].start()

    def _inject_proxy_fault(self, fault: Fault) -> None:
        """Disturb the connections to Redis of all processes of a kind, or of one of them."""
        group = [p for p in self._deployment.processes if p.kind == fault.target]
        chosen = group if self._choose.random() < 0.5 else [self._choose.choice(group)]
        with self._outage(fault.target == "worker"):
            for process in chosen:
                self._deployment.proxies.inject(process.name, ProxyFault(fault.kind))
            time.sleep(fault.duration_s)
            for process in chosen:
                self._deployment.proxies.inject(process.name, ProxyFault.NONE)

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
