"""A seeded storm of jobs and faults over real processes, and what must hold after it: `python -m tests.chaos`."""
