"""Measures the engine on a GPU; see `__main__`."""

from benchmarks.gpu.checkout import use_checkout

use_checkout()
