"""Resource limits of decoder processes. A process sets them itself, before it reads the first image."""

import resource
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

# The measured maximum is 25: a sideways WebP with transparency and a colour profile.
BYTES_PER_PIXEL = 32
# For text chunks, colour tables and fragmentation.
SPARE_BYTES = 256 * 1024 * 1024
# A slow core decodes ten times as many.
PIXELS_PER_S = 2_000_000
SPARE_S = 5


@dataclass(frozen=True)
class SandboxLimits:
    """Limits for images of up to max_pixels in files of up to max_bytes."""

    max_pixels: int
    max_bytes: int

    @property
    def memory_bytes(self) -> int:
        """Address space, in addition to that of the interpreter and the libraries."""
        return BYTES_PER_PIXEL * self.max_pixels + 2 * self.max_bytes + SPARE_BYTES

    @property
    def cpu_s(self) -> int:
        """Processor time for one request, in seconds."""
        return SPARE_S + self.max_pixels // PIXELS_PER_S

    @property
    def wall_s(self) -> float:
        """Time for one request on a busy machine, in seconds."""
        return 3.0 * self.cpu_s


def enter_sandbox(memory_bytes: int) -> None:
    """Forbid this process to open files and sockets, start processes, write files and dump core; limit its memory.

    Open files stay open. Memory is limited on Linux only, where the memory in use is known.
    """
    limits = [(resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_NPROC, 0)]
    if sys.platform == "linux":
        limits.append((resource.RLIMIT_AS, _address_space() + memory_bytes))
    for which, most in [*limits, (resource.RLIMIT_NOFILE, 0)]:
        # Some systems do not have all limits.
        with suppress(ValueError, OSError):
            resource.setrlimit(which, (most, most))


def set_cpu_limit(seconds: int) -> None:
    """End this process by SIGXCPU after this much more processor time, unless this is called again."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(usage.ru_utime + usage.ru_stime) + 1 + seconds, hard))


def _address_space() -> int:
    """Return the bytes of address space of this process."""
    return int(Path("/proc/self/statm").read_bytes().split()[0]) * resource.getpagesize()
