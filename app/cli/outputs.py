"""Names and formats of the files that results are written to."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .errors import WrongUsage, complain
from .inputs import stem

if TYPE_CHECKING:
    from img2img.client import Job, JobImage

Format = Literal["png", "jpeg", "webp"]
FORMATS: dict[str, Format] = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
DEFAULT_SUFFIX: dict[Format, str] = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
NAMES = ("stem", "index", "seed", "id")


class Outputs:
    """Chooses the file of each result, and writes it.

    Args:
        output: File or pattern of `--output`.
        output_dir: Folder of `--output-dir`; it is created.
        inputs: The input files of the command, which are never overwritten.
        format: Format of the images. Default: by the suffix of `output`, else PNG.
        quality: 1 to 100, for JPEG and WebP.
        overwrite: Do not report files that are overwritten.
        check: Check that the folder can be written. False if nothing will be written.

    Attributes:
        pattern: Path of a result with placeholders.
        folder: Folder of all results.
        is_batch: Whether the command is for several images.
        format: Format of the images.
        quality: 1 to 100, or None for the service's default.

    Raises:
        WrongUsage: The options do not fit together, or nothing can be written there.
    """

    def __init__(
        self,
        output: Path | None,
        output_dir: Path | None,
        inputs: list[str],
        *,
        format: Format | None = None,
        quality: int | None = None,
        overwrite: bool = False,
        check: bool = True,
    ) -> None:
        if output and output_dir:
            raise WrongUsage("--output and --output-dir exclude each other; a pattern may name a folder")
        self.format: Format = _format(output, format)
        self.quality = quality
        self._overwrite = overwrite
        if quality is not None and not 1 <= quality <= 100:
            raise WrongUsage(f"--quality should be 1 to 100, got {quality}")
        if quality is not None and self.format == "png":
            raise WrongUsage("--quality is for JPEG and WebP; choose one with --format or the suffix of --output")
        suffix = DEFAULT_SUFFIX[self.format]
        if output_dir:
            self.pattern = str(output_dir).replace("{", "{{").replace("}", "}}") + f"/{{stem}}{suffix}"
        elif output or len(inputs) == 1:
            self.pattern = str(output or f"out{suffix}")
        else:
            self.pattern = f"{{stem}}-out{suffix}"
        self.is_batch = output_dir is not None or len(inputs) > 1
        try:
            self._name("", 0, 0, "")
        except (KeyError, ValueError, IndexError, AttributeError):
            raise WrongUsage(f"--output may contain {', '.join(f'{{{name}}}' for name in NAMES)}") from None
        if len(inputs) > 1 and not self._has("stem", "id"):
            raise WrongUsage("one --output for several images: use --output-dir, or a pattern with {stem} or {id}")
        self.folder = output_dir or _folder(self.pattern)
        if check or output_dir:
            self._check_folder(create=output_dir is not None)
        self.protect(inputs)
        self._taken: set[Path] = set()
        # Results of earlier commands, and their inputs.
        self._owners: dict[Path, str] = {}

    def protect(self, inputs: list[str]) -> None:
        """Set the input files, which are never overwritten."""
        self._inputs = {Path(name).resolve() for name in inputs}

    def keep(self, results: Iterable[tuple[Path, str]]) -> None:
        """Never overwrite these results of earlier commands with results of other inputs."""
        self._owners |= {path.resolve(): name for path, name in results}

    def check_predictable(self, names: list[str]) -> None:
        """Raise `WrongUsage` if the files of the results cannot be known before the jobs run."""
        stems = [stem(name) for name in names]
        same = next((one for one in stems if stems.count(one) > 1), None)
        if same is not None:
            raise WrongUsage(f"--skip-existing needs a different name for each image; several are called {same}")
        if self._has("seed", "id"):
            raise WrongUsage("--skip-existing does not work with {seed} or {id} in --output")

    def exists(self, name: str, num_images: int) -> bool:
        """Return whether the results of an input exist."""
        wanted = [Path(self._name(stem(name), index, 0, "")) for index in range(num_images)]
        if num_images > 1 and not self._has("index"):
            wanted = [path.with_stem(f"{path.stem}-{index}") for index, path in enumerate(wanted)]
        return all(self._free(path, self._inputs).exists() for path in wanted)

    def path(self, name: str, image: "JobImage", job: "Job") -> Path:
        """Return a path for an image: neither an input, nor a result of this command or of another input."""
        wanted = Path(self._name(stem(name), image.index, image.seed, job.id))
        if len(job.images) + len(job.withheld) > 1 and not self._has("index", "seed"):
            wanted = wanted.with_stem(f"{wanted.stem}-{image.index}")
        others = {path for path, owner in self._owners.items() if owner != name}
        path = self._free(wanted, self._inputs | self._taken | others)
        self._taken.add(path.resolve())
        return path

    def write(self, path: Path, image: bytes) -> None:
        """Write the file; report on stderr if that overwrites one."""
        if path.exists() and not self._overwrite:
            complain(f"overwriting {path}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)

    def _check_folder(self, *, create: bool) -> None:
        try:
            if create:
                self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WrongUsage(f"cannot create the folder {self.folder}: {error.strerror}") from None
        if not self.folder.is_dir():
            raise WrongUsage(f"there is no folder {self.folder}")
        if not os.access(self.folder, os.W_OK | os.X_OK):
            raise WrongUsage(f"the folder {self.folder} cannot be written")
        if Path(self.pattern).is_dir():
            raise WrongUsage(f"{self.pattern} is a folder: use --output-dir {self.pattern}")

    @staticmethod
    def _free(wanted: Path, taken: set[Path]) -> Path:
        path, number = wanted, 2
        while path.resolve() in taken:
            path, number = wanted.with_stem(f"{wanted.stem}-{number}"), number + 1
        return path

    def _has(self, *names: str) -> bool:
        return any(f"{{{name}" in self.pattern for name in names)

    def _name(self, stem: str, index: int, seed: int, job_id: str) -> str:
        return self.pattern.format(stem=stem, index=index, seed=seed, id=job_id)


def _format(output: Path | None, given: Format | None) -> Format:
    """Return the format that `--format` or the suffix of `--output` names.

    Raises:
        WrongUsage: There is no such format, or they contradict.
    """
    suffix = output.suffix.lower() if output else ""
    if "}" in suffix or not suffix:
        return given or "png"
    by_suffix = FORMATS.get(suffix)
    if by_suffix is None:
        raise WrongUsage(f"--output {output}: the suffix should be one of {', '.join(FORMATS)}")
    if given and given != by_suffix:
        raise WrongUsage(f"--format {given} contradicts --output {output}")
    return by_suffix


def _folder(pattern: str) -> Path:
    """Return the deepest folder of a pattern whose name has no placeholder."""
    folder = Path(pattern).parent
    while "{" in str(folder):
        folder = folder.parent
    return folder
