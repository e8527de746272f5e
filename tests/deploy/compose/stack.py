"""The service in containers, as a separate Compose project."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import httpx

from img2img.app.supervisor.supervisor import free_port
from tests.support.processes import wait_for

ROOT = Path(__file__).parents[3]
# A worker imports torch, which is slow on a busy machine.
SLOW_S = 1800


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=3600, check=False
    )


def compose_command() -> list[str] | None:
    """Return the command for Compose v2, or else docker-compose, or None without a container engine."""
    if not shutil.which("docker") or run("docker", "info").returncode:
        return None
    if run("docker", "compose", "version").returncode == 0:
        return ["docker", "compose"]
    return ["docker-compose"] if shutil.which("docker-compose") else None


class Stack:
    """A Compose project with separate containers, networks, volumes and port."""

    def __init__(self, compose: list[str]) -> None:
        self.name = f"img2img-test-{os.getpid()}"
        # An empty file, so that a .env file is not read. docker-compose 1.29 does not take /dev/null.
        self._empty = NamedTemporaryFile(prefix="img2img-", suffix=".env")  # noqa: SIM115  # deleted with this object
        self._compose = [*compose, "--project-name", self.name, "--env-file", self._empty.name]
        port = free_port()
        self._environment = {"IMG2IMG_PORT": str(port), "IMG2IMG_HOST": "127.0.0.1", "OMP_NUM_THREADS": "1"}
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False)

    def compose(self, *arguments: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        done = run(*self._compose, *arguments, **(self._environment | environment))
        assert not check or done.returncode == 0, f"{arguments}: {done.stdout}\n{done.stderr}"
        return done

    def up(self, workers: int = 1) -> None:
        """Start the services, and wait until this number of workers is live."""
        self.compose("up", "--detach", "--scale", f"worker={workers}")
        wait_for(lambda: self.live_workers() == workers, SLOW_S)

    def live_workers(self) -> int:
        """Return the number of live workers in the response of /readyz, or 0 without a response."""
        try:
            return int(self.http.get("/readyz").json()["workers"]["detail"].split()[0])
        except (httpx.TransportError, ValueError):
            return 0

    def containers(self, service: str) -> list[dict[str, Any]]:
        """Return the `docker inspect` documents of the running containers of a service."""
        ids = run(
            "docker",
            "ps",
            "--quiet",
            "--no-trunc",
            "--filter",
            f"label=com.docker.compose.project={self.name}",
            "--filter",
            f"label=com.docker.compose.service={service}",
        ).stdout.split()
        return json.loads(run("docker", "inspect", *ids).stdout) if ids else []

    def submit(self, **fields: Any) -> str:
        with (ROOT / "examples" / "input.png").open("rb") as file:
            response = self.http.post("/img2img", files={"image": file}, data=fields)
        assert response.status_code == 202, response.text
        return str(response.json()["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        job: dict[str, Any] = self.http.get(f"/jobs/{job_id}").json()
        return job

    def wait_until(self, condition: Callable[[], Any], timeout_s: float = SLOW_S) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, self.compose("logs", "--tail", "50").stdout
            time.sleep(0.5)

    def down(self, *options: str) -> None:
        self.compose("--profile", "observability", "down", *options)
