"""Batches of jobs over real HTTP: submit, follow, cancel, download, delete."""

import json
import threading
import zipfile
from base64 import b64encode
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from httpx_sse import connect_sse
from redis import Redis
from typer.testing import CliRunner

from img2img.app.cli import app
from img2img.app.submission.batch_submit import QUEUED_AT_ONCE, BatchSubmitter
from img2img.blobs import ObjectStore
from img2img.domain.blob_keys import result_key
from img2img.domain.job import JobStatus
from img2img.domain.job_batch import MAX_JOBS
from img2img.erasure import Eraser
from img2img.redis.job_queue import JobQueue
from img2img.redis.queue_limits import QueueLimits
from tests.support.images import encoded, gradient
from tests.support.problems import assert_problem

LINES = {"content-type": "application/jsonl"}
IMAGE = b64encode(encoded(gradient(160, 120))).decode()
OTHER = b64encode(encoded(gradient(160, 120, blue=9))).decode()

Post = Callable[..., httpx.Response]


@pytest.fixture
def sha256(http: httpx.Client, image_bytes: bytes) -> str:
    """An uploaded image."""
    return str(http.post("/images", files={"image": image_bytes}).json()["sha256"])


@pytest.fixture
def post_lines(http: httpx.Client) -> Post:
    """Submit requests as JSON lines."""

    def post(*requests: dict[str, Any], **options: Any) -> httpx.Response:
        content = "\n".join(map(json.dumps, requests)) + "\n"
        headers = LINES | options.pop("headers", {})
        return http.post("/batches", content=content, headers=headers, timeout=60, **options)

    return post


def jobs_of(http: httpx.Client, batch: dict[str, Any]) -> list[dict[str, Any]]:
    return list(http.get(f"/batches/{batch['id']}/jobs", params={"limit": 100}).json()["jobs"])


def test_lines_become_jobs_in_their_order(http: httpx.Client, post_lines: Post, sha256: str) -> None:
    requests = [
        {"image": sha256, "prompt": "a house", "seed": 5, "name": "IMG_0001"},
        {"image": IMAGE, "prompt": "a hut", "strength": 0.5, "num_images": 2},
        {"image": OTHER, "priority": "low"},
    ]
    response = post_lines(*requests)
    assert response.status_code == 202, response.text
    batch = response.json()
    assert response.headers["location"] == f"/batches/{batch['id']}"
    assert (batch["status"], batch["total"], batch["counts"]["queued"]) == ("running", 3, 3)
    assert batch == http.get(f"/batches/{batch['id']}").json()
    jobs = jobs_of(http, batch)
    assert [job["batch"] for job in jobs] == [
        {"id": batch["id"], "index": index, "name": name} for index, name in enumerate(("IMG_0001", None, None))
    ]
    assert [job["request"]["prompt"] for job in jobs] == ["a house", "a hut", ""]
    assert (jobs[0]["request"]["seed"], jobs[1]["request"]["num_images"], jobs[2]["priority"]) == (5, 2, "low")
    # As if each was submitted alone.
    alone = http.post("/img2img", json={"image": IMAGE, "prompt": "a house", "seed": 5}).json()
    assert alone["request"] == jobs[0]["request"]


def test_values_are_combined_over_one_request(http: httpx.Client) -> None:
    body = {
        "request": {"image": IMAGE, "seed": 7},
        "vary": {"prompt": ["a house", "a hut"], "strength": [0.3, 0.5, 1], "image": [IMAGE]},
    }
    del body["request"]["image"]
    response = http.post("/batches", json=body)
    assert response.status_code == 202, response.text
    requests = [job["request"] for job in jobs_of(http, response.json())]
    assert [(one["prompt"], one["strength"]) for one in requests] == [
        (prompt, strength) for prompt in ("a house", "a hut") for strength in (0.3, 0.5, 1)
    ]
    assert {one["seed"] for one in requests} == {7}
    assert len({one["image"] for one in requests}) == 1


