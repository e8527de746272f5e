"""Errors of the worker process."""


class StartupError(Exception):
    """The worker cannot start. The message is one line for the operator."""


class DeviceLost(Exception):
    """The device failed. The results on it are lost, and this process has to be replaced."""


class WorkerDied(BaseException):
    """The worker has to end now, and its jobs are requeued. Not an Exception, because a signal handler raises it."""
