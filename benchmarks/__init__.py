"""Measurements that the README quotes: `python -m benchmarks.throughput` and `python -m benchmarks.submit`."""
