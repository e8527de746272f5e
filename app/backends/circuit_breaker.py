"""A circuit breaker: after several calls in a row that got no response, further calls fail at once."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock


class CircuitOpen(Exception):
    """The last calls got no response, so this one was not made."""


class CircuitBreaker:
    """Rejects calls for a pause after consecutive failures; then lets one call through to find out.

    Args:
        failures: Consecutive failures that open the circuit.
        pause_s: Seconds from the last failure until the next call is let through.
        errors: Exceptions that count as failures. Other exceptions are responses.
    """

    def __init__(self, failures: int, pause_s: float, errors: tuple[type[Exception], ...]) -> None:
        self._allowed_failures = failures
        self._pause_s = pause_s
        self._errors = errors
        self._lock = Lock()
        self._failures = 0
        self._retry_at = 0.0

    @contextmanager
    def call(self) -> Iterator[None]:
        """Make a call in the context. Raises CircuitOpen."""
        with self._lock:
            now = time.monotonic()
            if self._failures >= self._allowed_failures:
                if now < self._retry_at:
                    raise CircuitOpen
                # This call is the one that finds out.
                self._retry_at = now + self._pause_s
        try:
            yield
        except self._errors:
            self.record_failure()
            raise
        except Exception:
            self._record_response()
            raise
        self._record_response()

    def _record_response(self) -> None:
        with self._lock:
            self._failures = 0

    def record_failure(self) -> None:
        """Count a call that got no response."""
        with self._lock:
            self._failures += 1
            self._retry_at = time.monotonic() + self._pause_s
