"""Errors of the worker process itself."""


class StartupError(Exception):
    """The worker cannot start. The message is one line for the person who started it."""


class DeviceLost(Exception):
    """The device answers no more: what was on it is lost, and this process can do no more work."""


class WorkerDied(BaseException):
    """The worker must end now; its jobs go back to their queue. Not an Exception: a signal handler raises it."""
