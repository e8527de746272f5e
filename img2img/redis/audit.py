"""The audit log: who has administered API keys, data and models, and when. Redis has its latest entries."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, cast

from redis import Redis

from img2img.domain.api_key import SECRET
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
    """Append an entry, and log it. A secret within a value is left out.

    Args:
        redis: A pipeline makes the entry in one transaction with the change itself.
        event: Kind of the event.
        actor: Who caused it.
        details: Further fields.
    """
    fields = {"event": event.value, "actor": actor, **{name: str(value) for name, value in details.items()}}
    clean = {name: SECRET.sub("i2i_...", value) for name, value in fields.items()}
    redis.xadd(AUDIT_LOG, cast(dict[Any, Any], clean), maxlen=MAX_ENTRIES, approximate=True)
    message = " ".join(f"{name}={value}" for name, value in clean.items() if name != "event")
    log.info("%s %s", event, message, extra={"audit": clean})


def audit_entries(redis: Redis, limit: int) -> Iterator[AuditEntry]:
    """Yield up to `limit` entries, newest first."""
    for entry_id, fields in redis.xrevrange(AUDIT_LOG, count=limit) or ():
        text = {decode(name): decode(value) for name, value in (fields or {}).items()}
        at = int(decode(entry_id).partition("-")[0]) / 1000
        yield AuditEntry(at, text.pop("event", ""), text.pop("actor", ""), text)
