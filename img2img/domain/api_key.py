"""What an API key may do. A room of its own: the command line says the names before it needs Redis."""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict


class Scope(StrEnum):
    """What a key may do."""

    READ = "read"  # look at its own jobs and pictures, and at the models
    SUBMIT = "submit"  # make, cancel and delete its own jobs, send pictures
    METRICS = "metrics"  # read /metrics, and nothing else
    ADMIN = "admin"  # all of it, and on the jobs of all keys


class ApiKey(BaseModel):
    """What is known of a key."""

    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    sha256: str
    scopes: frozenset[Scope]
    created_at: float  # seconds since the epoch

    def allows(self, scope: Scope) -> bool:
        return bool(self.scopes & {scope, Scope.ADMIN})
