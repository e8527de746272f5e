"""Long polls and Server-Sent Events over real HTTP, also across a restart of Redis."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import pytest
from redis import Redis

from img2img.app.main import connect_redis
from img2img.app.progress.eta import EtaEstimator
from img2img.app.progress.event_stream import StreamEvent, stream_job_events
from img2img.app.progress.job_reads import JobReads
from img2img.app.progress.long_poll import OUTAGE_S
from img2img.app.settings import ApiSettings
from img2img.app.supervisor.supervisor import free_port
from img2img.domain.job import JobFailure
from img2img.redis.job_queue import JobQueue
from img2img.redis.job_store import Progress
from img2img.redis.keys import JOB_CHANGES
from img2img.redis.model_registry import ModelRegistry
from img2img.redis.notifications import JobChangeListener
from img2img.redis.previews import Previews
from tests.support.model_cards import CARD
from tests.support.problems import assert_problem
from tests.support.servers import http_server, redis_server
from tests.support.specs import make_spec

Submit = Callable[..., httpx.Response]
Finish = Callable[[str], bytes]
Later = Callable[..., None]


@dataclass
class Event:
    name: str
    id: str | None
    data: dict[str, Any]


class Stream:
    """A client of an event stream, which parses it as specified for Server-Sent Events."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self.comments = 0
        self.retry_ms: int | None = None
        self._lines = response.iter_lines()

    def __iter__(self) -> Iterator[Event]:
        fields: dict[str, str] = {}
        for line in self._lines:
            if line.startswith(":"):
                self.comments += 1
            elif line:
                name, _, value = line.partition(": ")
                fields[name] = value
            else:
                if "retry" in fields:
                    self.retry_ms = int(fields["retry"])
                if "data" in fields:
                    yield Event(fields["event"], fields.get("id"), json.loads(fields["data"]))
                fields = {}

    def next(self) -> Event:
        return next(iter(self))


@contextmanager
def following(http: httpx.Client, job_id: str, last_event_id: str | None = None) -> Iterator[Stream]:
    headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
    with http.stream("GET", f"/jobs/{job_id}/events", headers=headers) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["x-accel-buffering"] == "no"
        assert response.headers["cache-control"] == "no-cache, no-store"
        yield Stream(response)


@pytest.fixture
def later(http: httpx.Client, queue: JobQueue) -> Iterator[Later]:
    """Run functions after a delay; joins their timers before the test ends."""
    timers = []

    def start(do: Callable[[], Any], delay_s: float = 0.2) -> None:
        timers.append(threading.Timer(delay_s, do))
        timers[-1].start()

    yield start
    for timer in timers:
        timer.join()


def test_stream_reports_every_state_of_a_job(
    http: httpx.Client, submit: Submit, queue: JobQueue, finish: Finish
) -> None:
    first, job_id = submit().json()["id"], submit(strength=0.5, num_inference_steps=20).json()["id"]
    with following(http, job_id) as stream:
        assert stream.next() == Event(
            "queued", "1", {"id": job_id, "status": "queued", "queue_position": 1, "eta_s": None}
        )
        assert stream.retry_ms == 2000
        finish(first)
        assert stream.next().data["queue_position"] == 0
        queue.job_store.start(job_id, execution="e", worker="w")
        assert (started := stream.next()).name == "progress"
        assert started.data == {
            "id": job_id,
            "status": "running",
            "progress": {"step": 0, "steps": 10, "fraction": 0.0},
        }
        queue.job_store.record_progress([Progress(job_id, "e", 5, 10)])
        assert stream.next().data["progress"]["fraction"] == 0.5
        queue.job_store.record_progress([Progress(job_id, "e", 5, 10)])  # unchanged
        queue.requeue(job_id)
        assert stream.next().name == "queued"
        finish(job_id)
        *between, last = stream
        assert {event.name for event in between} <= {"progress"}
        assert (last.name, last.data) == ("succeeded", http.get(f"/jobs/{job_id}").json())


@pytest.mark.parametrize("end", ["failed", "cancelled"])
def test_stream_ends_with_failed_or_cancelled(http: httpx.Client, submit: Submit, queue: JobQueue, end: str) -> None:
    job_id = submit().json()["id"]
    with following(http, job_id) as stream:
        stream.next()
        if end == "failed":
            queue.job_store.fail(job_id, JobFailure(code="invalid_pixels", message="not numbers"))
        else:
            http.post(f"/jobs/{job_id}/cancel")
        [last] = stream
    assert (last.name, last.data["status"]) == (end, end)


