"""The number of connections that the server can accept: each takes a file descriptor, and the rest need some, too."""

import logging
import resource
from contextlib import suppress

# For Redis, the store, decoders, the event loop and the log.
OTHER_FILES = 100
# Connections above the limit that get a response, as a part of it. Further ones are closed.
SPARE_PART = 0.1

log = logging.getLogger(__name__)


def connection_limit(wanted: int) -> int:
    """Raise the limit of open files if necessary, and return the number of connections that it allows.

    Args:
        wanted: The largest number to return.
    """
    needed = int(wanted * (1 + SPARE_PART)) + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY != soft < needed:
        raised = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    limit = max(1, int((soft - OTHER_FILES) / (1 + SPARE_PART)))
    log.warning("%d connections instead of %d: this process may open %d files (ulimit -n)", limit, wanted, soft)
    return limit
