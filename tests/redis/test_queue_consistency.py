"""Queue positions and ETAs of waiting jobs over HTTP."""

from collections.abc import Callable

import httpx
import pytest
from redis import Redis

from img2img.app.progress.eta import EtaEstimator, QueueEstimate
from img2img.domain.job import JobOptions, Priority
from img2img.domain.model_card import WorkerThroughput
from img2img.redis.fair_queue import QueuePosition
from img2img.redis.job_queue import JobQueue
from img2img.redis.keys import FAIR_QUEUE_OWNERS
from img2img.redis.model_registry import ModelRegistry
from img2img.worker.queue.throughput import ThroughputMeter
from tests.support.model_cards import CARD
from tests.support.problems import assert_problem

Submit = Callable[..., httpx.Response]


def positions(http: httpx.Client, ids: list[str]) -> list[int | None]:
    return [http.get(f"/jobs/{job_id}").json()["queue_position"] for job_id in ids]


def test_position_matches_the_queue(http: httpx.Client, submit: Submit, queue: JobQueue, redis: Redis) -> None:
    jobs = [submit(num_images=1 + i % 3).json() for i in range(6)]
    assert [job["queue_position"] for job in jobs] == list(range(6))
    ids = [job["id"] for job in jobs]
    queue.job_store.start(ids[0], execution="e", worker="w")
    queue.cancel(ids[2])
    assert positions(http, ids) == [None, 0, None, 1, 2, 3]
    listed = {job["id"]: job["queue_position"] for job in http.get("/jobs").json()["jobs"]}
    assert [listed[job_id] for job_id in ids] == [None, 0, None, 1, 2, 3]
    queue.requeue(ids[0])  # its worker died, so it is first again
    assert positions(http, ids) == [0, 1, None, 2, 3, 4]
    assert submit(model="ddim-only").json()["queue_position"] == 0, "models have separate queues"
    for job_id in ids:
        queue.cancel(job_id)
    assert not redis.keys(FAIR_QUEUE_OWNERS.format(model="demo", level="*")), "an empty queue leaves no keys"


def test_cost_ahead_is_exact_after_waiting_jobs_are_cancelled(queue: JobQueue, submit: Submit) -> None:
    record = queue.job_store.get(submit(num_images=4).json()["id"])
    assert record is not None
    small, large = (record.spec.model_copy(update={"num_images": n}) for n in (1, 8))
    jobs = [record, *(queue.submit(spec) for spec in (large, small, large, small))]
    specs = [job.spec for job in jobs]
    for at, job in enumerate(jobs):
        [position] = queue.job_store.fair_queue.positions([job])
        assert position == QueuePosition(at, pytest.approx(sum(spec.cost for spec in specs[:at])))
    queue.cancel(jobs[1].id)
    [last] = queue.job_store.fair_queue.positions([jobs[4]])
    assert last == QueuePosition(3, pytest.approx(sum(specs[i].cost for i in (0, 2, 3))))
    [middle] = queue.job_store.fair_queue.positions([jobs[3]])
    assert middle == QueuePosition(2, pytest.approx(sum(specs[i].cost for i in (0, 2))))


