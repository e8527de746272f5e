"""Which calls run next: decided without torch."""

import subprocess
import sys
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from img2img.worker.engine.batch_scheduler import schedule


@dataclass(eq=False)
class Parked:
    signature: str
    rows: int = 1
    tick: int = 0


def test_the_group_with_the_oldest_call_goes_first():
    calls = [Parked("decode", tick=1), *(Parked("denoise", 2, tick=2) for _ in range(5))]
    assert schedule(calls, lambda _s: 64) == calls[:1]


def test_among_equals_the_smaller_group_goes_first_so_that_newcomers_catch_up():
    crowd, newcomer = [Parked("denoise", 2, tick=3) for _ in range(5)], Parked("encode", tick=3)
    assert schedule([*crowd, newcomer], lambda _s: 64) == [newcomer]


def test_a_young_call_joins_its_group():
    calls = [Parked("denoise", tick=1), Parked("encode", tick=2), Parked("denoise", tick=3)]
    assert schedule(calls, lambda _s: 64) == [calls[0], calls[2]]


def test_a_call_larger_than_the_limit_runs_alone():
    calls = [Parked("denoise", 16), Parked("denoise", 2)]
    assert schedule(calls, lambda _s: 8) == calls[:1]


parked_calls = st.lists(
    st.builds(Parked, st.sampled_from("abc"), st.integers(1, 8), st.integers(0, 9)), min_size=1
).map(lambda calls: sorted(calls, key=lambda call: call.tick))


@given(parked_calls, st.integers(1, 32))
def test_what_is_picked_is_one_group_in_order_within_the_limit_and_holds_the_oldest_call(calls, limit):
    picked = schedule(calls, lambda _s: limit)
    assert picked
    assert len({call.signature for call in picked}) == 1
    assert [call for call in calls if call in picked] == picked
    assert sum(call.rows for call in picked) <= limit or len(picked) == 1
    assert picked[0].tick == calls[0].tick


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=30))
def test_no_call_starves(signatures):
    """Whatever is picked comes back at once as a new call, and still every call has its turn."""
    calls = [Parked(signature, tick=0) for signature in signatures]
    waiting = set(calls)
    for tick in range(1, len(set(signatures)) + 1):
        picked = schedule(calls, lambda _s: 64)
        waiting -= set(picked)
        calls = [c for c in calls if c not in picked] + [Parked(c.signature, tick=tick) for c in picked]
    assert not waiting


def test_the_policy_module_needs_no_torch():
    code = (
        "import sys, importlib.util as u;"
        "spec = u.spec_from_file_location('batch_scheduler', 'worker/engine/batch_scheduler.py');"
        "spec.loader.exec_module(u.module_from_spec(spec)); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
