"""Wall-clock time of a job by stage."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """One stage, such as "load" or "denoise". Times are values of `time.perf_counter`."""

    start: float
    end: float
    seconds: float  # time spent in the stage; less than `end - start` for a stage that was left and entered again


class Timeline:
    """The stages of a task or job, by name. One thread writes at a time."""

    def __init__(self) -> None:
        self.stages: dict[str, Stage] = {}
        # Calls of the denoiser that `speed` saved.
        self.skipped_calls = 0

    def add(self, name: str, start: float, end: float) -> None:
        """Add time to a stage."""
        known = self.stages.get(name, Stage(start, start, 0.0))
        self.stages[name] = Stage(known.start, end, known.seconds + end - start)

    def merge(self, parallel: Iterable["Timeline"]) -> None:
        """Add the stages of tasks that ran in parallel.

        A merged stage lasts from its first start to its last end. Its seconds are those of the slowest task.
        """
        for timeline in parallel:
            self.skipped_calls += timeline.skipped_calls
            for name, new in timeline.stages.items():
                known = self.stages.get(name, new)
                self.stages[name] = Stage(
                    min(known.start, new.start), max(known.end, new.end), max(known.seconds, new.seconds)
                )

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each stage."""
        return {name: stage.seconds for name, stage in self.stages.items()}
