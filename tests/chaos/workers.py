"""The worker of a chaos run: the real one, in a fork, which kills itself for one prompt."""

from tests.chaos.poisoned_worker import poison
from tests.chaos.preload import FAULTS, use_faults
from tests.support.processes import run_worker


def run(environment: dict[str, str], log: str) -> None:
    """Run a worker that a job with the prompt POISON kills."""
    # Imported here because the process that starts workers does not need it.
    from img2img.app.supervisor.process import _die_with_parent

    _die_with_parent()
    if FAULTS in environment:
        use_faults(environment[FAULTS])
    poison()
    run_worker(environment, log)
