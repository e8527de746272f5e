"""The jobs of one command: sent, followed, saved; and what is said of them."""

import glob
import json
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import typer

from img2img.client import TERMINAL_STATUSES, Client, Json, RequestRefused, ServiceUnreachable

from ..schemas.image_references import parse_reference
from .errors import INTERRUPTED, REFUSED, WrongUsage, complain
from .fields import read_image
from .outputs import Outputs
from .progress_display import ProgressDisplay, follow_jobs

GO_ON = "`img2img result` with their ids waits for them and saves the pictures, `img2img cancel` stops them"


def expand_globs(names: list[str]) -> list[str]:
    """Patterns replaced by the files that they match. Raises WrongUsage where there is none."""
    found: list[str] = []
    for name in names:
        if name == "-" or parse_reference(name) or Path(name).is_file():
            found.append(name)
            continue
        matches = [match for match in sorted(glob.glob(name, recursive=True)) if Path(match).is_file()]  # noqa: PTH207
        if not matches:
            raise WrongUsage(f"there is no file {name}")
        found += matches
    if found.count("-") > 1:
        raise WrongUsage("stdin, which is `-`, has one picture only")
    return found


class JobBatch:
    """Ends with an exit code that says how the jobs went, and on Ctrl-C with a word on those that go on."""

    def __init__(
        self,
        client: Client,
        *,
        as_json: bool = False,
        on_idle: Callable[[], None] = lambda: None,
        say: Callable[[str], None] = typer.echo,
    ) -> None:
        self._client = client
        self._as_json = as_json
        self._on_idle = on_idle
        self._say = say
        self._failed = False
        self.inputs: dict[str, str] = {}  # of the jobs that may not have ended: id to picture

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, KeyboardInterrupt | ServiceUnreachable) and self.inputs:
            complain(f"{len(self.inputs)} job(s) go on in the service: {' '.join(self.inputs)}\n  {GO_ON}")
        if isinstance(error, KeyboardInterrupt):
            raise typer.Exit(INTERRUPTED) from None
        if error is None and self._failed:
            raise typer.Exit(REFUSED)

    def send(
        self,
        names: list[str],
        fields: Mapping[str, Any],
        *,
        idempotency_key: str | None = None,
        dry_run: bool = False,
        tell: bool = False,
    ) -> None:
        """Queues a job for each picture. tell: says its id and leaves it alone. Raises Unreachable or OSError."""
        for name in names:
            image = read_image(name)
            key = _own_key(idempotency_key, image) if idempotency_key and len(names) > 1 else idempotency_key
            try:
                answer = self._client.submit({"image": image, **fields}, idempotency_key=key, dry_run=dry_run)
            except RequestRefused as error:
                self._refused(name, error, several=len(names) > 1)
                continue
            if dry_run or (tell and self._as_json):
                self._say(json.dumps({"input": name, **answer}))
            elif tell:
                self._say(answer["id"])
            if not dry_run and not tell:
                self.inputs[answer["id"]] = name

    def save(self, outputs: Outputs, *, watch: bool = False) -> None:
        """Waits for the jobs, and saves the pictures of each when it ends. Raises Unreachable, Refused or OSError.

        watch: shows them as they form, on a terminal.
        """
        several = len(self.inputs) > 1
        with ProgressDisplay(self.inputs) as display:
            for job_id, event in follow_jobs(
                self._client, list(self.inputs), self._on_idle, preview=watch and display.is_seen
            ):
                if not isinstance(event, Exception) and "status" not in event:
                    display.preview(event)
                    continue
                display.show(job_id, event)
                if isinstance(event, RequestRefused):
                    self._refused(self.inputs.pop(job_id), event, several=several, job_id=job_id)
                elif isinstance(event, Exception):
                    raise event
                elif event["status"] in TERMINAL_STATUSES:
                    self._ended(self.inputs[job_id], event, outputs, several)
                    del self.inputs[job_id]

    def _ended(self, name: str, job: Json, outputs: Outputs, several: bool) -> None:
        files = []
        for image in job["images"]:
            path = outputs.path(_stem(name), image, job)
            outputs.write(path, self._client.image(image["url"]))
            files.append(str(path))
        if job["status"] != "succeeded":
            self._failed = True
            reason = job["error"]["message"] if job["error"] else f"the job was {job['status']}"
            complain(f"{name}: {reason}" if several else reason)
        if self._as_json:
            self._say(json.dumps({"input": name, "files": files, **job}))
        else:
            for file in files:
                self._say(file)

    def _refused(self, name: str, error: RequestRefused, *, several: bool, job_id: str | None = None) -> None:
        self._failed = True
        complain(f"{name}: {error}" if several else str(error))
        if self._as_json:
            known = {"input": name} | ({"id": job_id} if job_id else {})
            self._say(json.dumps(known | {"problem": error.problem}))


def _own_key(key: str, image: bytes | str) -> str:
    """A key of this picture's own, whatever its place among the others."""
    return f"{key}-{sha256(image if isinstance(image, bytes) else image.encode()).hexdigest()[:16]}"


def _stem(name: str) -> str:
    if name == "-":
        return "stdin"
    return name.strip("/").replace("/", "-") if parse_reference(name) else Path(name).stem
