"""`img2img serve` as a process, for tests of the whole service."""

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
    """Run `img2img serve` and yield a client when it is ready. SIGINT stops it, after which its exit code must be 0.

    Args:
        option: option of `serve` that takes `model`: `--model` or `--models-file`.
        log: file for the output of all processes.
        settings: environment variables.
    """
    port = free_port()
    command = [sys.executable, "-m", "img2img.app.cli", "serve", "--port", str(port), "--data-dir", str(data_dir)]
    # Models of this size are slower with more threads.
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1", **settings}
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
