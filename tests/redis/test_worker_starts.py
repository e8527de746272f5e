"""Reports of workers that start, on a real Redis server."""

import time

import pytest
from redis import Redis

from img2img.redis import keys
from img2img.redis.worker_starts import WorkerStart, WorkerStarts
from img2img.worker.errors import StartupError
from img2img.worker.runtime.start_report import StartReport

GPU = "gpu-1:7"


@pytest.fixture
def starts(redis: Redis) -> WorkerStarts:
    redis.flushall()
    return WorkerStarts(redis)


def wait_for_report(starts: WorkerStarts) -> WorkerStart:
    deadline = time.monotonic() + 10
    while GPU not in starts.all():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return starts.all()[GPU]


def test_progress_is_reported_until_the_worker_has_started(redis: Redis, starts: WorkerStarts) -> None:
    with StartReport(redis, GPU, lambda: (3_100_000_000, 6_900_000_000)) as report:
        report.stage("loading photo on cuda")
        redis.delete(keys.WORKER_START.format(worker=GPU))
        assert wait_for_report(starts).describe().startswith("loading photo on cuda: downloaded 3.1 of 6.9 GB, ")
        assert 0 < redis.ttl(keys.WORKER_START.format(worker=GPU)) <= 60
    assert starts.all() == {}


def test_error_is_kept_and_hides_nothing_from_the_operator(redis: Redis, starts: WorkerStarts) -> None:
    with pytest.raises(StartupError), StartReport(redis, GPU, lambda: (0, 0)):
        raise StartupError("cannot load model 'photo': /srv/models/photo has no model_index.json\nand more")
    [failed] = starts.all().values()
    reason = "cannot load model 'photo': /srv/models/photo has no model_index.json and more"
    assert failed.describe() == f"cannot start: {reason}"
    assert failed.describe(with_error=False) == "cannot start: the reason is in its log"
    # Longer than the pause of start-worker before the next start.
    assert redis.ttl(keys.WORKER_START.format(worker=GPU)) > 300


def test_start_after_a_killed_process_says_so(redis: Redis, starts: WorkerStarts) -> None:
    starts.report(GPU, WorkerStart(stage="loading photo on cpu", seconds=40))
    with StartReport(redis, GPU, lambda: (0, 0)) as report:
        report.stage("loading photo on cpu")
        redis.delete(keys.WORKER_START.format(worker=GPU))
        assert wait_for_report(starts).describe().endswith("its last start was killed while loading: out of memory?")
    with StartReport(redis, GPU, lambda: (0, 0)):
        assert not wait_for_report(starts).was_killed


def test_expired_reports_are_removed(redis: Redis, starts: WorkerStarts) -> None:
    starts.report(GPU, WorkerStart(stage="loading"))
    redis.delete(keys.WORKER_START.format(worker=GPU))
    assert starts.all() == {}
    assert redis.scard(keys.STARTING_WORKERS) == 0


def test_successful_start_removes_errors_of_others_and_keeps_their_progress(starts: WorkerStarts) -> None:
    starts.report("gpu-2:7", WorkerStart(stage="loading", error="no such model"))
    starts.report("gpu-3:7", WorkerStart(stage="loading"))
    starts.report(GPU, WorkerStart(stage="loading"))
    starts.finish(GPU)
    assert list(starts.all()) == ["gpu-3:7"]
