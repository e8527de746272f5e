"""The worker of the chaos run: the real one, which dies of one prompt."""

import os
import signal
from collections.abc import Callable, Mapping, Sequence

import worker.__main__
from app.child import _die_with_parent
from app.contract.spec import JobSpec
from tests.processes import run_worker
from worker.runner import JobRunner, RunningJob

POISON = "kills its worker"


class KilledByPoison(JobRunner):
    """A runner that a job with this prompt takes down with its process, as a fault in a kernel or a driver would."""

    def start(
        self, spec: JobSpec, pngs: Mapping[str, bytes], indices: Sequence[int], on_done: Callable[[], None]
    ) -> RunningJob:
        if spec.prompt == POISON:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().start(spec, pngs, indices, on_done)


def run(environment: dict[str, str], log: str) -> None:
    _die_with_parent()
    worker.__main__.JobRunner = KilledByPoison  # type: ignore[misc]
    run_worker(environment, log)
