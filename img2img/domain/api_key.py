"""API keys and their scopes. Separate from the key store, so that the command line can list scopes without Redis."""

import re
from enum import StrEnum

from pydantic import BaseModel, ConfigDict

# Makes a leaked key recognisable, for people and secret scanners.
PREFIX = "i2i_"
SECRET = re.compile(PREFIX + r"[A-Za-z0-9_-]{43}")


class Scope(StrEnum):
    """A set of permitted requests."""

    # Read one's own jobs and images, and the models.
    READ = "read"
    # Submit, cancel and delete one's own jobs; upload images.
    SUBMIT = "submit"
    # Submit jobs of high priority.
    PRIORITY = "priority"
    # Read /metrics, and nothing else.
    METRICS = "metrics"
    # Everything, also for the jobs of other keys.
    ADMIN = "admin"


class ApiKey(BaseModel):
    """The stored data of an API key, which do not include the key.

    Attributes:
        id: Public id: the first digits of `sha256`.
        name: Name for people.
        sha256: Digest of the key, in hexadecimal digits.
        scopes: The permitted requests.
        created_at: Seconds since the epoch.
        owner: Owner of the jobs and images; empty if the key has made no other one by rotation. See `owner_of`.
        expires_at: Time from which the key is rejected; None: never.
        expiry_recorded: Whether the audit log has the expiry.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    sha256: str
    scopes: frozenset[Scope]
    created_at: float
    owner: str = ""
    expires_at: float | None = None
    expiry_recorded: bool = False

    def allows(self, scope: Scope) -> bool:
        return bool(self.scopes & {scope, Scope.ADMIN})

    def has_expired(self, now: float) -> bool:
        return self.expires_at is not None and self.expires_at <= now


def owner_of(key: ApiKey) -> str:
    """Return the id of the owner of a key's jobs, images, limits and idempotency keys.

    It is the id of the owner's first key, and stays the same when keys are rotated.
    """
    return key.owner or key.id
