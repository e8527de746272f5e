"""An earlier release of the package, installed beside the present one."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def install_release(revision: str, folder: Path) -> dict[str, str]:
    """Install the package of a revision, and return the environment in which `python -P` imports it.

    Args:
        revision: of this repository. The packages that it needs are those of this environment.
        folder: where it is installed.
    """
    source, target = folder / "source", folder / "release"
    source.mkdir(parents=True)
    archive = subprocess.run(["git", "archive", revision], cwd=ROOT, check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", str(source)], input=archive, check=True)
    install = ["install", "--quiet", "--no-deps", "--no-build-isolation", "--target", str(target), str(source)]
    subprocess.run([sys.executable, "-m", "pip", *install], check=True)
    environment = {"PYTHONPATH": str(target)}
    # Without -P, the package in the working directory would be imported instead.
    command = [sys.executable, "-P", "-c", "import img2img.app, img2img.worker as package; print(package.__file__)"]
    found = subprocess.run(command, env=os.environ | environment, check=True, capture_output=True, text=True).stdout
    assert Path(found.strip()).is_relative_to(target), found
    return environment
