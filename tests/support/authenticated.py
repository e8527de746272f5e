"""A service that requires API keys, and clients with keys."""

import pkgutil
import re
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib import import_module
from urllib.parse import urlparse

import httpx
from fastapi.routing import APIRoute, iter_route_contexts
from redis import Redis

import img2img.app.routes
from img2img.app.main import create_app
from img2img.app.settings import ApiSettings
from img2img.app.supervisor.supervisor import free_port
from img2img.domain.api_key import Scope
from img2img.redis.api_keys import ApiKeys
from img2img.redis.model_registry import ModelRegistry
from tests.support.model_cards import CARD
from tests.support.servers import http_server

ALL_BUT_ADMIN = (Scope.READ, Scope.SUBMIT)


def empty_keys(redis: Redis) -> ApiKeys:
    """Empty Redis, register a model, and return the API keys, of which there are none."""
    redis.flushall()
    ModelRegistry(redis).register("test-worker", [CARD], ttl_s=60)
    return ApiKeys(redis)


@contextmanager
def authenticated_server(settings: ApiSettings, **changes: object) -> Iterator[str]:
    """Run an API server that requires API keys, on the same Redis and store, and yield its URL."""
    overrides = {"keys": "required", "port": free_port(), **changes}
    with http_server(settings.model_copy(update=overrides)) as url:
        yield url


@contextmanager
def client_with(url: str, keys: ApiKeys, *scopes: Scope) -> Iterator[httpx.Client]:
    """A client with a new API key."""
    secret, _ = keys.create("test", scopes or ALL_BUT_ADMIN)
    with httpx.Client(base_url=url, timeout=10, headers={"Authorization": f"Bearer {secret}"}) as client:
        yield client


def routes() -> list[tuple[str, str]]:
    """Return method and path of every route in `app.routes`."""
    modules = [
        import_module(f"img2img.app.routes.{found.name}") for found in pkgutil.iter_modules(img2img.app.routes.__path__)
    ]
    return [
        (method, route.path)
        for module in modules
        if hasattr(module, "router")
        for route in module.router.routes
        if isinstance(route, APIRoute)
        for method in sorted(route.methods)
    ]


def every_route() -> list[tuple[str, str]]:
    """Return method and path of every route of the application, including the compatibility APIs."""
    app = create_app(ApiSettings(_env_file=None))
    found = iter_route_contexts(app.routes)
    return [(method, str(route.path)) for route in found for method in sorted(route.methods or ["GET"])]


def path_of(route: str, id: str = "0" * 32, index: int = 0) -> str:
    """Return a path that matches a route."""
    names = dict.fromkeys(("path", "name", "lora", "version"), "unknown")
    # The compatible APIs with a model in the path.
    names |= {"owner": "img2img", "model": "unknown"}
    if route.endswith("/predictions") or route.startswith("/hf/"):
        names |= {"name": "demo", "model": "demo"}
    return re.sub(r":\w+}", "}", route).format(**names, job_id=id, batch_id=id, sha256=id, upload_id=id, index=index)


@contextmanager
def connected(url: str) -> Iterator[socket.socket]:
    """A socket connected to the service."""
    parsed = urlparse(url)
    with closing(socket.create_connection((parsed.hostname, parsed.port), timeout=20)) as connection:
        yield connection


def until_closed(connection: socket.socket) -> bytes:
    """Return all bytes until the service closes the connection."""
    received = b""
    try:
        while piece := connection.recv(65536):
            received += piece
    except ConnectionResetError:
        # The service closed the connection while it received data.
        pass
    return received
