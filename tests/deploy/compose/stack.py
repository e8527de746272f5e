"""The service in containers, by a real engine and compose, as a project of its own."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from img2img.app.supervisor.supervisor import free_port
from tests.support.processes import wait_for

ROOT = Path(__file__).parents[3]
SLOW_S = 1800  # a worker imports torch, on a machine that may be busy


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=3600, check=False
    )


def compose_command() -> list[str] | None:
    """Compose v2 where there is one, else docker-compose; None where nothing can start containers."""
    if not shutil.which("docker") or run("docker", "info").returncode:
        return None
    if run("docker", "compose", "version").returncode == 0:
        return ["docker", "compose"]
    return ["docker-compose"] if shutil.which("docker-compose") else None


class Stack:
    """One project of compose: its own containers, networks, volumes and port."""

    def __init__(self, compose: list[str]) -> None:
        self.name = f"img2img-test-{os.getpid()}"
        self._compose = [*compose, "--project-name", self.name, "--env-file", os.devnull]
        port = free_port()
        self._environment = {"IMG2IMG_PORT": str(port), "IMG2IMG_HOST": "127.0.0.1", "OMP_NUM_THREADS": "1"}
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False)

    def compose(self, *arguments: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        done = run(*self._compose, *arguments, **(self._environment | environment))
        assert not check or done.returncode == 0, f"{arguments}: {done.stdout}\n{done.stderr}"
        return done

    def up(self, workers: int = 1) -> None:
        """Starts what does not run, and waits until that many workers are live."""
        self.compose("up", "--detach", "--scale", f"worker={workers}")
        wait_for(lambda: self.live_workers() == workers, SLOW_S)

    def live_workers(self) -> int:
        """As /readyz says; 0 while it does not answer."""
        try:
            return int(self.http.get("/readyz").json()["workers"]["detail"].split()[0])
        except (httpx.TransportError, ValueError):
            return 0

    def containers(self, service: str) -> list[dict[str, Any]]:
        """What the engine says of the containers of a service that run."""
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
        with (ROOT / "examples" / "input.png").open("rb") as picture:
            answer = self.http.post("/img2img", files={"image": picture}, data=fields)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        answer: dict[str, Any] = self.http.get(f"/jobs/{job_id}").json()
        return answer

    def wait_until(self, true: Callable[[], Any], timeout_s: float = SLOW_S) -> None:
        give_up_at = time.monotonic() + timeout_s
        while not true():
            assert time.monotonic() < give_up_at, self.compose("logs", "--tail", "50").stdout
            time.sleep(0.5)

    def down(self, *options: str) -> None:
        self.compose("--profile", "observability", "down", *options)
