"""The chaos run in small, and whether it would notice what it looks for."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from redis import Redis
from standardwebhooks import Webhook

from img2img.domain.job import JobStatus
from tests.chaos.__main__ import Plan, run
from tests.chaos.history import Rewritten, commands, states, wrong
from tests.chaos.ledger import Acknowledged, Ledger
from tests.chaos.plant import SECRET
from tests.chaos.recovery import Lost, RecoveryWatch
from tests.chaos.verdict import is_signed
from tests.support.processes import Service
from tests.support.webhook_receivers import Received

QUEUED, RUNNING, SUCCEEDED, FAILED, CANCELLED = JobStatus


@pytest.mark.timeout(600)
def test_a_small_storm_loses_nothing() -> None:
    figures, breaches = run(Plan(jobs=24, kills=4, others=2, poisons=1, workers=2, lease_s=4))
    assert breaches == []
    assert figures["jobs acknowledged"] == figures["ends in the history of Redis"] == 24
    assert figures["published twice"] == 0


def test_the_history_of_redis_is_every_state_of_every_job(front_end: Service) -> None:
    cancelled, lost, waiting = (front_end.submit() for _ in range(3))
    front_end.jobs.cancel(cancelled)
    front_end.jobs.claim("tiny")
    front_end.job_store.start(lost, execution="e", worker="w")
    front_end.jobs.requeue(lost, execution="e")
    found = states(front_end.folder)
    assert found == {cancelled: [QUEUED, CANCELLED], lost: [QUEUED, RUNNING, QUEUED], waiting: [QUEUED]}


def test_of_a_file_that_ends_in_half_a_command_the_whole_ones_are_read(tmp_path: Path) -> None:
    whole = b"*2\r\n$3\r\nDEL\r\n$1\r\na\r\n"
    file = tmp_path / "appendonly.aof"
    for half in (b"", b"*2\r\n$3\r\nDEL\r\n$1\r", b"*2\r\n$3\r\nDE", b"*2"):
        file.write_bytes(whole + half)
        assert list(commands(file)) == [[b"DEL", b"a"]]
    file.write_bytes(b"REDIS0009...")
    with pytest.raises(Rewritten):
        list(commands(file))


@pytest.mark.parametrize(
    ("history", "said"),
    [
        ([QUEUED, RUNNING, SUCCEEDED], None),
        ([QUEUED, RUNNING, QUEUED, RUNNING, FAILED], None),
        ([RUNNING, SUCCEEDED], "did not begin as queued"),
        ([QUEUED, SUCCEEDED], "an illegal move"),
        ([QUEUED, RUNNING, SUCCEEDED, SUCCEEDED], "an illegal move"),
        ([QUEUED, CANCELLED, RUNNING], "an illegal move"),
        ([QUEUED, RUNNING], "0 ends"),
    ],
)
def test_a_history_that_should_not_be_is_found(history: list[JobStatus], said: str | None) -> None:
    found = wrong(history)
    assert found is None if said is None else found is not None and found.startswith(said)


def test_a_ledger_notices_what_is_told_differently() -> None:
    ledger = Ledger()
    ledger.acknowledge(Acknowledged("a", 0, False))
    end = {"id": "a", "status": "succeeded", "finished_at": "t", "images": [{"sha256": "1"}], "error": None}
    ledger.see({"id": "a", "status": "running"})
    ledger.see(end)
    ledger.see(dict(end))
    assert ledger.breaches == []
    ledger.see({**end, "images": [{"sha256": "2"}]})
    ledger.see({**end, "status": "cancelled"})
    ledger.see({"id": "a", "status": "running"})
    ledger.see({**end, "id": "b"})
    ledger.acknowledge(Acknowledged("a", 0, False))
    assert len(ledger.breaches) == 5


def test_a_signature_that_is_bad_or_stale_is_found() -> None:
    at = 1_700_000_000
    body = b'{"data": {"id": "a"}}'
    signature = Webhook(SECRET).sign("a", datetime.fromtimestamp(at, UTC), body.decode())
    headers = {"webhook-id": "a", "webhook-timestamp": str(at), "webhook-signature": f"v1,eA== {signature}"}
    assert is_signed(Received("/", headers, body, at + 10))
    assert not is_signed(Received("/", headers, body + b" ", at + 10))
    assert not is_signed(Received("/", headers | {"webhook-id": "b"}, body, at + 10))
    assert not is_signed(Received("/", headers, body, at + 1000))


def test_the_time_in_which_nobody_could_look_does_not_count() -> None:
    watch = RecoveryWatch(Redis(), lambda: True)
    watch.outages = [(30.0, 50.0), (0.0, 5.0), (3.0, 8.0), (4.0, 6.0)]
    lost = Lost("a", b"1", "worker-0", since=2.0, found_at=40.0)
    assert watch.net_s(lost) == pytest.approx(40 - 2 - (8 - 2) - (40 - 30))
