"""An API server that kills itself while it handles a submit: `python -m tests.support.dying_server POINT`."""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import uvicorn

from img2img import durable_files
from img2img.app.main import create_app
from img2img.app.settings import ApiSettings
from img2img.blobs import ObjectStore
from img2img.redis.job_queue import JobQueue

# What is done when the process dies -> the method, and whether it dies before or after its call.
POINTS: dict[str, tuple[Any, str, bool]] = {
    "nothing stored": (ObjectStore, "put", False),
    "unfinished file": (durable_files, "_give_name", False),
    "image stored": (JobQueue, "_submit", False),
    "job queued": (JobQueue, "_submit", True),
}


def die_at(point: str) -> None:
    where, name, is_after = POINTS[point]
    method: Callable[..., object] = getattr(where, name)

    def die(*arguments: object) -> NoReturn:
        if is_after:
            method(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    setattr(where, name, die)


if __name__ == "__main__":
    settings = ApiSettings()
    app = create_app(settings)
    die_at(sys.argv[1])
    uvicorn.run(app, port=settings.port, log_level="warning")
