"""Webhooks over real HTTP: the API server, a webhook dispatcher process, and a receiver that verifies signatures."""

import json
import os
import socket
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from redis import Redis

from img2img.app.settings import ApiSettings
from img2img.app.supervisor.supervisor import free_port
from img2img.app.webhooks.dispatcher import MAX_IN_FLIGHT_PER_HOST, owner_limit
from img2img.domain.job import JobFailure, JobOptions, JobRecord
from img2img.domain.webhook import DeliveryStatus, Webhook
from img2img.errors import Expired
from img2img.redis.job_queue import JobQueue
from img2img.redis.job_store import Progress
from img2img.redis.keys import INTERIM_EVENTS, OUTBOX, WEBHOOK_HEARTBEAT
from img2img.redis.webhook_outbox import HEARTBEAT_TTL_S, STALE_S, WebhookOutbox
from tests.support.problems import assert_problem
from tests.support.processes import wait_for
from tests.support.servers import http_server
from tests.support.specs import make_spec
from tests.support.webhook_receivers import receiving, verified

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
TIMEOUT_S = 2.0
Submit = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def signing(settings: ApiSettings) -> ApiSettings:
    """Settings of a service that signs webhooks and may send them to the receivers of these tests."""
    return settings.model_copy(
        update={
            "port": free_port(),
            "webhook_secret": SECRET,
            "webhook_allow_private": True,
            "webhook_timeout_s": TIMEOUT_S,
        }
    )


@pytest.fixture(scope="module")
def signing_url(signing: ApiSettings) -> Iterator[str]:
    with http_server(signing) as url:
        yield url


@pytest.fixture
def api(http: httpx.Client, signing_url: str) -> Iterator[httpx.Client]:
    """A client of the service that signs webhooks. `http` has cleared its Redis."""
    with httpx.Client(base_url=signing_url, timeout=10) as client:
        yield client


@pytest.fixture
def send(api: httpx.Client, image_bytes: bytes) -> Submit:
    """Submit a job as a form, with its webhook as JSON or as a URL."""

    def post(webhook: str | dict[str, Any], **fields: Any) -> dict[str, Any]:
        text = webhook if isinstance(webhook, str) else json.dumps(webhook)
        response = api.post("/img2img", files={"image": image_bytes}, data={"webhook": text, **fields})
        assert response.status_code == 202, response.text
        job: dict[str, Any] = response.json()
        return job

    return post


