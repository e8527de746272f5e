"""`img2img serve` as a process, for tests that need all of it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import httpx

from img2img.app.supervisor.supervisor import free_port


@contextmanager
def serving(
    data_dir: Path,
    model: Path,
    option: str = "--model",
    *,
    log: Path | None = None,
    **settings: str,
) -> Iterator[httpx.Client]:
    """`img2img serve`, ready; ended by Ctrl-C, which it must survive with exit code 0.

    option: what `model` is: `--model` or `--models-file`. log: where all that its processes say goes.
    settings: environment variables.
    """
    port = free_port()
    command = [sys.executable, "-m", "img2img.app.cli", "serve", "--port", str(port), "--data-dir", str(data_dir)]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1", **settings}  # models this small are slower with more
    with log.open("ab") if log else nullcontext() as output:
        process = subprocess.Popen(
            [*command, option, str(model), "--slots", "16"],
            env=one_thread,
            stdout=output,
            stderr=output,
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            while not is_ready(client):
                assert process.poll() is None, "the service did not start"
                time.sleep(0.1)
            yield client
        process.send_signal(signal.SIGINT)
        assert process.wait(90) == 0
    finally:
        process.kill()
        process.wait()


def is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False
