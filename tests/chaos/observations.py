"""Everything that the clients of a chaos run observe: acknowledged jobs and the states in which they see them."""

import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

TERMINAL = ("succeeded", "failed", "cancelled")

Figures = dict[str, object]


@dataclass
class AcknowledgedJob:
    """A job that was accepted with 202."""

    id: str
    owner: int
    has_webhook: bool
    is_poison: bool = False
    deadline_s: float | None = None
    is_cancelled: bool = False  # whether a cancel request was answered with a cancelled job
    end: dict[str, Any] | None = None  # the first terminal state that a client has seen


@dataclass
class Observations:
    """Acknowledged jobs, violations of guarantees, and counts. Safe from any thread.

    Attributes:
        may_repeat_ends: Whether a job may end again with the same images: the end is not confirmed by a replica before
            clients see it, and can be lost with the primary of Redis.
    """

    jobs: dict[str, AcknowledgedJob] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    may_repeat_ends: bool = False
    repeated_ends: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def acknowledge(self, job: AcknowledgedJob) -> None:
        with self._lock:
            if job.id in self.jobs:
                self.violations.append(f"job {job.id}: the id of two submissions")
            self.jobs[job.id] = job

    def count(self, name: str) -> None:
        with self._lock:
            self.counts[name] += 1

    def add_violation(self, message: str) -> None:
        with self._lock:
            self.violations.append(message)

    def observe(self, view: dict[str, Any]) -> None:
        """Compare a response or event with earlier ones: after its end a job must never change."""
        if view["status"] not in TERMINAL:
            with self._lock:
                known = self.jobs.get(view["id"])
                if known and known.end is not None and self.may_repeat_ends:
                    self.repeated_ends.add(known.id)
                elif known and known.end is not None:
                    self.violations.append(f"job {view['id']}: was {known.end['status']}, and is now {view['status']}")
            return
        end = {name: view[name] for name in ("status", "finished_at", "images", "error")}
        with self._lock:
            job = self.jobs.get(view["id"])
            if job is None:
                self.violations.append(f"job {view['id']}: exists, but was never acknowledged")
            elif job.end is None:
                job.end = end
            elif self.may_repeat_ends and _without_time(job.end) == _without_time(end):
                if job.end != end:
                    self.repeated_ends.add(job.id)
            elif job.end != end:
                self.violations.append(f"job {view['id']}: ended as {job.end}, and later as {end}")


def _without_time(end: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in end.items() if name != "finished_at"}
