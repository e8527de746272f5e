"""Batches of jobs, for asyncio. `sync_batches.py` is generated from this file by `make client`."""

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
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

    async def __call__(self, flow: Flow[T]) -> T: ...


class AsyncBatches:
    """Batches of jobs, for asyncio: up to 10,000 jobs that are submitted, followed and deleted together.

    Args:
        http: HTTP client of the service.
        run: Runs a flow.
        stream: Yields the events of a stream.
    """

    def __init__(
        self,
        http: httpx.AsyncClient,
        run: Run,
        stream: Callable[[EventStream[Any]], AsyncIterator[Any]],
        operations: BatchOperations,
    ) -> None:
        self._http = http
        self._run = run
        self._stream = stream
        self._operations = operations

    async def submit(
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
        return await self._run(self._operations.submit(requests, webhook, idempotency_key))

    async def vary(
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
        return await self._run(self._operations.vary(request, values, webhook, idempotency_key))

    async def get(self, batch: Batch | str) -> Batch:
        """Return the current state of a batch."""
        return await self._run(self._operations.get(batch))

    async def wait(self, batch: Batch | str, *, timeout_s: float | None = None) -> Batch:
        """Return the batch when every job has ended.

        Raises:
            WaitTimeout: It did not end within `timeout_s`.
        """
        return await self._run(self._operations.wait(batch, timeout_s))

    async def stream_events(self, batch: Batch | str) -> AsyncIterator[BatchStreamEvent]:
        """Yield each `Job` that has ended, in the order of their ends, and last the `Batch` after its end.

        Between them it yields a `BatchProgressEvent` whenever the counts have changed. Reconnects after an
        interruption; called again, it yields all jobs that have ended.

        Raises:
            JobGone: The batch was deleted.
            AuthenticationError: The API key was revoked or has expired.
            ServiceUnreachable: The connection broke and could not be restored within about 15 seconds.
        """
        stream = batch_events(self._operations.url, batch_id_of(batch))
        async for event in self._stream(stream):
            yield event

    async def list(self) -> AsyncIterator[Batch]:
        """Yield all batches, newest first, page by page."""
        cursor = None
        while True:
            page = await self._run(self._operations.page(cursor))
            for batch in page.batches:
                yield batch
            cursor = page.next_cursor
            if cursor is None:
                return

    async def jobs(self, batch: Batch | str, *, status: str | None = None) -> AsyncIterator[Job]:
        """Yield the jobs of a batch in its order, page by page.

        Args:
            status: Only jobs with this status.
        """
        cursor = None
        while True:
            page = await self._run(self._operations.jobs_page(batch, status, cursor))
            for job in page.jobs:
                yield job
            cursor = page.next_cursor
            if cursor is None:
                return

    async def cancel(self, batch: Batch | str) -> Batch:
        """Cancel the jobs of a batch that have not ended."""
        return await self._run(self._operations.cancel(batch))

    async def delete(self, batch: Batch | str) -> None:
        """Delete a batch with its jobs, their parameters, results and inputs."""
        await self._run(self._operations.delete(batch))

    async def download(
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
            async with self._http.stream("GET", url, params=given) as response:
                if not response.is_success:
                    await response.aread()
                    raise error_of(response, self._operations.url)
                with Path(path).open("wb") as file:
                    async for part in response.aiter_bytes():
                        file.write(part)
        except httpx.TransportError as error:
            raise unreachable(self._operations.url, error) from error
