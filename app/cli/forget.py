"""`img2img forget`: deletes everything that an API key has sent."""

import re
from typing import TYPE_CHECKING, Annotated

import typer

from img2img.domain.api_key import owner_of

from .errors import USAGE, complain, fail, server_errors
from .keys import actor, connected
from .printing import echo
from .serve import Cell, DataDir, RedisUrl, settings_of_cell

if TYPE_CHECKING:
    from redis import Redis

    from img2img.erasure import Forgotten


def forget(
    key: Annotated[str, typer.Option(help="Id of the API key, see `img2img keys list`. It may have been revoked.")],
    data_dir: DataDir = None,
    redis_url: RedisUrl = None,
    cell: Cell = None,
) -> None:
    """Delete everything that an API key has sent: jobs, images, webhooks, idempotency keys and rate limit counters.

    Jobs that have not ended are cancelled. The service may run. If the command is interrupted, run it again.
    """
    if not re.fullmatch("[0-9a-f]+", key):
        fail(f"{key} is no id of a key; `img2img keys list` lists them", USAGE)
    with server_errors("api"):
        from img2img.redis.api_keys import ApiKeys
        from img2img.redis.append_only_file import AppendOnlyFile, RewriteFailed
        from img2img.redis.audit import AuditEvent, audit

        settings = settings_of_cell(data_dir, redis_url, cell)
        with connected(settings) as redis:
            keys = ApiKeys(redis)
            owner = keys.owner_of(key)
            _print(_forget(redis, owner, settings.resolved_store_url))
            audit(redis, AuditEvent.DATA_FORGOTTEN, actor=actor(), key=key, owner=owner)
            for known in keys.all():
                if owner_of(known) == owner and not keys.has_expired(known):
                    complain(f"the key can still send jobs: `img2img keys revoke {known.id}` revokes it")
            try:
                rewritten = AppendOnlyFile(redis).rewrite()
            except RewriteFailed as error:
                fail(f"deleted data remains in the append-only file of Redis: {error}")
            echo("rewrote the append-only file of Redis" if rewritten else "Redis has no append-only file")


def _forget(redis: "Redis", owner: str, store_url: str) -> "Forgotten":
    from obstore.exceptions import BaseError as StoreError

    from img2img.blobs import ObjectStore, UnusableStore
    from img2img.erasure import Eraser
    from img2img.redis.job_queue import JobQueue
    from img2img.redis.owner_data import OwnerData

    from ..supervisor.errors import TemporaryServeError

    try:
        return Eraser(JobQueue(redis), ObjectStore(store_url)).forget_owner(OwnerData(redis, owner))
    except (StoreError, UnusableStore) as error:
        reason = str(error).split("\n", 1)[0]
        raise TemporaryServeError(f"the blob store failed; run the command again: {reason}") from None


def _print(forgotten: "Forgotten") -> None:
    counts = {
        "jobs": forgotten.jobs,
        "uploaded images": forgotten.uploads,
        "pending webhooks of expired jobs": forgotten.webhooks,
        "idempotency keys": forgotten.idempotency_keys,
        "rate limit counters": forgotten.rate_limits,
        "records of deleted jobs": forgotten.gone_jobs,
    }
    for name, count in counts.items():
        echo(f"{count:>8} {name} deleted")
