"""API keys in Redis: expiry, rotation, revocation and the audit log."""

import json
import logging
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import ResponseError

from img2img.domain.api_key import ApiKey, Scope, owner_of
from img2img.domain.job import JobOptions, JobStatus
from img2img.errors import InvalidApiKey
from img2img.redis import api_keys
from img2img.redis.api_keys import ApiKeys
from img2img.redis.audit import MAX_ENTRIES, AuditEvent, audit, audit_entries
from img2img.redis.job_queue import JobQueue
from img2img.redis.keys import API_KEY_USES, API_KEYS, AUDIT_LOG, JOB
from img2img.redis.outage import message_of
from tests.support.cli_command import img2img, one_line
from tests.support.redis_servers import full_memory
from tests.support.specs import make_spec

BOTH = (Scope.READ, Scope.SUBMIT)
DAY_S = 24 * 3600.0


@pytest.fixture
def keys(redis: Redis) -> ApiKeys:
    redis.flushall()
    return ApiKeys(redis, "ada@gpu-box")


def submit(queue: JobQueue, key: ApiKey) -> str:
    return queue.submit(make_spec(), JobOptions(owner=owner_of(key), key_id=key.id)).id


def test_key_of_an_earlier_version_is_its_own_owner(keys: ApiKeys, redis: Redis) -> None:
    secret, key = keys.create("Ada", BOTH)
    stored = key.model_dump_json(exclude={"owner", "expires_at", "expiry_recorded"})
    redis.hset(API_KEYS, key.id, stored)
    found = keys.find(secret)
    assert found == key
    assert owner_of(found) == key.id


def test_rotation_keeps_owner_name_scopes_and_lifetime(keys: ApiKeys) -> None:
    _, first = keys.create("Ada", BOTH, time.time() + 90 * DAY_S)
    rotated = keys.rotate(first.id, overlap_s=DAY_S)
    assert rotated
    secret, second = rotated
    assert keys.find(secret) == second
    assert (second.name, second.scopes, owner_of(second)) == ("Ada", first.scopes, first.id)
    assert second.expires_at == pytest.approx(second.created_at + 90 * DAY_S, abs=60)
    [old] = keys.get([first.id]).values()
    assert old.expires_at == pytest.approx(time.time() + DAY_S, abs=60)
    again = keys.rotate(second.id, 0, [Scope.READ], time.time() + DAY_S)
    assert again
    assert (owner_of(again[1]), again[1].scopes) == (first.id, {Scope.READ})
    assert again[1].expires_at == pytest.approx(time.time() + DAY_S, abs=60)
    assert keys.rotate(second.id, 0) is None, "it has expired"
    assert keys.rotate("0" * 16, 0) is None


def test_overlap_does_not_prolong_a_key(keys: ApiKeys) -> None:
    _, first = keys.create("Ada", BOTH, time.time() + 60)
    assert keys.rotate(first.id, overlap_s=DAY_S)
    assert keys.get([first.id])[first.id].expires_at == first.expires_at


def test_parallel_rotations_and_revocation_bring_no_key_back(keys: ApiKeys) -> None:
    for _ in range(5):
        _, key = keys.create("Ada", BOTH)
        with ThreadPoolExecutor() as pool:
            rotations = [pool.submit(keys.rotate, key.id, DAY_S) for _ in range(4)]
            revocation = pool.submit(keys.revoke, key.id)
        assert revocation.result()
        assert key.id not in keys.get([key.id])
        made = [result[1] for rotation in rotations if (result := rotation.result())]
        assert {owner_of(one) for one in made} <= {key.id}
        assert {one.id for one in made} <= {one.id for one in keys.all()}


def test_any_counts_valid_keys(keys: ApiKeys) -> None:
    assert not keys.any()
    keys.create("Ada", BOTH, time.time() - 1)
    assert not keys.any()
    keys.create("Ada", BOTH)
    assert keys.any()


def test_key_with_a_scope_of_a_later_version_is_unknown(keys: ApiKeys, redis: Redis) -> None:
    secret, key = keys.create("Ada", BOTH)
    redis.hset(API_KEYS, key.id, key.model_dump_json().replace('"read"', '"fly"'))
    assert keys.find(secret) is None
    assert keys.all() == []
    assert not keys.any()


