"""Deleted data leaves the append-only file of Redis."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from redis import Redis
from redis.exceptions import ResponseError

from img2img.app.progress.aof_rewrites import rewrite_append_only_file
from img2img.domain.job import JobOptions
from img2img.domain.webhook import Webhook
from img2img.erasure import Eraser
from img2img.errors import Expired
from img2img.redis.append_only_file import AppendOnlyFile, RewriteFailed
from img2img.redis.job_queue import JobQueue
from img2img.redis.keys import AOF_REWRITE, ERASURES, OUTBOX
from img2img.redis.webhook_outbox import WebhookOutbox
from tests.support.memory_store import MemoryStore
from tests.support.processes import wait_for
from tests.support.servers import redis_server
from tests.support.specs import make_spec

MARKER = "a-very-private-marker"
HOOK = Webhook.model_validate({"url": f"https://example.com/{MARKER}"})


class Files:
    """A Redis server and its files."""

    def __init__(self, folder: Path, redis: Redis) -> None:
        self._folder = folder / "redis"
        self.redis = redis
        self.jobs = JobQueue(redis)
        self.eraser = Eraser(self.jobs, MemoryStore())

    def has_marker(self) -> bool:
        # Redis deletes replaced files during the walk.
        paths = [path for path in self._folder.rglob("*") if path.is_file()]
        return any(MARKER.encode() in path.read_bytes() for path in paths if path.exists())

    def submit(self) -> str:
        return self.jobs.submit(make_spec(prompt=MARKER), JobOptions(webhook=HOOK)).id


@pytest.fixture
def files() -> Iterator[Files]:
    with (
        TemporaryDirectory(prefix="i2i-") as folder,
        redis_server(Path(folder)) as url,
        Redis.from_url(url) as redis,
    ):
        # Otherwise the marker would not be found in a rewritten file that contains it.
        redis.config_set("rdbcompression", "no")
        yield Files(Path(folder), redis)


def run_rewrites(files: Files, interval_s: float, until_s: float = 0) -> None:
    """Run the task of the API server until there are no deletions to cover, or for a given time."""

    async def run() -> None:
        task = asyncio.create_task(rewrite_append_only_file(files.redis, interval_s))
        if until_s:
            await asyncio.sleep(until_s)
        else:
            await asyncio.to_thread(wait_for, lambda: not files.redis.exists(ERASURES))
        task.cancel()

    asyncio.run(run())


def test_deleted_job_leaves_the_file(files: Files) -> None:
    deleted, kept = files.submit(), files.jobs.submit(make_spec(prompt="kept")).id
    files.eraser.delete_job(deleted)
    assert files.redis.get(ERASURES) == b"1"
    assert files.has_marker()
    run_rewrites(files, 0.1)
    wait_for(lambda: not files.has_marker())
    record = files.jobs.job_store.get(kept)
    assert record is not None
    assert record.spec.prompt == "kept"


def test_expired_job_leaves_the_file_with_its_webhook(files: Files) -> None:
    """The event is a copy of the record and outlives it."""
    job_id = files.submit()
    files.jobs.cancel(job_id)
    assert files.jobs.job_store.forget(job_id, Expired) is not None
    assert AppendOnlyFile(files.redis).rewrite()
    assert files.has_marker()
    assert not files.redis.exists(ERASURES)
    files.redis.zadd(OUTBOX, {job_id: 1})  # no dispatcher was running for a week
    WebhookOutbox(files.redis).drop_stale()
    assert files.redis.get(ERASURES) == b"1"
    run_rewrites(files, 0.1)
    wait_for(lambda: not files.has_marker())


def test_file_is_rewritten_at_most_once_per_interval(files: Files) -> None:
    for _ in range(2):
        files.eraser.delete_job(files.submit())
        run_rewrites(files, 0.3)
    files.redis.set(AOF_REWRITE, 1, ex=100)  # another process has just done it
    files.eraser.delete_job(files.submit())
    run_rewrites(files, 0.1, until_s=1)
    assert files.redis.get(ERASURES) == b"1"
    assert files.has_marker()


def test_file_is_not_rewritten_without_deletions(files: Files) -> None:
    files.submit()
    before = files.redis.info("persistence")
    run_rewrites(files, 0.1, until_s=1)
    assert files.redis.info("persistence")["aof_base_size"] == before["aof_base_size"]
    assert not files.redis.exists(AOF_REWRITE)


def test_deletion_during_a_rewrite_needs_another_one(files: Files) -> None:
    file = AppendOnlyFile(files.redis)
    files.eraser.delete_job(files.submit())
    erased = file.start()
    files.eraser.delete_job(files.submit())
    wait_for(lambda: not file.is_busy())
    file.finish(erased)
    assert files.redis.get(ERASURES) == b"1"


def test_failed_rewrite_is_repeated(files: Files, caplog: pytest.LogCaptureFixture) -> None:
    user = ["ACL", "SETUSER", "default", "-bgrewriteaof"]
    files.redis.execute_command(*user)
    files.eraser.delete_job(files.submit())
    with pytest.raises(RewriteFailed, match="BGREWRITEAOF"):
        AppendOnlyFile(files.redis).rewrite()
    run_rewrites(files, 0.2, until_s=1)
    assert "deleted data remains in the append-only file" in caplog.text
    assert files.redis.exists(ERASURES)
    files.redis.execute_command(*user[:-1], "+bgrewriteaof")
    run_rewrites(files, 0.2)
    wait_for(lambda: not files.has_marker())


def test_redis_without_an_append_only_file_needs_no_rewrite(files: Files) -> None:
    files.redis.config_set("appendonly", "no")
    files.eraser.delete_job(files.submit())
    assert not AppendOnlyFile(files.redis).rewrite()
    assert not files.redis.exists(ERASURES)
    files.redis.execute_command("ACL", "SETUSER", "default", "-info")
    with pytest.raises(RewriteFailed, match="INFO"):
        AppendOnlyFile(files.redis).rewrite()
    with pytest.raises(ResponseError):
        files.redis.info()
