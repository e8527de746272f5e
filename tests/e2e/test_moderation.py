"""Results that a moderation endpoint is asked about: worker, Redis and endpoint are processes."""

import signal
from collections.abc import Iterator

import pytest

from img2img.domain.blob_keys import result_keys
from img2img.domain.job import JobStatus
from tests.support.moderation_endpoints import Endpoint, moderation_endpoint
from tests.support.processes import Service, Worker, wait_for

# Flagged in results, which have their prompt in their metadata. The tests submit without the API server.
GORY = "a gory house"


@pytest.fixture(scope="module")
def running() -> Iterator[Endpoint]:
    with moderation_endpoint() as endpoint:
        yield endpoint


@pytest.fixture
def endpoint(running: Endpoint) -> Endpoint:
    running.reset()
    return running


def start(service: Service, endpoint: Endpoint, behaviour: str, **settings: str) -> Worker:
    return service.start_worker(IMG2IMG_MODERATION_URL=endpoint.url(behaviour), **settings)


def stored(service: Service, job_id: str) -> list[str]:
    return [key for key in result_keys(job_id) if service.store.get(key) is not None]


def test_flagged_results_are_not_stored_and_others_are_delivered(service: Service, endpoint: Endpoint) -> None:
    start(service, endpoint, "flaky")
    ids = [service.submit(prompt=prompt, num_images=2) for prompt in (GORY, "a house", GORY, "a boat")]
    records = service.wait_until_ended(ids)
    service.assert_finished_once(records[1::2])
    for record in records[::2]:
        assert (record.status, record.images) == (JobStatus.FAILED, ())
        assert record.error is not None
        assert (record.error.code, record.error.message) == (
            "flagged",
            "Every image of the job was flagged (violence/graphic), so none is delivered; another prompt, image or "
            "seed may help.",
        )
        assert not stored(service, record.id)
    assert "check" in records[1].timings


def test_result_is_neither_visible_nor_lost_while_it_is_checked(service: Service, endpoint: Endpoint) -> None:
    victim = start(service, endpoint, "held")
    checked, cancelled = service.submit(), service.submit()
    wait_for(lambda: len(endpoint.requests()) == 2)
    for job_id in (checked, cancelled):
        assert service.record(job_id).status is JobStatus.RUNNING
        assert not stored(service, job_id)
    service.jobs.cancel(cancelled)
    victim.kill()
    start(service, endpoint, "ok")
    service.assert_finished_once(service.wait_until_ended([checked]))
    assert service.record(checked).attempts == 2
    assert service.record(cancelled).status is JobStatus.CANCELLED
    assert not stored(service, cancelled)


def test_worker_that_stops_finishes_its_checks(service: Service, endpoint: Endpoint) -> None:
    worker = start(service, endpoint, "held")
    job_id = service.submit()
    wait_for(lambda: len(endpoint.requests()) == 1)
    worker.send(signal.SIGTERM)
    endpoint.release()
    assert worker.exit_code() == 0
    service.assert_finished_once([service.record(job_id)])


def test_job_fails_without_verdict_unless_the_operator_lets_it_pass(service: Service, endpoint: Endpoint) -> None:
    strict = start(service, endpoint, "unauthorized")
    [record] = service.wait_until_ended([service.submit()])
    assert record.error is not None
    assert (record.status, record.error.code) == (JobStatus.FAILED, "moderation_unavailable")
    assert not stored(service, record.id)
    strict.kill()
    start(service, endpoint, "unauthorized", IMG2IMG_MODERATION_FAIL_OPEN="true")
    service.assert_finished_once(service.wait_until_ended([service.submit(prompt=GORY)]))


def test_prompts_are_not_in_the_logs(service: Service, endpoint: Endpoint) -> None:
    start(service, endpoint, "ok", IMG2IMG_LOG_LEVEL="DEBUG")
    service.wait_until_ended([service.submit(prompt=GORY)])
    log = (service.folder / "workers.log").read_text()
    assert "failed: flagged" in log
    assert "gory" not in log
