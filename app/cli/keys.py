"""`img2img keys`: create, list and revoke API keys."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from img2img.domain.api_key import Scope

from .errors import fail, server_errors
from .serve import DataDir, RedisUrl, settings_of

if TYPE_CHECKING:
    from img2img.redis.api_keys import ApiKeys

    from ..settings import ApiSettings

Scopes = Annotated[
    list[Scope],
    typer.Option("--scope", help="Scope of the key; can be repeated. `admin` includes all, for the jobs of all keys."),
]

app = typer.Typer(help="Create, list and revoke API keys.", no_args_is_help=True)


@app.command()
def create(
    name: Annotated[str, typer.Option(help="Name of the owner or the purpose.")],
    # Typer copies the default.
    scope: Scopes = [Scope.READ, Scope.SUBMIT],  # noqa: B006
    data_dir: DataDir = None,
    redis_url: RedisUrl = None,
) -> None:
    """Create a key and print it. It cannot be shown again."""
    with server_errors("api"), _keys(settings_of(data_dir=data_dir, redis_url=redis_url)) as keys:
        secret, key = keys.create(name, scope)
    typer.echo(f"Key {key.id} ({', '.join(sorted(scope))}); it cannot be shown again:", err=True)
    typer.echo(secret)


@app.command("list")
def list_keys(data_dir: DataDir = None, redis_url: RedisUrl = None) -> None:
    """List the keys: id, time of creation, scopes and name."""
    with server_errors("api"), _keys(settings_of(data_dir=data_dir, redis_url=redis_url)) as keys:
        for key in keys.all():
            created_at = datetime.fromtimestamp(key.created_at, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
            typer.echo(f"{key.id}  {created_at}  {','.join(sorted(key.scopes))}  {key.name}")


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="Id of the key, see `img2img keys list`.")],
    data_dir: DataDir = None,
    redis_url: RedisUrl = None,
) -> None:
    """Revoke a key. Takes effect within seconds; its jobs go on and expire as usual."""
    with server_errors("api"), _keys(settings_of(data_dir=data_dir, redis_url=redis_url)) as keys:
        if not keys.revoke(key_id):
            fail(f"there is no key {key_id}")


@contextmanager
def _keys(settings: "ApiSettings") -> Iterator["ApiKeys"]:
    """Yield the keys of the configured Redis, or of the embedded one, which is started unless it runs.

    Raises:
        ServeError: Redis cannot be reached or started.
    """
    from redis.exceptions import RedisError

    from img2img.redis.api_keys import ApiKeys

    from ..supervisor.embedded_redis import connect, is_redis_ready
    from ..supervisor.errors import ServeError, TemporaryServeError
    from ..supervisor.redis_server import RedisUnavailable

    try:
        with (
            nullcontext()
            if settings.redis_url or is_redis_ready(settings.resolved_redis_url)
            else _embedded_redis(settings),
            connect(settings.resolved_redis_url) as redis,
        ):
            yield ApiKeys(redis)
    except RedisUnavailable as error:
        raise ServeError(str(error)) from None
    except RedisError as error:
        raise TemporaryServeError(f"{settings.resolved_redis_url.rpartition('@')[2]}: {error}") from None


@contextmanager
def _embedded_redis(settings: "ApiSettings") -> Iterator[None]:
    from ..supervisor.embedded_redis import is_redis_ready, redis_command
    from ..supervisor.errors import TemporaryServeError
    from ..supervisor.process import ManagedProcess
    from ..supervisor.supervisor import lock_data_dir

    with lock_data_dir(settings.data_dir):
        redis = ManagedProcess("redis", redis_command(settings.data_dir), os.environ, stop_within_s=20)
        try:
            while not is_redis_ready(settings.resolved_redis_url):
                if redis.exit_code is not None:
                    raise TemporaryServeError(f"redis ended with exit code {redis.exit_code} while starting")
            yield
        finally:
            redis.stop()