def test_eta_is_cost_ahead_by_throughput(http: httpx.Client, submit: Submit, redis: Redis, image_bytes: bytes) -> None:
    models = ModelRegistry(redis)
    dry = http.post("/img2img?dry_run=true", files={"image": image_bytes}).json()
    assert (dry["queue_position"], dry["eta_s"]) == (0, None), "no worker has reported its throughput"
    cost = dry["cost"]
    assert submit().json()["eta_s"] is None
    models.register("second", [CARD], ttl_s=60)
    models.report_throughput("test-worker", WorkerThroughput(per_second=cost / 10, left=cost * 2), ttl_s=60)
    models.report_throughput("second", WorkerThroughput(per_second=cost / 10, left=0), ttl_s=60)
    models.report_throughput("dead", WorkerThroughput(per_second=1e9, left=1e9), ttl_s=60)
    job = submit().json()
    assert (job["queue_position"], job["eta_s"]) == (1, pytest.approx(20, abs=0.1))  # 2 in flight, 1 ahead, itself
    dry = http.post("/img2img?dry_run=true", files={"image": image_bytes}).json()
    assert (dry["queue_position"], dry["eta_s"]) == (2, pytest.approx(25, abs=0.1))
    body = {"files": {"image": image_bytes}, "data": {"priority": "high"}}
    dry = http.post("/img2img?dry_run=true", **body).json()
    assert (dry["priority"], dry["queue_position"], dry["eta_s"]) == ("high", 0, pytest.approx(5, abs=0.1))
    http.post(f"/jobs/{job['id']}/cancel")
    job = http.get(f"/jobs/{job['id']}").json()
    assert (job["queue_position"], job["eta_s"]) == (None, None)


def test_high_priority_job_overtakes(
    http: httpx.Client, submit: Submit, queue: JobQueue, redis: Redis, image_bytes: bytes
) -> None:
    low, normal, high = [submit(**sent).json() for sent in ({"priority": "low"}, {}, {"priority": "high"})]
    assert [job["priority"] for job in (low, normal, high)] == ["low", "normal", "high"]
    assert high["queue_position"] == 0
    assert positions(http, [low["id"], normal["id"], high["id"]]) == [2, 1, 0]
    listed = {job["id"]: (job["priority"], job["queue_position"]) for job in http.get("/jobs").json()["jobs"]}
    assert listed == {low["id"]: ("low", 2), normal["id"]: ("normal", 1), high["id"]: ("high", 0)}
    order = [queue.claim("demo") for _ in range(4)]
    assert order == [high["id"].encode(), normal["id"].encode(), low["id"].encode(), None]


def test_unknown_priority_is_refused(submit: Submit) -> None:
    [error] = assert_problem(submit(priority="urgent"), 422, "invalid_parameter")["errors"]
    assert (error["field"], error["got"]) == ("priority", "urgent")
    assert "'low', 'normal' or 'high'" in error["message"]


def test_eta_of_a_new_job_respects_turns_and_priority(
    http: httpx.Client, submit: Submit, queue: JobQueue, redis: Redis
) -> None:
    record = queue.job_store.get(submit().json()["id"])
    assert record is not None
    ModelRegistry(redis).report_throughput(
        "test-worker", WorkerThroughput(per_second=record.spec.cost, left=0), ttl_s=60
    )
    for _ in range(9):
        queue.submit(record.spec)
    estimator = EtaEstimator(queue.job_store.fair_queue, ModelRegistry(redis))
    for owner, priority, ahead in [("", "normal", 10), ("b", "normal", 1), ("b", "high", 0), ("b", "low", 7)]:
        options = JobOptions(owner=owner, priority=Priority(priority))
        assert estimator.estimate_next(record.spec, options) == QueueEstimate(ahead, ahead + 1)


def test_throughput_excludes_idle_time() -> None:
    pace = ThroughputMeter()
    now = 100.0
    for job in "abc":
        for left in (12.0, 8.0, 4.0):
            pace.update(job, left)
            pace.advance(now, [job])
            now += 2
        pace.remove(job, is_done=True)
        pace.advance(now, [])
        now += 3600  # idle
        pace.advance(now, [])
    assert pace.remaining() == 0
    assert pace.per_second == pytest.approx(2, rel=0.1)


def test_throughput_excludes_dropped_work() -> None:
    pace = ThroughputMeter()
    pace.update("a", 10)
    pace.advance(0, ["a"])
    pace.update("a", 9)
    pace.advance(1, ["a"])
    pace.remove("a", is_done=False)
    assert pace.per_second == pytest.approx(1)
    pace.update("late", 5)  # by the loop, while another thread ended it
    pace.advance(2, [])
    assert pace.remaining() == 0
