"""Threads for calls to the blob store. A store that hangs occupies these, and no thread that serves other requests."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

from obstore.exceptions import GenericError

from img2img.errors import Unavailable

from .circuit_breaker import CircuitBreaker, CircuitOpen

THREADS = 16
# Seconds for a call, including its wait for a thread.
CALL_S = 5.0
# Consecutive calls without a response after which calls fail at once, and the pause until the next call is made.
FAILURES, PAUSE_S = 3, 2.0
NOT_AVAILABLE = "The blob store is not available; try again in a few seconds."

T = TypeVar("T")


class StoreThreads:
    """Runs functions that use the blob store, on a limited number of threads and with a time limit."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, "blob store")
        self._breaker = CircuitBreaker(FAILURES, PAUSE_S, (GenericError, TimeoutError))

    async def run(self, function: Callable[..., T], *args: object, must_finish: bool = False) -> T:
        """Return `function(*args)`.

        Args:
            must_finish: Wait for the function once it has started. It has its own time limits then, and its effect
                is not lost. Otherwise its result is dropped after `CALL_S`.

        Raises:
            Unavailable: The store has not responded in time, or to the calls before this one.
        """
        call = self._threads.submit(copy_context().run, self.call, function, *args)
        done = asyncio.wrap_future(call)
        await asyncio.wait((done,), timeout=CALL_S)
        if done.done() or (must_finish and not call.cancel()):
            return await done
        if not done.cancel():
            self._breaker.record_failure()
        raise Unavailable(NOT_AVAILABLE)

    def call(self, function: Callable[..., T], *args: object) -> T:
        """Return `function(*args)`, on this thread. Raises Unavailable if the store has not responded lately."""
        try:
            with self._breaker.call():
                return function(*args)
        except CircuitOpen:
            raise Unavailable(NOT_AVAILABLE) from None

    def close(self) -> None:
        """Start no more calls."""
        self._threads.shutdown(wait=False, cancel_futures=True)
