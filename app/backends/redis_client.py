"""The Redis client of the API server: short timeouts, no retries, and a circuit breaker."""

from collections.abc import Callable
from threading import local
from typing import Any

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from img2img.redis.connection import connect

from .circuit_breaker import CircuitBreaker, CircuitOpen

CONNECT_S, RESPONSE_S = 1.0, 1.5
# While Redis hangs, every call would hold a thread for RESPONSE_S, and other requests would wait for a thread.
FAILURES, PAUSE_S = 5, 1.0


class FailFast(Retry):
    """Retries nothing, because a repeated submit could queue a job twice. Does not try while Redis hangs."""

    def __init__(self) -> None:
        super().__init__(NoBackoff(), 0)
        self._breaker = CircuitBreaker(FAILURES, PAUSE_S, (RedisTimeoutError,))
        self._thread = local()

    def __deepcopy__(self, _memo: dict[int, Any]) -> "FailFast":
        """Return the same object: the connections of a client share the breaker."""
        return self

    def call_with_retry(self, do: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call `do` once. Raises RedisError."""
        if getattr(self._thread, "is_calling", False):
            # A command that connects first.
            return super().call_with_retry(do, *args, **kwargs)
        self._thread.is_calling = True
        try:
            with self._breaker.call():
                return super().call_with_retry(do, *args, **kwargs)
        except CircuitOpen:
            raise RedisConnectionError("Redis does not respond") from None
        finally:
            self._thread.is_calling = False


def connect_redis(url: str, response_s: float = RESPONSE_S) -> Redis:
    """Return a client. It does not connect before it is used.

    Args:
        response_s: How long to wait for the reply to a command.
    """
    return connect(url, socket_timeout=response_s, socket_connect_timeout=CONNECT_S, retry=FailFast())
