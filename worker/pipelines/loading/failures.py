"""Reports any failure to load a model in one line: the model, the cause and what to do."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError

from safetensors import SafetensorError

from img2img.telemetry.logging import quoting_exceptions

from ...engine.errors import is_out_of_memory
from ...errors import StartupError, first_line

log = logging.getLogger(__name__)


@contextmanager
def reporting_failures(label: str, needs: Callable[[], str] | None = None) -> Iterator[None]:
    """Raise any exception of the block as a StartupError, and log its traceback at level DEBUG.

    Args:
        label: start of the message, such as "cannot load model 'photo'".
        needs: returns the remedy if memory runs out.
    """
    try:
        yield
    except StartupError as error:
        raise StartupError(f"{label}: {error}") from error
    # Libraries raise exceptions of any class for files that they cannot load.
    except Exception as error:
        # No client has sent anything yet, so messages quote no input.
        with quoting_exceptions():
            log.debug("%s", label, exc_info=error)
        cause = f"out of memory: {needs()}" if needs and is_out_of_memory(error) else cause_of(error)
        raise StartupError(f"{label}: {cause}") from error


def cause_of(error: BaseException) -> str:
    """Return the cause of a failure to load files, and what to do about it if that is known."""
    if is_out_of_memory(error):
        return "out of memory; choose a smaller model, or a `dtype` of 2 bytes such as float16"
    line = first_line(error)
    match error:
        case PackageNotFoundError():
            return f"the package {error.name} is not installed; run `pip install {error.name}`"
        case ImportError(name=str(module)):
            package = module.partition(".")[0]
            return f"the package {package} is not installed or broken: {line}"
        case NameError(name=str(name)) if name[:1].isupper():
            # diffusers does not import classes whose packages are not installed.
            return f"{name} is missing, usually because torchvision is not installed; run `pip install torchvision`"
        case SafetensorError():
            return f"a weight file is damaged or incomplete ({line}); download it again"
        case KeyError():
            return f"{line} is missing in its files; they are incomplete, or of another format"
        case OSError() | ValueError():
            return line
    if "meta tensor" in str(error):
        return "weights are missing in its files; download them again"
    return f"{type(error).__name__}: {line}" if str(error).strip() else line
