"""The worker of a chaos run: the real one, which kills itself for one prompt."""

import os
import signal
from typing import Any

from tests.chaos.preload import FAULTS, use_faults
from tests.support.processes import run_worker

POISON = "kills its worker"


def run(environment: dict[str, str], log: str) -> None:
    """Run a worker that a job with the prompt POISON kills, as a fault in a kernel or a driver would."""
    # Imported here because the process that starts workers does not need torch.
    import img2img.worker.__main__
    from img2img.app.supervisor.process import _die_with_parent

    class KilledByPoison(img2img.worker.__main__.JobRunner):
        def prepare(self, spec: Any, *arguments: Any) -> Any:
            if spec.prompt == POISON:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().prepare(spec, *arguments)

    _die_with_parent()
    if FAULTS in environment:
        use_faults(environment[FAULTS])
    img2img.worker.__main__.JobRunner = KilledByPoison  # type: ignore[misc]
    run_worker(environment, log)
