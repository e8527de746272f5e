"""When a failed delivery is retried: exponential backoff with jitter."""

from email.utils import parsedate_to_datetime

# The last attempt is about two and a half days after the first.
MAX_ATTEMPTS = 12
FIRST_DELAY_S = 5.0
GROWTH = 3.0
MAX_DELAY_S = 24 * 3600.0
# Fraction of the delay, in both directions, so that a receiver that recovers is not hit by all retries at once.
JITTER = 0.2


def retry_delay_s(attempt: int, retry_after_s: float | None, jitter: float) -> float | None:
    """Return the seconds from a failed attempt to the next one, or None after the last.

    Args:
        attempt: Number of the failed attempt, from 1.
        retry_after_s: `Retry-After` of the receiver. It can extend the delay, up to a day.
        jitter: Uniform random number from 0 to 1.
    """
    if attempt >= MAX_ATTEMPTS:
        return None
    delay_s = min(FIRST_DELAY_S * GROWTH ** (attempt - 1), MAX_DELAY_S)
    delay_s *= 1 - JITTER + 2 * JITTER * jitter
    return max(delay_s, min(retry_after_s or 0.0, MAX_DELAY_S))


def parse_retry_after(value: str, now: float) -> float | None:
    """Return the seconds from `now` of a `Retry-After` header (RFC 9110, section 10.2.3); None if it is invalid."""
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now)
    except (ValueError, OverflowError):
        return None
