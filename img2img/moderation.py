"""Asks the operator's moderation endpoint about texts and images, in the format of OpenAI's moderation API.

The request is `{"input": [{"type": "text", "text": ...}]}`, and for an image
`{"input": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}]}`. The response has `results`,
each with `flagged` and optionally `categories`.
"""

import asyncio
import json
import logging
from base64 import b64encode
from dataclasses import dataclass
from http import HTTPStatus
from importlib.metadata import version
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import httpx
from prometheus_client import Counter
from pydantic import BaseModel, Field, StrictBool, ValidationError

from .settings import SharedSettings

Subject = Literal["prompt", "input", "result"]

# Pauses between attempts, in seconds: the first, doubled after each attempt, and the longest.
PAUSE_S, MAX_PAUSE_S = 0.5, 8.0
MAX_RESPONSE_BYTES = 1024 * 1024
MAX_CATEGORIES, MAX_CATEGORY = 20, 100
LOOPBACK = ("127.0.0.1", "::1", "localhost")
USER_AGENT = f"img2img/{version('img2img-server')}"

# Not in a registry: API servers and workers have their own.
MODERATION_CHECKS = Counter(
    "img2img_moderation_checks",
    "Texts and images that the moderation endpoint was asked about; unanswered: there was no verdict.",
    ["subject", "outcome"],
    registry=None,
)

log = logging.getLogger(__name__)


class NoVerdict(Exception):
    """The moderation endpoint gave no verdict."""


class _Unusable(Exception):
    """A response without a verdict.

    Attributes:
        is_final: Whether another attempt would have the same response.
    """

    def __init__(self, reason: str, *, is_final: bool = False) -> None:
        super().__init__(reason)
        self.is_final = is_final


@dataclass(frozen=True)
class Verdict:
    """Whether content is flagged, and the categories that the endpoint names."""

    flagged: bool
    categories: tuple[str, ...] = ()


class _Result(BaseModel):
    flagged: StrictBool
    categories: dict[str, StrictBool | None] | None = None


class _Response(BaseModel):
    results: Annotated[tuple[_Result, ...], Field(min_length=1)]


class Moderator:
    """A moderation endpoint. Its host may have any address: the URL is the operator's.

    Args:
        url: URL of the endpoint. Redirects are not followed.
        key: Secret for the header `Authorization`; may be empty.
        timeout_s: Timeout of an attempt.
        fail_open: Whether content passes that gets no verdict.
    """

    def __init__(self, url: str, *, key: str = "", timeout_s: float = 10.0, fail_open: bool = False) -> None:
        self._url = url
        self._timeout_s = timeout_s
        self._fail_open = fail_open
        self._headers = {
            "content-type": "application/json",
            "accept": "application/json",
            # A compressed response could be much larger than it seems.
            "accept-encoding": "identity",
            "user-agent": USER_AGENT,
            **({"authorization": f"Bearer {key}"} if key else {}),
        }
        # Proxies of the environment are used, as by other clients, but not for an endpoint on this machine.
        self._trust_env = urlsplit(url).hostname not in LOOPBACK
        self._ssl_context = httpx.create_ssl_context(trust_env=self._trust_env)

    async def verdict(self, body: bytes, subject: Subject, *, attempts: int) -> Verdict:
        """Return the verdict on a `request_body`.

        Raises:
            NoVerdict: There is none after all attempts, and such content must not pass.
        """
        reason = ""
        for attempt in range(attempts):
            if attempt:
                await asyncio.sleep(min(PAUSE_S * 2 ** (attempt - 1), MAX_PAUSE_S))
            try:
                async with asyncio.timeout(self._timeout_s):
                    verdict = await self._ask(body)
            except TimeoutError:
                reason = f"no response within {self._timeout_s:g} s"
            except _Unusable as error:
                reason = str(error)
                if error.is_final:
                    break
            except (httpx.HTTPError, OSError) as error:
                reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
            else:
                MODERATION_CHECKS.labels(subject, "flagged" if verdict.flagged else "passed").inc()
                return verdict
        MODERATION_CHECKS.labels(subject, "unanswered").inc()
        passes = "it passes (IMG2IMG_MODERATION_FAIL_OPEN)" if self._fail_open else "it is refused"
        log.error("no verdict from the moderation endpoint on a %s, %s: %s", subject, passes, reason)
        if self._fail_open:
            return Verdict(flagged=False)
        raise NoVerdict(reason)

    async def _ask(self, body: bytes) -> Verdict:
        async with (
            httpx.AsyncClient(
                verify=self._ssl_context, trust_env=self._trust_env, follow_redirects=False, timeout=self._timeout_s
            ) as client,
            client.stream("POST", self._url, content=body, headers=self._headers) as response,
        ):
            status = response.status_code
            if status != HTTPStatus.OK:
                may_pass = status in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS) or status >= 500
                raise _Unusable(f"status {status}", is_final=not may_pass)
            if response.headers.get("content-encoding", "identity") != "identity":
                raise _Unusable("the response is compressed", is_final=True)
            content = bytearray()
            async for part in response.aiter_raw():
                content += part
                if len(content) > MAX_RESPONSE_BYTES:
                    raise _Unusable(f"the response is larger than {MAX_RESPONSE_BYTES} bytes", is_final=True)
        try:
            results = _Response.model_validate_json(bytes(content)).results
        except ValidationError as error:
            raise _Unusable("the response is not JSON with `results` that have `flagged`") from error
        return Verdict(any(result.flagged for result in results), _categories(results))


def _categories(results: tuple[_Result, ...]) -> tuple[str, ...]:
    """Return the names of the categories of flagged results."""
    names = {
        name[:MAX_CATEGORY]
        for result in results
        if result.flagged
        for name, is_flagged in (result.categories or {}).items()
        if is_flagged and name.isprintable()
    }
    return tuple(sorted(names)[:MAX_CATEGORIES])


def request_body(*parts: str | bytes) -> bytes:
    """Return the body of a request about texts and PNGs."""
    return json.dumps({"input": [_part(part) for part in parts]}).encode()


def _part(content: str | bytes) -> dict[str, Any]:
    if isinstance(content, str):
        return {"type": "text", "text": content}
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{b64encode(content).decode()}"}}


def moderator_for(settings: SharedSettings, *subjects: Subject) -> Moderator | None:
    """Return the configured endpoint if it is asked about one of the subjects, else None."""
    if settings.moderation_url is None or not settings.moderated.intersection(subjects):
        return None
    return Moderator(
        settings.moderation_url,
        key=settings.moderation_key,
        timeout_s=settings.moderation_timeout_s,
        fail_open=settings.moderation_fail_open,
    )
