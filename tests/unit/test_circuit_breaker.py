"""The circuit breaker: when calls are rejected, and when they are tried again."""

import pytest

from img2img.app.backends import circuit_breaker
from img2img.app.backends.circuit_breaker import CircuitBreaker, CircuitOpen


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the breaker sees."""
    now = [100.0]
    monkeypatch.setattr(circuit_breaker.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def breaker(clock: list[float]) -> CircuitBreaker:
    return CircuitBreaker(3, 2.0, (TimeoutError,))


def fail(breaker: CircuitBreaker, error: type[Exception] = TimeoutError) -> None:
    with pytest.raises(error), breaker.call():
        raise error


def succeed(breaker: CircuitBreaker) -> None:
    with breaker.call():
        pass


def test_consecutive_failures_open_the_circuit(breaker: CircuitBreaker) -> None:
    for _ in range(3):
        fail(breaker)
    with pytest.raises(CircuitOpen):
        succeed(breaker)


def test_a_response_closes_the_circuit(breaker: CircuitBreaker) -> None:
    for _ in range(5):
        fail(breaker)
        fail(breaker)
        succeed(breaker)


def test_other_errors_are_responses(breaker: CircuitBreaker) -> None:
    for _ in range(5):
        fail(breaker)
        fail(breaker, KeyError)
    succeed(breaker)


def test_one_call_tries_again_after_the_pause(breaker: CircuitBreaker, clock: list[float]) -> None:
    for _ in range(3):
        fail(breaker)
    clock[0] += 2.1
    # Further calls are rejected until its result is known.
    with breaker.call(), pytest.raises(CircuitOpen):
        succeed(breaker)
    succeed(breaker)


def test_a_failed_try_opens_the_circuit_again(breaker: CircuitBreaker, clock: list[float]) -> None:
    for _ in range(3):
        fail(breaker)
    clock[0] += 2.1
    fail(breaker)
    clock[0] += 1.9
    with pytest.raises(CircuitOpen):
        succeed(breaker)
    clock[0] += 0.2
    succeed(breaker)


def test_calls_that_were_given_up_count(breaker: CircuitBreaker) -> None:
    for _ in range(3):
        breaker.record_failure()
    with pytest.raises(CircuitOpen):
        succeed(breaker)
