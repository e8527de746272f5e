"""Checks that a release can be made of this clone: `make release-check`.

Builds wheel and source distribution, installs each in an empty environment, runs the demo and one job, builds the site,
builds both images if Docker runs, and lists the sizes of all of these.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
DIST = ROOT / "dist"
IMAGES = ("api", "worker")
BUILD = "from setuptools import build_meta as backend; backend.build_sdist({0!r}); backend.build_wheel({0!r})"
# Characters of the messages of a command that failed.
MAX_SHOWN = 3000


class Failed(Exception):
    """A command has failed."""


class Skipped(Exception):
    """A check that needs something which this machine lacks."""


def run(*command: str | Path, **environment: str) -> str:
    """Run a command in the clone and return its output. Raises Failed with the end of what it printed."""
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False)
    if done.returncode:
        printed = (done.stdout + done.stderr).strip()
        raise Failed(f"{Path(command[0]).name} exited with {done.returncode}:\n{printed[-MAX_SHOWN:]}")
    return done.stdout


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files of a folder."""
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())


def shown(size: int) -> str:
    """Return bytes in megabytes."""
    return f"{size / 1e6:,.1f} MB"


def changelog() -> str:
    """The changelog has a section of the version."""
    if not re.search(rf"^## \[{re.escape(VERSION)}\] - \d", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE):
        raise ValueError(f"CHANGELOG.md has no section [{VERSION}] with a date")
    return VERSION


def distributions() -> str:
    """Wheel and source distribution can be built."""
    for folder in (ROOT / "build", DIST):
        shutil.rmtree(folder, ignore_errors=True)
    run(sys.executable, "-c", BUILD.format(str(DIST)))
    return ", ".join(f"{file.name} {shown(size_of(file))}" for file in sorted(DIST.iterdir()))


def source_distribution() -> str:
    """The source distribution can be installed in an empty environment."""
    with TemporaryDirectory(prefix="img2img-release-") as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder) / "bin" / "python"
        [sdist] = DIST.glob("*.tar.gz")
        constraints = ROOT / "constraints.txt"
        run(python, "-m", "pip", "install", "--quiet", "--constraint", constraints, sdist)
        run(python, "-P", "-m", "img2img.app.cli", "--help")
        return shown(size_of(Path(folder)))


def wheel() -> str:
    """The wheel with everything runs the demo and a job, in an empty environment."""
    [file] = DIST.glob("*.whl")
    test = "tests/deploy/test_wheel.py::test_wheel_in_an_empty_environment_runs_the_service"
    run(sys.executable, "-m", "pytest", "--quiet", test, TEST_WHEEL=str(file))
    return "demo and job"


def site() -> str:
    """The documentation can be built without a warning."""
    with TemporaryDirectory(prefix="img2img-site-") as folder:
        command = (sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder)
        run(*command, NO_MKDOCS_2_WARNING="1")
        return f"{len(list(Path(folder).rglob('*.html')))} pages, {shown(size_of(Path(folder)))}"


def images() -> str:
    """Both container images can be built."""
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "info"], capture_output=True, check=False).returncode:
        raise Skipped("Docker does not run here")
    sizes = []
    for name in IMAGES:
        tag = f"img2img-{name}:release-check"
        run(docker, "build", "--quiet", "--file", f"docker/{name}.Dockerfile", "--tag", tag, ".")
        size = int(run(docker, "image", "inspect", "--format", "{{.Size}}", tag))
        sizes.append(f"{name} {shown(size)}")
    return ", ".join(sizes)


CHECKS: tuple[Callable[[], str], ...] = (changelog, distributions, source_distribution, wheel, site, images)


def main() -> int:
    """Run all checks, and return 1 if one fails."""
    failed = False
    for check in CHECKS:
        try:
            result = check()
        except Skipped as reason:
            result = f"skipped: {reason}"
        except (Failed, OSError, ValueError) as error:
            failed, result = True, f"FAILED: {error}"
        print(f"{check.__name__.replace('_', ' ')}: {result}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
