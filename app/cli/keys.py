"""`img2img keys`: create, rotate, list and revoke API keys."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from img2img.domain.api_key import Scope, owner_of
from img2img.errors import Unavailable

from .errors import WrongUsage, fail, server_errors
from .options import AsJson
from .printing import add_row, echo, new_table, print_table, to_json
from .serve import Cell, DataDir, RedisUrl, settings_of_cell

if TYPE_CHECKING:
    from redis import Redis

    from img2img.domain.api_key import ApiKey

    from ..settings import ApiSettings

Scopes = Annotated[
    list[Scope],
    typer.Option("--scope", help="Scope of the key; can be repeated. `admin` includes all, for the jobs of all keys."),
]
NewScopes = Annotated[
    list[Scope], typer.Option("--scope", help="Scope of the new key; can be repeated.", show_default="those of the old")
]
Expires = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="When the key expires: in 12h, 90d, 8w, or at a date such as 2027-01-31 (UTC)."),
]
# A hundred years.
MAX_DURATION_S = 100 * 365 * 24 * 3600.0

KeyId = Annotated[str, typer.Argument(metavar="ID", help="Id of the key, see `img2img keys list`.")]

app = typer.Typer(help="Create, rotate, list and revoke API keys.", no_args_is_help=True)


@app.command()
def create(
    name: Annotated[str, typer.Option(help="Name of the owner or the purpose.")],
    # Typer copies the default.
    scope: Scopes = [Scope.READ, Scope.SUBMIT],  # noqa: B006
    expires: Expires = None,
    data_dir: DataDir = None,
    redis_url: RedisUrl = None,
    cell: Cell = None,
) -> None:
    """Create a key and print it. It cannot be shown again."""
    with server_errors("api"):
        expires_at = _expiry(expires)
        with connected(settings_of_cell(data_dir, redis_url, cell)) as redis:
            from img2img.redis.api_keys import ApiKeys

            secret, key = ApiKeys(redis, actor()).create(name, scope, expires_at)
    _show(secret, key)


@app.command()
def rotate(
    key_id: KeyId,
    overlap: Annotated[str, typer.Option(metavar="TIME", help="How long the old key remains valid: 0, 30m, 24h.")] = (
        "24h"
    ),
    scope: NewScopes = [],  # noqa: B006
    expires: Annotated[
        str | None, typer.Option(metavar="TIME", help="As for `create`.", show_default="as long as the old key")
    ] = None,
    data_dir: DataDir = None,
    redis_url: RedisUrl = None,
    cell: Cell = None,
) -> None:
    """Create another key of the same owner and print it. Jobs, images and limits belong to the owner."""
    with server_errors("api"):
        overlap_s, expires_at = _seconds(overlap, "--overlap"), _expiry(expires)
        with connected(settings_of_cell(data_dir, redis_url, cell)) as redis:
            from img2img.redis.api_keys import ApiKeys

            rotated = ApiKeys(redis, actor()).rotate(key_id, overlap_s, scope, expires_at)
    if rotated is None:
        fail(f"there is no valid key {key_id}")
    _show(*rotated)


@app.command("list")
def list_keys(as_json: AsJson = False, data_dir: DataDir = None, redis_url: RedisUrl = None, cell: Cell = None) -> None:
    """List the keys, with the time of their last use to the minute."""
    with server_errors("api"), connected(settings_of_cell(data_dir, redis_url, cell)) as redis:
        from img2img.redis.api_keys import ApiKeys

        keys = ApiKeys(redis)
        found, last_uses = keys.all(), keys.last_uses()
    if as_json:
        for key in found:
            document = key.model_dump(mode="json", exclude={"sha256", "expiry_recorded"})
            document |= {"owner": owner_of(key), "scopes": sorted(key.scopes), "last_used_at": last_uses.get(key.id)}
            echo(to_json(document))
        return
    table = new_table("key", "created", "expires", "last used", "scopes", "owner", "name")
    for key in found:
        expires = "expired " * key.has_expired(time.time()) + moment(key.expires_at)
        used, scopes = moment(last_uses.get(key.id)), ",".join(sorted(key.scopes))
        add_row(table, key.id, moment(key.created_at), expires, used, scopes, owner_of(key), key.name)
    print_table(table)


@app.command()
def revoke(
    key_id: KeyId,
    cancel_jobs: Annotated[
        bool, typer.Option("--cancel-jobs", help="Also cancel the unfinished jobs that were submitted with the key.")
    ] = False,
    data_dir: DataDir = None,
    redis_url: RedisUrl = None,
    cell: Cell = None,
) -> None:
    """Revoke a key. Within two seconds its open requests end. Its jobs go on and expire as usual."""
    with server_errors("api"), connected(settings_of_cell(data_dir, redis_url, cell)) as redis:
        from img2img.redis.api_keys import ApiKeys

        key = ApiKeys(redis, actor()).revoke(key_id)
        if key is None:
            fail(f"there is no key {key_id}")
        if cancel_jobs:
            from img2img.redis.audit import AuditEvent, audit
            from img2img.redis.job_queue import JobQueue

            count = JobQueue(redis).cancel_submitted_with(key)
            audit(redis, AuditEvent.JOBS_CANCELLED, actor=actor(), key=key.id, owner=owner_of(key), jobs=count)
            echo(f"{count} job{'s' * (count != 1)} cancelled", err=True)


def actor() -> str:
    """Return the user of this command and its machine, for the audit log."""
    import getpass
    import socket

    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        # A container can run with the number of a user that has no name.
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def _show(secret: str, key: "ApiKey") -> None:
    scopes, expires = ", ".join(sorted(key.scopes)), moment(key.expires_at)
    echo(f"Key {key.id} ({scopes}; expires {expires}); it cannot be shown again:", err=True)
    echo(secret)


def _expiry(text: str | None) -> float | None:
    """Return the time that `--expires` gives, in seconds since the epoch. Raises WrongUsage."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return time.time() + _seconds(text, "--expires", minimum=1)
    expires_at = moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()
    if expires_at <= time.time():
        raise WrongUsage(f"--expires: {text} is in the past")
    return expires_at


