"""Time of a job by stage."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol


class Moment(Protocol):
    """A time that is known later, such as the end of work on a device."""

    def at(self) -> float:
        """Wait for it. Return the time, by `time.perf_counter`."""


@dataclass(frozen=True)
class Stage:
    """One stage, such as "load" or "denoise". Times are values of `time.perf_counter`."""

    start: float
    end: float
    seconds: float  # time spent in the stage; less than `end - start` for a stage that was left and entered again


class Timeline:
    """The stages of a task or job, by name. One thread writes at a time."""

    def __init__(self) -> None:
        self._stages: dict[str, Stage] = {}
        self._later: list[tuple[str, float, Moment]] = []
        self._parallel: list[Timeline] = []
        self._last_end = 0.0  # of those with a moment
        # Calls of the denoiser that `speed` saved.
        self.skipped_calls = 0

    def add(self, name: str, start: float, end: float | Moment) -> None:
        """Add time to a stage. It ends at a time, or at a moment that is known later."""
        if isinstance(end, int | float):
            self._add(name, start, end)
        else:
            self._later.append((name, start, end))

    def _add(self, name: str, start: float, end: float) -> None:
        known = self._stages.get(name, Stage(start, start, 0.0))
        self._stages[name] = Stage(known.start, end, known.seconds + end - start)

    def merge(self, parallel: Iterable["Timeline"]) -> None:
        """Add the stages of tasks that ran in parallel.

        A merged stage lasts from its first start to its last end. Its seconds are those of the slowest task.
        """
        for timeline in parallel:
            self._parallel.append(timeline)
            self.skipped_calls += timeline.skipped_calls

    @property
    def stages(self) -> dict[str, Stage]:
        """The stages by name. Waits for moments that have not passed."""
        later, self._later = self._later, []
        for name, start, moment in later:
            # The engine is ahead of the device: a stage begins when the one before has ended.
            start = max(start, self._last_end)
            self._last_end = max(start, moment.at())
            self._add(name, start, self._last_end)
        parallel, self._parallel = self._parallel, []
        for timeline in parallel:
            for name, new in timeline.stages.items():
                known = self._stages.get(name, new)
                self._stages[name] = Stage(
                    min(known.start, new.start), max(known.end, new.end), max(known.seconds, new.seconds)
                )
        return self._stages

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each stage. Waits as `stages` does."""
        return {name: stage.seconds for name, stage in self.stages.items()}
