"""Authentication by API key, before the request body is read."""

import logging
import re
from base64 import b64decode
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from anyio.to_thread import run_sync
from cachetools import LRUCache, TTLCache
from redis.exceptions import RedisError
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from img2img.domain.api_key import ApiKey, owner_of
from img2img.domain.api_key import Scope as KeyScope
from img2img.errors import Img2ImgError, InvalidApiKey, MissingApiKey, Unavailable
from img2img.redis.api_keys import ApiKeys, id_of

from ..telemetry.metrics import PATH as METRICS_PATH
from .errors import InsufficientScope
from .open_requests import OpenRequests
from .problem_details import problem_response

# Paths without authentication: health, the documentation, and the page, which asks for the key.
PUBLIC_PATHS = re.compile(r"/(|assets/[^/]*|healthz|readyz|openapi\.json|redoc|docs(/.*)?|static-offline-docs/.*)")

# Changes of models are below this path.
MODELS_PATH = "/models/"
# Requests of the compatibility APIs whose responses contain no images.
WITHOUT_IMAGES = re.compile(r"/sdapi/v1/(interrupt|options)|/replicate/v1/(files(/.*)?|predictions/[^/]*/cancel)")
# The compatibility APIs respond to a submit with its images.
WITH_IMAGES = re.compile(r"/(v1|sdapi|controlnet|hf|replicate)(/.*)?")

# A key is looked up again after this time, which delays a revocation by as much.
CACHE_TTL_S = 1.0
CACHE_SIZE = 1000
MOST_PLACES = 100_000
# The use of a key is recorded at most once in this time.
USE_RECORDED_S = 60.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Caller:
    """The client that makes a request.

    Attributes:
        owner: Owner of the jobs that it submits, "" if keys are not required.
        visible_owner: Owner of the jobs that it may see; None: those of all owners.
        key_id: Id of its API key, "" if keys are not required.
        may_prioritize: Whether its jobs may have a high priority.
        may_administer: Whether it may change the models of the service.
        cell: Name of the cell that has the key; empty for a service without cells.
    """

    owner: str
    visible_owner: str | None
    key_id: str
    may_prioritize: bool
    may_administer: bool
    cell: str = ""

    @property
    def actor(self) -> str:
        """The caller in the audit log."""
        return f"key {self.key_id}" if self.key_id else "a client without API key"


def anonymous_caller(*, may_administer: bool) -> Caller:
    """Return the caller of a request to a service that requires no API keys."""
    return Caller("", None, "", may_prioritize=True, may_administer=may_administer)


class Cell(Protocol):
    """The parts of a cell that authentication uses. A service without cells has one, without a name."""

    @property
    def cell(self) -> str: ...

    @property
    def api_keys(self) -> ApiKeys: ...

    @property
    def open_requests(self) -> OpenRequests: ...


def caller_for_key(key: ApiKey, cell: str = "") -> Caller:
    """Return the caller that an API key identifies. A key with the scope `admin` sees all jobs."""
    owner = owner_of(key)
    is_admin = KeyScope.ADMIN in key.scopes
    return Caller(owner, None if is_admin else owner, key.id, key.allows(KeyScope.PRIORITY), is_admin, cell)


def api_key_from_headers(headers: Headers) -> str | None:
    """Return the API key of a request, or None if it has none.

    Accepts a bearer token (RFC 6750), the header `X-API-Key`, the password of Basic authentication (RFC 7617), which is
    all that some clients support, and `Token`, which clients of Replicate send.
    """
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    if scheme.lower() in ("bearer", "token"):
        return credentials.strip()
    if scheme.lower() == "basic":
        with suppress(ValueError):
            return b64decode(credentials, validate=True).decode().partition(":")[2]
    return headers.get("x-api-key")


def changes_models(scope: Scope) -> bool:
    """Return whether a request would change the models of the service."""
    return scope["path"].startswith(MODELS_PATH) and scope.get("method") not in ("GET", "HEAD")


