"""The health check of the worker's container."""

import os
import subprocess
from pathlib import Path

SCRIPTS = Path(__file__).parents[2] / "docker" / "worker"


def is_live(folder: Path, *arguments: str) -> bool:
    environment = {
        "PATH": f"{SCRIPTS}:{os.environ['PATH']}",
        "HF_HOME": str(folder),
        "IMG2IMG_LIVE_FILE": str(folder / "live"),
        "IMG2IMG_LEASE_S": "20",
    }
    return subprocess.run([SCRIPTS / "worker-is-live", *arguments], env=environment, check=False).returncode == 0


def test_worker_is_live_while_it_touches_its_file(tmp_path: Path) -> None:
    assert not is_live(tmp_path)
    (tmp_path / "live").touch()
    assert is_live(tmp_path)
    assert is_live(tmp_path, "--or-down")
    os.utime(tmp_path / "live", (1, 1))
    assert not is_live(tmp_path)
    assert not is_live(tmp_path, "--or-down")


def test_worker_that_stays_down_is_alive_and_not_ready(tmp_path: Path) -> None:
    (tmp_path / "live.down").touch()
    assert is_live(tmp_path, "--or-down")
    assert not is_live(tmp_path)
    os.utime(tmp_path / "live.down", (1, 1))
    assert not is_live(tmp_path, "--or-down")
