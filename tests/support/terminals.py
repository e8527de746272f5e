"""Runs a command in a pseudo-terminal, and the screen that a user sees."""

import fcntl
import os
import pty
import struct
import subprocess
import termios
from collections.abc import Sequence
from pathlib import Path

import pyte


class Terminal:
    """A command that runs in a terminal of its own.

    Attributes:
        process: The command.
        raw: The bytes that it has written.
    """

    def __init__(
        self, command: Sequence[object], cwd: Path, env: dict[str, str], *, columns: int = 80, lines: int = 24
    ) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        sized = env | {"TERM": "xterm", "COLUMNS": str(columns), "LINES": str(lines)}
        self.process = subprocess.Popen(
            list(map(str, command)), cwd=cwd, env=sized, stdin=theirs, stdout=theirs, stderr=theirs
        )
        os.close(theirs)
        self._screen = pyte.HistoryScreen(columns, lines, history=10_000)
        self._stream = pyte.ByteStream(self._screen)
        self.raw = b""

    def read(self) -> bool:
        """Read what the command has written; return False at its end."""
        try:
            data = os.read(self._ours, 65536)
        except OSError:  # the command has ended
            return False
        self.raw += data
        self._stream.feed(data)
        return bool(data)

    def wait(self) -> int:
        """Read until the command ends, and return its exit code."""
        while self.read():
            pass
        os.close(self._ours)
        return self.process.wait(60)

    @property
    def lines(self) -> list[str]:
        """The lines of the screen and above it."""
        above = ["".join(line[x].data for x in range(self._screen.columns)) for line in self._screen.history.top]
        return [line.rstrip() for line in (*above, *self._screen.display)]