def test_stream_ends_when_the_job_is_deleted(http: httpx.Client, submit: Submit) -> None:
    job_id = submit().json()["id"]
    with following(http, job_id) as stream:
        stream.next()
        http.delete(f"/jobs/{job_id}")
        *_, last = stream
    assert last.name in ("gone", "cancelled")
    assert last.name == "cancelled" or last.data["code"] == "deleted"


def test_stream_resumes_from_last_event_id(http: httpx.Client, submit: Submit, queue: JobQueue, later: Later) -> None:
    job_id = submit().json()["id"]
    queue.job_store.start(job_id, execution="e", worker="w")
    with following(http, job_id) as stream:
        seen = stream.next()
    queue.job_store.record_progress([Progress(job_id, "e", 3, 24)])
    with following(http, job_id, seen.id) as stream:
        missed = stream.next()
    assert (missed.name, missed.data["progress"]["step"]) == ("progress", 3)
    later(lambda: queue.job_store.cancel(job_id))
    with following(http, job_id, missed.id) as stream:
        [last] = stream  # the last event is not repeated
    assert last.name == "cancelled"
    with following(http, job_id, missed.id) as stream:
        assert list(stream) == [last]
    assert http.get(f"/jobs/{job_id}/events", headers={"Last-Event-ID": str(last.id)}).status_code == 204