def _seconds(text: str, option: str, minimum: float = 0) -> float:
    from ..settings import parse_duration

    try:
        seconds = float(str(parse_duration(text)))
    except ValueError:
        seconds = float("nan")
    # Refuses infinity and NaN, too.
    if not minimum <= seconds <= MAX_DURATION_S:
        raise WrongUsage(f"{option}: should be a duration such as 12h, 90d or 8w, got {text!r}")
    return seconds


def moment(seconds: float | None) -> str:
    return "never" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


@contextmanager
def connected(settings: "ApiSettings") -> Iterator["Redis"]:
    """Yield a client of the configured Redis, or of the embedded one, which is started unless it runs.

    Raises:
        ServeError: Redis cannot be reached or started.
    """
    from redis.exceptions import RedisError

    from img2img.redis.durability import DurableWrites
    from img2img.redis.outage import message_of

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
            yield redis
            # A key that was created or revoked stays so, if Redis fails after the command has ended.
            DurableWrites(redis, settings.durability, timeout_s=3).confirm()
    except Unavailable as error:
        raise ServeError(error.message) from None
    except RedisUnavailable as error:
        raise ServeError(str(error)) from None
    except RedisError as error:
        raise TemporaryServeError(f"{settings.resolved_redis_url.rpartition('@')[2]}: {message_of(error)}") from None


@contextmanager
def _embedded_redis(settings: "ApiSettings") -> Iterator[None]:
    from ..supervisor.embedded_redis import is_redis_ready, redis_command
    from ..supervisor.errors import TemporaryServeError
    from ..supervisor.process import ManagedProcess
    from ..supervisor.supervisor import lock_data_dir

    with lock_data_dir(settings.data_dir):
        redis = ManagedProcess(
            "redis", redis_command(settings.data_dir, settings.durability), os.environ, stop_within_s=20
        )
        try:
            while not is_redis_ready(settings.resolved_redis_url):
                if redis.exit_code is not None:
                    raise TemporaryServeError(f"redis ended with exit code {redis.exit_code} while starting")
            yield
        finally:
            redis.stop()
