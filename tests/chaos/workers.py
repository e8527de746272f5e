"""The worker of the chaos run: the real one, which dies of one prompt."""

import os
import signal
from typing import Any

from tests.processes import run_worker

POISON = "kills its worker"


def run(environment: dict[str, str], log: str) -> None:
    """A worker that a job with this prompt takes down with it, as a fault in a kernel or a driver would."""
    import worker.__main__  # here: who starts workers needs no torch
    from app.child import _die_with_parent

    class KilledByPoison(worker.__main__.JobRunner):
        def start(self, spec: Any, *arguments: Any) -> Any:
            if spec.prompt == POISON:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().start(spec, *arguments)

    _die_with_parent()
    worker.__main__.JobRunner = KilledByPoison  # type: ignore[misc]
    run_worker(environment, log)
