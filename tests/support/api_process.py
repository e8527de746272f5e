"""`img2img api` as a process, for tests of signals and limits of the process."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from img2img.app.supervisor.supervisor import free_port


@dataclass(frozen=True)
class ApiProcess:
    """A running API server."""

    process: "subprocess.Popen[bytes]"
    url: str
    log: Path

    def cpu_s(self) -> float:
        """Return the seconds of processor time that the process has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def peak_bytes(self) -> int:
        """Return the most memory that the process has used."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024


@contextmanager
def api_process(
    data_dir: Path, log: Path, prefix: Sequence[str] = (), port: int | None = None, **settings: str
) -> Iterator[ApiProcess]:
    """Run an API server on the Redis in `data_dir`.

    Args:
        log: File for its output.
        prefix: Command that runs the command of the server.
        port: Default: a free one.
        settings: Environment variables.
    """
    port = port or free_port()
    command = [sys.executable, "-m", "img2img.app.cli", "api", "--port", str(port), "--data-dir", str(data_dir)]
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*prefix, *command], env={**os.environ, **settings}, stdout=output, stderr=output, cwd=data_dir
        )
    url = f"http://127.0.0.1:{port}"
    try:
        while not _responds(url):
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        yield ApiProcess(process, url, log)
    finally:
        process.kill()
        process.wait()


def _responds(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz").status_code == 200
    except httpx.TransportError:
        return False
