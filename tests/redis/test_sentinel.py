"""A primary that is killed while jobs are submitted, and a replica that Sentinels promote."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from redis.exceptions import RedisError

from img2img.app.backends.redis_client import connect_redis
from img2img.domain.job import JobStatus
from img2img.errors import NotConfirmed
from img2img.redis.connection import connect
from img2img.redis.durability import Durability, DurableWrites
from img2img.redis.job_queue import JobQueue
from img2img.redis.notifications import JobChangeListener
from tests.support.replicated_redis import ReplicatedRedis
from tests.support.specs import make_spec

FAILOVERS = 2


@pytest.fixture(scope="module")
def replicated() -> Iterator[ReplicatedRedis]:
    with TemporaryDirectory(prefix="i2i-") as folder:
        redis = ReplicatedRedis(Path(folder))
        try:
            redis.start()
            yield redis
        finally:
            redis.stop()


def test_no_acknowledged_job_is_lost(replicated: ReplicatedRedis) -> None:
    redis = connect_redis(replicated.url, 6)
    jobs = JobQueue(redis, writes=DurableWrites(redis, Durability.REPLICA))
    acknowledged: list[str] = []
    for _ in range(FAILOVERS):
        acknowledged += [jobs.submit(make_spec()).id for _ in range(20)]
        lost = replicated.kill_primary()
        refused = 0
        give_up_at = time.monotonic() + 60
        while time.monotonic() < give_up_at:
            try:
                acknowledged.append(jobs.submit(make_spec()).id)
                break
            except (RedisError, NotConfirmed):
                refused += 1
                time.sleep(0.1)
        assert refused, "the failover was not noticed"
        assert replicated.primary() != lost
        replicated.restart_lost()
    with connect(replicated.url, socket_timeout=5) as after:
        store = JobQueue(after).job_store
        assert [job for job in acknowledged if (record := store.get(job)) is None or record.status != "queued"] == []


def test_changes_are_heard_after_a_failover(replicated: ReplicatedRedis) -> None:
    redis = connect(replicated.url, socket_timeout=5)
    jobs = JobQueue(redis)
    job = jobs.submit(make_spec()).id

    async def listen() -> None:
        listener = JobChangeListener(replicated.url)
        running = asyncio.create_task(listener.run())
        with listener.subscribe(job) as changed:
            await asyncio.wait_for(changed.wait(), 10)
            changed.clear()
            lost = await asyncio.to_thread(replicated.kill_primary)
            await asyncio.to_thread(replicated.wait_for_failover, lost)
            await asyncio.to_thread(replicated.restart_lost)
            # It subscribes again when it notices that the connection is lost.
            await asyncio.wait_for(changed.wait(), 20)
            await asyncio.sleep(0.5)
            changed.clear()
            assert await asyncio.to_thread(jobs.cancel, job)
            await asyncio.wait_for(changed.wait(), 10)
        running.cancel()

    asyncio.run(listen())
    record = jobs.job_store.get(job)
    assert record is not None
    assert record.status is JobStatus.CANCELLED
