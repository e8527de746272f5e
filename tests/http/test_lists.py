"""Lists over real HTTP, and the end of jobs: paging, deletion, expiry, deadlines, dry runs."""

import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError
from redis import Redis

from img2img.app.progress.eta import THROUGHPUT_TTL_S
from img2img.app.settings import ApiSettings
from img2img.blobs import ObjectStore
from img2img.domain.blob_keys import result_key
from img2img.domain.job import JobOptions
from img2img.domain.model_card import WorkerThroughput
from img2img.erasure import LATE_IMAGES_S
from img2img.redis.job_queue import JobQueue
from img2img.redis.keys import GONE_JOB
from img2img.redis.model_registry import ModelRegistry
from img2img.worker.queue.retention import Retention
from tests.support.problems import assert_problem

Submit = Callable[..., httpx.Response]
Finish = Callable[[str], bytes]


def pages(http: httpx.Client, **params: Any) -> list[list[str]]:
    """Return the ids of each page."""
    found = []
    while True:
        response = http.get("/jobs", params=params)
        assert response.status_code == 200, response.text
        found.append([job["id"] for job in response.json()["jobs"]])
        params["cursor"] = response.json()["next_cursor"]
        if params["cursor"] is None:
            return found


@pytest.fixture
def retention(redis: Redis, store: ObjectStore) -> Retention:
    return Retention(redis, store)


@pytest.fixture
def brief(submit: Submit, queue: JobQueue, finish: Finish) -> str:
    """An ended job that expires immediately."""
    record = queue.job_store.get(submit(num_images=2).json()["id"])
    assert record is not None
    job = queue.submit(record.spec, JobOptions(result_ttl_s=0.01))
    finish(job.id)
    time.sleep(0.02)
    return job.id


def test_list_is_paged_newest_first(http: httpx.Client, submit: Submit) -> None:
    ids = [submit().json()["id"] for _ in range(5)][::-1]
    assert pages(http) == [ids]
    assert pages(http, limit=2) == [ids[:2], ids[2:4], ids[4:]]
    assert pages(http, limit=5) == [ids]
    assert http.get("/jobs", params={"limit": 1}).json()["jobs"] == [http.get(f"/jobs/{ids[0]}").json()]


def test_pages_are_stable_while_jobs_come_and_go(http: httpx.Client, submit: Submit) -> None:
    ids = [submit().json()["id"] for _ in range(6)][::-1]
    cursor = http.get("/jobs", params={"limit": 2}).json()["next_cursor"]
    submit()
    http.delete(f"/jobs/{ids[1]}")  # the job of the cursor
    http.delete(f"/jobs/{ids[2]}")
    assert pages(http, limit=2, cursor=cursor) == [ids[3:5], ids[5:]]


