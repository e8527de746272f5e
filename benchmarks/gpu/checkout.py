"""Lets a checkout be used on a machine on which the project cannot be installed."""

import atexit
import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp

ROOT = Path(__file__).parents[2]
INSIDE = ("app", "worker", "demo_model")


def use_checkout() -> None:
    """Make the package `img2img` of this checkout importable, also for processes that this one starts.

    Does nothing where the project is installed. Otherwise a temporary folder gets links to the packages, as they would
    be installed, and the metadata that the project reads of itself.
    """
    if find_spec("img2img") is not None and find_spec("img2img.worker") is not None:
        return
    folder = Path(mkdtemp(prefix="img2img-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    package = folder / "img2img"
    package.mkdir()
    for path in (ROOT / "img2img").iterdir():
        (package / path.name).symlink_to(path)
    for name in INSIDE:
        (package / name).symlink_to(ROOT / name)
    metadata = folder / "img2img_server-0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: img2img-server\nVersion: 0\n")
    sys.modules.pop("img2img", None)
    sys.path.insert(0, str(folder))
    os.environ["PYTHONPATH"] = os.pathsep.join(
        part for part in (str(folder), str(ROOT), os.environ.get("PYTHONPATH")) if part
    )
    # The current folder would come first otherwise, and may be this checkout.
    os.environ["PYTHONSAFEPATH"] = "1"
