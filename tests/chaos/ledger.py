"""What the clients of a chaos run were told: every acknowledged job, and everything that was ever said of its end."""

import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

TERMINAL = ("succeeded", "failed", "cancelled")


@dataclass
class Acknowledged:
    """A job that was accepted with 202, and what its client wanted of it."""

    id: str
    owner: int
    url_of_webhook: bool
    poison: bool = False
    cancelled: bool = False  # a cancel was answered with a job that was cancelled
    end: dict[str, Any] | None = None  # the first terminal state that anybody was shown


@dataclass
class Ledger:
    """Safe from any thread."""

    jobs: dict[str, Acknowledged] = field(default_factory=dict)
    breaches: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def acknowledge(self, job: Acknowledged) -> None:
        with self._lock:
            if job.id in self.jobs:
                self.breaches.append(f"job {job.id}: given to two submits")
            self.jobs[job.id] = job

    def count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1

    def breach(self, what: str) -> None:
        with self._lock:
            self.breaches.append(what)

    def see(self, view: dict[str, Any]) -> None:
        """A job as the service shows it: once it has ended, it is shown so for ever, to the last digit."""
        if view["status"] not in TERMINAL:
            with self._lock:
                known = self.jobs.get(view["id"])
                if known and known.end is not None:
                    self.breaches.append(f"job {view['id']}: {known.end['status']} before, and now {view['status']}")
            return
        end = {name: view[name] for name in ("status", "finished_at", "images", "error")}
        with self._lock:
            job = self.jobs.get(view["id"])
            if job is None:
                self.breaches.append(f"job {view['id']}: shown, but never acknowledged")
            elif job.end is None:
                job.end = end
            elif job.end != end:
                self.breaches.append(f"job {view['id']}: ended as {job.end}, and then as {end}")
