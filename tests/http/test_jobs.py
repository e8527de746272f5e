"""A job over real HTTP, from queued to each final status, with transitions as a worker makes them."""

from collections.abc import Callable
from datetime import datetime
from hashlib import sha256
from typing import Any
from uuid import uuid4

import httpx
import pytest
from redis import Redis

from img2img.domain.job import JobFailure
from img2img.redis.job_queue import JobQueue
from img2img.redis.job_store import Progress
from img2img.redis.keys import JOB
from img2img.redis.model_registry import ModelRegistry
from tests.support.model_cards import CARD, DDIM_ONLY
from tests.support.problems import assert_problem

Submit = Callable[..., httpx.Response]
Finish = Callable[[str], bytes]


@pytest.fixture
def job_id(submit: Submit) -> str:
    return str(submit(seed=7, num_images=2, strength=0.5, num_inference_steps=20).json()["id"])


def run(queue: JobQueue, job_id: str) -> str:
    """Start the job as a worker."""
    execution = uuid4().hex
    assert queue.job_store.start(job_id, execution=execution, worker="test-worker")
    return execution


def test_running_job_has_progress(http: httpx.Client, queue: JobQueue, job_id: str) -> None:
    execution = run(queue, job_id)
    queue.job_store.record_progress([Progress(job_id, execution, step=5, steps=20)])
    job = http.get(f"/jobs/{job_id}").json()
    assert (job["status"], job["worker"], job["finished_at"]) == ("running", "test-worker", None)
    assert job["progress"] == {"step": 5, "steps": 20, "fraction": 0.25}
    assert list(job["timings"]) == ["queued"]
    assert datetime.fromisoformat(job["started_at"]) >= datetime.fromisoformat(job["created_at"])


def test_times_of_a_job_are_in_order_where_clocks_differ(
    http: httpx.Client, queue: JobQueue, redis: Redis, job_id: str
) -> None:
    run(queue, job_id)
    created = http.get(f"/jobs/{job_id}").json()["created_at"]
    redis.hset(JOB.format(id=job_id), "started_at", datetime.fromisoformat(created).timestamp() - 0.02)
    job = http.get(f"/jobs/{job_id}").json()
    assert job["started_at"] == created
    assert job["timings"]["queued"] == 0


def test_succeeded_job_has_images(http: httpx.Client, job_id: str, finish: Finish) -> None:
    png = finish(job_id)
    job = http.get(f"/jobs/{job_id}").json()
    assert (job["status"], job["error"]) == ("succeeded", None)
    assert job["progress"] == {"step": 20, "steps": 20, "fraction": 1.0}
    assert [image["seed"] for image in job["images"]] == [7, 8]
    assert job["images"][0] == {
        "index": 0,
        "url": f"/jobs/{job_id}/images/0",
        "width": 144,
        "height": 112,
        "seed": 7,
        "sha256": sha256(png).hexdigest(),
        "bytes": len(png),
        "flagged": False,
    }
    assert set(job["timings"]) == {"queued", "run", "denoise"}
    assert job["timings"]["denoise"] == 0.25
    assert http.get(job["images"][1]["url"]).status_code == 200


def test_job_without_steps_has_progress_one_when_it_succeeds(
    http: httpx.Client, submit: Submit, finish: Finish
) -> None:
    job = submit(strength=0).json()
    assert job["progress"] == {"step": 0, "steps": 0, "fraction": 0.0}
    finish(job["id"])
    assert http.get(f"/jobs/{job['id']}").json()["progress"] == {"step": 0, "steps": 0, "fraction": 1.0}