def required_scopes(scope: Scope) -> tuple[KeyScope, ...]:
    """Return the scopes that an API key needs for a request."""
    path = scope["path"]
    # Metrics cover the jobs of all keys.
    if path == METRICS_PATH:
        return (KeyScope.METRICS,)
    if scope.get("method") in ("GET", "HEAD"):
        return (KeyScope.READ,)
    if changes_models(scope):
        return (KeyScope.ADMIN,)
    if WITH_IMAGES.fullmatch(path) and not WITHOUT_IMAGES.fullmatch(path):
        return (KeyScope.SUBMIT, KeyScope.READ)
    return (KeyScope.SUBMIT,)


class AuthenticationMiddleware:
    """Rejects requests without a valid API key for their scope, and stores the caller in `request.state.caller`.

    A request in progress ends when its key is revoked or expires: see `OpenRequests`.

    Args:
        required: Whether requests need an API key. If not, every caller is anonymous and sees all jobs.
        anonymous_admin: Whether anonymous callers may change models.
    """

    def __init__(self, app: ASGIApp, required: bool, anonymous_admin: bool = False) -> None:
        self._app = app
        self._required = required
        self._anonymous = anonymous_caller(may_administer=anonymous_admin)
        self._cache: TTLCache[str, tuple[ApiKey, Cell]] = TTLCache(CACHE_SIZE, CACHE_TTL_S)
        # Where keys were found the last time, by id: the first cell to ask, so that no other one delays the answer.
        self._cells: LRUCache[str, Cell] = LRUCache(MOST_PLACES)
        self._recorded: TTLCache[str, None] = TTLCache(CACHE_SIZE, USE_RECORDED_S)

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
        if caller is None or not caller.key_id:
            await self._app(scope, receive, send)
            return
        cell = next(cell for cell in scope["app"].state.cells.all if cell.cell == caller.cell)
        await cell.open_requests.run_request(caller.key_id, self._app, scope, receive, send)

    async def _authenticate(self, scope: Scope) -> Caller | None:
        """Return the caller; None for a public path.

        Raises:
            MissingApiKey, InvalidApiKey, ExpiredApiKey: There is no valid key.
            InsufficientScope: The key does not permit the request.
            Unavailable: The key cannot be checked.
        """
        if not self._required:
            return self._anonymous
        if PUBLIC_PATHS.fullmatch(scope["path"]):
            return None
        secret = api_key_from_headers(Headers(scope=scope))
        if secret is None:
            raise MissingApiKey
        key, cell = self._cache.get(secret) or await self._find(scope["app"].state.cells.all, secret)
        error = cell.api_keys.error(key)
        if error is not None:
            raise error
        for needed in required_scopes(scope):
            if not key.allows(needed):
                raise InsufficientScope(needed)
        return caller_for_key(key, cell.cell)

    async def _find(self, cells: Sequence[Cell], secret: str) -> tuple[ApiKey, Cell]:
        """Return the key with this secret, and the cell that has it."""
        place, failed = self._cells.get(id_of(secret)), False
        for cell in sorted(cells, key=lambda cell: cell is not place):
            try:
                key = await run_sync(self._find_and_record, cell.api_keys, secret)
            except (RedisError, OSError) as error:
                log.error("API keys could not be looked up: %r", error)
                failed = True
                if cell is place:
                    break
                continue
            if key is not None:
                self._cache[secret] = found = key, cell
                self._cells[key.id] = cell
                return found
        if failed:
            raise Unavailable("API keys cannot be checked at the moment; try again in a few seconds.")
        raise InvalidApiKey

    def _find_and_record(self, keys: ApiKeys, secret: str) -> ApiKey | None:
        key = keys.find(secret)
        if key is not None and keys.error(key) is None and key.id not in self._recorded:
            self._recorded[key.id] = None
            # A Redis that is out of memory or disk can still be read.
            with suppress(RedisError):
                keys.record_use(key.id)
        return key
