"""The jobs of one command: submit them, follow them, save their images and report."""

import glob
import json
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import typer

from img2img.client import Client, ClientError, Job, PreviewEvent, ServiceUnreachable, is_image_reference
from img2img.domain.job import JobStatus

from .errors import INTERRUPTED, REFUSED, WrongUsage, complain
from .fields import read_image
from .outputs import Outputs
from .printing import problem_document, response_document
from .progress_display import ProgressDisplay, follow_jobs

REMEDY = "`img2img result ID...` waits for them and saves their images, `img2img cancel ID...` cancels them"


def expand_globs(names: list[str]) -> list[str]:
    """Return the names with patterns replaced by the files that they match.

    Raises:
        WrongUsage: A name is neither a file nor a reference nor a pattern that matches a file.
    """
    found: list[str] = []
    for name in names:
        if name == "-" or is_image_reference(name) or Path(name).is_file():
            found.append(name)
            continue
        matches = [match for match in sorted(glob.glob(name, recursive=True)) if Path(match).is_file()]  # noqa: PTH207
        if not matches:
            raise WrongUsage(f"there is no file {name}")
        found += matches
    if found.count("-") > 1:
        raise WrongUsage("`-` (stdin) can be given only once")
    return found


class JobBatch:
    """The jobs of one command.

    On leaving, the exit code reports failed jobs. An interrupt or a lost connection prints the jobs that go on.

    Args:
        on_idle: Called regularly while waiting.
        echo: Prints a line of the result.
    """

    def __init__(
        self,
        client: Client,
        *,
        as_json: bool = False,
        on_idle: Callable[[], None] = lambda: None,
        echo: Callable[[str], None] = typer.echo,
    ) -> None:
        self._client = client
        self._as_json = as_json
        self._on_idle = on_idle
        self._echo = echo
        self._failed = False
        # Names of the inputs by the ids of the jobs that may not have ended.
        self.inputs: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, KeyboardInterrupt | ServiceUnreachable) and self.inputs:
            complain(f"{len(self.inputs)} job(s) go on in the service: {' '.join(self.inputs)}\n  {REMEDY}")
        if isinstance(error, KeyboardInterrupt):
            raise typer.Exit(INTERRUPTED) from None
        if error is None and self._failed:
            raise typer.Exit(REFUSED)

    def submit(
        self, names: list[str], fields: Mapping[str, Any], *, idempotency_key: str | None = None, wait: bool = True
    ) -> None:
        """Submit a job for each image. With `wait` false, print its id and do not follow it.

        Raises:
            ServiceUnreachable: The service cannot be reached.
            OSError: An image file cannot be read.
        """
        for name in names:
            image = read_image(name)
            key = _key_of_image(idempotency_key, image) if idempotency_key and len(names) > 1 else idempotency_key
            try:
                job = self._client.submit(idempotency_key=key, **{"image": image, **fields})
            except ServiceUnreachable:
                raise
            except ClientError as error:
                self._rejected(name, error, several=len(names) > 1)
                continue
            if wait:
                self.inputs[job.id] = name
            else:
                self._echo(json.dumps({"input": name, **response_document(job)}) if self._as_json else job.id)

    def dry_run(self, names: list[str], fields: Mapping[str, Any]) -> None:
        """Print the job that would be created for each image, as JSON."""
        for name in names:
            try:
                result = self._client.dry_run(**{"image": read_image(name), **fields})
            except ServiceUnreachable:
                raise
            except ClientError as error:
                self._rejected(name, error, several=len(names) > 1)
            else:
                self._echo(json.dumps({"input": name, **response_document(result)}))

    def save(self, outputs: Outputs, *, watch: bool = False) -> None:
        """Wait for the jobs, and save the images of each when it ends.

        Args:
            watch: Show previews, if stderr is a terminal.

        Raises:
            ServiceUnreachable: The service cannot be reached.
            OSError: An image cannot be written.
        """
        several = len(self.inputs) > 1
        with ProgressDisplay(self.inputs) as display:
            for job_id, event in follow_jobs(
                self._client, list(self.inputs), self._on_idle, preview=watch and display.is_visible
            ):
                if isinstance(event, PreviewEvent):
                    display.preview(event)
                    continue
                display.show(job_id, event)
                if isinstance(event, ClientError) and not isinstance(event, ServiceUnreachable):
                    self._rejected(self.inputs.pop(job_id), event, several=several, job_id=job_id)
                elif isinstance(event, Exception):
                    raise event
                elif isinstance(event, Job):
                    self._ended(self.inputs[job_id], event, outputs, several)
                    del self.inputs[job_id]

    def _ended(self, name: str, job: Job, outputs: Outputs, several: bool) -> None:
        files = []
        for image in job.images:
            path = outputs.path(_stem(name), image, job)
            try:
                png = self._client.download(image)
            except ServiceUnreachable:
                raise
            except ClientError as error:
                # For example, the image is damaged. The others are saved.
                self._rejected(name, error, several=several, job_id=job.id)
                continue
            outputs.write(path, png)
            files.append(str(path))
        if job.status is not JobStatus.SUCCEEDED:
            self._failed = True
            reason = job.error.message if job.error else f"the job was {job.status}"
            complain(f"{name}: {reason}" if several else reason)
        if self._as_json:
            self._echo(json.dumps({"input": name, "files": files, **response_document(job)}))
        else:
            for file in files:
                self._echo(file)

    def _rejected(self, name: str, error: ClientError, *, several: bool, job_id: str | None = None) -> None:
        self._failed = True
        complain(f"{name}: {error}" if several else str(error))
        if self._as_json:
            known = {"input": name} | ({"id": job_id} if job_id else {})
            self._echo(json.dumps(known | problem_document(error)))


def _key_of_image(key: str, image: bytes | str) -> str:
    """Return an idempotency key for one image of several; it does not depend on their order."""
    return f"{key}-{sha256(image if isinstance(image, bytes) else image.encode()).hexdigest()[:16]}"


def _stem(name: str) -> str:
    if name == "-":
        return "stdin"
    return name.strip("/").replace("/", "-") if is_image_reference(name) else Path(name).stem
