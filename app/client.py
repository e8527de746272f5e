"""A client of the service: submit, wait, fetch."""

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from app.views import JobView

FIRST_POLL_S, LAST_POLL_S = 0.05, 0.5


class Refused(Exception):
    """The service did not do what was asked; the message is its own."""


class Client:
    """Talks to one service."""

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

    def submit(self, image: Path, parameters: Mapping[str, Any]) -> JobView:
        """Queues a job."""
        fields = {name: str(value) for name, value in parameters.items()}
        response = self._call("POST", "/img2img", files={"image": (image.name, image.read_bytes())}, data=fields)
        return JobView.model_validate_json(response.content)

    def wait(self, job_id: str, on_poll: Callable[[JobView], None]) -> JobView:
        """Polls until the job has ended."""
        pause_s = FIRST_POLL_S
        while True:
            job = JobView.model_validate_json(self._call("GET", f"/jobs/{job_id}").content)
            on_poll(job)
            if job.status.is_terminal:
                return job
            time.sleep(pause_s)
            pause_s = min(1.5 * pause_s, LAST_POLL_S)

    def image(self, url: str) -> bytes:
        """The bytes of a result, by the `url` in its job."""
        return self._call("GET", url).content

    def _call(self, method: str, url: str, **content: Any) -> httpx.Response:
        try:
            response = self._http.request(method, url, **content)
        except httpx.TransportError as error:
            raise Refused(f"{self._url} cannot be reached: {error}") from None
        if response.is_success:
            return response
        if response.headers.get("content-type") == "application/problem+json":
            raise Refused(response.json()["detail"])
        raise Refused(f"{self._url} answered {response.status_code}")
