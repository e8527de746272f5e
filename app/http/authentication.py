"""Authentication by API key, before the request body is read."""

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

from ..telemetry.metrics import PATH as METRICS_PATH
from .errors import InsufficientScope, InvalidApiKey, MissingApiKey
from .problem_details import problem_response

# Paths without authentication: health, and the documentation.
PUBLIC_PATHS = re.compile(r"/(healthz|readyz|openapi\.json|redoc|docs(/.*)?|static-offline-docs/.*)")

# A key is looked up again after this time, which delays a revocation by as much.
CACHE_TTL_S = 2.0
CACHE_SIZE = 1000

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Caller:
    """The client that makes a request.

    Attributes:
        owner: Owner of the jobs that it submits: the id of its API key, "" if keys are not required.
        visible_owner: Owner of the jobs that it may see; None: those of all owners.
    """

    owner: str
    visible_owner: str | None


ANONYMOUS = Caller("", None)


def caller_for_key(key: ApiKey) -> Caller:
    """Return the caller that an API key identifies. A key with the scope `admin` sees all jobs."""
    return Caller(key.id, None if KeyScope.ADMIN in key.scopes else key.id)


def api_key_from_headers(headers: Headers) -> str | None:
    """Return the API key of a request, or None if it has none.

    Accepts a bearer token (RFC 6750), the header `X-API-Key`, and the password of Basic authentication (RFC 7617),
    which is all that some clients support.
    """
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return credentials.strip()
    if scheme.lower() == "basic":
        with suppress(ValueError):
            return b64decode(credentials, validate=True).decode().partition(":")[2]
    return headers.get("x-api-key")


def required_scope(scope: Scope) -> KeyScope:
    """Return the scope that an API key needs for a request."""
    # Metrics cover the jobs of all keys.
    if scope["path"] == METRICS_PATH:
        return KeyScope.METRICS
    return KeyScope.READ if scope.get("method") in ("GET", "HEAD") else KeyScope.SUBMIT


class AuthenticationMiddleware:
    """Rejects requests without a valid API key for their scope, and stores the caller in `request.state.caller`.

    Args:
        required: Whether requests need an API key. If not, every caller is anonymous and sees all jobs.
    """

    def __init__(self, app: ASGIApp, required: bool) -> None:
        self._app = app
        self._required = required
        self._cache: TTLCache[str, ApiKey] = TTLCache(CACHE_SIZE, CACHE_TTL_S)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        try:
            caller = await self._authenticate(scope)
        except Img2ImgError as error:
            await problem_response(error)(scope, receive, send)
            return
        if caller is not None:
            scope.setdefault("state", {})["caller"] = caller
        await self._app(scope, receive, send)

    async def _authenticate(self, scope: Scope) -> Caller | None:
        """Return the caller; None for a public path. Raises MissingApiKey, InsufficientScope or Unavailable."""
        if not self._required:
            return ANONYMOUS
        if PUBLIC_PATHS.fullmatch(scope["path"]):
            return None
        secret = api_key_from_headers(Headers(scope=scope))
        if secret is None:
            raise MissingApiKey
        key = self._cache.get(secret) or await self._find(scope["app"].state.services.api_keys, secret)
        needed = required_scope(scope)
        if not key.allows(needed):
            raise InsufficientScope(needed)
        return caller_for_key(key)

    async def _find(self, keys: ApiKeys, secret: str) -> ApiKey:
        try:
            key = await run_sync(keys.find, secret)
        except (RedisError, OSError) as error:
            log.error("API keys could not be looked up: %r", error)
            raise Unavailable("API keys cannot be checked at the moment; try again in a few seconds.") from None
        if key is None:
            raise InvalidApiKey
        self._cache[secret] = key
        return key
