"""Stands where the real worker stands: found first by a child whose PYTHONPATH names the folder above."""
