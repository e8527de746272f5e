"""Errors of a start of the service. Quick to import, because the command line needs them before anything else."""


class ServeError(Exception):
    """The service cannot run with these settings. The message is one line, empty if a child process has logged it."""


class TemporaryServeError(ServeError):
    """The service cannot run now. A later start may succeed with the same settings."""
