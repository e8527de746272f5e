"""The worker of the chaos run: the real one, which dies of one prompt."""

import os
import signal
from typing import Any

from tests.support.processes import run_worker

POISON = "kills its worker"


def run(environment: dict[str, str], log: str) -> None:
    """A worker that a job with this prompt takes down with it, as a fault in a kernel or a driver would."""
    import img2img.worker.__main__  # here: who starts workers needs no torch
    from img2img.app.supervisor.process import _die_with_parent

    class KilledByPoison(img2img.worker.__main__.JobRunner):
        def prepare(self, spec: Any, *arguments: Any) -> Any:
            if spec.prompt == POISON:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().prepare(spec, *arguments)

    _die_with_parent()
    img2img.worker.__main__.JobRunner = KilledByPoison  # type: ignore[misc]
    run_worker(environment, log)
