"""Batches of jobs. Generated from `async_batches.py` by `make client`."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Protocol, TypeVar

import httpx

from .batches import BatchOperations, batch_id_of, batch_path
from .core import Flow
from .errors import error_of, unreachable
from .events import BatchStreamEvent, EventStream, batch_events
from .fields import BatchItemFields, SubmitFields
from .models import Batch, Job

T = TypeVar("T")


class Run(Protocol):
    """Runs a flow."""

    def __call__(self, flow: Flow[T]) -> T: ...


class Batches:
    """Batches of jobs: up to 10,000 jobs that are submitted, followed and deleted together.

    Args:
        http: HTTP client of the service.
        run: Runs a flow.
        stream: Yields the events of a stream.
    """

    def __init__(
        self,
        http: httpx.Client,
        run: Run,
        stream: Callable[[EventStream[Any]], Iterator[Any]],
        operations: BatchOperations,
    ) -> None:
        self._http = http
        self._run = run
        self._stream = stream
        self._operations = operations

    def submit(
        self,
        requests: Iterable[BatchItemFields],
        *,
        webhook: str | None = None,
        idempotency_key: str | None = None,
    ) -> Batch:
        """Create a job for each request. If one is refused, none is created, and the error names it.

        Images are uploaded before, each once.

        Args:
            requests: Fields of `POST /img2img`, and `name` for the file in the archive of the results.
            webhook: URL that is called once, when the last job has ended.
            idempotency_key: The same key and requests within 24 hours return the same batch. Default: a random key.

        Raises:
            InvalidRequest: A request is refused: `errors` has fields such as `items.3.strength`, and for a file that is
                no image its path as `got`.
            OSError: An image file cannot be read.
            TypeError: A request is no mapping of fields.
        """
        return self._run(self._operations.submit(requests, webhook, idempotency_key))

    def vary(
        self,
        request: SubmitFields,
        values: Mapping[str, Sequence[Any]],
        *,
        webhook: str | None = None,
        idempotency_key: str | None = None,
    ) -> Batch:
        """Create a job for each combination of values over one request: prompts x seeds x strengths, for example.

        Args:
            request: Fields of `POST /img2img` that all jobs have.
            values: Values by the name of the field. The last field varies fastest.
            webhook: URL that is called once, when the last job has ended.
            idempotency_key: As for `submit`.
        """
        return self._run(self._operations.vary(request, values, webhook, idempotency_key))

    def get(self, batch: Batch | str) -> Batch:
        """Return the current state of a batch."""
        return self._run(self._operations.get(batch))

    def wait(self, batch: Batch | str, *, timeout_s: float | None = None) -> Batch:
        """Return the batch when every job has ended.

        Raises:
            WaitTimeout: It did not end within `timeout_s`.
        """
        return self._run(self._operations.wait(batch, timeout_s))

    def stream_events(self, batch: Batch | str) -> Iterator[BatchStreamEvent]:
        """Yield each `Job` that has ended, in the order of their ends, and last the `Batch` after its end.

        Between them it yields a `BatchProgressEvent` whenever the counts have changed. Reconnects after an
        interruption; called again, it yields all jobs that have ended.

        Raises:
            JobGone: The batch was deleted.
            AuthenticationError: The API key was revoked or has expired.
            ServiceUnreachable: The connection broke and could not be restored within about 15 seconds.
        """
        stream = batch_events(self._operations.url, batch_id_of(batch))
        yield from self._stream(stream)

    def list(self) -> Iterator[Batch]:
        """Yield all batches, newest first, page by page."""
        cursor = None
        while True:
            page = self._run(self._operations.page(cursor))
            yield from page.batches
            cursor = page.next_cursor
            if cursor is None:
                return

    def jobs(self, batch: Batch | str, *, status: str | None = None) -> Iterator[Job]:
        """Yield the jobs of a batch in its order, page by page.

        Args:
            status: Only jobs with this status.
        """
        cursor = None
        while True:
            page = self._run(self._operations.jobs_page(batch, status, cursor))
            yield from page.jobs
            cursor = page.next_cursor
            if cursor is None:
                return

    def cancel(self, batch: Batch | str) -> Batch:
        """Cancel the jobs of a batch that have not ended."""
        return self._run(self._operations.cancel(batch))

    def delete(self, batch: Batch | str) -> None:
        """Delete a batch with its jobs, their parameters, results and inputs."""
        self._run(self._operations.delete(batch))

    def download(
        self,
        batch: Batch | str,
        path: str | PathLike[str],
        *,
        format: str | None = None,
        quality: int | None = None,
    ) -> None:
        """Write the images of all jobs that have succeeded so far into a zip archive, as they arrive.

        Args:
            path: File to write.
            format: `png` (default), `webp` or `jpeg`.
            quality: 1 to 100, for `webp` and `jpeg`.

        Raises:
            ApiError: There is no such batch.
            ServiceUnreachable: The connection broke.
            OSError: The file cannot be written.
        """
        params = {"format": format, "quality": quality}
        given = {name: value for name, value in params.items() if value is not None}
        url = f"{batch_path(batch)}/results"
        try:
            with self._http.stream("GET", url, params=given) as response:
                if not response.is_success:
                    response.read()
                    raise error_of(response, self._operations.url)
                with Path(path).open("wb") as file:
                    for part in response.iter_bytes():
                        file.write(part)
        except httpx.TransportError as error:
            raise unreachable(self._operations.url, error) from error
