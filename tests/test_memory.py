"""Freed memory is kept for the next tensor, and given back where nothing came to use it."""

import subprocess
import sys

import pytest

KEEP_SOME_OF_MUCH = """
import psutil
from worker.memory import keep_freed_memory, trim

keep_freed_memory()
mb = lambda: psutil.Process().memory_info().rss / 2**20
before = mb()
pieces = [bytearray(100_000) for _ in range(4_000)]
full = mb()
pieces = pieces[::100]
freed = mb()
trim()
print(full - before, freed - before, mb() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_memory_in_pieces_is_given_back() -> None:
    said = subprocess.run([sys.executable, "-c", KEEP_SOME_OF_MUCH], capture_output=True, text=True, check=True)
    full, freed, trimmed = map(float, said.stdout.split())
    assert full > 350
    assert freed > 350
    assert trimmed < 50
