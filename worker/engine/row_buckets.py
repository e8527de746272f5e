"""Fixed numbers of rows, so that a compiled module sees few shapes. Rows that a call lacks are padded.

Without compilation, calls have the rows of their jobs: the time of a call grows with its rows, and no kernel needs a
fixed number.
"""

from bisect import bisect_left, bisect_right

# On average 7 % of the rows are padding; with powers of two it would be 23 %.
ROW_BUCKETS = (1, 2, 4, 6, 8, 12, 16, 20, 24, 28, 32, 40, 48, 64)
# Step of larger buckets.
STEP = 16


def bucket_of(rows: int) -> int:
    """Return the smallest bucket with at least `rows` rows."""
    if rows > ROW_BUCKETS[-1]:
        return -(-rows // STEP) * STEP
    return ROW_BUCKETS[bisect_left(ROW_BUCKETS, rows)]


def largest_bucket(limit: int) -> int:
    """Return the largest bucket with at most `limit` rows, at least one."""
    if limit >= ROW_BUCKETS[-1]:
        return limit // STEP * STEP
    return ROW_BUCKETS[max(0, bisect_right(ROW_BUCKETS, limit) - 1)]


def buckets_up_to(rows: int) -> list[int]:
    """Return the buckets of calls with at most `rows` rows."""
    most = bucket_of(rows)
    return [bucket for bucket in ROW_BUCKETS if bucket <= most] + list(range(ROW_BUCKETS[-1] + STEP, most + 1, STEP))
