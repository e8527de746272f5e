"""Names of the files that results are written to."""

from pathlib import Path
from typing import TYPE_CHECKING

from .errors import WrongUsage, complain

if TYPE_CHECKING:
    from img2img.client import Job, JobImage

DEFAULT_FOR_ONE = Path("out.png")
DEFAULT_FOR_MANY = "{stem}-out.png"
NAMES = ("stem", "index", "seed", "id")


class Outputs:
    """Chooses the file of each result, and writes it.

    Args:
        inputs: The input files of the command, which are never overwritten.

    Raises:
        WrongUsage: The options do not fit together.
        OSError: The output folder cannot be created.
    """

    def __init__(self, output: Path | None, output_dir: Path | None, inputs: list[str]) -> None:
        if output and output_dir:
            raise WrongUsage("--output and --output-dir exclude each other; a pattern may name a folder")
        if output_dir:
            pattern = output_dir / "{stem}.png"
        elif output or len(inputs) == 1:
            pattern = output or DEFAULT_FOR_ONE
        else:
            pattern = Path(DEFAULT_FOR_MANY)
        self._pattern = str(pattern)
        try:
            self._name("", 0, 0, "")
        except (KeyError, ValueError, IndexError, AttributeError):
            raise WrongUsage(f"--output may contain {', '.join(f'{{{name}}}' for name in NAMES)}") from None
        if len(inputs) > 1 and not any(f"{{{name}" in self._pattern for name in ("stem", "id")):
            raise WrongUsage("one --output for several images: use --output-dir, or a pattern with {stem} or {id}")
        if output_dir:
            output_dir.mkdir(parents=True, exist_ok=True)
        self._taken = {Path(name).resolve() for name in inputs}

    def path(self, stem: str, image: "JobImage", job: "Job") -> Path:
        """Return a path for the image that is neither an input nor another result of this command."""
        wanted = Path(self._name(stem, image.index, image.seed, job.id))
        if len(job.images) > 1 and "{index" not in self._pattern and "{seed" not in self._pattern:
            wanted = wanted.with_stem(f"{wanted.stem}-{image.index}")
        path, number = wanted, 2
        while path.resolve() in self._taken:
            path, number = wanted.with_stem(f"{wanted.stem}-{number}"), number + 1
        self._taken.add(path.resolve())
        return path

    def write(self, path: Path, image: bytes) -> None:
        """Write the file; report on stderr if that overwrites one."""
        if path.exists():
            complain(f"overwriting {path}")
        path.write_bytes(image)

    def _name(self, stem: str, index: int, seed: int, job_id: str) -> str:
        return self._pattern.format(stem=stem, index=index, seed=seed, id=job_id)