def test_expired_keys_are_recorded_once_and_deleted_later(
    keys: ApiKeys, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, expired = keys.create("Ada", BOTH, time.time() - 1)
    _, valid = keys.create("Bob", BOTH, time.time() + DAY_S)
    keys.record_use(expired.id)
    with ThreadPoolExecutor() as pool:
        for _ in range(8):
            pool.submit(keys.record_expiries)
    [entry] = [entry for entry in audit_entries(redis, 100) if entry.event == AuditEvent.KEY_EXPIRED]
    assert entry.details["key"] == expired.id
    assert {key.id for key in keys.all()} == {expired.id, valid.id}
    monkeypatch.setattr(api_keys, "EXPIRED_KEPT_S", 0)
    keys.record_expiries()
    assert {key.id for key in keys.all()} == {valid.id}
    assert not redis.exists(API_KEY_USES)


def test_revocation_leaves_no_record_of_use(keys: ApiKeys) -> None:
    _, key = keys.create("Ada", BOTH)
    keys.record_use(key.id)
    assert list(keys.last_uses()) == [key.id]
    keys.revoke(key.id)
    keys.record_use(key.id)  # by a process that has not noticed yet
    assert keys.last_uses() == {}


def test_jobs_of_a_revoked_key_are_cancelled(keys: ApiKeys, redis: Redis) -> None:
    """Those of the stolen key, and not those that its owner submitted with another key."""
    queue = JobQueue(redis)
    _, stolen = keys.create("Ada", BOTH)
    rotated = keys.rotate(stolen.id, overlap_s=60)
    assert rotated
    new = rotated[1]
    _, bob = keys.create("Bob", BOTH)
    kept = [submit(queue, new), submit(queue, bob)]
    by_thief = [submit(queue, stolen) for _ in range(3)]
    queue.job_store.start(by_thief[0], execution="e", worker="w")
    queue.job_store.start(kept[0], execution="f", worker="w")
    # Submitted before keys were recorded, when the key was the owner.
    redis.hdel(JOB.format(id=by_thief[2]), "key_id")
    assert keys.revoke(stolen.id)
    with pytest.raises(InvalidApiKey):
        submit(queue, stolen)
    assert queue.cancel_submitted_with(stolen) == 3
    assert {queue.job_store.find(job_id).status for job_id in by_thief} == {JobStatus.CANCELLED}
    assert [queue.job_store.find(job_id).status for job_id in kept] == [JobStatus.RUNNING, JobStatus.QUEUED]
    assert queue.cancel_submitted_with(stolen) == 0


def test_revocation_during_parallel_submits_leaves_no_job(keys: ApiKeys, redis: Redis) -> None:
    queue = JobQueue(redis)
    _, key = keys.create("Ada", BOTH)

    def submit_until_refused() -> None:
        with suppress(InvalidApiKey):
            while True:
                submit(queue, key)

    with ThreadPoolExecutor() as pool:
        submitters = [pool.submit(submit_until_refused) for _ in range(4)]
        time.sleep(0.3)
        keys.revoke(key.id)
        queue.cancel_submitted_with(key)
        [submitter.result() for submitter in submitters]
    assert queue.job_store.active_ids() == []


def test_audit_log_names_who_and_what_without_secrets(
    keys: ApiKeys, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "img2img.redis.audit"):
        secret, key = keys.create("Ada", BOTH, time.time() + DAY_S)
        named, _ = keys.create(f"was {secret}", [Scope.READ])
        rotated = keys.rotate(key.id, 60)
        assert rotated
        keys.revoke(key.id)
        assert keys.revoke(key.id) is None
        audit(redis, AuditEvent.MODEL_CHANGED, actor=f"key {secret}", model="demo")
    entries = list(audit_entries(redis, 100))
    assert [entry.event for entry in entries] == [
        "model.changed", "key.revoked", "key.rotated", "key.created", "key.created",
    ]  # fmt: skip
    assert [entry.event for entry in audit_entries(redis, 2)] == ["model.changed", "key.revoked"]
    created = entries[-1]
    assert created.actor == "ada@gpu-box"
    assert created.at == pytest.approx(time.time(), abs=60)
    assert created.details["key"] == key.id
    assert created.details["scopes"] == "read,submit"
    assert entries[2].details["replaces"] == key.id
    logged = [record for record in caplog.records if record.name == "img2img.redis.audit"]
    assert [vars(record)["audit"]["event"] for record in logged] == [entry.event for entry in entries[::-1]]
    assert f"key.revoked actor=ada@gpu-box key={key.id}" in logged[3].getMessage()
    everything = f"{entries} {[vars(record) for record in logged]} {redis.dump(AUDIT_LOG)!r}"
    for one in (secret, named, rotated[0]):
        assert one not in everything
    assert "was i2i_..." in everything


def test_audit_log_is_logged_at_any_level(redis: Redis, redis_url: str) -> None:
    redis.flushall()
    program = f"""
import logging
from redis import Redis
from img2img.redis.audit import AuditEvent, audit
from img2img.telemetry.logging import configure
configure("api", level="ERROR", log_format="json")
logging.getLogger("img2img.app").warning("not this")
audit(Redis.from_url({redis_url!r}), AuditEvent.KEY_EXPIRED, actor="service", key="0a1b")
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    [line] = result.stderr.splitlines()
    expected = {"event": "key.expired", "actor": "service", "key": "0a1b"}
    assert json.loads(line)["audit"] == expected
    [entry] = audit_entries(redis, 10)
    assert {"event": entry.event, "actor": entry.actor, **entry.details} == expected


def test_audit_log_is_bounded(keys: ApiKeys, redis: Redis) -> None:
    with redis.pipeline(transaction=False) as pipe:
        for number in range(MAX_ENTRIES + 2000):
            audit(pipe, AuditEvent.MODEL_CHANGED, actor="test", number=number)
        pipe.execute()
    assert MAX_ENTRIES <= redis.xlen(AUDIT_LOG) < MAX_ENTRIES + 500
    assert next(audit_entries(redis, 1)).details["number"] == str(MAX_ENTRIES + 1999)


def test_access_ends_while_redis_has_no_memory(keys: ApiKeys, redis: Redis) -> None:
    secret, key = keys.create("Ada", BOTH)
    queue = JobQueue(redis)
    queued, running = submit(queue, key), submit(queue, key)
    queue.job_store.start(running, execution="e", worker="w")
    with full_memory(redis):
        with pytest.raises(ResponseError) as caught:
            keys.create("Bob", BOTH)
        assert message_of(caught.value).startswith("Redis has no memory left (maxmemory): raise it, or delete jobs")
        assert keys.revoke(key.id) == key
        assert queue.cancel_submitted_with(key) == 2
        audit(redis, AuditEvent.JOBS_CANCELLED, actor="ada@gpu-box", key=key.id, jobs=2)
        assert keys.find(secret) is None
    statuses = [record.status for record in queue.job_store.get_all([queued, running]) if record]
    assert statuses == [JobStatus.CANCELLED] * 2
    assert [entry.event for entry in audit_entries(redis, 2)] == ["jobs.cancelled", "key.revoked"]


def test_commands_end_access_while_redis_has_no_memory(
    keys: ApiKeys, redis: Redis, redis_url: str, tmp_path: Path
) -> None:
    _, key = keys.create("Ada", BOTH)
    job = submit(JobQueue(redis), key)
    with full_memory(redis):
        refused = img2img(tmp_path, "keys", "create", "--name", "Bob", "--redis-url", redis_url)
        assert "(maxmemory): raise it, or delete jobs, then run this again" in one_line(refused)
        revoked = img2img(tmp_path, "keys", "revoke", key.id, "--cancel-jobs", "--redis-url", redis_url)
        assert (revoked.returncode, revoked.stderr) == (0, "1 job cancelled\n")
        forgotten = img2img(tmp_path, "forget", "--key", key.id, "--redis-url", redis_url)
        assert forgotten.returncode == 0, forgotten.stderr
    assert not redis.exists(JOB.format(id=job))
    events = [entry.event for entry in audit_entries(redis, 3)]
    assert events == ["data.forgotten", "jobs.cancelled", "key.revoked"]
