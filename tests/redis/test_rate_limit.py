"""Rate limits of API keys, on a real Redis server."""

import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis import Redis

from img2img.app.http.errors import JobTooExpensive, RateLimited
from img2img.app.http.rate_limit import RateLimiter, wait_s


@pytest.fixture
def empty(redis: Redis) -> Redis:
    redis.flushall()
    return redis


def test_spend_counts_by_owner(empty: Redis) -> None:
    rate = RateLimiter("100/hour", empty)
    assert rate.spend("ada", 59.5) == {"RateLimit-Policy": '"cost";q=100;w=3600', "RateLimit": '"cost";r=40'}
    assert rate.spend("ada", 40)["RateLimit"] == '"cost";r=0'
    with pytest.raises(RateLimited, match=r"100 in 3600 s") as refused:
        rate.spend("ada", 0.501)
    assert refused.value.headers["RateLimit"] == '"cost";r=0'
    assert 3600 <= refused.value.retry_after_s <= 7200
    assert rate.spend("ada", 0.5)
    assert rate.spend("bob", 100)


def test_job_above_the_whole_limit_is_too_expensive(empty: Redis) -> None:
    with pytest.raises(JobTooExpensive, match=r"fewer steps"):
        RateLimiter("100/hour", empty).spend("ada", 100.001)
    assert empty.keys("i2i:rate*") == []


def test_retry_after_is_long_enough(empty: Redis) -> None:
    rate = RateLimiter("10 per 2 seconds", empty)
    rate.spend("ada", 10)
    with pytest.raises(RateLimited) as refused:
        rate.spend("ada", 5)
    time.sleep(refused.value.retry_after_s)
    assert rate.spend("ada", 5)


@settings(deadline=None)
@given(
    previous=st.integers(0, 1000),
    current=st.integers(0, 1000),
    target=st.integers(0, 1000),
    gone_s=st.floats(0, 60, allow_nan=False),
)
def test_wait_s_is_minimal(previous: int, current: int, target: int, gone_s: float) -> None:
    """Compare with the sliding windows, gone_s seconds after the start of the current one of 60 s."""
    window_s = 60.0
    left_s = window_s - gone_s if previous else 0.0

    def counted(at: float) -> float:
        if at <= window_s - gone_s:
            return current + (previous * max(0.0, left_s - at) / window_s)
        return current * max(0.0, 1 - (at - (window_s - gone_s)) / window_s)

    waited = wait_s(previous, left_s, current, 2 * window_s - gone_s, window_s=window_s, target=target)
    assert counted(waited) <= target + 1e-6
    if waited > 1:
        assert counted(math.floor(waited - 1.001)) > target - 1e-6
