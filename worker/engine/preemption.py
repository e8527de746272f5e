"""Breaks off the call that runs on a CPU when a task of the highest priority comes.

A call of a full batch can take as long as a whole job alone. The tasks of a call that is broken off stay parked, and it
runs again later: the output of a module depends on its arguments alone. A GPU has all kernels of a call in its queue
before they can be broken off, so calls on a GPU run to their end.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch

# The time that calls which are broken off may take, as a part of that of the others.
LOST = 0.25
MAX_CREDIT_S = 10.0  # and at most this long at once
# A call that has taken this part of its predicted time runs to its end.
NEARLY_ENDED = 0.9


class BrokenOff(BaseException):
    """Raised inside a call to end it. Not an Exception, so that the code of modules does not catch it."""


class _Running(threading.local):
    check: Callable[[], None] | None = None  # of the call that the engine of this thread runs


_running = _Running()


class Preemption:
    """Breaks off calls while it is requested. `request` may be called by any thread, the rest by the engine's."""

    def __init__(self) -> None:
        self._is_requested = False
        self._credit_s = MAX_CREDIT_S

    def request(self) -> None:
        """Break off the call that runs, if it is breakable."""
        self._is_requested = True

    def end_request(self) -> None:
        """Let calls run again."""
        self._is_requested = False

    @contextmanager
    def breakable(self, predicted_s: float | None) -> Iterator[None]:
        """Run a call that may be broken off between the layers of modules with `add_break_points`.

        Args:
            predicted_s: time that the call will probably take.

        Raises:
            BrokenOff: it was broken off.
        """
        started = time.perf_counter()
        until_s = self._credit_s if predicted_s is None else min(self._credit_s, NEARLY_ENDED * predicted_s)

        def check() -> None:
            if self._is_requested and time.perf_counter() - started <= until_s:
                raise BrokenOff

        _running.check = check
        try:
            yield
        except BrokenOff:
            self._credit_s -= time.perf_counter() - started
            raise
        finally:
            _running.check = None
        self._credit_s = min(MAX_CREDIT_S, self._credit_s + LOST * (time.perf_counter() - started))


def add_break_points(modules: Iterable[torch.nn.Module]) -> None:
    """Let calls of modules be broken off before each of their layers. Call it once for modules that share layers."""
    lists = (part for module in modules for part in module.modules() if isinstance(part, torch.nn.ModuleList))
    layers = {layer for one in lists for layer in one if layer is not None}
    for layer in layers:
        layer.register_forward_pre_hook(_check)


def _check(_layer: torch.nn.Module, _args: object) -> None:
    if _running.check is not None:
        _running.check()
