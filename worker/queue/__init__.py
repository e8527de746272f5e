"""The RQ side of the worker: fetching jobs, leases, finishing, recovery and retention."""
