"""Errors of the worker process."""

# Longest message of a StartupError, in characters.
MAX_LENGTH = 299
_START, _END = 170, 124


class StartupError(Exception):
    """The worker cannot start. The message is one line of less than 300 characters for the operator.

    Of a longer message, the middle is left out: the start names the model, the end says what to do.
    """

    def __init__(self, message: str) -> None:
        line = " ".join(message.split())
        super().__init__(line if len(line) <= MAX_LENGTH else f"{line[:_START]} ... {line[-_END:]}")


class DeviceLost(Exception):
    """The device failed. The results on it are lost, and this process has to be replaced."""


class WorkerDied(BaseException):
    """The worker has to end now, and its jobs are requeued. Not an Exception, because a signal handler raises it."""
