"""Submission of jobs: one Redis command, all or nothing."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from redis import Redis

from img2img.domain.blob_keys import input_key
from img2img.domain.job import JobOptions
from img2img.errors import IdempotencyKeyReused, QueueFull, TooManyQueued
from img2img.redis import keys
from img2img.redis.idempotency import IdempotencyKey
from img2img.redis.job_queue import JobQueue
from img2img.redis.queue_limits import QueueLimits
from tests.support.processes import Service
from tests.support.specs import make_spec

KEY = IdempotencyKey("order-17", fingerprint="f")


@contextmanager
def recorded_commands(service: Service) -> Iterator[list[str]]:
    """Yield a list that receives the names of the commands that clients send, without those of scripts."""
    names: list[str] = []
    with Redis.from_url(service.url) as other, other.monitor() as monitor:
        yield names
        service.redis.echo("end")
        for command in monitor.listen():
            name = command["command"].split()[0]
            if name == "ECHO":
                break
            if command["client_type"] != "lua":
                names.append(name)


def all_keys(redis: Redis) -> set[bytes]:
    return set(redis.keys("*"))


@pytest.mark.parametrize("limits", [QueueLimits(), QueueLimits(100, 50)], ids=["unlimited", "limited"])
def test_submit_sends_one_command(limits: QueueLimits, idle_service: Service) -> None:
    queue = JobQueue(idle_service.redis, limits)
    queue.submit(make_spec())
    with recorded_commands(idle_service) as names:
        queue.submit(make_spec(), JobOptions(owner="ada", deadline_s=60))
    assert names == ["EVALSHA"]


def test_submit_idempotent_sends_one_command(idle_service: Service) -> None:
    idle_service.jobs.submit(make_spec())
    with recorded_commands(idle_service) as names:
        idle_service.jobs.submit_idempotent(KEY, make_spec())
    assert names == ["EVALSHA"]


def test_retain_sends_one_command_for_several_images(idle_service: Service) -> None:
    images = idle_service.jobs.input_images
    images.retain({"inputs/a.png": 9}, "ada")
    with recorded_commands(idle_service) as names:
        generations = images.retain({input_key(str(i)): i for i in range(3)}, "ada")
    assert len(generations) == 3
    assert names == ["EVALSHA"]


@pytest.mark.parametrize(
    ("limits", "error"), [(QueueLimits(1, None), QueueFull), (QueueLimits(None, 1), TooManyQueued)]
)
def test_refused_submit_leaves_nothing_behind(
    limits: QueueLimits, error: type[Exception], idle_service: Service
) -> None:
    queue, options = JobQueue(idle_service.redis, limits), JobOptions(owner="ada")
    queue.submit(make_spec(), options)
    before = all_keys(idle_service.redis)
    for submit in (
        lambda: queue.submit(make_spec(), options),
        lambda: queue.submit_idempotent(KEY, make_spec(), options),
        lambda: queue.check_limits("ada"),
    ):
        with pytest.raises(error):
            submit()
    assert all_keys(idle_service.redis) == before
    assert queue.depth(make_spec().model) == 1


def test_limit_per_owner_does_not_concern_other_owners(idle_service: Service) -> None:
    queue = JobQueue(idle_service.redis, QueueLimits(None, 1))
    queue.submit(make_spec(), JobOptions(owner="ada"))
    queue.check_limits("bob")
    queue.submit(make_spec(), JobOptions(owner="bob"))


def test_parallel_submits_with_one_idempotency_key_make_one_job(idle_service: Service) -> None:
    submit: Callable[[int], tuple[str, bool]] = lambda _: (  # noqa: E731
        (found := idle_service.jobs.submit_idempotent(KEY, make_spec()))[0].id,
        found[1],
    )
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(submit, range(16)))
    assert len({job_id for job_id, _ in results}) == 1
    assert sum(is_new for _, is_new in results) == 1
    found = idle_service.jobs.find_by_idempotency_key(KEY)
    assert found is not None
    assert found.id == results[0][0]


def test_idempotency_key_of_another_request_is_refused(idle_service: Service) -> None:
    idle_service.jobs.submit_idempotent(KEY, make_spec())
    other = IdempotencyKey(KEY.key, fingerprint="other")
    with pytest.raises(IdempotencyKeyReused):
        idle_service.jobs.submit_idempotent(other, make_spec())
    assert idle_service.redis.zcard(keys.JOBS) == 1
    assert idle_service.jobs.submit_idempotent(IdempotencyKey(KEY.key, "other", owner="bob"), make_spec())[1]
