"""What an API key may do. A room of its own: the command line says the names before it needs Redis."""

from enum import StrEnum


class Scope(StrEnum):
    """What a key may do."""

    READ = "read"  # look at its own jobs and pictures, and at the models
    SUBMIT = "submit"  # make, cancel and delete its own jobs, send pictures
    METRICS = "metrics"  # read /metrics, and nothing else
    ADMIN = "admin"  # all of it, and on the jobs of all keys
