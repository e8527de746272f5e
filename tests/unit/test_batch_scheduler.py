"""The choice of the calls that run next, decided without torch."""

import subprocess
import sys
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from img2img.worker.engine.batch_limits import RETRY_AFTER_CALLS, BatchLimits
from img2img.worker.engine.batch_scheduler import schedule


@dataclass(eq=False)
class Call:
    signature: str
    rows: int = 1
    iteration: int = 0


def test_schedule_runs_group_with_oldest_call_first():
    calls = [Call("decode", iteration=1), *(Call("denoise", 2, iteration=2) for _ in range(5))]
    assert schedule(calls, lambda _s: 64) == calls[:1]


def test_schedule_prefers_smaller_group_among_equally_old():
    large_group, new_call = [Call("denoise", 2, iteration=3) for _ in range(5)], Call("encode", iteration=3)
    assert schedule([*large_group, new_call], lambda _s: 64) == [new_call]


def test_schedule_adds_later_calls_of_same_signature():
    calls = [Call("denoise", iteration=1), Call("encode", iteration=2), Call("denoise", iteration=3)]
    assert schedule(calls, lambda _s: 64) == [calls[0], calls[2]]


def test_schedule_runs_call_above_limit_alone():
    calls = [Call("denoise", 16), Call("denoise", 2)]
    assert schedule(calls, lambda _s: 8) == calls[:1]


parked_calls = st.lists(st.builds(Call, st.sampled_from("abc"), st.integers(1, 8), st.integers(0, 9)), min_size=1).map(
    lambda calls: sorted(calls, key=lambda call: call.iteration)
)


@given(parked_calls, st.integers(1, 32))
def test_schedule_returns_one_group_in_order_within_limit_with_oldest_call(calls, limit):
    batch = schedule(calls, lambda _s: limit)
    assert batch
    assert len({call.signature for call in batch}) == 1
    assert [call for call in calls if call in batch] == batch
    assert sum(call.rows for call in batch) <= limit or len(batch) == 1
    assert batch[0].iteration == calls[0].iteration


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=30))
def test_schedule_starves_no_call(signatures):
    """Each scheduled call is followed at once by a new call of the same signature; every call still runs."""
    calls = [Call(signature, iteration=0) for signature in signatures]
    waiting = set(calls)
    for iteration in range(1, len(set(signatures)) + 1):
        batch = schedule(calls, lambda _s: 64)
        waiting -= set(batch)
        calls = [c for c in calls if c not in batch] + [Call(c.signature, iteration=iteration) for c in batch]
    assert not waiting


def test_batch_limit_halves_and_grows_again():
    limits = BatchLimits(16)
    assert limits.record_out_of_memory("a", 16, 2) == 8
    assert limits.record_out_of_memory("a", 8, 2) == 4
    assert limits.limit_of("a") == 4
    assert limits.limit_of("b") == 16
    for _ in range(RETRY_AFTER_CALLS):
        limits.record_success("a", 2)
    assert limits.limit_of("a") == 4, "calls with few rows do not raise the limit"
    for _ in range(RETRY_AFTER_CALLS):
        limits.record_success("a", 4)
    assert limits.limit_of("a") == 8
    limits.record_out_of_memory("a", 8, 2)
    for _ in range(RETRY_AFTER_CALLS):
        limits.record_success("a", 4)
    assert limits.limit_of("a") == 4, "a trial that failed doubles the number of calls before the next"
    for _ in range(4 * RETRY_AFTER_CALLS):
        limits.record_success("a", limits.limit_of("a"))
    assert limits.limit_of("a") == 16
    assert limits.record_out_of_memory("a", 3, 3) == 3, "never below the rows of one task"


@pytest.mark.parametrize("module", ["batch_scheduler", "batch_limits", "timeline"])
def test_module_imports_without_torch(module):
    code = f"import sys, img2img.worker.engine.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
