"""Where results go: names that nobody is surprised by, and no file lost without a word."""

from pathlib import Path
from typing import Any

from .errors import WrongUsage, complain

ONE = Path("out.png")
OF_MANY = "{stem}-out.png"
NAMES = ("stem", "index", "seed", "id")


class Outputs:
    """Chooses the path of each result, and writes it."""

    def __init__(self, output: Path | None, output_dir: Path | None, inputs: list[str]) -> None:
        """inputs: the pictures of this run, whose files are never written. Raises WrongUsage or OSError."""
        if output and output_dir:
            raise WrongUsage("--output and --output-dir exclude each other; a pattern may name a folder")
        if output_dir:
            pattern = output_dir / "{stem}.png"
        elif output or len(inputs) == 1:
            pattern = output or ONE
        else:
            pattern = Path(OF_MANY)
        self._pattern = str(pattern)
        try:
            self._name("", 0, {"seed": 0}, "")
        except (KeyError, ValueError, IndexError, AttributeError):
            raise WrongUsage(f"--output may contain {', '.join(f'{{{name}}}' for name in NAMES)}") from None
        if len(inputs) > 1 and not any(f"{{{name}" in self._pattern for name in ("stem", "id")):
            raise WrongUsage("one --output for many pictures: take --output-dir, or a pattern with {stem} or {id}")
        if output_dir:
            output_dir.mkdir(parents=True, exist_ok=True)
        self._taken = {Path(name).resolve() for name in inputs}

    def path(self, stem: str, image: dict[str, Any], job: dict[str, Any]) -> Path:
        """A path for this image that is neither an input nor another result of this run."""
        wanted = Path(self._name(stem, image["index"], image, job["id"]))
        if len(job["images"]) > 1 and "{index" not in self._pattern and "{seed" not in self._pattern:
            wanted = wanted.with_stem(f"{wanted.stem}-{image['index']}")
        path, number = wanted, 2
        while path.resolve() in self._taken:
            path, number = wanted.with_stem(f"{wanted.stem}-{number}"), number + 1
        self._taken.add(path.resolve())
        return path

    def write(self, path: Path, picture: bytes) -> None:
        """Writes the file; says so where that replaces one. Raises OSError."""
        if path.exists():
            complain(f"{path} is replaced")
        path.write_bytes(picture)

    def _name(self, stem: str, index: int, image: dict[str, Any], job_id: str) -> str:
        return self._pattern.format(stem=stem, index=index, seed=image["seed"], id=job_id)