@pytest.mark.parametrize("path", ["images/0", "result"])
def test_image_is_immutable_and_cacheable(http: httpx.Client, job_id: str, finish: Finish, path: str) -> None:
    png = finish(job_id)
    url, etag = f"/jobs/{job_id}/{path}", f'"{sha256(png).hexdigest()}"'
    response = http.get(url)
    assert (response.status_code, response.content) == (200, png)
    assert response.headers["content-type"] == "image/png"
    assert response.headers["etag"] == etag
    assert response.headers["cache-control"] == "private, max-age=31536000, immutable"
    assert response.headers["x-content-type-options"] == "nosniff"

    assert response.headers["content-disposition"] == f'inline; filename="{job_id}-0.png"'
    for kind in ("jpeg", "webp"):
        converted = http.get(url, params={"format": kind})
        assert converted.headers["content-disposition"] == f'inline; filename="{job_id}-0.{kind}"'

    head = http.head(url)
    assert (head.status_code, head.content) == (200, b"")
    own = {"date": "", "x-request-id": ""}
    assert {**head.headers, **own} == {**response.headers, **own}

    for known in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        unchanged = http.get(url, headers={"If-None-Match": known})
        assert (unchanged.status_code, unchanged.content, unchanged.headers["etag"]) == (304, b"", etag)
    assert http.get(url, headers={"If-None-Match": '"other"'}).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/jobs",
        "/jobs/{}",
        "/jobs/{}/result",
        "/models",
        "/healthz",
        "/readyz",
        "/metrics",
        "/docs",
        "/openapi.json",
        "/v1/models",
        "/v1/models/demo",
        "/sdapi/v1/options",
    ],
)
def test_head_has_the_status_and_headers_of_get(http: httpx.Client, job_id: str, finish: Finish, path: str) -> None:
    finish(job_id)
    url = path.format(job_id)
    get, head = http.get(url), http.head(url)
    assert (head.status_code, head.content) == (get.status_code, b"")
    ignored = {"date", "x-request-id"}
    if path in ("/metrics", "/readyz", "/models"):
        ignored |= {"content-length"}
    assert {k: v for k, v in head.headers.items() if k not in ignored} == {
        k: v for k, v in get.headers.items() if k not in ignored
    }


def test_head_of_a_stream_is_not_allowed(http: httpx.Client, job_id: str) -> None:
    assert http.head(f"/jobs/{job_id}/events").status_code == 405
    assert http.head("/jobs/" + "0" * 32).status_code == 404


@pytest.mark.parametrize("path", ["images/0", "images/1", "result"])
def test_image_of_an_unfinished_job_is_a_conflict(http: httpx.Client, queue: JobQueue, job_id: str, path: str) -> None:
    assert assert_problem(http.get(f"/jobs/{job_id}/{path}"), 409, "not_ready")["job_status"] == "queued"
    run(queue, job_id)
    assert assert_problem(http.get(f"/jobs/{job_id}/{path}"), 409, "not_ready")["job_status"] == "running"


@pytest.mark.parametrize("path", ["images/0", "result"])
def test_image_of_a_failed_job_is_gone(http: httpx.Client, queue: JobQueue, job_id: str, path: str) -> None:
    failure = JobFailure(code="invalid_pixels", message="not numbers")
    queue.job_store.fail(job_id, failure, execution=run(queue, job_id))
    problem = assert_problem(http.get(f"/jobs/{job_id}/{path}"), 410, "gone")
    assert (problem["job_status"], problem["error"]) == ("failed", failure.model_dump())
    job = http.get(f"/jobs/{job_id}").json()
    assert (job["status"], job["error"]) == ("failed", failure.model_dump())


def test_image_of_a_cancelled_job_is_gone(http: httpx.Client, job_id: str) -> None:
    http.post(f"/jobs/{job_id}/cancel")
    assert assert_problem(http.get(f"/jobs/{job_id}/result"), 410, "gone")["job_status"] == "cancelled"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/jobs/nope"),
        ("GET", f"/jobs/{'0' * 32}"),
        ("GET", "/jobs/%00%ff"),
        ("GET", f"/jobs/{'x' * 5000}"),
        ("GET", "/jobs/nope/images/0"),
        ("GET", "/jobs/nope/result"),
        ("POST", "/jobs/nope/cancel"),
        ("GET", "/nope"),
    ],
)
def test_unknown_resources_are_not_found(http: httpx.Client, method: str, path: str) -> None:
    assert_problem(http.request(method, path), 404, "not_found")


@pytest.mark.parametrize(("index", "status"), [("2", 404), ("9" * 30, 404), ("-1", 422), ("x", 422), ("0.5", 422)])
def test_invalid_image_index_is_rejected(
    http: httpx.Client, job_id: str, finish: Finish, index: str, status: int
) -> None:
    finish(job_id)
    assert_problem(http.get(f"/jobs/{job_id}/images/{index}"), status)


