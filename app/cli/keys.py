"""`img2img keys`: makes, lists and revokes API keys."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from img2img.domain.api_key import Scope

from .errors import one_line_errors
from .serve import DataDir, RedisUrl, settings_of

if TYPE_CHECKING:
    from img2img.redis.api_keys import ApiKeys

    from ..settings import ApiSettings

Scopes = Annotated[
    list[Scope], typer.Option("--scope", help="What it may do; give it more than once. `admin`: all, on all jobs.")
]

app = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True)


@app.command()
def create(
    name: Annotated[str, typer.Option(help="Whose it is, or what for.")],
    scope: Scopes = [Scope.READ, Scope.SUBMIT],  # noqa: B006  # typer copies it
    data_dir: DataDir = None,
    redis_url: RedisUrl = None,
) -> None:
    """Makes a key and prints it, this once."""
    with one_line_errors(), _keys(settings_of(data_dir=data_dir, redis_url=redis_url)) as keys:
        secret, key = keys.create(name, scope)
    typer.echo(f"Key {key.id} ({', '.join(sorted(scope))}); it is not shown again:", err=True)
    typer.echo(secret)


@app.command("list")
def list_keys(data_dir: DataDir = None, redis_url: RedisUrl = None) -> None:
    """Lists the keys: id, when each was made, scopes, name."""
    with one_line_errors(), _keys(settings_of(data_dir=data_dir, redis_url=redis_url)) as keys:
        for key in keys.all():
            made = datetime.fromtimestamp(key.created_at, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
            typer.echo(f"{key.id}  {made}  {','.join(sorted(key.scopes))}  {key.name}")


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="The id, as `img2img keys list` says it.")],
    data_dir: DataDir = None,
    redis_url: RedisUrl = None,
) -> None:
    """Shuts a key out within seconds. Its jobs go on, and expire as others do."""
    from ..supervisor.supervisor import ServeError

    with one_line_errors(), _keys(settings_of(data_dir=data_dir, redis_url=redis_url)) as keys:
        if not keys.revoke(key_id):
            raise ServeError(f"there is no key {key_id}")


@contextmanager
def _keys(settings: "ApiSettings") -> Iterator["ApiKeys"]:
    """The keys in the configured Redis, or in the private one, which is started where it does not run. Raises
    ServeError."""
    from redis.exceptions import RedisError

    from img2img.redis.api_keys import ApiKeys

    from ..supervisor.embedded_redis import RedisUnavailable, connect, is_redis_ready
    from ..supervisor.supervisor import ServeError

    try:
        with (
            nullcontext()
            if settings.redis_url or is_redis_ready(settings.resolved_redis_url)
            else _private_redis(settings),
            connect(settings.resolved_redis_url) as redis,
        ):
            yield ApiKeys(redis)
    except (RedisError, RedisUnavailable) as error:
        raise ServeError(f"{settings.resolved_redis_url.rpartition('@')[2]}: {error}") from None


@contextmanager
def _private_redis(settings: "ApiSettings") -> Iterator[None]:
    from ..supervisor.embedded_redis import is_redis_ready, redis_command
    from ..supervisor.process import ManagedProcess
    from ..supervisor.supervisor import ServeError, lock_data_dir

    with lock_data_dir(settings.data_dir):
        redis = ManagedProcess("redis", redis_command(settings.data_dir), os.environ, stop_within_s=20)
        try:
            while not is_redis_ready(settings.resolved_redis_url):
                if redis.exit_code is not None:
                    raise ServeError(f"redis ended with exit code {redis.exit_code} while starting")
            yield
        finally:
            redis.stop()