@pytest.mark.parametrize(
    ("requests", "field"),
    [
        ([{"image": IMAGE}, {"image": IMAGE, "strength": 2}, {"image": IMAGE, "colour": 1}], "items.1.strength"),
        ([{"image": IMAGE}, {"image": IMAGE, "width": 7}], "items.1.width"),
        ([{"image": OTHER}, {"image": IMAGE}, {"image": b64encode(b"no image" * 9).decode()}], "items.2.image"),
        ([{"image": IMAGE}, {"image": "5a" * 32}], "items.1.image"),
        ([{"image": IMAGE, "name": "../etc"}], "items.0.name"),
        ([{"image": IMAGE, "name": "etc\n"}], "items.0.name"),
        # 255 bytes are the most for the name of a file.
        ([{"image": IMAGE, "name": "é" * 200}], "items.0.name"),
        ([{"image": IMAGE}, {"image": IMAGE, "model": "other"}], "items.1.model"),
        ([{"image": IMAGE, "deadline_s": 60, "deadline_policy": "reject"}], "items.0.deadline_policy"),
    ],
)
def test_one_invalid_request_refuses_the_batch(
    post_lines: Post, redis: Redis, requests: list[dict[str, Any]], field: str
) -> None:
    response = post_lines(*requests, headers={"Idempotency-Key": "order-17"})
    assert response.status_code in (415, 422)
    problem = response.json()
    assert problem["errors"][0]["field"] == field
    assert field in problem["detail"]
    assert leftovers(redis) == []


def test_all_invalid_lines_are_reported(post_lines: Post) -> None:
    response = post_lines({"image": IMAGE, "strength": 2}, {"image": IMAGE}, {"image": IMAGE, "colour": 1})
    errors = assert_problem(response, 422, "invalid_parameter")["errors"]
    assert [error["field"] for error in errors] == ["items.0.strength", "items.2.colour"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"request": {"image": IMAGE}, "vary": {"colour": [1]}}, "vary.colour"),
        ({"request": {"image": IMAGE, "seed": 1}, "vary": {"seed": [2]}}, "vary.seed"),
        ({"request": {"image": IMAGE}, "vary": {"seed": [1] * 101, "strength": [0.5] * 100}}, "vary"),
        ({"request": {"image": IMAGE}, "vary": {"strength": [0.5, "1"]}}, "items.1.strength"),
        ({"request": {"image": IMAGE}, "vary": {"seed": []}}, "vary.seed"),
        ({"request": {"image": IMAGE}, "webhook": "ftp://a"}, "webhook.url"),
    ],
)
def test_wrong_values_name_the_field(http: httpx.Client, body: dict[str, Any], field: str) -> None:
    errors = assert_problem(http.post("/batches", json=body), 422, "invalid_parameter")["errors"]
    assert errors[0]["field"] == field


def test_most_jobs_of_a_batch(http: httpx.Client) -> None:
    for content, field in ((b"\n \n", "items"), (b"{}\n" * (MAX_JOBS + 1), "items")):
        response = http.post("/batches", content=content, headers=LINES)
        assert assert_problem(response, 422, "invalid_parameter")["errors"][0]["field"] == field
    assert http.post("/batches", content=b"{}", headers={"content-type": "text/plain"}).status_code == 415


def test_repeated_request_returns_the_batch(http: httpx.Client, post_lines: Post, redis: Redis) -> None:
    key = {"Idempotency-Key": "order-17"}
    first, again = (post_lines({"image": IMAGE}, {"image": OTHER}, headers=key) for _ in range(2))
    assert first.json() == again.json()
    assert again.headers["idempotency-replayed"] == "true"
    assert redis.zcard("i2i:jobs") == 2
    assert_problem(post_lines({"image": IMAGE}, headers=key), 422, "idempotency_key_reused")


def test_interrupted_request_is_completed_by_a_repeated_one(
    http: httpx.Client, post_lines: Post, queue: JobQueue, redis: Redis, monkeypatch: pytest.MonkeyPatch, sha256: str
) -> None:
    """As if the API server had died after some of the jobs were queued."""

    class Died(BaseException):
        pass

    queued = JobQueue.submit_to_batch
    died: list[int] = []

    def submit_and_die(self: JobQueue, jobs: Any, *args: Any) -> list[int]:
        gone = queued(self, jobs, *args)
        if not died:
            died.append(len(jobs))
            raise Died
        return gone

    monkeypatch.setattr(JobQueue, "submit_to_batch", submit_and_die)
    requests = [{"image": sha256, "seed": seed} for seed in range(QUEUED_AT_ONCE + 10)]
    key = {"Idempotency-Key": "order-17"}
    assert post_lines(*requests, headers=key).status_code == 500
    [batch] = http.get("/batches").json()["batches"]
    assert (batch["status"], batch["counts"]["queued"]) == ("accepting", QUEUED_AT_ONCE)
    again = post_lines(*requests, headers=key).json()
    assert (again["id"], again["status"], again["counts"]["queued"]) == (batch["id"], "running", len(requests))
    assert redis.zcard("i2i:jobs") == queue.depth("demo") == len(requests)


