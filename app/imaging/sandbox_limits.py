"""What a process that decodes pictures may use. Set by the process itself, before it reads the first picture."""

import os
import resource
import sys
from contextlib import suppress
from dataclasses import dataclass

BYTES_PER_PIXEL = 32  # the most that was seen is 25: a sideways WebP with transparency and a colour profile
SPARE_BYTES = 256 * 1024 * 1024  # text chunks, colour tables, fragments
PIXELS_PER_S = 2_000_000  # a slow core decodes ten times as many
SPARE_S = 5


@dataclass(frozen=True)
class SandboxLimits:
    """For pictures of up to max_pixels in files of up to max_bytes."""

    max_pixels: int
    max_bytes: int

    @property
    def memory_bytes(self) -> int:
        """Of address space, beyond what the interpreter and the libraries take."""
        return BYTES_PER_PIXEL * self.max_pixels + 2 * self.max_bytes + SPARE_BYTES

    @property
    def cpu_s(self) -> int:
        """Of processor time for one picture."""
        return SPARE_S + self.max_pixels // PIXELS_PER_S

    @property
    def wall_s(self) -> float:
        """For one picture on a machine that is busy with other things."""
        return 3.0 * self.cpu_s


def enter_sandbox(memory_bytes: int) -> None:
    """From here on this process can open no file and no socket, start no process, write no file, dump no core.

    What is open stays open. Memory is limited on Linux only: nothing else says what a process has.
    """
    limits = [(resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_NPROC, 0)]
    if sys.platform == "linux":
        limits.append((resource.RLIMIT_AS, memory_of(os.getpid()) + memory_bytes))
    for which, most in [*limits, (resource.RLIMIT_NOFILE, 0)]:
        with suppress(ValueError, OSError):  # what the system does not limit
            resource.setrlimit(which, (most, most))


def set_cpu_limit(seconds: int) -> None:
    """Ends this process by SIGXCPU after so much more processor time, unless it is called again before."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(usage.ru_utime + usage.ru_stime) + 1 + seconds, hard))


def memory_of(pid: int, *, resident: bool = False) -> int:
    """Bytes of address space of a process, or those in memory; 0 where the system does not say."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as pages:  # noqa: PTH123  # called for every picture
            return int(pages.read().split()[1 if resident else 0]) * resource.getpagesize()
    except OSError:
        return 0
