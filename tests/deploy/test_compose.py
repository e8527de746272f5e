"""Settings in the compose files and in .env.example, compared with the settings classes. Needs no Docker."""

import os
import re
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from img2img.app.settings import ApiSettings
from img2img.worker.settings import WorkerSettings

ROOT = Path(__file__).parents[2]
FILES = ("docker-compose.yml", "docker-compose.gpu.yml")
# The command line has no settings class.
CLIENT = {"IMG2IMG_API_KEY"}
PREFIX = "IMG2IMG_"


def names(settings: type[ApiSettings] | type[WorkerSettings]) -> set[str]:
    return {PREFIX + name.upper() for name in settings.model_fields}


API, WORKER = names(ApiSettings), names(WorkerSettings)


def compose(file: str = FILES[0]) -> dict[str, Any]:
    return yaml.safe_load((ROOT / file).read_text())


def environment(service: dict[str, Any]) -> set[str]:
    return {name for name in service.get("environment", {}) if name.startswith(PREFIX)}


@pytest.mark.parametrize("file", FILES)
def test_compose_files_have_known_settings(file: str) -> None:
    services = compose(file)["services"]
    for name, service in services.items():
        assert environment(service) <= (WORKER if name == "worker" else API), name
    assert set(re.findall(PREFIX + r"\w+", (ROOT / file).read_text())) <= API | WORKER


def test_compose_passes_every_setting() -> None:
    """Containers take every setting from .env, except for folders and ports inside the container."""
    services = compose()["services"]
    inside = {"IMG2IMG_DATA_DIR", "IMG2IMG_LIVE_FILE"}
    assert environment(services["worker"]) >= WORKER - inside
    # Only for the workers that `img2img serve` starts.
    only_serve = {"IMG2IMG_DEVICE", "IMG2IMG_SLOTS", "IMG2IMG_DTYPE", "IMG2IMG_COMPILE"}
    assert environment(services["api"]) >= API - inside - only_serve


def test_env_example_has_every_setting() -> None:
    listed = set(re.findall(rf"^#? ?({PREFIX}\w+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    # Set by compose.
    only_containers = {"IMG2IMG_PUBLISHED_HOST"}
    assert listed == (API | WORKER | CLIENT) - only_containers


def test_env_example_has_every_variable_of_compose() -> None:
    used = {found for file in FILES for found in re.findall(r"\$\{(\w+)", (ROOT / file).read_text())}
    only_builds = {"VERSION", "REVISION"}
    listed = set(re.findall(r"^#? ?(\w+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert used - only_builds <= listed


def test_containers_have_limits_and_no_privileges() -> None:
    services = compose()["services"]
    for name, service in services.items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert service["mem_limit"], name
        assert service["pids_limit"], name
        assert not service.get("privileged"), name
    assert "ports" not in services["redis"]
    assert services["redis"]["networks"] == ["queue"]
    assert compose()["networks"]["queue"]["internal"]


def test_images_have_the_version_of_the_package() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"${{VERSION:-{version}}}" in (ROOT / FILES[0]).read_text()
    for dockerfile in (ROOT / "docker").glob("*.Dockerfile"):
        assert f"ARG VERSION={version}\n" in dockerfile.read_text(), dockerfile


@pytest.fixture
def start_worker(tmp_path: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Run the script that starts a worker, with two fake GPUs and a `python` that prints its environment."""
    commands = {
        "nvidia-smi": "printf 'GPU 0: one\\nGPU 1: two\\n'",
        "python": 'echo "${CUDA_VISIBLE_DEVICES:-none} ${HF_HUB_OFFLINE:-online}"; exec sleep 60',
    }
    for name, script in commands.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    started = []

    def start(**settings: str) -> "subprocess.Popen[str]":
        path = f"{tmp_path}:{ROOT / 'docker' / 'worker'}:{os.environ['PATH']}"
        environment = {"PATH": path, "HF_HOME": str(tmp_path), "GPU_LOCKS": str(tmp_path)}
        started.append(
            subprocess.Popen(
                ["start-worker"], env=environment | settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_each_worker_takes_a_free_gpu(start_worker: Callable[..., "subprocess.Popen[str]"]) -> None:
    first, second = start_worker(ONE_GPU_EACH="true"), start_worker(ONE_GPU_EACH="true")
    assert {process.stdout.readline().split()[0] for process in (first, second)} == {"0", "1"}
    third = start_worker(ONE_GPU_EACH="true")
    assert third.wait(60) == 2
    assert "all 2 GPUs are used by other workers" in third.stderr.read()
    second.kill()
    second.wait()
    assert start_worker(ONE_GPU_EACH="true").stdout.readline().split()[0] in "01"
    assert start_worker().stdout.readline().split()[0] == "none"


def test_cached_models_are_loaded_offline(start_worker: Callable[..., "subprocess.Popen[str]"], tmp_path: Path) -> None:
    def mode(**settings: str) -> str:
        return start_worker(**settings).stdout.readline().split()[1]

    file = tmp_path / "models.toml"
    file.write_text("[models.a]")
    one = {"IMG2IMG_MODEL": "org/one", "IMG2IMG_MODELS_FILE": str(file)}
    assert mode(**one) == "online"
    mark = subprocess.run(
        [ROOT / "docker" / "worker" / "loaded-mark"],
        env=one | {"HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    Path(mark.stdout.strip()).touch()
    assert mode(**one) == "1"
    assert mode(**one, HF_HUB_OFFLINE="0") == "0"
    assert mode(**one | {"IMG2IMG_MODEL": "org/two"}) == "online"
    file.write_text("[models.b]")
    assert mode(**one) == "online"
