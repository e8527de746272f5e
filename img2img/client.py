"""A client of the service: submit, follow, fetch."""

import json
import os
import time
from base64 import b64encode
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Self

import httpx

RECONNECT_S = (0.5, 1, 2, 4, 8)  # pauses before a stream that broke off is asked for again
SILENCE_S = 60.0  # a stream says something every 15 s
BUSY_S = 120.0  # as long a submit is sent again while the service says that it has too much to do
PAGE = 100  # jobs that a list has at most
TERMINAL_STATUSES = ("succeeded", "failed", "cancelled")  # the last event of a job, and its status then

Json = dict[str, Any]


class RequestRefused(Exception):
    """The service did not do what was asked; the message is its own."""

    def __init__(self, message: str, problem: Json | None = None) -> None:
        super().__init__(message)
        self.problem = problem or {"detail": message}


class ServiceUnreachable(Exception):
    """Nobody answers there."""


class Client:
    """Talks to one service. Threads may share it."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        """api_key: sent with every request; None takes IMG2IMG_API_KEY from the environment, if it is there."""
        self._url = url
        api_key = api_key or os.environ.get("IMG2IMG_API_KEY")
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        local = httpx.URL(url).host in ("localhost", "127.0.0.1", "::1")  # no proxy leads there
        self._http = httpx.Client(base_url=url, timeout=60, trust_env=not local, headers=headers)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def submit(self, fields: Mapping[str, Any], *, idempotency_key: str | None = None, dry_run: bool = False) -> Json:
        """Queues a job. fields: pictures as bytes, the rest as JSON has it. Returns the job, or what it would be."""
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        query = {"dry_run": "true"} if dry_run else {}
        give_up_at = time.monotonic() + BUSY_S
        while True:
            try:
                return self._json("POST", "/img2img", headers=headers, params=query, **_body(fields))
            except _Busy as busy:
                if time.monotonic() + busy.retry_after_s > give_up_at:
                    raise
                time.sleep(busy.retry_after_s)

    def control_map(self, picture: bytes, kind: str, **fields: Any) -> Json:
        """Queues a job whose image is the map that a ControlNet of that type would be shown of the picture."""
        return self._json("POST", "/control-maps", **_body({"image": picture, "type": kind, **fields}))

    def follow(self, job_id: str, *, preview: bool = False) -> Iterator[tuple[str, Json]]:
        """The events of a job until its end: name and data. The last is the whole job. Raises Refused, Unreachable.

        preview: also small pictures of the image as it forms.
        """
        query = {"preview": "true"} if preview else {}
        last_event_id, failures = "", 0
        while True:
            headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
            broke_off: Exception = ServiceUnreachable(f"{self._url} ended the events of job {job_id} too early")
            try:
                with self._http.stream(
                    "GET", f"/jobs/{job_id}/events", params=query, headers=headers, timeout=SILENCE_S
                ) as response:
                    if response.is_success:
                        for ident, name, data in _events(response.iter_lines()):
                            last_event_id, failures = ident or last_event_id, 0
                            if name == "gone":
                                raise RequestRefused(data["message"], {"detail": data["message"], "code": data["code"]})
                            yield name, data
                            if name in TERMINAL_STATUSES:
                                return
                    else:
                        response.read()
                        broke_off = _refusal(response, self._url)
                        if not response.is_server_error:
                            raise broke_off
            except httpx.TransportError as error:
                broke_off = ServiceUnreachable(f"{self._url} cannot be reached: {error}")
            if failures == len(RECONNECT_S):
                raise broke_off
            time.sleep(RECONNECT_S[failures])
            failures += 1

    def job(self, job_id: str) -> Json:
        """The job as it is now."""
        return self._json("GET", f"/jobs/{job_id}")

    def jobs(self, status: str | None, limit: int) -> Iterator[Json]:
        """The newest jobs, up to limit, page by page."""
        query: dict[str, str | int] = {"status": status} if status else {}
        while limit > 0:
            page = self._json("GET", "/jobs", params=query | {"limit": min(limit, PAGE)})
            yield from page["jobs"][:limit]
            limit -= len(page["jobs"])
            if page["next_cursor"] is None:
                return
            query["cursor"] = page["next_cursor"]

    def cancel(self, job_id: str) -> Json:
        """Cancels the job, unless it has ended."""
        return self._json("POST", f"/jobs/{job_id}/cancel")

    def delete(self, job_id: str) -> None:
        """Deletes the job and its pictures."""
        self._call("DELETE", f"/jobs/{job_id}")

    def models(self) -> list[Json]:
        """The models that the service has."""
        models: list[Json] = self._json("GET", "/models")["models"]
        return models

    def image(self, url: str) -> bytes:
        """The bytes of a result, by the `url` in its job; also from a store that the service redirects to, which
        gets no API key."""
        return self._call("GET", url, follow_redirects=True).content

    def _json(self, method: str, url: str, **content: Any) -> Json:
        answer: Json = self._call(method, url, **content).json()
        return answer

    def _call(self, method: str, url: str, **content: Any) -> httpx.Response:
        try:
            response = self._http.request(method, url, **content)
        except httpx.TransportError as error:
            raise ServiceUnreachable(f"{self._url} cannot be reached: {error}") from None
        if response.is_success:
            return response
        raise _refusal(response, self._url)


class _Busy(RequestRefused):
    """Too much to do just now."""

    def __init__(self, message: str, problem: Json, retry_after_s: float) -> None:
        super().__init__(message, problem)
        self.retry_after_s = retry_after_s


def _body(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A form, which carries pictures as they are; or JSON, where a field has structure."""
    if any(isinstance(value, list | dict) for value in fields.values()):
        return {"json": {k: b64encode(v).decode() if isinstance(v, bytes) else v for k, v in fields.items()}}
    files = {name: (name, value) for name, value in fields.items() if isinstance(value, bytes)}
    texts = {name: (None, _text(value)) for name, value in fields.items() if not isinstance(value, bytes)}
    return {"files": files | texts}


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _events(lines: Iterator[str]) -> Iterator[tuple[str, str, Json]]:
    """Server-Sent Events: id, name, data."""
    ident, name, data = "", "message", ""
    for line in lines:
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "id":
            ident = value
        elif field == "event":
            name = value
        elif field == "data":
            data += value
        elif not line and data:
            yield ident, name, json.loads(data)
            ident, name, data = "", "message", ""


def _refusal(response: httpx.Response, url: str) -> RequestRefused:
    """What the service said, in a line; several fields that were refused, in a line each."""
    if response.headers.get("content-type", "").partition(";")[0] != "application/problem+json":
        return RequestRefused(f"{url} answered {response.status_code}")
    problem: Json = response.json()
    refused = [_field(one) for one in problem.get("errors") or []]
    if len(refused) > 1:
        message = "\n  ".join([f"{len(refused)} fields were refused", *refused])
    else:
        message = "".join(refused) or problem["detail"]
    retry_after = response.headers.get("retry-after", "")
    if response.status_code == httpx.codes.TOO_MANY_REQUESTS and retry_after.isdecimal():
        return _Busy(message, problem, max(float(retry_after), 0.1))
    return RequestRefused(message, problem)


def _field(refused: Json) -> str:
    got = refused.get("got")
    return f"{refused['field']}: {refused['message']}" + (f" (got {got})" if got is not None else "")
