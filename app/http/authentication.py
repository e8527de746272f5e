"""Who may enter: decided by the API key, before the body is read."""

import logging
import re
from base64 import b64decode
from contextlib import suppress
from dataclasses import dataclass

from anyio.to_thread import run_sync
from cachetools import TTLCache
from redis.exceptions import RedisError
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from img2img.domain.api_key import ApiKey
from img2img.domain.api_key import Scope as KeyScope
from img2img.errors import Img2ImgError, Unavailable
from img2img.redis.api_keys import ApiKeys

from ..telemetry.metrics import PATH as METRICS
from .errors import InsufficientScope, InvalidApiKey, MissingApiKey
from .problem_details import problem_response

# Open to all: whether the service is up, and what it can do, which is no secret.
PUBLIC_PATHS = re.compile(r"/(healthz|readyz|openapi\.json|redoc|docs(/.*)?|static-offline-docs/.*)")

KNOWN_S = 2.0  # a key that was looked up is known for this long: so late may a revocation act
KNOWN = 1000  # keys, at most

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Caller:
    """Who makes a request."""

    owner: str  # of the jobs that it makes, as in Terms: the id of its key; "" where keys are off
    visible_owner: str | None


ANONYMOUS = Caller("", None)


def caller_for_key(key: ApiKey) -> Caller:
    """Whom a key stands for."""
    return Caller(key.id, None if KeyScope.ADMIN in key.scopes else key.id)


def api_key_from_headers(headers: Headers) -> str | None:
    """The key that a request carries; None where it carries none. As a password too: some clients know no other way."""
    kind, _, key = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return key.strip()
    if kind.lower() == "basic":
        with suppress(ValueError):
            return b64decode(key, validate=True).decode().partition(":")[2]
    return headers.get("x-api-key")


def _needed(scope: Scope) -> KeyScope:
    if scope["path"] == METRICS:  # they tell of the jobs of all keys
        return KeyScope.METRICS
    return KeyScope.READ if scope.get("method") in ("GET", "HEAD") else KeyScope.SUBMIT


class AuthenticationMiddleware:
    """Lets in whoever has a key that may do this. What only looks needs the scope `read`, all else `submit`.
    Metrics have a scope of their own."""

    def __init__(self, app: ASGIApp, required: bool) -> None:
        self._app = app
        self._required = required
        self._known: TTLCache[str, ApiKey] = TTLCache(KNOWN, KNOWN_S)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        try:
            caller = await self._let_in(scope)
        except Img2ImgError as refusal:
            await problem_response(refusal)(scope, receive, send)
            return
        if caller is not None:
            scope.setdefault("state", {})["caller"] = caller
        await self._app(scope, receive, send)

    async def _let_in(self, scope: Scope) -> Caller | None:
        """Who it is; None at what is open to all. Raises NoKey, ScopeMissing or Unavailable."""
        if not self._required:
            return ANONYMOUS
        if PUBLIC_PATHS.fullmatch(scope["path"]):
            return None
        secret = api_key_from_headers(Headers(scope=scope))
        if secret is None:
            raise MissingApiKey
        key = self._known.get(secret) or await self._look_up(scope["app"].state.services.api_keys, secret)
        needed = _needed(scope)
        if not key.allows(needed):
            raise InsufficientScope(needed)
        return caller_for_key(key)

    async def _look_up(self, keys: ApiKeys, secret: str) -> ApiKey:
        try:
            key = await run_sync(keys.find, secret)
        except (RedisError, OSError) as error:
            log.error("Redis failed: %r", error)
            raise Unavailable("API keys cannot be looked up just now; try again in a moment.") from None
        if key is None:
            raise InvalidApiKey
        self._known[secret] = key
        return key
