"""The audit log: who has administered API keys, data and models, and when. Redis has its latest entries."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain
from typing import Any, cast

from redis import Redis
from redis.client import Pipeline

from img2img.domain.api_key import SECRET
from img2img.redis import scripts
from img2img.redis.decode import decode
from img2img.redis.keys import AUDIT_LOG

# About as many entries are kept.
MAX_ENTRIES = 10_000

log = logging.getLogger(__name__)


class AuditEvent(StrEnum):
    KEY_CREATED = "key.created"
    KEY_ROTATED = "key.rotated"
    KEY_REVOKED = "key.revoked"
    KEY_EXPIRED = "key.expired"
    JOBS_CANCELLED = "jobs.cancelled"
    DATA_FORGOTTEN = "data.forgotten"
    MODEL_CHANGED = "model.changed"


@dataclass(frozen=True)
class AuditEntry:
    """An entry of the audit log.

    Attributes:
        at: Seconds since the epoch.
        event: Kind of the event; a string, because a later version may have added it.
        actor: Who caused it: `user@host` of a command, `key {id}` of a request, or a process of the service.
        details: Ids, names and numbers.
    """

    at: float
    event: str
    actor: str
    details: dict[str, str]


def audit(redis: Redis, event: AuditEvent, *, actor: str, **details: object) -> None:
    """Append an entry, also to a Redis without memory, and log it. A secret within a value is left out.

    Args:
        redis: The Redis server.
        event: Kind of the event.
        actor: Who caused it.
        details: Further fields.
    """
    fields = fields_of(event, actor, details)
    scripts.register(redis, "append_audit")(args=[MAX_ENTRIES, *chain.from_iterable(fields.items())])
    log_entry(fields)


def audit_in(pipe: Pipeline, event: AuditEvent, *, actor: str, **details: object) -> None:
    """Append an entry in one transaction with the change itself, and log it, as `audit` does."""
    fields = fields_of(event, actor, details)
    pipe.xadd(AUDIT_LOG, cast(dict[Any, Any], fields), maxlen=MAX_ENTRIES, approximate=True)
    log_entry(fields)


def fields_of(event: AuditEvent, actor: str, details: Mapping[str, object]) -> dict[str, str]:
    """Return the fields of an entry. A secret within a value is left out."""
    fields = {"event": event.value, "actor": actor, **{name: str(value) for name, value in details.items()}}
    return {name: SECRET.sub("i2i_...", value) for name, value in fields.items()}


def log_entry(fields: Mapping[str, str]) -> None:
    """Log an entry."""
    message = " ".join(f"{name}={value}" for name, value in fields.items() if name != "event")
    log.info("%s %s", fields["event"], message, extra={"audit": fields})


def audit_entries(redis: Redis, limit: int) -> Iterator[AuditEntry]:
    """Yield up to `limit` entries, newest first."""
    for entry_id, fields in redis.xrevrange(AUDIT_LOG, count=limit) or ():
        text = {decode(name): decode(value) for name, value in (fields or {}).items()}
        at = int(decode(entry_id).partition("-")[0]) / 1000
        yield AuditEntry(at, text.pop("event", ""), text.pop("actor", ""), text)
