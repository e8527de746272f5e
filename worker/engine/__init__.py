"""Batching engine: runs unmodified pipeline code in greenlets and merges their module calls into shared batches.

Import from the submodules. `batch_scheduler`, `batch_limits` and `timeline` do not need torch.
"""
