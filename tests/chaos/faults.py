"""What is done to the plant, in an order that a seed draws."""

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

from tests.chaos.plant import Plant, Process
from tests.chaos.proxy import Misbehaviour
from tests.chaos.recovery import RecoveryWatch

DISK_BYTES = 192 * 1024 * 1024
KILLS = {"worker": 34, "api": 10, "redis": 10, "webhooks": 8}  # how often each is killed, of all kills
READY_S = 60.0  # a worker that is to be killed or paused is given so long to become ready: it should lose something
GAP_S = (0.5, 2.5)  # between two faults

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fault:
    """kind: kill, pause, disk or a Misbehaviour of the proxies. for_s: until it is over, or it is started again."""

    kind: str
    target: str  # kind of process
    for_s: float
    gap_s: float  # after it

    def __str__(self) -> str:
        return f"{self.kind} {self.target}"


def make_storm(kills: int, others: int, lease_s: float, seed: int, *, disk: bool) -> list[Fault]:
    """The faults in their order. others: at most so many that are no kills; all kinds of them, if that is enough."""
    choose = random.Random(f"storm {seed}")
    targets = [target for target, share in KILLS.items() for _ in range(round(kills * share / sum(KILLS.values())))]
    targets += ["worker"] * (kills - len(targets))
    drawn = [("kill", target, choose.uniform(0, 2)) for target in targets[:kills]]
    past_the_lease = lease_s + 2
    different = [("disk", "data", 6.0)] if disk else []
    different += [("pause", "worker", past_the_lease), ("pause", "redis", past_the_lease), ("pause", "worker", 3.0)]
    different += [("pause", "api", 4.0), ("pause", "webhooks", 9.0), ("pause", "redis", 2.0)]
    different += [
        (how.value, target, choose.uniform(1, 5))
        for how in Misbehaviour
        if how is not Misbehaviour.NONE
        for target in ("worker", "api", "webhooks")
    ]
    different += [("pause", "worker", past_the_lease)] * 3
    drawn += different[:others]
    choose.shuffle(drawn)
    return [Fault(kind, target, for_s, choose.uniform(*GAP_S)) for kind, target, for_s in drawn]


def _beside(fault: Fault) -> bool:
    return fault.kind == "pause" and fault.target == "worker"


class Storm:
    """Does the faults, one after another; a paused worker stays so while others follow."""

    def __init__(self, plant: Plant, recovery: RecoveryWatch, faults: Sequence[Fault], seed: int) -> None:
        self._plant = plant
        self._faults = faults
        self._recovery = recovery
        self._choose = random.Random(f"targets {seed}")
        self._beside: list[threading.Thread] = []
        self.done: list[Fault] = []

    @property
    def progress(self) -> float:
        """Which share of the faults is done."""
        return len(self.done) / max(1, len(self._faults))

    def run(self) -> None:
        """Until all are over and everything runs again."""
        for number, fault in enumerate(self._faults, 1):
            log.info("%d/%d %s, %.1f s", number, len(self._faults), fault, fault.for_s)
            self._do(fault)
            self.done.append(fault)
            time.sleep(fault.gap_s)
        for thread in self._beside:
            thread.join()

    def _do(self, fault: Fault) -> None:
        if fault.kind == "disk":
            self._fill_disk(fault.for_s)
        elif fault.kind == "kill":
            self._kill(self._one_of(fault.target), fault.for_s)
        elif fault.kind == "pause":
            self._pause(self._one_of(fault.target), fault)
        else:
            self._cut_off(fault)

    def _one_of(self, kind: str) -> Process:
        group = [p for p in self._plant.processes if p.kind == kind]
        chosen = self._choose.choice([p for p in group if not p.held.locked()] or group)
        give_up_at = time.monotonic() + READY_S
        while kind == "worker" and time.monotonic() < give_up_at and not self._plant.is_live(chosen):
            time.sleep(0.1)
        return chosen

    def _kill(self, process: Process, for_s: float) -> None:
        with process.held, self._outage(process.kind == "redis"):
            process.kill()
            if process.kind == "worker":
                self._recovery.fell_silent(process)
            time.sleep(for_s)
            process.begin()

    def _pause(self, process: Process, fault: Fault) -> None:
        def pause() -> None:
            with process.held, self._outage(process.kind == "redis"):
                process.send(signal.SIGSTOP)
                if process.kind == "worker" and fault.for_s > 5:
                    self._recovery.fell_silent(process)
                time.sleep(fault.for_s)
                if fault.for_s > self._plant.lease_s / 2:
                    process.shy_until = time.monotonic() + self._plant.lease_s
                process.send(signal.SIGCONT)

        if not _beside(fault):
            pause()
            return
        self._beside.append(threading.Thread(target=pause, name="pause"))
        self._beside[-1].start()

    def _cut_off(self, fault: Fault) -> None:
        """From Redis: all processes of a kind, or one of them."""
        group = [p for p in self._plant.processes if p.kind == fault.target]
        chosen = group if self._choose.random() < 0.5 else [self._choose.choice(group)]
        with self._outage(fault.target == "worker"):
            for process in chosen:
                self._plant.proxies.misbehave(process.name, Misbehaviour(fault.kind))
            time.sleep(fault.for_s)
            for process in chosen:
                self._plant.proxies.misbehave(process.name, Misbehaviour.NONE)

    def _fill_disk(self, for_s: float) -> None:
        ballast = self._plant.data / "ballast"
        with self._outage(True):
            try:
                with ballast.open("wb", buffering=0) as file:
                    while True:
                        file.write(b"\0" * 65536)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
            time.sleep(for_s)
            ballast.unlink()

    @contextmanager
    def _outage(self, is_one: bool) -> Iterator[None]:
        begin = time.monotonic()
        yield
        if is_one:
            end = time.monotonic()
            shy_s = self._plant.lease_s if end - begin > self._plant.lease_s / 2 else 0
            self._recovery.outages.append((begin, end + shy_s))


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Mounts a small file system of its own on the folder, where that is allowed; says whether it did."""
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
