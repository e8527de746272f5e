"""Errors of the worker process."""

# Longest message of a StartupError, in characters.
MAX_LENGTH = 299
_START, _END = 170, 124
# Longest quoted message of a library, in characters.
_QUOTED = 160


class StartupError(Exception):
    """The worker cannot start. The message is one line of less than 300 characters for the operator.

    Of a longer message, the middle is left out: the start names the model, the end says what to do.
    """

    def __init__(self, message: str) -> None:
        line = " ".join(message.split())
        super().__init__(line if len(line) <= MAX_LENGTH else f"{line[:_START]} ... {line[-_END:]}")


class HubUnavailable(StartupError):
    """The model hub does not respond as it should. It may do so later."""


def may_pass(error: BaseException | None) -> bool:
    """Return whether the cause of an error may pass without a change of the settings."""
    while error is not None:
        if isinstance(error, HubUnavailable):
            return True
        error = error.__cause__
    return False


class DeviceLost(Exception):
    """The device failed. The results on it are lost, and this process has to be replaced."""


class WorkerDied(BaseException):
    """The worker has to end now, and its jobs are requeued. Not an Exception, because a signal handler raises it."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error message, or the second if the first ends with a colon.

    An error without a message is named by its class and the line of code that raised it.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [_origin(error)]
    line = lines[1] if lines[0].endswith(":") and len(lines) > 1 else lines[0]
    return line if len(line) <= _QUOTED else f"{line[:_QUOTED]} ..."


def _origin(error: BaseException) -> str:
    where = error.__traceback__
    while where is not None and where.tb_next is not None:
        where = where.tb_next
    code = f" in {where.tb_frame.f_code.co_filename}:{where.tb_lineno}" if where is not None else ""
    return f"{type(error).__name__} without a message{code}; IMG2IMG_LOG_LEVEL=DEBUG logs the traceback"
