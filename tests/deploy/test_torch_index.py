"""Installs torch from an index that has nothing else, as the image of the worker and `make` do.

The index is a directory behind `python -m http.server`. Its torch is an empty wheel with real dependencies.
"""

import base64
import hashlib
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.pages import ROOT
from tests.support.scripts import load_script

VERSION = re.search(r"^torch==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]  # type: ignore[index]
DEPENDENCIES = ("filelock", "typing-extensions>=4.10.0", "sympy>=1.13.3", "networkx>=2.5.1", "jinja2", "fsspec>=0.8.5")
# Nothing listens there.
UNREACHABLE = "http://127.0.0.1:9/simple"
Output = pytest.CaptureFixture[str]


def empty_wheel(folder: Path, build: str) -> None:
    """Write a torch wheel with metadata and an empty package."""
    info = f"torch-{VERSION}+{build}.dist-info"
    needed = "".join(f"Requires-Dist: {name}\n" for name in DEPENDENCIES)
    files = {
        "torch/__init__.py": "",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: torch\nVersion: {VERSION}+{build}\n{needed}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b'=').decode()},{len(text)}\n"
        for name, text in files.items()
    )
    with zipfile.ZipFile(folder / f"torch-{VERSION}+{build}-py3-none-any.whl", "w") as wheel:
        for name, text in {**files, f"{info}/RECORD": f"{record}{info}/RECORD,,\n"}.items():
            wheel.writestr(name, text)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of an index that has only torch."""
    folder = tmp_path_factory.mktemp("index")
    (folder / "torch").mkdir()
    empty_wheel(folder / "torch", "cpu")
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout
        port = re.search(r"port (\d+)", server.stdout.readline())
        assert port
        yield f"http://127.0.0.1:{port[1]}"
        server.terminate()


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A virtual environment with pip."""
    venv.create(tmp_path / "venv", with_pip=True)
    return tmp_path / "venv"


def pip_settings(**settings: str) -> dict[str, str]:
    """Return the environment of this process with other settings of pip: no index except the given ones."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "TORCH_"))}
    return inherited | {"PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1"} | settings


def installed(environment: Path, name: str) -> str:
    code = f"import importlib.metadata as m; print(m.version({name!r}))"
    return subprocess.run(
        [environment / "bin" / "python", "-c", code], capture_output=True, text=True, check=False
    ).stdout.strip()


def install_commands() -> list[str]:
    """Return the commands of the Dockerfile that install packages: torch, and all others."""
    text = (ROOT / "docker" / "worker.Dockerfile").read_text().replace("\\\n", " ")
    stage = text[: text.index("FROM dependencies AS code")]
    return [
        line.removeprefix("RUN ") for line in stage.splitlines() if line.startswith("RUN") and "pip install" in line
    ]


def run(command: str, environment: Path, **settings: str) -> "subprocess.CompletedProcess[str]":
    """Run a command of the Dockerfile in the environment instead of /opt/img2img."""
    for file in ("constraints.txt", "requirements/worker.txt"):
        target = environment.parent / ("requirements.txt" if "worker" in file else file)
        shutil.copy(ROOT / file, target)
    return subprocess.run(
        command.replace("/opt/img2img", str(environment)),
        shell=True,
        cwd=environment.parent,
        env=pip_settings(**settings),
        capture_output=True,
        text=True,
        check=False,
    )


def test_image_installs_torch_from_an_index_without_its_dependencies(index: str, environment: Path) -> None:
    torch, _ = install_commands()
    done = run(torch, environment, TORCH_INDEX=index)
    assert done.returncode == 0, done.stdout + done.stderr
    assert installed(environment, "torch") == f"{VERSION}+cpu"


@pytest.mark.skipif("TEST_TORCH_INDEX" not in os.environ, reason="downloads the packages of the worker")
def test_image_installs_the_other_packages_from_the_lock(index: str, environment: Path) -> None:
    torch, others = install_commands()
    assert run(torch, environment, TORCH_INDEX=index).returncode == 0
    # With the configured index of this machine, which stands for PyPI.
    configured = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    done = run(others, environment, **configured, PIP_CONFIG_FILE=os.environ.get("PIP_CONFIG_FILE", ""))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No broken requirements found" in done.stdout
    assert installed(environment, "torch") == f"{VERSION}+cpu"
    assert installed(environment, "diffusers")


@pytest.fixture
def install() -> ModuleType:
    return load_script("install")


@pytest.fixture
def no_driver(install: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in pip_settings().items():
        monkeypatch.setenv(name, value)
    for name in set(os.environ) - set(pip_settings()):
        monkeypatch.delenv(name)
    monkeypatch.setattr(install, "nvidia_driver", lambda: None)


@pytest.mark.usefixtures("no_driver")
def test_make_installs_torch_from_the_cpu_index(
    install: ModuleType,
    index: str,
    environment: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(install, "choose_indexes", lambda *_: ("the CPU build", index))
    monkeypatch.setenv("PIP_INDEX_URL", UNREACHABLE)
    install.install_torch(environment / "bin" / "python")
    assert installed(environment, "torch") == f"{VERSION}+cpu"
    install.install_torch(environment / "bin" / "python")
    assert f"1 of 3: PyTorch {VERSION}+cpu is already installed" in capfd.readouterr().out


@pytest.mark.usefixtures("no_driver")
def test_make_uses_pypi_when_the_index_of_torch_is_unreachable(
    install: ModuleType,
    index: str,
    environment: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(install, "TORCH_INDEXES", f"{UNREACHABLE}/")
    monkeypatch.setenv("PIP_INDEX_URL", index)
    install.install_torch(environment / "bin" / "python")
    assert installed(environment, "torch") == f"{VERSION}+cpu"
    output = capfd.readouterr().out
    assert "1 of 3: PyTorch, the CPU build: no NVIDIA driver found" in output
    assert f"{UNREACHABLE}/cpu has no PyTorch for this machine or cannot be reached; trying" in output


@pytest.mark.usefixtures("no_driver")
def test_torch_index_is_never_replaced(
    install: ModuleType, index: str, environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", index)
    monkeypatch.setenv("TORCH_INDEX", UNREACHABLE)
    with pytest.raises(subprocess.CalledProcessError):
        install.install_torch(environment / "bin" / "python")
    monkeypatch.setenv("TORCH_INDEX", index)
    install.install_torch(environment / "bin" / "python")
    assert installed(environment, "torch") == f"{VERSION}+cpu"
