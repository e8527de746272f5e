"""Methods for batches of jobs without I/O, as in `core`."""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote
from uuid import uuid4

from .core import PAGE, POLL_S, Call, Flow, Operations, Pause, encoded_fields, loaded_fields
from .errors import InvalidArgument, InvalidRequest, ServiceUnavailable, ServiceUnreachable, WaitTimeout
from .events import Reconnects
from .images import source_of
from .models import Batch, BatchPage, JobPage, parse_response

JSON_LINES = "application/jsonl"


def batch_id_of(batch: Batch | str) -> str:
    """Return the id of a batch that is given as itself or by its id."""
    return batch.id if isinstance(batch, Batch) else batch


def batch_path(batch: Batch | str) -> str:
    """Return the path of a batch."""
    return f"/batches/{quote(batch_id_of(batch), safe='')}"


class BatchOperations:
    """The methods for batches as flows."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        self.url = operations.url

    def submit(
        self, requests: Iterable[Mapping[str, Any]], webhook: str | None, idempotency_key: str | None
    ) -> Flow[Batch]:
        """Upload the images of the requests, each once, and queue a job for each request."""
        uploads: dict[bytes, str] = {}
        lines = []
        for index, request in enumerate(requests):
            if not isinstance(request, Mapping):
                raise TypeError(
                    f"items.{index}: a request is a mapping of fields, such as {{'image': 'a.png'}}, not {request!r}"
                )
            try:
                loaded = loaded_fields(request)
            except InvalidArgument as error:
                raise type(error)(f"items.{index}: {error}") from None
            fields = yield from self._uploaded(loaded, request, uploads, f"items.{index}")
            lines.append(json.dumps(encoded_fields(fields)))
        headers = {"Content-Type": JSON_LINES, "Idempotency-Key": idempotency_key or uuid4().hex}
        params = {"webhook": webhook} if webhook else {}
        return (yield from self._post({"content": "\n".join(lines).encode(), "headers": headers, "params": params}))

    def vary(
        self,
        fields: Mapping[str, Any],
        vary: Mapping[str, Sequence[Any]],
        webhook: str | None,
        idempotency_key: str | None,
    ) -> Flow[Batch]:
        """Queue a job for each combination of the values over one request."""
        uploads: dict[bytes, str] = {}
        request = yield from self._uploaded(loaded_fields(fields), fields, uploads, "request")
        values = {}
        for name, options in vary.items():
            found = []
            for index, option in enumerate(options):
                one = loaded_fields({name: option}).get(name)
                found.append((yield from self._uploaded(one, option, uploads, f"vary.{name}.{index}")))
            values[name] = found
        body = {"request": encoded_fields(request), "vary": encoded_fields(values), "webhook": webhook}
        headers = {"Idempotency-Key": idempotency_key or uuid4().hex}
        return (yield from self._post({"json": body, "headers": headers}))

    def get(self, batch: Batch | str) -> Flow[Batch]:
        response = yield from self._operations.call("GET", batch_path(batch))
        return parse_response(Batch, response.content)

    def wait(self, batch: Batch | str, timeout_s: float | None) -> Flow[Batch]:
        """Poll until the batch has ended; outages of the service are waited out as for event streams."""
        give_up_at = time.monotonic() + timeout_s if timeout_s is not None else float("inf")
        reconnects = Reconnects()
        while True:
            poll_s = max(min(POLL_S, give_up_at - time.monotonic()), 0)
            options: dict[str, Any] = {"params": {"wait": poll_s}, "timeout": poll_s + POLL_S}
            try:
                response = yield from self._operations.call("GET", batch_path(batch), **options)
            except (ServiceUnreachable, ServiceUnavailable) as error:
                yield Pause(reconnects.pause_after(error))
                continue
            reconnects.reset()
            current = parse_response(Batch, response.content)
            if current.has_ended:
                return current
            if time.monotonic() >= give_up_at:
                raise WaitTimeout(f"batch {current.id} is {current.status} after {timeout_s:g} s")

    def cancel(self, batch: Batch | str) -> Flow[Batch]:
        response = yield from self._operations.call("POST", f"{batch_path(batch)}/cancel")
        return parse_response(Batch, response.content)

    def delete(self, batch: Batch | str) -> Flow[None]:
        yield from self._operations.call("DELETE", batch_path(batch))

    def page(self, cursor: str | None) -> Flow[BatchPage]:
        params = {"limit": PAGE} | ({"cursor": cursor} if cursor else {})
        response = yield from self._operations.call("GET", "/batches", params=params)
        return parse_response(BatchPage, response.content)

    def jobs_page(self, batch: Batch | str, status: str | None, cursor: str | None) -> Flow[JobPage]:
        given = {"status": status, "cursor": cursor}
        params = {"limit": PAGE} | {name: value for name, value in given.items() if value}
        response = yield from self._operations.call("GET", f"{batch_path(batch)}/jobs", params=params)
        return parse_response(JobPage, response.content)

    def _post(self, options: dict[str, Any]) -> Flow[Batch]:
        response = yield from self._operations.until_taken(Call("POST", "/batches", options))
        return parse_response(Batch, response.content)

    def _uploaded(self, value: Any, given: Any, uploads: dict[bytes, str], path: str) -> Flow[Any]:
        """Return the value with the SHA-256 of each image in place of its bytes.

        Args:
            given: The value as the caller has given it, with paths and files.
            path: Path of the value in the request, for errors.
        """
        if isinstance(value, bytes):
            if value not in uploads:
                try:
                    uploads[value] = (yield from self._operations.upload_image(value)).sha256
                except InvalidRequest as error:
                    raise error.of_field(path, source_of(given)) from None
            return uploads[value]
        if isinstance(value, dict):
            fields = {}
            for name, item in value.items():
                fields[name] = yield from self._uploaded(item, given[name], uploads, f"{path}.{name}")
            return fields
        if isinstance(value, list):
            items = []
            for index, item in enumerate(value):
                items.append((yield from self._uploaded(item, given[index], uploads, f"{path}.{index}")))
            return items
        return value
