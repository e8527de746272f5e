"""The input images of a command."""

import glob
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from .errors import WrongUsage

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Input:
    """An input image.

    Attributes:
        name: A file, a reference, or `-` for stdin.
        repeat: How often the same name came before.
        stdin: The bytes of stdin.
    """

    name: str
    repeat: int = 0
    stdin: bytes | None = None

    def read(self) -> bytes | str:
        """Return the bytes of the image, or the reference.

        Raises:
            OSError: The file cannot be read.
        """
        from img2img.client.images import load_image

        return load_image(self.name) if self.stdin is None else self.stdin


def find_inputs(names: list[str]) -> list[Input]:
    """Return the inputs that the arguments of a command name: files, patterns, folders, references and stdin.

    Raises:
        WrongUsage: A name is neither a file nor a folder with images nor a reference nor a pattern that matches a file.
    """
    from img2img.client import is_image_reference

    found: list[str] = []
    for name in names:
        if name == "-" or is_image_reference(name) or Path(name).is_file():
            found.append(name)
        elif Path(name).is_dir():
            found += _images_in(Path(name))
        else:
            matches = [one for one in sorted(glob.glob(name, recursive=True)) if Path(one).is_file()]  # noqa: PTH207
            if not matches:
                raise WrongUsage(f"there is no file {name}")
            found += matches
    if found.count("-") > 1:
        raise WrongUsage("`-` (stdin) can be given only once")
    seen: Counter[str] = Counter()
    inputs = []
    for name in found:
        inputs.append(Input(name, seen[name], sys.stdin.buffer.read() if name == "-" else None))
        seen[name] += 1
    return inputs


def stem(name: str) -> str:
    """Return the part of an input's name that the names of its results contain."""
    if name == "-":
        return "stdin"
    from img2img.client import is_image_reference

    return name.strip("/").replace("/", "-") if is_image_reference(name) else Path(name).stem


def _images_in(folder: Path) -> list[str]:
    images = sorted(str(path) for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    if not images:
        raise WrongUsage(f"there is no image in the folder {folder}: {', '.join(SUFFIXES)}")
    return images
