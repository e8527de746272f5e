"""The `img2img` command as a process."""

import os
import subprocess
import sys
from pathlib import Path

COMMAND = (sys.executable, "-P", "-m", "img2img.app.cli")
FAKES = Path(__file__).parent / "fakes"


def environment(**settings: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("IMG2IMG_")}
    return inherited | {"PYTHONPATH": str(FAKES), "COLUMNS": "200"} | settings


def img2img(folder: Path, *arguments: object, stdin: bytes = b"", **settings: str) -> subprocess.CompletedProcess[str]:
    """Run the command until it exits."""
    command = [*COMMAND, *map(str, arguments)]
    done = subprocess.run(
        command, cwd=folder, env=environment(**settings), input=stdin, capture_output=True, timeout=120, check=False
    )
    return subprocess.CompletedProcess(command, done.returncode, done.stdout.decode(), done.stderr.decode())


def one_line(result: "subprocess.CompletedProcess[str]", code: int = 1) -> str:
    """Return the line on stderr of a command that failed without a traceback."""
    assert result.returncode == code, result.stderr
    assert result.stdout == ""
    lines = result.stderr.strip().split("\n")
    assert len(lines) == 1, result.stderr
    return lines[0]


def last_line(result: "subprocess.CompletedProcess[str]", code: int) -> str:
    """Return the reason on stderr of `img2img serve`, after the lines that say what it starts."""
    assert result.returncode == code, result.stderr
    assert result.stdout == ""
    *progress, last = result.stderr.strip().split("\n")
    assert all(line.startswith(("img2img: data in ", "img2img: starting a worker")) for line in progress), progress
    return last
