"""Chaos test: jobs and faults over real processes, drawn from a seed, and the guarantees that must hold afterwards."""
