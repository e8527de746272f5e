"""Faults of the clock and of the disk in a process, by a library that is loaded before the C library (LD_PRELOAD)."""

import ctypes
import os
import shutil
import struct
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("preload.c")
FAULTS = "CHAOS_FAULTS"
LAYOUT = struct.Struct("dd")


def compile_library(folder: Path) -> Path | None:
    """Return the compiled library, or None without a C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    library = folder / "preload.so"
    command = [compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl", "-lm"]
    subprocess.run(command, check=True)
    return library


class PreloadedFaults:
    """The faults of one process, in a file that the process has mapped."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._clock_offset_s = self._sync_delay_s = 0.0
        self._write()

    def set_clock(self, offset_s: float) -> None:
        """Set the clock of the process ahead of the real time, or behind it."""
        self._clock_offset_s = offset_s
        self._write()

    def set_sync_delay(self, delay_s: float) -> None:
        """Let each fsync and fdatasync take this long."""
        self._sync_delay_s = delay_s
        self._write()

    def _write(self) -> None:
        # Not replaced by another file: the process has mapped this one.
        with self.file.open("r+b" if self.file.exists() else "wb") as opened:
            opened.write(LAYOUT.pack(self._clock_offset_s, self._sync_delay_s))


def use_faults(path: str) -> None:
    """Use this file in the present process, which was forked from one that has loaded the library."""
    assert ctypes.CDLL(None).chaos_use(os.fsencode(path)) == 0
