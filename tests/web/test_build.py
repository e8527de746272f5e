"""The source of the page in `web/`: lint, unit tests, and the built files in the package."""

import shutil
import subprocess
from pathlib import Path

import pytest

from img2img.app.playground.routes import STATIC

WEB = Path(__file__).parents[2] / "web"

pytestmark = pytest.mark.skipif(
    not (shutil.which("npm") and (WEB / "node_modules" / ".bin").exists()),
    reason="the source of the page is not checked: needs Node 20.19 or newer, then `make web`",
)


def npm(*arguments: str) -> None:
    done = subprocess.run(["npm", *arguments], cwd=WEB, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_built_files_are_those_of_the_source(tmp_path: Path) -> None:
    npm("run", "build", "--", "--outDir", str(tmp_path), "--emptyOutDir")
    assert contents(STATIC) == contents(tmp_path), "run `make web` and commit app/playground/static"


def test_lint() -> None:
    npm("run", "lint")


def test_units() -> None:
    npm("test")


def test_lock_file_names_no_registry() -> None:
    """A registry of the machine that wrote the file may not be reachable elsewhere."""
    assert '"resolved"' not in (WEB / "package-lock.json").read_text()
