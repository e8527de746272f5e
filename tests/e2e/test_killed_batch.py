"""A batch of 60 photos whose client is killed once, and the service once: each photo gets one result of its name."""

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import psutil
import pytest

from img2img.app.supervisor.supervisor import free_port
from img2img.domain.job import JobStatus
from img2img.redis.keys import JOBS
from tests.support.api_process import api_process
from tests.support.cli_command import COMMAND, environment
from tests.support.images import encoded, gradient
from tests.support.processes import Service, wait_for

PHOTOS = 60
SIDE = 64


class Killable:
    """The whole service: Redis, an API server and a worker, which are killed together and start again."""

    def __init__(self, service: Service, log: Path) -> None:
        self.service, self._log, self._port = service, log, free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._stack = ExitStack()
        self.start()

    def start(self) -> None:
        url = self.service.url
        self._stack.enter_context(
            api_process(
                self.service.folder,
                self._log,
                port=self._port,
                IMG2IMG_REDIS_URL=url,
                IMG2IMG_MODEL=str(self.service.model),
            )
        )
        self.service.start_worker(slots=16)

    def kill(self) -> None:
        """Kill all processes with SIGKILL."""
        self.service.workers[-1].kill()
        self._stack.close()
        self.service.kill_redis()

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def killable(service: Service, tmp_path: Path) -> Iterator[Killable]:
    killable = Killable(service, tmp_path / "api.log")
    yield killable
    killable.close()


def test_batch_killed_twice_is_completed_without_repeating_a_job(killable: Killable, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    names = [f"IMG_{index:04}" for index in range(PHOTOS)]
    for index, name in enumerate(names):
        (tmp_path / "photos" / f"{name}.png").write_bytes(encoded(gradient(SIDE, SIDE, blue=index)))
    size = ("--width", SIDE, "--height", SIDE, "--strength", 1, "--steps", 1, "--guidance-scale", 1)
    arguments = ("submit", "photos", "--output-dir", "out", *size, "--url", killable.url)
    command = [*COMMAND, *map(str, arguments)]
    results = tmp_path / "out"

    def saved() -> int:
        return len(list(results.glob("*.png")))

    def start() -> psutil.Popen:
        return psutil.Popen(
            command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def has_saved(process: psutil.Popen, results: int) -> bool:
        assert process.poll() is None, process.communicate()
        return saved() >= results

    first = start()
    wait_for(lambda: has_saved(first, 8), 240)
    first.kill()
    first.communicate()
    assert saved() < PHOTOS
    second = start()
    wait_for(lambda: has_saved(second, 24), 240)
    killable.kill()
    _, stderr = second.communicate(timeout=240)
    assert second.returncode == 3, stderr
    assert "to continue: the same command" in stderr
    killable.service.start_redis()
    killable.start()
    third = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=400)
    assert (third.returncode, third.stderr.count("\n")) == (0, 1), third.stderr
    assert sorted(path.stem for path in results.glob("*.png")) == names
    records = killable.service.all(job.decode() for job in killable.service.redis.zrange(JOBS, 0, -1))
    assert len(records) == PHOTOS, "no photo has a second job"
    assert {record.status for record in records} == {JobStatus.SUCCEEDED}
    made = {path.read_bytes() for path in results.glob("*.png")}
    with httpx.Client(base_url=killable.url) as http:
        assert {http.get(f"/jobs/{record.id}/images/0").content for record in records} == made
