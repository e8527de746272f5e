"""CPU cores and memory that this process may use: those of the machine, or the limits of its container (cgroup)."""

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")
MEMINFO = Path("/proc/meminfo")


def cpu_count(root: Path = CGROUPS, own: Path = OWN_CGROUPS) -> int:
    """Return the number of cores, at least 1. A quota of one and a half cores counts as 2."""
    cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    for folder in _folders(root, own, "cpu"):
        # Version 2 has quota and period in one file, version 1 in two.
        quota = _numbers(folder / "cpu.max", 2)
        if not quota:
            quota = _numbers(folder / "cpu.cfs_quota_us", 1) + _numbers(folder / "cpu.cfs_period_us", 1)
        if len(quota) == 2 and min(quota) > 0:
            cores = min(cores, quota[0] / quota[1])
    return max(1, math.ceil(cores))


def memory_bytes(root: Path = CGROUPS, own: Path = OWN_CGROUPS) -> int:
    """Return the bytes of memory."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for folder in _folders(root, own, "memory"):
        limits = _numbers(folder / "memory.max", 1) or _numbers(folder / "memory.limit_in_bytes", 1)
        total = min(total, *limits) if limits else total
    return total


def free_memory_bytes(root: Path = CGROUPS, own: Path = OWN_CGROUPS, meminfo: Path = MEMINFO) -> int:
    """Return the bytes of memory that this process can still use: unused, or used by files that the kernel can drop.

    On a system without /proc, that is the whole memory.
    """
    free = memory_bytes(root, own)
    with suppress(OSError):
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = min(free, int(fields["MemAvailable"].split()[0]) * 1024)
    for folder in _folders(root, own, "memory"):
        limits = _numbers(folder / "memory.max", 1) or _numbers(folder / "memory.limit_in_bytes", 1)
        used = _numbers(folder / "memory.current", 1) or _numbers(folder / "memory.usage_in_bytes", 1)
        if limits and used:
            free = min(free, limits[0] - used[0] + _dropped(folder / "memory.stat"))
    return max(0, free)


def _dropped(stat: Path) -> int:
    """Return the bytes of files that the kernel drops first when a cgroup needs memory."""
    with suppress(OSError):
        fields = dict(line.split() for line in stat.read_text().splitlines())
        return int(fields.get("total_inactive_file", fields.get("inactive_file", 0)))
    return 0


def _folders(root: Path, own: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of the cgroups of this process, from its own one to the root. Limits of any of them apply."""
    paths = [""]
    with suppress(OSError):
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                paths.append(path)
            elif controller in controllers.split(","):
                paths.append(f"{controller}/{path}")
    # A container sees its own cgroup at the root of the mount, and for version 1 below the name of the controller.
    paths.append(controller)
    for path in dict.fromkeys(paths):
        folder = root / path.strip("/")
        yield folder
        yield from (parent for parent in folder.parents if parent.is_relative_to(root) and parent != root)


def _numbers(file: Path, count: int) -> tuple[int, ...]:
    """Return the numbers in a file; none if it does not exist or has no limit (`max`, or -1)."""
    try:
        words = file.read_text().split()
    except OSError:
        return ()
    return tuple(map(int, words)) if len(words) == count and all(word.isdigit() for word in words) else ()
