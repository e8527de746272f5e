"""A service on several hosts: a worker is disconnected for longer than its lease, and reconnects."""

import signal
from collections import Counter
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import pytest
from redis import Redis

from img2img.domain.job import JobRecord, JobStatus
from img2img.redis.decode import decode
from img2img.redis.job_queue import JobQueue
from img2img.redis.keys import JOB_CHANGES
from img2img.redis.model_registry import ModelRegistry
from tests.support.hosts import MultiHostService, skip_without_network_namespaces
from tests.support.images import encoded, gradient
from tests.support.processes import MODEL, wait_for

LEASE_S = 4
# Enough steps that a job still runs when its worker is disconnected, on any machine.
STEPS = 100


@pytest.fixture
def deployment(request: pytest.FixtureRequest) -> Iterator[MultiHostService]:
    skip_without_network_namespaces()
    with TemporaryDirectory(prefix="i2i-") as folder:
        deployment = MultiHostService(Path(folder), request.getfixturevalue("tiny_model"))
        try:
            with deployment.network.on("client"):
                deployment.start()
                yield deployment
        finally:
            deployment.stop()
            for log in Path(folder).glob("*.log"):
                request.node.add_report_section("teardown", log.name, log.read_text())


@pytest.mark.timeout(900)
def test_worker_disconnected_past_its_lease_loses_no_job_and_publishes_none_late(
    deployment: MultiHostService,
) -> None:
    workers = {host: deployment.start_worker(host, slots=3, lease_s=LEASE_S) for host in ("east", "west")}
    with Redis.from_url(deployment.redis_url) as redis, httpx.Client(base_url=deployment.api_url, timeout=60) as http:
        jobs = JobQueue(redis)

        def records(ids: list[str]) -> list[JobRecord]:
            found = [jobs.job_store.get(job_id) for job_id in ids]
            assert None not in found
            return [record for record in found if record]

        def of(host: str, ids: list[str]) -> list[str]:
            return [record.id for record in records(ids) if workers[host].owns(record)]

        def submit(seed: int) -> str:
            fields: dict[str, Any] = {"num_inference_steps": STEPS, "strength": 1, "guidance_scale": 1, "seed": seed}
            fields |= {"width": 32, "height": 32}
            response = http.post("/img2img", files={"image": encoded(gradient(64, 64))}, data=fields)
            assert response.status_code == 202, response.text
            return str(response.json()["id"])

        def result(job_id: str) -> bytes:
            return http.get(f"/jobs/{job_id}/result").raise_for_status().content

        wait_for(lambda: len(ModelRegistry(redis).live().get(MODEL, [])) == 2, timeout_s=120)
        wait_for(lambda: _is_ready(http), timeout_s=60)
        changes = redis.pubsub(ignore_subscribe_messages=True)
        changes.subscribe(JOB_CHANGES)
        ids = [submit(seed) for seed in range(6)]
        wait_for(lambda: min(sum(r.step > 0 for r in records(of(host, ids))) for host in workers) >= 2, timeout_s=120)

        deployment.network.disconnect("east")
        lost = [record for record in records(of("east", ids)) if not record.status.is_terminal]
        assert lost, "the worker was disconnected while its jobs ran"
        wait_for(lambda: all(record.status.is_terminal for record in records(ids)), timeout_s=300)
        ended = records(ids)
        assert {record.status for record in ended} == {JobStatus.SUCCEEDED}
        for job in records([record.id for record in lost]):
            assert workers["west"].owns(job), "recovered while the first worker was unreachable"
            assert (job.attempts, job.execution in {record.execution for record in lost}) == (2, False)
        images = [result(job_id) for job_id in ids]

        deployment.network.reconnect("east")
        # The reconnected worker tries to end each of its jobs, and is refused.
        refusals = [f"{job.id}: another worker has taken over the job" for job in lost]
        wait_for(lambda: all(refusal in deployment.log("east").read_text() for refusal in refusals), 120)
        assert records(ids) == ended
        assert [result(job_id) for job_id in ids] == images
        for record, png in zip(ended, images, strict=True):
            assert sha256(png).hexdigest() == record.images[0].sha256
        assert workers["east"].is_alive

        workers["west"].send(signal.SIGTERM)
        assert workers["west"].exit_code() == 0
        # The reconnected worker is the only one, and takes new jobs.
        last = submit(seed=99)
        wait_for(lambda: records([last])[0].status is JobStatus.SUCCEEDED, timeout_s=120)
        assert of("east", [last]) == [last]
        assert _published_ends(changes) == Counter([*ids, last])


def _is_ready(http: httpx.Client) -> bool:
    try:
        return http.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def _published_ends(changes: Any) -> Counter[str]:
    """Return how often the end of each job was published."""
    published: Counter[str] = Counter()
    timeouts = 0
    # The first call without a message is for the confirmation of the subscription.
    while timeouts < 2:
        message = changes.get_message(timeout=1)
        if message is None:
            timeouts += 1
            continue
        job_id, _, status = decode(message["data"]).partition(" ")
        if status and JobStatus(status).is_terminal:
            published[job_id] += 1
    return published
