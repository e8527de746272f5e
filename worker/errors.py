"""Errors of the worker process itself."""


class StartupError(Exception):
    """The worker cannot start. The message is one line for the person who started it."""
