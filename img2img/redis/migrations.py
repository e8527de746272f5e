"""Which layout the jobs in Redis have, for a version that finds those of another one."""

import logging
from collections.abc import Iterable

from redis import Redis
from rq.utils import as_text

from img2img.redis.fair_queue import LINE
from img2img.redis.job_queue import JobQueue

LAYOUT = "i2i:layout"  # string: the version of what is written below all other keys
VERSION = 2  # 1: jobs waited in one line per model, without priorities and owners

log = logging.getLogger(__name__)


class NewerLayout(Exception):
    """A newer version has written to this Redis."""


def settle_layout(redis: Redis, models: Iterable[str]) -> None:
    """Brings the waiting jobs of these models into the present layout, where an older version has queued them.

    Any worker may do it, at any time: doing it twice, or half and then again, is the same as doing it once. Raises
    NewerLayout.
    """
    found = redis.get(LAYOUT)
    version = int(as_text(found)) if found else 0
    if version == VERSION:
        return
    if version > VERSION:
        raise NewerLayout(f"the jobs in Redis have layout {version}, and this version reads {VERSION}: update it")
    jobs = JobQueue(redis)
    for model in models:
        adopted = jobs.adopt(model)
        redis.delete(f"{LINE}:{model}", f"{LINE}:{model}:cost")  # of layout 1
        if adopted:
            log.warning("%d jobs that an older version had queued for %s are in line now", adopted, model)
    redis.set(LAYOUT, VERSION)
