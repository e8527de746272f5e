"""Returns the record of a job or a batch to its owner, or says why there is none."""

from collections.abc import Callable
from typing import Protocol, TypeVar

from img2img.errors import Deleted, Expired, NotFound
from img2img.redis.decode import decode


class Owned(Protocol):
    """A record of one owner. `expires_at` is in seconds since the epoch, None before its end."""

    @property
    def owner(self) -> str: ...

    @property
    def expires_at(self) -> float | None: ...


Record = TypeVar("Record", bound=Owned)


def checked(
    record: Record | None,
    what: str,
    *,
    owner: str | None,
    now: Callable[[], float],
    gone: Callable[[], bytes | str | None],
) -> Record:
    """Return the record if the owner may see it.

    Args:
        what: The record in messages, such as `job` and its id.
        owner: None for every owner.
        now: Returns the time by the clock of Redis.
        gone: Returns `{reason} {owner}` of a record that existed before.

    Raises:
        NotFound: There is no record, or it belongs to another owner.
        Expired: Its time to live is over.
        Deleted: It was deleted.
    """
    if record is None:
        reason, _, its_owner = decode(gone() or "").partition(" ")
    else:
        its_owner = record.owner
        reason = Expired.code if record.expires_at and record.expires_at <= now() else ""
    kind, _, record_id = what.partition(" ")
    if owner in (None, its_owner):
        if reason == Expired.code:
            raise Expired(f"The {kind} has expired and its results are deleted.")
        if reason == Deleted.code:
            raise Deleted(f"The {kind} was deleted.")
        if record is not None:
            return record
    raise NotFound(f"There is no {kind} {record_id[:80]}.")
