"""API keys and their scopes. Separate from the key store, so that the command line can list scopes without Redis."""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict


class Scope(StrEnum):
    """A set of permitted requests."""

    # Read one's own jobs and images, and the models.
    READ = "read"
    # Submit, cancel and delete one's own jobs; upload images.
    SUBMIT = "submit"
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
    """

    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    sha256: str
    scopes: frozenset[Scope]
    created_at: float

    def allows(self, scope: Scope) -> bool:
        return bool(self.scopes & {scope, Scope.ADMIN})
