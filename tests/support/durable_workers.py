"""Workers and API servers that log the order in which they write to the disk and to Redis."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from img2img.redis.job_store import JobStore
from tests.support.processes import run_worker

LOG = "IMG2IMG_TEST_LOG"


def log_writes(append: Callable[[str], object], replace: Callable[[object, str, Any], object]) -> None:
    """Log each sync and each new name of a file, and each transition of a job.

    Args:
        append: gets the lines: `sync PATH`, `name PATH` and `job STATUS`.
        replace: sets an attribute of an object.
    """
    fsync, link, transition = os.fsync, os.link, JobStore._transition

    def logged_fsync(descriptor: int) -> None:
        fsync(descriptor)
        append(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink()}")

    def logged_link(source: Path, target: Path) -> None:
        link(source, target)
        append(f"name {source} {target}")

    def logged_transition(self: JobStore, job_id: str, to: Any, *arguments: Any, **options: Any) -> bool:
        append(f"job {to}")
        return transition(self, job_id, to, *arguments, **options)

    replace(os, "fsync", logged_fsync)
    replace(os, "link", logged_link)
    replace(JobStore, "_transition", logged_transition)


def run_logged(environment: dict[str, str], log: str) -> None:
    """Run a worker that logs its writes to the file that LOG names."""
    file = Path(environment[LOG]).open("a", buffering=1)  # noqa: SIM115
    log_writes(lambda line: file.write(line + "\n"), setattr)
    run_worker(environment, log)