@contextmanager
def running_dispatcher(
    settings: ApiSettings, log: Path | None = None, **variables: str
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a webhook dispatcher process. SIGTERM stops it, after which its exit code must be 0."""
    with (log or Path(os.devnull)).open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "img2img.app.webhooks"], env=settings.as_environment() | variables, stderr=output
        )
        try:
            yield process
            if process.poll() is None:
                process.terminate()
                assert process.wait(30) == 0
        finally:
            process.kill()
            process.wait()


def delivery(api: httpx.Client, job: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = api.get(f"/jobs/{job['id']}").json()["webhook"]["delivery"]
    return found


def wait_for_delivery(api: httpx.Client, job: dict[str, Any], status: str = "delivered") -> dict[str, Any]:
    wait_for(lambda: delivery(api, job)["attempts"] and delivery(api, job)["status"] == status, 60)
    return delivery(api, job)


def job_options(url: str, **options: Any) -> JobOptions:
    return JobOptions(webhook=Webhook.model_validate({"url": url}), **options)


def ended(queue: JobQueue, url: str, **options: Any) -> JobRecord:
    """Submit and cancel a job, and return its record with a pending event."""
    record = queue.submit(make_spec(model="demo"), job_options(url, **options))
    queue.cancel(record.id)
    return record


def test_prediction_is_the_body_of_its_webhook(
    api: httpx.Client, signing: ApiSettings, finish: Callable[[str], bytes], image_bytes: bytes
) -> None:
    """As Replicate's clients expect, which validate the same signatures."""
    with receiving() as receiver, running_dispatcher(signing):
        body = {
            "input": {"image": b64encode(image_bytes).decode(), "prompt": "a house"},
            "webhook": receiver.url,
            "webhook_events_filter": ["start", "completed"],
        }
        created = api.post("/replicate/v1/models/img2img/demo/predictions", json=body).json()
        finish(created["id"])
        [request] = receiver.wait(1)
        prediction = verified(request, SECRET)
        assert (prediction["id"], prediction["status"]) == (created["id"], "succeeded")
        assert prediction["output"] == [f"{str(api.base_url).rstrip('/')}/jobs/{created['id']}/images/0"]
        assert prediction["urls"] == created["urls"]
        assert prediction["input"]["prompt"] == "a house"
        assert "image" not in prediction["input"], "not even the hash of the image"
        [listed] = api.get("/replicate/v1/predictions").json()["results"]
        assert listed["completed_at"] == prediction["completed_at"]


def test_running_prediction_sends_its_start_and_its_progress(
    api: httpx.Client, signing: ApiSettings, queue: JobQueue, image_bytes: bytes, redis: Redis
) -> None:
    def create(*events: str) -> str:
        body = {
            "input": {"image": b64encode(image_bytes).decode()},
            "webhook": receiver.url,
            "webhook_events_filter": events,
        }
        return str(api.post("/replicate/v1/models/img2img/demo/predictions", json=body).json()["id"])

    def bodies(count: int) -> list[dict[str, Any]]:
        received = receiver.wait(count)
        assert len({request.headers["webhook-id"] for request in received}) == count, "each event has an id of its own"
        return [verified(request, SECRET) for request in received]

    def statuses(job_id: str) -> list[str]:
        return [body["status"] for body in bodies(len(receiver.got)) if body["id"] == job_id]

    with receiving() as receiver, running_dispatcher(signing):
        started, logged, output = create("start", "completed"), create("logs"), create("output")
        for job_id in (started, logged, output):
            queue.job_store.start(job_id, execution=job_id, worker="w")
        assert sorted(body["id"] for body in bodies(2)) == sorted((started, logged))
        steps = api.get(f"/jobs/{logged}").json()["progress"]["steps"]
        queue.job_store.record_progress([Progress(logged, logged, steps // 2, steps)])
        progress = bodies(3)[2]
        assert (progress["id"], progress["status"], progress["output"]) == (logged, "processing", None)
        assert f"{steps // 2}/{steps}" in progress["logs"]
        for job_id in (started, logged, output):
            queue.job_store.succeed(job_id, execution=job_id, images=[], timings={}, steps=steps)
        bodies(5)
        wait_for(lambda: not redis.zcard(INTERIM_EVENTS))
        assert statuses(started) == ["processing", "succeeded"]
        assert statuses(logged) == ["processing"] * 2
        assert statuses(output) == ["succeeded"]


def test_terminal_event_is_delivered_once_and_signed(
    api: httpx.Client, send: Submit, signing: ApiSettings, queue: JobQueue, finish: Callable[[str], bytes], redis: Redis
) -> None:
    with receiving() as receiver, running_dispatcher(signing):
        jobs = [send(receiver.url, prompt="a house") for _ in range(3)]
        assert all(job["webhook"]["delivery"] is None for job in jobs)
        finish(jobs[0]["id"])
        queue.job_store.fail(jobs[1]["id"], JobFailure(code="job_failed", message="out of memory"))
        api.post(f"/jobs/{jobs[2]['id']}/cancel")
        receiver.wait(3)
        for job, kind in zip(jobs, ("succeeded", "failed", "cancelled"), strict=True):
            done = wait_for_delivery(api, job)
            assert (done["attempts"], done["last_status"], done["last_error"]) == (1, 204, None)
            assert done["next_attempt_at"] is None
            [received] = receiver.of(job["id"])
            event = verified(received, SECRET)
            now = api.get(f"/jobs/{job['id']}").json()
            assert event["type"] == f"job.{kind}"
            assert event["timestamp"] == now["finished_at"]
            request = now["request"] | {"image": None}
            assert event["data"] == now | {"request": request, "webhook": now["webhook"] | {"delivery": None}}
            assert now["request"]["image"].encode() not in received.body
            assert received.headers["content-type"] == "application/json"
            assert received.headers["user-agent"].startswith("img2img/")
        time.sleep(1)
        assert len(receiver.got) == 3
        assert not redis.keys(f"{OUTBOX}*")


def test_batch_sends_one_event_when_its_last_job_has_ended(
    api: httpx.Client, signing: ApiSettings, finish: Callable[[str], bytes], redis: Redis, image_bytes: bytes
) -> None:
    image = b64encode(image_bytes).decode()
    with receiving() as receiver, running_dispatcher(signing):
        body = {"request": {"image": image}, "vary": {"seed": [1, 2]}, "webhook": receiver.url}
        batch = api.post("/batches", json=body).json()
        lines = {"content-type": "application/jsonl"}
        line = json.dumps({"image": image})
        other = api.post("/batches", content=line, params={"webhook": receiver.url}, headers=lines).json()
        assert batch["webhook"] == other["webhook"] == {"url": receiver.url, "delivery": None}
        first, second = (job["id"] for job in api.get(f"/batches/{batch['id']}/jobs").json()["jobs"])
        finish(first)
        api.post(f"/batches/{other['id']}/cancel")
        receiver.wait(1)
        finish(second)
        receiver.wait(2)
        wait_for(lambda: api.get(f"/batches/{batch['id']}").json()["webhook"]["delivery"]["status"] == "delivered")
        now = api.get(f"/batches/{batch['id']}").json()
        [received] = receiver.of(batch["id"])
        event = verified(received, SECRET)
        assert (event["type"], event["timestamp"]) == ("batch.ended", now["finished_at"])
        assert event["data"] == now | {"webhook": now["webhook"] | {"delivery": None}}
        time.sleep(1)
        assert len(receiver.got) == 2
        assert not redis.keys(f"{OUTBOX}*")


def test_only_requested_events_are_delivered(api: httpx.Client, send: Submit, redis: Redis) -> None:
    job = send({"url": "https://example.com/x", "events": ["job.failed", "job.succeeded"]})
    assert job["webhook"] == {
        "url": "https://example.com/x",
        "events": ["job.succeeded", "job.failed"],
        "delivery": None,
    }
    assert api.post(f"/jobs/{job['id']}/cancel").json()["webhook"]["delivery"] is None
    assert not redis.keys(f"{OUTBOX}*")


def test_form_and_json_accept_an_object_or_a_url(api: httpx.Client, send: Submit) -> None:
    by_form = send("https://example.com")["webhook"]
    sha256 = api.get("/jobs").json()["jobs"][0]["request"]["image"]
    for webhook in ("https://example.com/", {"url": "https://example.com"}):
        response = api.post("/img2img", json={"image": sha256, "webhook": webhook})
        assert response.json()["webhook"] == by_form == send({"url": "https://example.com"})["webhook"]
    assert by_form["events"] == ["job.succeeded", "job.failed", "job.cancelled"]


def test_retry_has_the_same_id_and_body(api: httpx.Client, send: Submit, signing: ApiSettings) -> None:
    with receiving((500, {})) as receiver, running_dispatcher(signing):
        job = send(receiver.url)
        api.post(f"/jobs/{job['id']}/cancel")
        first = wait_for_delivery(api, job, "pending")
        assert (first["attempts"], first["last_status"], first["last_error"]) == (1, 500, "status 500")
        assert first["next_attempt_at"] > first["last_attempt_at"]
        receiver.wait(2)
        assert wait_for_delivery(api, job)["attempts"] == 2
    first_request, second_request = receiver.got
    assert first_request.headers["webhook-id"] == second_request.headers["webhook-id"]
    assert first_request.body == second_request.body
    assert first_request.headers["webhook-signature"] != second_request.headers["webhook-signature"], (
        "each attempt has a new timestamp"
    )
    assert second_request.at - first_request.at > 3.9
    assert verified(second_request, SECRET)["data"]["id"] == job["id"]


def test_redirect_is_a_failure_and_410_stops_retries(api: httpx.Client, send: Submit, signing: ApiSettings) -> None:
    with receiving() as elsewhere, receiving((302, {"Location": elsewhere.url}), (410, {})) as receiver:
        job = send(receiver.url)
        with running_dispatcher(signing):
            api.post(f"/jobs/{job['id']}/cancel")
            assert wait_for_delivery(api, job, "pending")["last_error"] == "status 302"
            last = wait_for_delivery(api, job, "failed")
    assert (last["attempts"], last["last_status"], last["next_attempt_at"]) == (2, 410, None)
    assert not elsewhere.got


def test_private_address_is_rejected_at_delivery(api: httpx.Client, send: Submit, signing: ApiSettings) -> None:
    with receiving() as receiver:
        job = send(receiver.url.replace("http://127.0.0.1", "https://localhost"))
        api.post(f"/jobs/{job['id']}/cancel")
        with running_dispatcher(signing, IMG2IMG_WEBHOOK_ALLOW_PRIVATE="false"):
            delivery = wait_for_delivery(api, job, "pending")
        assert delivery["last_error"] == "the host has an address that is not public"
        assert not receiver.got


def test_claims_of_a_killed_dispatcher_are_delivered(api: httpx.Client, send: Submit, signing: ApiSettings) -> None:
    with receiving(held=True) as receiver:
        job = send(receiver.url)
        api.post(f"/jobs/{job['id']}/cancel")
        with running_dispatcher(signing, IMG2IMG_WEBHOOK_TIMEOUT_S="10") as first:
            receiver.wait(1)
            first.kill()
            first.wait()
        receiver.hold.set()
        assert delivery(api, job)["status"] == "pending"
        with running_dispatcher(signing):
            done = wait_for_delivery(api, job)
    assert done["attempts"] == 2
    assert {received.headers["webhook-id"] for received in receiver.got} == {job["id"]}


def test_readiness_reports_a_missing_dispatcher(
    http: httpx.Client, api: httpx.Client, signing: ApiSettings, redis: Redis, queue: JobQueue
) -> None:
    ended(queue, "http://127.0.0.1:1/")
    response = api.get("/readyz")
    assert (response.status_code, response.json()["ready"]) == (200, True), (
        "jobs run, and their events stay in the outbox"
    )
    assert response.json()["webhooks"] == {"ok": False, "detail": "no dispatcher running; 1 webhook pending"}
    with running_dispatcher(signing):
        wait_for(lambda: api.get("/readyz").json()["webhooks"]["ok"])
    assert 0 < redis.ttl(WEBHOOK_HEARTBEAT) <= HEARTBEAT_TTL_S
    redis.expire(WEBHOOK_HEARTBEAT, 0)
    assert not api.get("/readyz").json()["webhooks"]["ok"]
    assert http.get("/readyz").json()["webhooks"] is None, "a service without webhook secrets needs no dispatcher"


def test_two_dispatchers_deliver_each_event_once(queue: JobQueue, api: httpx.Client, signing: ApiSettings) -> None:
    with receiving() as receiver:
        jobs = [ended(queue, receiver.url).id for _ in range(60)]
        with running_dispatcher(signing), running_dispatcher(signing):
            receiver.wait(60)
            wait_for(lambda: all(delivery(api, {"id": job})["status"] == "delivered" for job in jobs))
    assert sorted(received.headers["webhook-id"] for received in receiver.got) == sorted(jobs)


def test_slow_receiver_does_not_delay_others(queue: JobQueue, api: httpx.Client, signing: ApiSettings) -> None:
    with receiving(held=True) as slow, receiving() as quick:
        many = [ended(queue, slow.url).id for _ in range(400)]
        one = ended(queue, quick.url.replace("127.0.0.1", "localhost"))
        with running_dispatcher(signing, IMG2IMG_WEBHOOK_TIMEOUT_S="60"):
            quick.wait(1)
            slow.wait(MAX_IN_FLIGHT_PER_HOST)
            time.sleep(1)
            assert len(slow.got) == MAX_IN_FLIGHT_PER_HOST
            slow.hold.set()
            wait_for(lambda: len({received.headers["webhook-id"] for received in list(slow.got)}) == len(many), 120)
    assert [received.headers["webhook-id"] for received in quick.got] == [one.id]


def test_hung_hosts_of_one_key_do_not_delay_another_key(
    queue: JobQueue, api: httpx.Client, signing: ApiSettings
) -> None:
    """Each of the first key's events goes to another host that accepts connections and never responds."""
    with socket.create_server(("0.0.0.0", 0), backlog=4096) as hung, receiving() as quick:
        port = hung.getsockname()[1]
        for index in range(600):
            ended(queue, f"http://127.0.{index // 250 + 1}.{index % 250 + 1}:{port}/", owner="greedy")
        with running_dispatcher(signing, IMG2IMG_WEBHOOK_TIMEOUT_S="30") as dispatcher:
            pid = dispatcher.pid
            wait_for(lambda: connections_of(pid, port) >= owner_limit(1))
            for owner in ("modest", "other", "third"):
                started_at = time.monotonic()
                ended(queue, quick.url, owner=owner)
                quick.wait(1)
                assert time.monotonic() - started_at < 20, "the timeout of an attempt is 30 s"
                quick.got.clear()
            assert connections_of(pid, port) <= owner_limit(1)
            dispatcher.kill()
            dispatcher.wait()


def connections_of(pid: int, port: int) -> int:
    return sum(bool(c.raddr) and c.raddr.port == port for c in psutil.Process(pid).net_connections("tcp"))


def test_event_is_delivered_after_the_job_has_expired(
    queue: JobQueue, api: httpx.Client, signing: ApiSettings, redis: Redis
) -> None:
    record = ended(queue, "https://example.com/")
    assert queue.job_store.forget(record.id, Expired) is not None
    with receiving() as receiver:
        record = ended(queue, receiver.url)
        assert queue.job_store.forget(record.id, Expired) is not None
        with running_dispatcher(signing):
            [received] = receiver.wait(1)
            wait_for(lambda: redis.zscore(OUTBOX, record.id) is None)
    assert verified(received, SECRET)["data"]["status"] == "cancelled"
    assert not redis.exists(f"i2i:job:{record.id}"), "the delivery must not recreate a part of the record"


def test_event_of_a_deleted_job_is_not_delivered(api: httpx.Client, send: Submit, redis: Redis) -> None:
    job = send("https://example.com/")
    assert api.delete(f"/jobs/{job['id']}").status_code == 204
    assert not redis.keys(f"{OUTBOX}*")


def test_worker_that_lost_the_job_writes_no_event(queue: JobQueue, redis: Redis) -> None:
    redis.flushall()
    record = queue.submit(make_spec(), job_options("https://example.com/"))
    queue.job_store.start(record.id, execution="first", worker="w")
    queue.job_store.release(record.id, execution="first")
    assert not redis.keys(f"{OUTBOX}*"), "a requeued job has not ended"
    queue.job_store.start(record.id, execution="second", worker="w")
    assert not queue.job_store.fail(record.id, JobFailure(code="x", message="x"), execution="first")
    assert not redis.keys(f"{OUTBOX}*")
    assert queue.job_store.fail(record.id, JobFailure(code="x", message="x"), execution="second")
    assert not queue.job_store.cancel(record.id)
    [claimed], more = WebhookOutbox(redis).claim(limit=9, lease_s=60, in_flight={}, owner_limit=9, host_limit=9)
    assert (claimed.record.status, claimed.attempt, more) == ("failed", 1, False)


def test_claim_is_exclusive_until_its_lease_ends(queue: JobQueue, redis: Redis) -> None:
    redis.flushall()
    outbox = WebhookOutbox(redis)
    record = ended(queue, "https://example.com/")
    [first], _ = outbox.claim(limit=9, lease_s=0.2, in_flight={}, owner_limit=9, host_limit=9)
    assert outbox.claim(limit=9, lease_s=0.2, in_flight={}, owner_limit=9, host_limit=9) == ([], False)
    time.sleep(0.3)
    [second], _ = outbox.claim(limit=9, lease_s=60, in_flight={}, owner_limit=9, host_limit=9)
    assert (first.attempt, second.attempt) == (1, 2)
    done = queue.job_store.find(record.id).delivery
    assert done is not None
    delivered = done.model_copy(update={"status": DeliveryStatus.DELIVERED})
    assert not outbox.record_attempt(first, delivered), "another dispatcher has claimed it"
    assert outbox.record_attempt(second, delivered)
    assert queue.job_store.find(record.id).delivery == delivered
    assert not redis.keys(f"{OUTBOX}*")


def test_backlog_of_a_busy_host_does_not_delay_others(
    queue: JobQueue, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis.flushall()
    outbox = WebhookOutbox(redis)
    monkeypatch.setattr("img2img.redis.webhook_outbox.PAGE_SIZE", 10)
    backlog = {ended(queue, "https://busy.example/").id for _ in range(25)}
    other = ended(queue, "https://other.example/").id

    def claim(busy: int) -> list[str]:
        claimed, left = outbox.claim(
            limit=5, lease_s=60, in_flight={("", "busy.example"): busy}, owner_limit=99, host_limit=2
        )
        assert left
        return [one.record.id for one in claimed]

    assert claim(2) == claim(2) == []
    assert next(filter(None, (claim(2) for _ in range(9)))) == [other]
    assert set(claim(0)) < backlog, "claims some events of the backlog"


def test_outbox_drops_events_after_a_week_without_a_dispatcher(queue: JobQueue, redis: Redis) -> None:
    redis.flushall()
    outbox = WebhookOutbox(redis)
    record = ended(queue, "https://example.com/")
    outbox.drop_stale()
    assert redis.zscore(OUTBOX, record.id)
    redis.zadd(OUTBOX, {record.id: time.time() - STALE_S - 1})
    outbox.drop_stale()
    assert not redis.keys(f"{OUTBOX}*")
    dropped = queue.job_store.find(record.id).delivery
    assert dropped is not None
    assert (dropped.status, dropped.last_error) == (DeliveryStatus.FAILED, "no webhook dispatcher was running")


def test_webhook_is_rejected_without_a_secret(http: httpx.Client, image_bytes: bytes) -> None:
    for path in ("/img2img", "/img2img?dry_run=true"):
        response = http.post(path, files={"image": image_bytes}, data={"webhook": "https://example.com/"})
        problem = assert_problem(response, 422, "invalid_parameter")
        assert problem["errors"][0]["field"] == "webhook"
        assert "IMG2IMG_WEBHOOK_SECRET" in problem["detail"]


def test_invalid_urls_and_events_are_rejected(
    http: httpx.Client, settings: ApiSettings, image_bytes: bytes, redis: Redis
) -> None:
    public = settings.model_copy(update={"port": free_port(), "webhook_secret": SECRET})
    fields: dict[str | None, str] = {
        "http://example.com/": "webhook.url",
        "https://127.0.0.1/": "webhook.url",
        "https://[::ffff:10.0.0.1]/": "webhook.url",
        "https://localhost/": "webhook.url",
        "https://user:password@example.com/": "webhook.url",
        "https://example.com/#x": "webhook.url",
        "ftp://example.com/": "webhook.url",
        "example.com": "webhook.url",
        "{": "webhook",
        "{}": "webhook.url",
        '{"url": "https://example.com/", "events": []}': "webhook.events",
        '{"url": "https://example.com/", "events": ["job.started"]}': "webhook.events.0",
        '{"url": "https://example.com/", "secret": "x"}': "webhook.secret",
    }
    with http_server(public) as url:
        for webhook, field in fields.items():
            response = httpx.post(f"{url}/img2img", files={"image": image_bytes}, data={"webhook": webhook})
            assert assert_problem(response, 422, "invalid_parameter")["errors"][0]["field"] == field, webhook
        good = httpx.post(f"{url}/img2img", files={"image": image_bytes}, data={"webhook": "https://example.com/"})
        assert good.status_code == 202
    assert redis.zcard("i2i:jobs") == 1


def test_idempotency_key_covers_the_webhook(api: httpx.Client, image_bytes: bytes) -> None:
    def post(webhook: str) -> httpx.Response:
        return api.post(
            "/img2img", headers={"Idempotency-Key": "k"}, files={"image": image_bytes}, data={"webhook": webhook}
        )

    first = post("https://example.com")
    replayed = post('{"url": "https://example.com/", "events": ["job.failed", "job.cancelled", "job.succeeded"]}')
    assert replayed.headers["idempotency-replayed"] == "true"
    assert replayed.json()["id"] == first.json()["id"]
    assert_problem(post("https://example.com/other"), 422, "idempotency_key_reused")


def test_secrets_and_payloads_are_not_exposed(
    api: httpx.Client, send: Submit, signing: ApiSettings, tmp_path: Path
) -> None:
    log = tmp_path / "dispatcher.log"
    with receiving((500, {})) as receiver, running_dispatcher(signing, log, IMG2IMG_LOG_LEVEL="DEBUG"):
        job = send(f"{receiver.url}?token=abracadabra", prompt="a prompt of mine")
        api.post(f"/jobs/{job['id']}/cancel")
        wait_for_delivery(api, job)
    logged = log.read_text()
    assert f"job {job['id']}: webhook attempt 2: delivered" in logged
    assert not any(text in logged for text in ("whsec_", SECRET[6:], "abracadabra", "a prompt of mine", "v1,"))
    paths = ("/openapi.json", "/docs", "/models", "/readyz", "/jobs", f"/jobs/{job['id']}", f"/jobs/{job['id']}/events")
    for path in paths:
        assert SECRET[6:] not in api.get(path).text


@pytest.mark.parametrize(
    ("module", "value", "code", "message"),
    [
        ("img2img.app.cli", "", 2, "img2img webhooks: set IMG2IMG_WEBHOOK_SECRET"),
        ("img2img.app.cli", "hunter2", 2, "img2img: IMG2IMG_WEBHOOK_SECRET: each secret should be whsec_"),
        (
            "img2img.app.webhooks",
            "hunter2",
            2,
            "img2img webhooks: IMG2IMG_WEBHOOK_SECRET: each secret should be",
        ),
    ],
)
def test_dispatcher_reports_why_it_cannot_start(
    signing: ApiSettings, module: str, value: str, code: int, message: str
) -> None:
    result = subprocess.run(
        [sys.executable, "-m", module, *["webhooks"][: module == "img2img.app.cli"]],
        env=signing.as_environment() | {"IMG2IMG_WEBHOOK_SECRET": value},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert result.returncode == code
    [line] = result.stderr.strip().split("\n")
    assert line.startswith(message)
    assert "hunter2" not in line