def test_batch_that_was_never_completed_is_deleted(post_lines: Post, queue: JobQueue, store: ObjectStore) -> None:
    batch_id = post_lines({"image": IMAGE}).json()["id"]
    record = queue.batches.get(batch_id)
    assert record
    other = record.model_copy(update={"id": "1" * 32})
    queue.batches.open(other, "", None)
    queue.batches.postpone(other.id, 1)
    assert queue.batches.expired_ids() == [other.id]
    Eraser(queue, store).expire_batch(other.id)
    assert queue.batches.get(other.id) is None
    assert queue.batches.get(batch_id) == record


def test_queue_limits_hold_for_the_whole_batch(
    post_lines: Post, queue: JobQueue, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(JobQueue, "_limits", QueueLimits(max_queued=2), raising=False)
    limited = JobQueue(redis, QueueLimits(max_queued=2))
    record = queue.batches.get(post_lines({"image": IMAGE}).json()["id"])
    assert record
    with pytest.raises(Exception, match="3 jobs, and at most 2 jobs may wait"):
        limited.batches.open(record.model_copy(update={"id": "1" * 32, "total": 3}), "", None)


def test_counts_events_and_end(
    http: httpx.Client, post_lines: Post, finish: Callable[[str], bytes], queue: JobQueue
) -> None:
    batch = post_lines({"image": IMAGE}, {"image": OTHER}, {"image": IMAGE, "seed": 3}).json()
    first, second, third = (job["id"] for job in jobs_of(http, batch))
    assert http.get(f"/batches/{batch['id']}", params={"wait": 0.1}).json()["status"] == "running"
    finish(second)
    queue.job_store.start(first, execution="e", worker="w")
    counts = http.get(f"/batches/{batch['id']}").json()["counts"]
    assert counts == {"queued": 1, "running": 1, "succeeded": 1, "failed": 0, "cancelled": 0, "deleted": 0}
    # A running job is queued again: its worker was lost.
    queue.job_store.release(first, execution="e")
    seen: list[tuple[str, str]] = []

    def end() -> None:
        http.post(f"/jobs/{third}/cancel")
        finish(first)

    with connect_sse(http, "GET", f"/batches/{batch['id']}/events") as source:
        for event in source.iter_sse():
            if not event.data:
                continue
            if event.event == "progress" and not any(name == "progress" for name, _ in seen):
                threading.Thread(target=end).start()
            data = event.json()
            seen.append((event.event, data["id"] if event.event == "job" else data["status"]))
    assert [id for name, id in seen if name == "job"] == [second, third, first]
    assert seen[-1] == ("ended", "ended")
    ended = http.get(f"/batches/{batch['id']}", params={"wait": 10}).json()
    assert ended["counts"] == {**counts, "queued": 0, "running": 0, "succeeded": 2, "cancelled": 1}
    assert ended["expires_at"] > ended["finished_at"]
    cancelled = http.get(f"/batches/{batch['id']}/jobs", params={"status": "cancelled"}).json()["jobs"]
    assert [job["id"] for job in cancelled] == [third]

    def events_after(last: str) -> list[str]:
        headers = {"Last-Event-ID": last}
        with connect_sse(http, "GET", f"/batches/{batch['id']}/events", headers=headers) as source:
            if source.response.status_code == 204:
                return []
            return [event.event for event in source.iter_sse() if event.data]

    assert events_after("2") == ["job", "ended"]
    assert events_after("4") == []


def test_pages(http: httpx.Client, post_lines: Post) -> None:
    batches = [post_lines({"image": IMAGE}, {"image": OTHER}).json() for _ in range(3)]
    page = http.get("/batches", params={"limit": 2}).json()
    rest = http.get("/batches", params={"limit": 2, "cursor": page["next_cursor"]}).json()
    found = [batch["id"] for batch in (*page["batches"], *rest["batches"])]
    assert found == [batch["id"] for batch in reversed(batches)]
    assert rest["next_cursor"] is None
    path = f"/batches/{batches[0]['id']}/jobs"
    first = http.get(path, params={"limit": 1}).json()
    second = http.get(path, params={"limit": 1, "cursor": first["next_cursor"]}).json()
    assert [one["jobs"][0]["batch"]["index"] for one in (first, second)] == [0, 1]
    assert second["next_cursor"] is None


def test_archive_has_the_names_of_the_requests(
    http: httpx.Client, post_lines: Post, finish: Callable[[str], bytes], store: ObjectStore
) -> None:
    names = ("photo", "photo", None)
    batch = post_lines(*({"image": IMAGE, "num_images": 1, "name": name} for name in names), {"image": OTHER}).json()
    jobs = [job["id"] for job in jobs_of(http, batch)]
    pngs = [finish(job_id) for job_id in jobs[:3]]
    response = http.get(f"/batches/{batch['id']}/results")
    assert response.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(BytesIO(response.content)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["photo.png", "photo-2.png", "00002.png", "jobs.jsonl"]
        assert [archive.read(name) for name in archive.namelist()[:3]] == pngs
        manifest = [json.loads(line) for line in archive.read("jobs.jsonl").splitlines()]
    assert [line["id"] for line in manifest] == jobs
    assert [line["files"] for line in manifest] == [["photo.png"], ["photo-2.png"], ["00002.png"], []]
    # A damaged image is left out, and the others are converted.
    store.replace(result_key(jobs[0], 0), b"damaged")
    jpegs = http.get(f"/batches/{batch['id']}/results", params={"format": "jpeg"})
    with zipfile.ZipFile(BytesIO(jpegs.content)) as archive:
        assert archive.namelist() == ["photo.jpg", "00002.jpg", "jobs.jsonl"]
        assert archive.read("photo.jpg").startswith(b"\xff\xd8")
    assert http.head(f"/batches/{batch['id']}/results").headers["content-type"] == "application/zip"
    assert_problem(http.get(f"/batches/{batch['id']}/results?quality=9"), 422, "invalid_parameter")


def test_no_file_of_an_archive_has_the_name_of_another(
    http: httpx.Client, post_lines: Post, finish: Callable[[str], bytes], sha256: str
) -> None:
    names = ("photo", "photo", "photo-2", "Photo", None, "00004")
    batch = post_lines(*({"image": sha256, "name": name} for name in names)).json()
    for job in jobs_of(http, batch):
        finish(job["id"])
    with zipfile.ZipFile(BytesIO(http.get(f"/batches/{batch['id']}/results").content)) as archive:
        files = [name.lower() for name in archive.namelist()]
    assert (len(files), len(set(files))) == (len(names) + 1, len(names) + 1)
    assert files[:2] == ["photo.png", "photo-2.png"]


def test_cancel(http: httpx.Client, post_lines: Post, finish: Callable[[str], bytes], queue: JobQueue) -> None:
    batch = post_lines({"image": IMAGE}, {"image": OTHER}, {"image": IMAGE}).json()
    first, second, _ = (job["id"] for job in jobs_of(http, batch))
    finish(first)
    queue.job_store.start(second, execution="e", worker="w")
    cancelled = http.post(f"/batches/{batch['id']}/cancel").json()
    assert (cancelled["status"], cancelled["cancelled"]) == ("ended", True)
    assert (cancelled["counts"]["succeeded"], cancelled["counts"]["cancelled"]) == (1, 2)
    assert queue.depth("demo") == 1  # `finish` does not take the job from RQ's list
    assert http.post(f"/batches/{batch['id']}/cancel").json() == cancelled


def leftovers(redis: Redis) -> list[bytes]:
    """Keys of jobs and batches, and what belongs to them."""
    prefixes = (b"i2i:job:", b"i2i:jobs", b"i2i:batch:", b"i2i:inputs", b"i2i:queue", b"i2i:idempotency")
    return [key for key in redis.scan_iter() if key.startswith(prefixes) and key != b"i2i:jobs:ended"]


def test_delete(
    http: httpx.Client, post_lines: Post, finish: Callable[[str], bytes], redis: Redis, store: ObjectStore
) -> None:
    batch = post_lines({"image": IMAGE}, {"image": OTHER}, {"image": IMAGE, "seed": 1}).json()
    first, second, third = (job["id"] for job in jobs_of(http, batch))
    finish(first)
    assert http.delete(f"/jobs/{third}").status_code == 204
    counts = http.get(f"/batches/{batch['id']}").json()["counts"]
    assert (counts["succeeded"], counts["queued"], counts["deleted"]) == (1, 1, 1)
    assert http.delete(f"/batches/{batch['id']}").status_code == 204
    assert_problem(http.get(f"/batches/{batch['id']}"), 410, "deleted")
    assert http.delete(f"/batches/{batch['id']}").status_code == 204
    for job_id in (first, second):
        assert_problem(http.get(f"/jobs/{job_id}"), 410, "deleted")
    assert leftovers(redis) == []
    assert store.get(result_key(first, 0)) is None
    assert_problem(http.get(f"/batches/{'0' * 32}"), 404, "not_found")


def test_jobs_expire_with_their_batch(
    http: httpx.Client,
    post_lines: Post,
    finish: Callable[[str], bytes],
    queue: JobQueue,
    store: ObjectStore,
    redis: Redis,
) -> None:
    batch = post_lines({"image": IMAGE}, {"image": OTHER}).json()
    first, second = (job["id"] for job in jobs_of(http, batch))
    finish(first)
    assert queue.job_store.find(first).expires_at is None
    assert not redis.exists("i2i:expiring")
    finish(second)
    queue.batches.postpone(batch["id"], 1)
    assert queue.batches.expired_ids() == [batch["id"]]
    Eraser(queue, store).expire_batch(batch["id"])
    assert_problem(http.get(f"/batches/{batch['id']}"), 410, "expired")
    assert_problem(http.get(f"/jobs/{first}"), 410, "expired")
    assert leftovers(redis) == []


def test_images_of_a_batch_are_decoded_once(
    http: httpx.Client, post_lines: Post, sha256: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """10,000 jobs are 50 round trips to Redis for the jobs, and one decoded image."""
    decoded: list[object] = []
    trips: list[int] = []
    opened, submitted = BatchSubmitter._build, JobQueue.submit_to_batch

    def build(self: Any, requests: Any, reader: Any, cards: Any) -> Any:
        specs = opened(self, requests, reader, cards)
        decoded[:] = [reader.decoded]
        return specs

    def submit(self: JobQueue, jobs: Any, *args: Any) -> list[int]:
        trips.append(len(jobs))
        return submitted(self, jobs, *args)

    monkeypatch.setattr(BatchSubmitter, "_build", build)
    monkeypatch.setattr(JobQueue, "submit_to_batch", submit)
    response = post_lines(*({"image": sha256, "seed": seed} for seed in range(1000)))
    assert response.status_code == 202, response.text
    assert decoded == [1]
    assert trips == [QUEUED_AT_ONCE] * 5
    statuses = {job["status"] for job in jobs_of(http, response.json())}
    assert statuses == {JobStatus.QUEUED}


def test_empty_webhook_is_none(http: httpx.Client, post_lines: Post, sha256: str) -> None:
    for response in (
        post_lines({"image": sha256}, params={"webhook": ""}),
        http.post("/batches", json={"request": {"image": sha256}, "webhook": ""}),
    ):
        assert (response.status_code, response.json()["webhook"]) == (202, None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"image": 3}', "items.0: an image is bytes, a path"),
        (b'{"image": "' + b"iVBORw0KGgo" * 100 + b'"}', "base64 is given as a data: URI"),
        (b'{"image": "a\\u0000b"}', "is no path of a file"),
        (b'{"controls": ["canny"]}', "items.0.controls.0"),
        (b'{"images": "a.png"}', "items.0.images"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "line 1"),
        (b"[" * 100_000, "line 1"),
        (b'{"prompt": "\xff"}', "is not UTF-8"),
    ],
    ids=["number", "base64", "nul", "entry", "list", "digits", "depth", "latin-1"],
)
def test_command_says_in_one_line_what_is_no_request(
    service_url: str, http: httpx.Client, tmp_path: Path, content: bytes, message: str
) -> None:
    file = tmp_path / "batch.jsonl"
    file.write_bytes(content)
    result = CliRunner().invoke(app, ["batches", "submit", str(file), "--url", service_url])
    assert result.exit_code in (1, 2), result.exception
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert http.get("/batches").json()["batches"] == []