def test_jobs_with_equal_times_are_each_listed_once(
    http: httpx.Client, submit: Submit, queue: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = queue.job_store.get(submit().json()["id"])
    assert record is not None
    with monkeypatch.context() as patch:
        patch.setattr(queue.clock, "now", lambda: 1.5e9)
        ids = {queue.submit(record.spec).id for _ in range(7)} | {record.id}
    listed = [job_id for page in pages(http, limit=2) for job_id in page]
    assert len(listed) == 8
    assert set(listed) == ids


def test_list_filters_by_status(http: httpx.Client, submit: Submit, queue: JobQueue, finish: Finish) -> None:
    queued, running, cancelled, done = [submit().json()["id"] for _ in range(4)]
    queue.job_store.start(running, execution="e", worker="w")
    http.post(f"/jobs/{cancelled}/cancel")
    finish(done)
    for status, job_id in [("queued", queued), ("running", running), ("cancelled", cancelled), ("succeeded", done)]:
        assert pages(http, status=status) == [[job_id]]
    assert pages(http, status="failed") == [[]]
    assert queue.job_store.active_ids() == [queued, running]


@pytest.mark.parametrize(
    ("name", "value"), [("limit", "0"), ("limit", "101"), ("limit", "x"), ("status", "done"), ("cursor", "x")]
)
def test_invalid_list_parameters_are_rejected(http: httpx.Client, name: str, value: str) -> None:
    [error] = assert_problem(http.get("/jobs", params={name: value}), 422, "invalid_parameter")["errors"]
    assert (error["field"], error["got"]) == (name, value)


def test_delete_removes_a_job_and_its_images(
    http: httpx.Client, submit: Submit, finish: Finish, store: ObjectStore, redis: Redis
) -> None:
    job_id = submit(num_images=2).json()["id"]
    finish(job_id)
    assert [http.delete(f"/jobs/{job_id}").status_code for _ in range(2)] == [204, 204]
    assert_problem(http.get(f"/jobs/{job_id}"), 410, "deleted")
    assert_problem(http.get(f"/jobs/{job_id}/images/1"), 410, "deleted")
    assert_problem(http.post(f"/jobs/{job_id}/cancel"), 410, "deleted")
    assert pages(http) == pages(http, status="succeeded") == [[]]
    assert store.get(result_key(job_id, 0)) is store.get(result_key(job_id, 1)) is None
    redis.delete(GONE_JOB.format(id=job_id))  # expires later
    assert_problem(http.delete(f"/jobs/{job_id}"), 404, "not_found")


def test_delete_takes_a_running_job_from_its_worker(
    http: httpx.Client, submit: Submit, queue: JobQueue, store: ObjectStore, redis: Redis, retention: Retention
) -> None:
    job_id = submit().json()["id"]
    queue.job_store.start(job_id, execution="e", worker="w")
    assert http.delete(f"/jobs/{job_id}").status_code == 204
    store.put(result_key(job_id, 0), b"late")  # the worker had already finished
    assert not queue.job_store.succeed(job_id, execution="e", images=[], timings={}, steps=1)
    assert queue.job_store.active_ids() == []
    retention.sweep()
    assert redis.zscore("i2i:expiring", job_id) == pytest.approx(time.time() + LATE_IMAGES_S, abs=5)
    redis.zadd("i2i:expiring", {job_id: 1})
    retention.sweep()
    assert store.get(result_key(job_id, 0)) is None
    assert not redis.zcard("i2i:expiring")
    assert_problem(http.get(f"/jobs/{job_id}"), 410, "deleted")


def test_delete_removes_a_queued_job_from_the_queue(http: httpx.Client, submit: Submit, queue: JobQueue) -> None:
    assert http.delete(f"/jobs/{submit().json()['id']}").status_code == 204
    assert queue.depth("demo") == 0


def test_ended_job_has_an_expiry(http: httpx.Client, submit: Submit, finish: Finish) -> None:
    done, cancelled = submit().json(), submit().json()
    assert done["expires_at"] is None
    finish(done["id"])
    http.post(f"/jobs/{cancelled['id']}/cancel")
    for job_id in (done["id"], cancelled["id"]):
        job = http.get(f"/jobs/{job_id}").json()
        kept = datetime.fromisoformat(job["expires_at"]) - datetime.fromisoformat(job["finished_at"])
        assert abs(kept - timedelta(hours=24)) < timedelta(milliseconds=1)


def test_expired_job_is_gone_before_and_after_cleanup(
    http: httpx.Client, brief: str, store: ObjectStore, retention: Retention
) -> None:
    for _ in range(2):
        for path in ("", "/images/0", "/result"):
            assert_problem(http.get(f"/jobs/{brief}{path}"), 410, "expired")
        assert brief not in pages(http)[0]
        retention.sweep()
    assert store.get(result_key(brief, 0)) is store.get(result_key(brief, 1)) is None
    assert http.delete(f"/jobs/{brief}").status_code == 204


@pytest.mark.parametrize("started", [False, True])
def test_job_is_cancelled_at_its_deadline(
    http: httpx.Client, submit: Submit, queue: JobQueue, redis: Redis, started: bool
) -> None:
    job = submit(deadline_s=1).json()
    due = datetime.fromisoformat(job["deadline_at"]) - datetime.fromisoformat(job["created_at"])
    assert due == timedelta(seconds=1)
    if started:
        queue.job_store.start(job["id"], execution="e", worker="w")
    give_up_at = time.monotonic() + 5
    while (job := http.get(f"/jobs/{job['id']}").json())["finished_at"] is None:
        assert time.monotonic() < give_up_at
        time.sleep(0.05)
    assert (job["status"], job["error"]["code"]) == ("cancelled", "deadline_exceeded")
    assert "deadline" in job["error"]["message"]
    assert job["finished_at"] >= job["deadline_at"]
    assert queue.depth("demo") == 0
    assert not redis.zcard("i2i:deadlines")


def test_deadline_does_not_affect_an_ended_job(
    submit: Submit, finish: Finish, redis: Redis, http: httpx.Client
) -> None:
    job_id = submit(deadline_s=60).json()["id"]
    finish(job_id)
    assert not redis.zcard("i2i:deadlines")
    assert http.get(f"/jobs/{job_id}").json()["status"] == "succeeded"


@pytest.mark.parametrize("started", [False, True])
def test_job_with_best_effort_goes_on_after_its_deadline(
    http: httpx.Client, submit: Submit, queue: JobQueue, finish: Finish, started: bool
) -> None:
    job = submit(deadline_s=1, deadline_policy="best_effort").json()
    assert job["deadline_missed"] is False
    if started:
        queue.job_store.start(job["id"], execution="e", worker="w")
    give_up_at = time.monotonic() + 5
    while not (late := http.get(f"/jobs/{job['id']}").json())["deadline_missed"]:
        assert time.monotonic() < give_up_at
        time.sleep(0.05)
    assert (late["status"], late["error"]) == ("running" if started else "queued", None)
    assert late["deadline_at"] == job["deadline_at"]
    if not started:
        finish(job["id"])
        ended = http.get(f"/jobs/{job['id']}").json()
        assert (ended["status"], ended["deadline_missed"]) == ("succeeded", True)


def test_deadline_that_cannot_be_met_is_refused_on_request(
    http: httpx.Client, submit: Submit, redis: Redis, image_bytes: bytes
) -> None:
    files = {"image": image_bytes}
    reject = {"deadline_s": 8, "deadline_policy": "reject"}
    assert submit(**reject).status_code == 202, "nothing is known about the throughput"
    cost = http.post("/img2img?dry_run=true", files=files).json()["cost"]
    throughput = WorkerThroughput(per_second=cost / 5, left=10 * cost, left_high=cost / 5)
    ModelRegistry(redis).report_throughput("test-worker", throughput, ttl_s=60)
    time.sleep(THROUGHPUT_TTL_S)
    for path in ("/img2img", "/img2img?dry_run=true"):
        problem = assert_problem(http.post(path, files=files, data=reject), 422, "deadline_unmet")
        assert problem["eta_s"] == pytest.approx(11, abs=0.1), "the job that waits, and this one"
        assert "11 s, after its deadline of 8 s" in problem["detail"]
    assert submit(**reject | {"deadline_s": 12}).status_code == 202
    assert submit(**reject | {"deadline_s": 1, "deadline_policy": "best_effort"}).status_code == 202


def test_deadline_policy_needs_a_deadline(submit: Submit) -> None:
    assert submit(deadline_policy="cancel").status_code == 202
    [error] = assert_problem(submit(deadline_policy="reject"), 422, "invalid_parameter")["errors"]
    assert (error["field"], error["got"]) == ("deadline_policy", "reject")


@pytest.mark.parametrize("value", [0, -1, 604801, "soon"])
def test_invalid_deadlines_are_rejected(submit: Submit, value: object) -> None:
    [error] = assert_problem(submit(deadline_s=value), 422, "invalid_parameter")["errors"]
    assert error["field"] == "deadline_s"


def test_dry_run_describes_the_job(http: httpx.Client, submit: Submit, redis: Redis, image_bytes: bytes) -> None:
    files, fields = {"image": image_bytes}, {"prompt": "a house", "strength": 0.5, "num_images": 2, "seed": 3}
    response = http.post("/img2img?dry_run=true", files=files, data=fields)
    assert response.status_code == 200
    assert not redis.keys("i2i:job*")
    assert "location" not in response.headers
    job = submit(**fields).json()
    assert response.json()["request"] == job["request"]
    assert response.json()["cost"] == pytest.approx(144 * 112 * 16 * 2 * 2 / 1e6)
    assert response.json()["queue_position"] == 0
    assert http.post("/img2img?dry_run=1", files=files).json()["queue_position"] == 1
    assert_problem(http.post("/img2img?dry_run=true", files=files, data={"strength": 2}), 422, "invalid_parameter")
    assert_problem(http.post("/img2img?dry_run=perhaps", files=files), 422, "invalid_parameter")


@pytest.mark.parametrize(("given", "seconds"), [("24h", 86400), ("30m", 1800), ("1.5d", 129600), ("90", 90)])
def test_result_ttl_is_configurable(monkeypatch: pytest.MonkeyPatch, given: str, seconds: float) -> None:
    monkeypatch.setenv("IMG2IMG_RESULT_TTL", given)
    settings = ApiSettings(_env_file=None)
    assert settings.result_ttl == seconds
    assert ApiSettings(_env_file=None, result_ttl=settings.as_environment()["IMG2IMG_RESULT_TTL"]) == settings


@pytest.mark.parametrize("given", ["0", "-1h", "h", "soon", "1y"])
def test_invalid_result_ttl_is_rejected(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("IMG2IMG_RESULT_TTL", given)
    with pytest.raises(ValidationError):
        ApiSettings(_env_file=None)


def test_delete_leaves_no_empty_folders(http: httpx.Client, submit: Submit, finish: Finish, data_dir: Path) -> None:
    job_id = submit().json()["id"]
    finish(job_id)
    http.delete(f"/jobs/{job_id}")
    assert not (data_dir / "store" / "results" / job_id).exists()
