"""The event stream of a job or a batch: parsing, and reconnecting after the connection broke."""

from collections.abc import Mapping
from typing import Any, Generic, TypeAlias, TypeVar
from urllib.parse import quote

import httpx
from httpx_sse import ServerSentEvent

from .errors import ApiError, ClientError, JobGone, ServiceUnreachable, error_of, error_of_problem, unreachable
from .models import Batch, BatchProgressEvent, Job, PreviewEvent, ProgressEvent, QueuedEvent, parse_response

# Pauses before reconnecting, in seconds. After the last one the stream is given up.
RECONNECT_S: tuple[float, ...] = (0.5, 1, 2, 4, 8)
# The service sends a keep-alive every 15 s.
SILENCE_S = 60.0

Event: TypeAlias = QueuedEvent | ProgressEvent | PreviewEvent | Job
"""An event of a job. The last one of a stream is the `Job` after its end."""

BatchStreamEvent: TypeAlias = BatchProgressEvent | Job | Batch
"""An event of a batch: each `Job` that has ended, the numbers of the others, and last the `Batch` after its end."""

EVENTS: dict[str, type[Event]] = {
    "queued": QueuedEvent,
    "progress": ProgressEvent,
    "preview": PreviewEvent,
    "succeeded": Job,
    "failed": Job,
    "cancelled": Job,
}
BATCH_EVENTS: dict[str, type[BatchStreamEvent]] = {"progress": BatchProgressEvent, "job": Job, "ended": Batch}

AnyEvent = TypeVar("AnyEvent", bound=Event | BatchStreamEvent)


def job_events(url: str, job_id: str, *, preview: bool) -> "EventStream[Event]":
    """Return the stream of a job."""
    params = {"preview": "true"} if preview else {}
    return EventStream(url, f"job {job_id}", f"/jobs/{quote(job_id, safe='')}", EVENTS, Job, params)


def batch_events(url: str, batch_id: str) -> "EventStream[BatchStreamEvent]":
    """Return the stream of a batch."""
    return EventStream(url, f"batch {batch_id}", f"/batches/{quote(batch_id, safe='')}", BATCH_EVENTS, Batch, {})


class Reconnects:
    """Pauses between attempts; an attempt that gets a response starts the series again."""

    def __init__(self) -> None:
        self._failures = 0

    def reset(self) -> None:
        self._failures = 0

    def pause_after(self, error: ClientError) -> float:
        """Return the seconds to wait before the next attempt, or raise `error` after the last one."""
        if self._failures == len(RECONNECT_S):
            raise error
        self._failures += 1
        return RECONNECT_S[self._failures - 1]


class EventStream(Generic[AnyEvent]):
    """State of one stream over several connections.

    Args:
        url: URL of the service.
        subject: The job or batch, for messages.
        path: Path of it.
        events: Models of the events, by their names.
        last: Model of the last event.
    """

    def __init__(
        self,
        url: str,
        subject: str,
        path: str,
        events: Mapping[str, type[AnyEvent]],
        last: type,
        params: Mapping[str, str],
    ) -> None:
        self._url = url
        self._subject = subject
        self._path = path
        self._events = events
        self._last = last
        self._params = params
        self._last_event_id = ""
        self._reconnects = Reconnects()
        self.ended = False

    @property
    def request(self) -> dict[str, Any]:
        """Arguments of `httpx.Client.stream` for the next connection."""
        last_event_id = {"Last-Event-ID": self._last_event_id} if self._last_event_id else {}
        return {
            "method": "GET",
            "url": f"{self._path}/events",
            "params": dict(self._params),
            "headers": {"Accept": "text/event-stream", "Cache-Control": "no-store", **last_event_id},
            "timeout": SILENCE_S,
        }

    def parse(self, sse: ServerSentEvent) -> AnyEvent | None:
        """Return the event, None if this version does not know it.

        Raises:
            JobGone: The job or the batch was deleted.
            AuthenticationError: The API key was revoked or has expired.
        """
        self._last_event_id = sse.id or self._last_event_id
        self._reconnects.reset()
        if sse.event == "gone":
            problem = sse.json()
            raise JobGone(problem["message"], problem={"detail": problem["message"], "code": problem["code"]})
        if sse.event == "error":
            raise error_of_problem(sse.json())
        model = self._events.get(sse.event)
        event = parse_response(model, sse.data) if model else None
        self.ended = isinstance(event, self._last)
        return event

    def pause_after_end(self) -> float:
        """Return the pause after a connection that ended before the last event."""
        return self._pause(ServiceUnreachable(f"{self._url} ended the events of {self._subject} too early"))

    def pause_after_transport_error(self, error: httpx.TransportError) -> float:
        """Return the pause after a connection that failed."""
        return self._pause(unreachable(self._url, error))

    def pause_after_response(self, response: httpx.Response) -> float:
        """Return the pause after a 5xx response; raise the error of any other response."""
        error: ApiError = error_of(response, self._url)
        if not response.is_server_error:
            raise error
        return self._pause(error)

    def _pause(self, error: ClientError) -> float:
        return self._reconnects.pause_after(error)
