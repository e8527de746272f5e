"""When a delivery that failed is tried again. Plain arithmetic."""

from email.utils import parsedate_to_datetime

MAX_ATTEMPTS = 12  # over about two and a half days
FIRST_DELAY_S = 5.0
GROWTH = 3.0
MAX_DELAY_S = 24 * 3600.0
SPREAD = 0.2  # as a part of the delay, to both sides: receivers that come back are not met by all at once


def retry_delay_s(attempt: int, retry_after_s: float | None, chance: float) -> float | None:
    """Seconds from a failed attempt, counted from 1, to the next one; None after the last.

    retry_after_s: what the receiver asked for. It can make the delay longer, up to a day. chance: 0 to 1, drawn evenly.
    """
    if attempt >= MAX_ATTEMPTS:
        return None
    delay_s = min(FIRST_DELAY_S * GROWTH ** (attempt - 1), MAX_DELAY_S)
    delay_s *= 1 - SPREAD + 2 * SPREAD * chance
    return max(delay_s, min(retry_after_s or 0.0, MAX_DELAY_S))


def parse_retry_after(value: str, now: float) -> float | None:
    """Seconds from now, by a `Retry-After` header in either form; None where it makes no sense."""
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now)
    except (ValueError, OverflowError):
        return None
