"""Limits of a container, read from files as the kernel writes them."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from img2img.container_limits import cpu_count, free_memory_bytes, memory_bytes

CORES = len(os.sched_getaffinity(0))
MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
GIB = 1024**3

Cgroups = Callable[..., dict[str, Path]]


@pytest.fixture
def cgroups(tmp_path: Path) -> Cgroups:
    def write(own: str, **files: str) -> dict[str, Path]:
        (tmp_path / "own").write_text(own)
        for name, text in files.items():
            file = tmp_path / "root" / name.replace("__", "/").replace("_DOT_", ".")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return {"root": tmp_path / "root", "own": tmp_path / "own"}

    return write


def test_machine_without_limits(cgroups: Cgroups) -> None:
    paths = cgroups("0::/\n", cpu_DOT_max="max 100000\n", memory_DOT_max="max\n")
    assert (cpu_count(**paths), memory_bytes(**paths)) == (CORES, MEMORY)


def test_container_of_version_2(cgroups: Cgroups) -> None:
    paths = cgroups("0::/\n", cpu_DOT_max="50000 100000\n", memory_DOT_max=f"{GIB}\n")
    assert (cpu_count(**paths), memory_bytes(**paths)) == (1, min(GIB, MEMORY))


def test_limit_of_a_parent_group_counts(cgroups: Cgroups) -> None:
    paths = cgroups(
        "0::/pod/container\n",
        pod__cpu_DOT_max="100000 100000\n",
        pod__container__cpu_DOT_max="max 100000\n",
        pod__container__memory_DOT_max=f"{GIB // 2}\n",
        pod__memory_DOT_max=f"{GIB}\n",
    )
    assert (cpu_count(**paths), memory_bytes(**paths)) == (1, GIB // 2)


@pytest.mark.parametrize("path", ["docker/c1", ""])
def test_container_of_version_1(cgroups: Cgroups, path: str) -> None:
    inside = f"{path}/".lstrip("/").replace("/", "__")
    paths = cgroups(
        "4:memory:/docker/c1\n3:cpu,cpuacct:/docker/c1\n",
        **{
            f"cpu__{inside}cpu.cfs_quota_us": "100000\n",
            f"cpu__{inside}cpu.cfs_period_us": "100000\n",
            f"memory__{inside}memory.limit_in_bytes": f"{GIB}\n",
        },
    )
    assert (cpu_count(**paths), memory_bytes(**paths)) == (1, min(GIB, MEMORY))


def test_version_1_without_quota(cgroups: Cgroups) -> None:
    files = {"cpu__cpu.cfs_quota_us": "-1\n", "cpu__cpu.cfs_period_us": "100000\n"}
    assert cpu_count(**cgroups("3:cpu,cpuacct:/\n", **files)) == CORES


def test_fraction_of_a_core_is_one_core(cgroups: Cgroups) -> None:
    assert cpu_count(**cgroups("0::/\n", cpu_DOT_max="1000 100000\n")) == 1
    assert cpu_count(**cgroups("0::/\n", cpu_DOT_max="150000 100000\n")) == min(2, CORES)


def test_free_memory_of_a_container(cgroups: Cgroups, tmp_path: Path) -> None:
    paths = cgroups(
        "0::/\n",
        memory_DOT_max=f"{GIB}\n",
        memory_DOT_current=f"{GIB - 3_000_000}\n",
        memory_DOT_stat="anon 5\ninactive_file 1000000\n",
    )
    assert free_memory_bytes(**paths) == 4_000_000
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  9000 kB\nMemFree: 100 kB\nMemAvailable:    2000 kB\n")
    assert free_memory_bytes(**paths, meminfo=meminfo) == 2_048_000


def test_free_memory_without_proc(cgroups: Cgroups, tmp_path: Path) -> None:
    paths = cgroups("0::/\n", memory_DOT_max="max\n")
    assert free_memory_bytes(**paths, meminfo=tmp_path / "none") == MEMORY
