"""The jobs of one command: submit them, follow them, save their images and report."""

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Self

import typer

from img2img.client import Client, ClientError, Job, PreviewEvent, ServiceUnreachable
from img2img.domain.job import JobStatus

from .errors import INTERRUPTED, REFUSED, complain
from .inputs import Input
from .job_threads import EventReaders, Finished, Rejected, Sender, Submitted, Update
from .journal import Entry, Journal
from .outputs import Outputs
from .printing import echo, problem_document, response_document, to_json
from .progress_display import ProgressDisplay
from .serve import DEMO_MODEL, DEMO_NOTE

IDLE_S = 0.2


class JobRunner:
    """The jobs of one command.

    On leaving, the exit code reports failed jobs. An interrupt or a lost connection prints how to continue.

    Args:
        service: URL of the service.
        journal: Where inputs, jobs and results are recorded, so that the command can continue after an interruption.
        restart: Submit all inputs, also those that the journal has.
        continuation: How to continue after an interruption. Default: with the ids of the jobs.
        on_idle: Called regularly while waiting.
        echo: Prints a line of the result.
    """

    def __init__(
        self,
        client: Client,
        *,
        service: str = "",
        as_json: bool = False,
        journal: Journal | None = None,
        restart: bool = False,
        continuation: str = "",
        on_idle: Callable[[], None] = lambda: None,
        echo: Callable[[str], None] = echo,
    ) -> None:
        self._client = client
        self._as_json = as_json
        self._journal = journal
        self._continuation = continuation
        self._on_idle = on_idle
        self._echo = echo
        self._failed = False
        self._several = False
        self._updates: SimpleQueue[Update] = SimpleQueue()
        self._sender = Sender(client, self._updates, service=service, journal=journal, restart=restart)
        self._readers = EventReaders(client, self._updates)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        is_interrupted = isinstance(error, KeyboardInterrupt)
        if (is_interrupted and self._sender.unsent and self._continuation) or (
            self._sender.active and (is_interrupted or isinstance(error, ServiceUnreachable))
        ):
            complain(self._how_to_continue())
        if is_interrupted:
            raise typer.Exit(INTERRUPTED) from None
        if error is None and self._failed:
            raise typer.Exit(REFUSED)

    def dry_run(self, inputs: list[Input], fields: Mapping[str, Any]) -> None:
        """Print the job that would be created for each image, as JSON."""
        self._several = len(inputs) > 1
        for one in inputs:
            try:
                result = self._client.dry_run(**{"image": one.read(), **fields})
            except ServiceUnreachable:
                raise
            except (ClientError, OSError) as error:
                self._reject(one.name, error)
            else:
                self._echo(to_json({"input": one.name, **response_document(result)}))

    def submit(
        self, inputs: list[Input], fields: Mapping[str, Any], outputs: Outputs, *, idempotency_key: str | None = None
    ) -> None:
        """Submit a job for each image and print its id.

        Raises:
            ServiceUnreachable: The service cannot be reached.
        """
        self._several = len(inputs) > 1
        self._sender.start(inputs, fields, outputs, idempotency_key)
        with ProgressDisplay(len(inputs)) as display:
            for _ in inputs:
                match self._next():
                    case Exception() as error:
                        raise error
                    case Submitted() as sent:
                        document = {"input": sent.entry.input, **response_document(sent.job)}
                        self._echo(to_json(document) if self._as_json else sent.job.id)
                    case Finished(entry):
                        document = {"input": entry.input, "id": entry.id, "files": list(entry.files)}
                        self._echo(to_json(document) if self._as_json else entry.id)
                    case Rejected(name, error):
                        self._reject(name, error)
                display.end()

    def run(
        self,
        inputs: list[Input],
        fields: Mapping[str, Any],
        outputs: Outputs,
        *,
        idempotency_key: str | None = None,
        watch: bool = False,
    ) -> None:
        """Submit a job for each image, and save the results of each when it ends.

        Images are sent in their order, while jobs that were sent before already run.

        Args:
            watch: Show previews, if stderr is a terminal.

        Raises:
            ServiceUnreachable: The service cannot be reached.
            OSError: A result cannot be written.
        """
        self._several = len(inputs) > 1
        self._sender.start(inputs, fields, outputs, idempotency_key)
        self._follow(len(inputs), outputs, watch=watch)

    def save(self, entries: list[Entry], outputs: Outputs) -> None:
        """Wait for the jobs of these entries, and save the results of each when it ends.

        Raises:
            ServiceUnreachable: The service cannot be reached.
            OSError: A result cannot be written.
        """
        self._several = len(entries) > 1
        for entry in entries:
            self._updates.put(Submitted(entry, Job(id=entry.id, status=JobStatus.QUEUED), is_new=True))
        self._sender.active = {entry.id: entry for entry in entries}
        self._follow(len(entries), outputs)

    def _follow(self, total: int, outputs: Outputs, *, watch: bool = False) -> None:
        seen: Counter[str] = Counter()
        with ProgressDisplay(total) as display:
            left = total
            while left:
                match self._next():
                    case Exception() as error:
                        raise error
                    case Submitted(entry, job, is_new):
                        seen["resumed"] += not is_new
                        if display.is_visible and not seen["note"] and job.request.get("model") == DEMO_MODEL:
                            complain(DEMO_NOTE)
                            seen["note"] += 1
                        display.add(entry.input, job)
                        self._readers.follow(job.id, preview=watch and display.is_visible)
                        continue
                    case Finished(entry):
                        seen["finished"] += 1
                        if self._as_json:
                            self._echo(to_json({"input": entry.input, "id": entry.id, "files": self._files(entry)}))
                        display.end()
                    case Rejected(name, error):
                        self._reject(name, error)
                        display.end()
                    case (_, PreviewEvent() as event):
                        display.preview(event)
                        continue
                    case (job_id, event):
                        display.show(job_id, event)
                        if not isinstance(event, Job | Exception):
                            continue
                        self._ended(job_id, event, outputs)
                left -= 1
        if seen["finished"]:
            complain(f"{seen['finished']} of {total} were finished before; --overwrite generates them again")

    def _next(self) -> Update:
        while True:
            with suppress(Empty):
                return self._updates.get(timeout=IDLE_S)
            self._on_idle()

    def _ended(self, job_id: str, end: Job | Exception, outputs: Outputs) -> None:
        """Save the results of a job, or report why it has none."""
        if isinstance(end, ServiceUnreachable) or not isinstance(end, ClientError | Job):
            raise end
        entry = self._sender.active[job_id]
        if isinstance(end, Job):
            self._save(entry, end, outputs)
        else:
            self._reject(entry.input, end, job_id=job_id)
        del self._sender.active[job_id]

    def _save(self, entry: Entry, job: Job, outputs: Outputs) -> None:
        files = []
        for image in job.images:
            path = outputs.path(entry.input, image, job)
            try:
                data = self._client.download(image, format=outputs.format, quality=outputs.quality)
            except ServiceUnreachable:
                raise
            except ClientError as error:
                # For example, the image is damaged. The others are saved.
                self._reject(entry.input, error, job_id=job.id)
                continue
            outputs.write(path, data)
            files.append(path)
        if job.withheld:
            self._failed = True
            complain(f"{entry.input}: flagged, and not delivered: image {', '.join(map(str, job.withheld))}")
        if job.status is not JobStatus.SUCCEEDED:
            self._failed = True
            reason = job.error.message if job.error else f"the job was {job.status}"
            complain(f"{entry.input}: {reason}" if self._several else reason)
        elif self._journal and entry.key and len(files) == len(job.images):
            self._journal.saved(entry, files)
        names = [str(file) for file in files]
        if self._as_json:
            self._echo(to_json({"input": entry.input, "files": names, **response_document(job)}))
        else:
            for name in names:
                self._echo(name)

    def _reject(self, name: str, error: ClientError | OSError, *, job_id: str | None = None) -> None:
        self._failed = True
        complain(f"{name}: {error}" if self._several else str(error))
        if self._as_json:
            known = {"input": name} | ({"id": job_id} if job_id else {})
            document = (
                problem_document(error) if isinstance(error, ClientError) else {"problem": {"detail": str(error)}}
            )
            self._echo(to_json(known | document))

    def _files(self, entry: Entry) -> list[str]:
        return [str(path) for path in self._journal.paths(entry)] if self._journal else []

    def _how_to_continue(self) -> str:
        jobs = len(self._sender.active)
        lines = [f"{jobs} job{'s go' if jobs != 1 else ' goes'} on in the service"]
        if self._sender.unsent:
            lines[0] += f"; {self._sender.unsent} image{'s were' if self._sender.unsent != 1 else ' was'} not submitted"
        if self._continuation:
            lines.append(self._continuation)
        else:
            ids = " ".join(list(self._sender.active))
            lines.append(f"to wait for results: img2img result {ids}")
            lines.append(f"to cancel: img2img cancel {ids}")
        return "\n".join(lines)