def test_stream_sends_keep_alive_comments(
    http: httpx.Client, submit: Submit, later: Later, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("img2img.app.progress.event_stream.PING_S", 0.1)
    job_id = submit().json()["id"]
    later(lambda: http.post(f"/jobs/{job_id}/cancel"), 0.5)
    with following(http, job_id) as stream:
        assert [event.name for event in stream] == ["queued", "cancelled"]
    assert stream.comments >= 3


def test_stream_rejects_unknown_job_and_invalid_last_event_id(http: httpx.Client, submit: Submit) -> None:
    assert_problem(http.get("/jobs/nope/events"), 404, "not_found")
    job_id = submit().json()["id"]
    response = http.get(f"/jobs/{job_id}/events", headers={"Last-Event-ID": "x"})
    assert_problem(response, 422, "invalid_parameter")


@pytest.mark.parametrize(
    ("query", "prefer", "applied"),
    [("?wait=20", {}, None), ("", {"Prefer": "wait=20"}, "wait=20"), ("", {"Prefer": "a, Wait=900;b"}, "wait=60")],
)
def test_long_poll_returns_when_the_job_ends(
    http: httpx.Client,
    submit: Submit,
    queue: JobQueue,
    later: Later,
    query: str,
    prefer: dict[str, str],
    applied: str | None,
) -> None:
    job_id = submit().json()["id"]
    later(lambda: queue.job_store.start(job_id, execution="e", worker="w"), 0.1)
    later(lambda: queue.job_store.cancel(job_id), 0.3)
    started_at = time.monotonic()
    response = http.get(f"/jobs/{job_id}{query}", headers=prefer)
    assert 0.2 < time.monotonic() - started_at < 3
    assert response.json()["status"] == "cancelled"
    assert response.headers.get("preference-applied") == applied


def test_long_poll_returns_after_its_timeout(http: httpx.Client, submit: Submit) -> None:
    job_id = submit().json()["id"]
    started_at = time.monotonic()
    assert http.get(f"/jobs/{job_id}?wait=0.3").json()["status"] == "queued"
    assert 0.3 <= time.monotonic() - started_at < 2


@pytest.mark.parametrize("wait", ["-1", "61", "soon"])
def test_long_poll_rejects_invalid_wait(http: httpx.Client, submit: Submit, wait: str) -> None:
    [error] = assert_problem(http.get("/jobs/x", params={"wait": wait}), 422, "invalid_parameter")["errors"]
    assert error["field"] == "wait"


def test_many_long_polls_share_one_subscription(
    http: httpx.Client, submit: Submit, queue: JobQueue, redis: Redis, service_url: str
) -> None:
    """Fifty long polls of a queued job cost hardly more commands than their first and last reads."""
    job_id = submit().json()["id"]
    assert [name for name, count in redis.pubsub_numsub(JOB_CHANGES) if count == 1], "one subscription for all"
    with ThreadPoolExecutor(50) as pool, httpx.Client(base_url=service_url, timeout=10) as many:
        before = redis.info("commandstats")["cmdstat_hgetall"]["calls"]
        statuses = list(pool.map(lambda _: many.get(f"/jobs/{job_id}?wait=1.5").status_code, range(50)))
        after = redis.info("commandstats")["cmdstat_hgetall"]["calls"]
    assert statuses == [200] * 50
    assert after - before <= 4 * 50


def test_followers_of_a_job_share_one_read_of_each_change(
    submit: Submit, queue: JobQueue, redis: Redis, service_url: str
) -> None:
    job_id = submit().json()["id"]
    queue.job_store.start(job_id, execution="e", worker="w")
    followers, changes = 30, 20
    received: list[list[Event]] = [[] for _ in range(followers)]
    is_following = threading.Barrier(followers + 1)

    def follow(events: list[Event]) -> None:
        with httpx.Client(base_url=service_url, timeout=20) as http, following(http, job_id) as stream:
            events.append(stream.next())
            is_following.wait(20)
            events += stream

    with ThreadPoolExecutor(followers) as pool:
        running = [pool.submit(follow, events) for events in received]
        is_following.wait(20)
        before = redis.info("commandstats")["cmdstat_hgetall"]["calls"]
        for step in range(1, changes + 1):
            queue.job_store.record_progress([Progress(job_id, "e", step, changes)])
            time.sleep(0.05)
        after = redis.info("commandstats")["cmdstat_hgetall"]["calls"]
        queue.job_store.cancel(job_id)
        for one in running:
            one.result(20)
    assert {(events[-2].data["progress"]["step"], events[-1].name) for events in received} == {(changes, "cancelled")}
    assert after - before <= 3 * changes, "not one for each of the followers"


def test_long_poll_and_stream_survive_a_restart_of_redis(image_bytes: bytes) -> None:
    with TemporaryDirectory(prefix="i2i-") as name:
        folder = Path(name)
        settings = ApiSettings(_env_file=None, data_dir=folder, model="demo", redis_url=None, port=free_port())
        with http_server(settings) as url, httpx.Client(base_url=url, timeout=20) as http, ThreadPoolExecutor() as pool:
            with redis_server(folder) as redis_url, Redis.from_url(redis_url) as redis:
                ModelRegistry(redis).register("w", [CARD], ttl_s=60)
                job_id = http.post("/img2img", files={"image": image_bytes}).json()["id"]
                polled = pool.submit(lambda: http.get(f"/jobs/{job_id}?wait=20"))
                stream = pool.submit(lambda: [event.name for event in _events(http, job_id)])
                time.sleep(1.1)  # for the append-only file
            time.sleep(0.5)
            with redis_server(folder) as redis_url, Redis.from_url(redis_url) as redis:
                time.sleep(0.5)
                JobQueue(redis).cancel(job_id)
                assert polled.result(10).json()["status"] == "cancelled"
                assert stream.result(10) == ["queued", "cancelled"]


def _events(http: httpx.Client, job_id: str) -> list[Event]:
    with following(http, job_id) as stream:
        return list(stream)


def test_stream_waits_if_redis_is_down_at_its_first_read() -> None:
    """The route has found the job, and Redis goes down before the stream reads it."""
    with TemporaryDirectory(prefix="i2i-") as name:
        folder = Path(name)
        settings = ApiSettings(_env_file=None, data_dir=folder, model="demo")
        redis = connect_redis(settings.resolved_redis_url)
        queue, models = JobQueue(redis), ModelRegistry(redis)
        with redis_server(folder):
            job_id = queue.submit(make_spec(model="demo")).id

        async def first_event() -> StreamEvent:
            changes = JobChangeListener(settings.resolved_redis_url)
            eta = EtaEstimator(queue.job_store.fair_queue, models)
            stream = stream_job_events(job_id, -1, JobReads(queue.job_store, eta, Previews(redis), changes), changes)
            waiting = asyncio.ensure_future(anext(event async for event in stream if event))
            await asyncio.sleep(3 * OUTAGE_S)
            assert not waiting.done()
            with redis_server(folder):
                return await asyncio.wait_for(waiting, 30)

        event = asyncio.run(first_event())
    assert event.name == "queued"
    assert json.loads(event.data)["id"] == job_id


def test_listener_ends_whenever_it_is_cancelled(settings: ApiSettings) -> None:
    """Also while it connects: otherwise a process that stops then would never end."""

    async def cancel_after(turns: int) -> bool:
        listening = asyncio.create_task(JobChangeListener(settings.resolved_redis_url).run())
        for _ in range(turns):
            await asyncio.sleep(0)
        listening.cancel()
        ended, _ = await asyncio.wait([listening], timeout=20)
        return bool(ended)

    async def cancel_at_each_point() -> list[bool]:
        return await asyncio.gather(*map(cancel_after, range(60)))

    with asyncio.Runner() as runner:
        assert all(runner.run(cancel_at_each_point()))