@pytest.mark.parametrize(
    ("method", "path"), [("DELETE", "/img2img"), ("GET", "/img2img"), ("PUT", "/models"), ("GET", "/jobs/x/cancel")]
)
def test_method_not_allowed_lists_the_allowed_methods(http: httpx.Client, method: str, path: str) -> None:
    response = http.request(method, path)
    assert_problem(response, 405, "method_not_allowed")
    assert response.headers["allow"]


def test_cancel_removes_a_queued_job_from_the_queue(http: httpx.Client, queue: JobQueue, job_id: str) -> None:
    assert queue.depth("demo") == 1
    responses = [http.post(f"/jobs/{job_id}/cancel") for _ in range(3)]
    assert [response.status_code for response in responses] == [200, 200, 200]
    assert len({response.text for response in responses}) == 1
    job = responses[0].json()
    assert (job["status"], job["error"]) == ("cancelled", None)
    assert job["finished_at"]
    assert queue.depth("demo") == 0
    assert http.get(f"/jobs/{job_id}").json() == job


def test_cancel_takes_a_running_job_from_its_worker(http: httpx.Client, queue: JobQueue, job_id: str) -> None:
    execution = run(queue, job_id)
    assert http.post(f"/jobs/{job_id}/cancel").json()["status"] == "cancelled"
    progress = Progress(job_id, execution, step=1, steps=20)
    assert queue.job_store.record_progress([progress]) == [progress]
    assert not queue.job_store.succeed(job_id, execution=execution, images=[], timings={}, steps=20)


def test_cancel_leaves_an_ended_job_unchanged(http: httpx.Client, job_id: str, finish: Finish) -> None:
    finish(job_id)
    job = http.get(f"/jobs/{job_id}").json()
    response = http.post(f"/jobs/{job_id}/cancel")
    assert (response.status_code, response.json()) == (200, job)


def test_models_lists_those_of_live_workers(http: httpx.Client, redis: Redis, submit: Submit) -> None:
    submit()
    registry = ModelRegistry(redis)
    registry.register("second", [CARD], ttl_s=60)
    models: list[dict[str, Any]] = http.get("/models").json()["models"]
    assert [(m["name"], m["workers"], m["queued"], m["default"]) for m in models] == [
        ("ddim-only", ["test-worker"], 0, False),
        ("demo", ["second", "test-worker"], 1, True),
    ]
    [status] = models[0].pop("statuses")
    assert (status["worker"], status["state"]) == ("test-worker", "loaded")
    assert models[0] == DDIM_ONLY.model_dump(mode="json") | {
        "state": "loaded",
        "workers": ["test-worker"],
        "queued": 0,
        "default": False,
    }
    registry.unregister("test-worker")
    registry.unregister("second")
    listed = http.get("/models").json()
    assert [(m["name"], m["workers"], m["state"]) for m in listed["models"]] == [
        ("ddim-only", [], "unloaded"),
        ("demo", [], "unloaded"),
    ], "those that were served last"
    assert (listed["pending"], listed["notices"]) == ([], [])
    assert submit().status_code == 202  # jobs are accepted without a live worker


def test_health(http: httpx.Client, redis: Redis) -> None:
    assert http.get("/healthz").json() == {"status": "alive"}
    ready = http.get("/readyz")
    assert (ready.status_code, ready.json()["ready"]) == (200, True)
    ModelRegistry(redis).unregister("test-worker")
    not_ready = http.get("/readyz")
    assert not_ready.status_code == 503
    assert {name: not_ready.json()[name]["ok"] for name in ("redis", "store", "workers")} == {
        "redis": True,
        "store": True,
        "workers": False,
    }


def test_docs_work(http: httpx.Client) -> None:
    response = http.get("/docs")
    assert response.status_code == 200
    assert "/openapi.json" in response.text


def test_type_of_a_problem_leads_to_its_explanation(http: httpx.Client) -> None:
    path, _, anchor = http.get("/jobs/0").json()["type"].partition("#")
    page = http.get(path)
    assert page.headers["content-type"].startswith("text/html")
    assert f'<h2 id="{anchor}">not_found</h2>\n<p>404 Not Found</p>' in page.text
