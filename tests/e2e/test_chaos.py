"""A short chaos run, and tests that its checks detect violations."""

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from redis import Redis
from standardwebhooks import Webhook

from img2img.domain.job import JobStatus
from tests.chaos.checks import check_outcome, is_signed
from tests.chaos.deployment import SECRET
from tests.chaos.failover import Primary, check_failovers
from tests.chaos.observations import AcknowledgedJob, Observations
from tests.chaos.recovery import LostJob, RecoveryMonitor
from tests.chaos.state_history import FileRewritten, find_error, read_commands, read_states
from tests.support.processes import Service
from tests.support.replicated_redis import ReplicatedRedis
from tests.support.webhook_receivers import Received

QUEUED, RUNNING, SUCCEEDED, FAILED, CANCELLED = JobStatus


@pytest.mark.timeout(600)
def test_short_chaos_run_has_no_violations(tmp_path: Path) -> None:
    # In a process of its own, which loads a library that moves clocks and slows down the disk.
    amounts = {"jobs": 24, "kills": 4, "others": 4, "poisons": 1, "workers": 2, "lease_s": 4}
    options = [part for name, value in amounts.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    file = tmp_path / "figures.json"
    command = [sys.executable, "-m", "tests.chaos", *options, "--figures", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert file.exists(), done.stderr
    result = json.loads(file.read_text())
    assert result["violations"] == []
    figures = result["figures"]
    assert figures["jobs acknowledged"] == figures["terminal states in the append-only file"] == 24
    assert figures["published twice"] == 0
    assert done.returncode == 0


def test_read_states_returns_every_state_of_every_job(idle_service: Service) -> None:
    cancelled, lost, waiting = (idle_service.submit() for _ in range(3))
    idle_service.jobs.cancel(cancelled)
    idle_service.jobs.claim("tiny")
    idle_service.job_store.start(lost, execution="e", worker="w")
    idle_service.jobs.requeue(lost, execution="e")
    assert read_states(idle_service.folder) == {
        cancelled: [QUEUED, CANCELLED],
        lost: [QUEUED, RUNNING, QUEUED],
        waiting: [QUEUED],
    }


def test_read_commands_ignores_incomplete_command_at_end(tmp_path: Path) -> None:
    complete = b"*2\r\n$3\r\nDEL\r\n$1\r\na\r\n"
    file = tmp_path / "appendonly.aof"
    for incomplete in (b"", b"*2\r\n$3\r\nDEL\r\n$1\r", b"*2\r\n$3\r\nDE", b"*2"):
        file.write_bytes(complete + incomplete)
        assert list(read_commands(file)) == [[b"DEL", b"a"]]
    file.write_bytes(b"REDIS0009...")
    with pytest.raises(FileRewritten):
        list(read_commands(file))


@pytest.mark.parametrize(
    ("states", "message"),
    [
        ([QUEUED, RUNNING, SUCCEEDED], None),
        ([QUEUED, RUNNING, QUEUED, RUNNING, FAILED], None),
        ([RUNNING, SUCCEEDED], "does not begin as queued"),
        ([QUEUED, SUCCEEDED], "illegal transition"),
        ([QUEUED, RUNNING, SUCCEEDED, SUCCEEDED], "illegal transition"),
        ([QUEUED, CANCELLED, RUNNING], "illegal transition"),
        ([QUEUED, RUNNING], "0 terminal states"),
    ],
)
def test_find_error_detects_illegal_states(states: list[JobStatus], message: str | None) -> None:
    error = find_error(states)
    assert error is None if message is None else error is not None and error.startswith(message)


def test_observations_detect_contradictions() -> None:
    observations = Observations()
    observations.acknowledge(AcknowledgedJob("a", 0, False))
    end = {"id": "a", "status": "succeeded", "finished_at": "t", "images": [{"sha256": "1"}], "error": None}
    observations.observe({"id": "a", "status": "running"})
    observations.observe(end)
    observations.observe(dict(end))
    assert observations.violations == []
    observations.observe({**end, "images": [{"sha256": "2"}]})
    observations.observe({**end, "status": "cancelled"})
    observations.observe({"id": "a", "status": "running"})
    observations.observe({**end, "id": "b"})
    observations.acknowledge(AcknowledgedJob("a", 0, False))
    assert len(observations.violations) == 5


@pytest.mark.parametrize(
    ("is_poison", "attempts", "losses", "violation"),
    [
        (False, 3, 3, None),
        (False, 3, 2, "failed: worker_lost"),
        (False, 2, 3, "failed: worker_lost"),
        (True, 3, 0, None),
        (True, 2, 2, "kills its worker, but failed (worker_lost) after 2 attempts"),
        (False, 4, 4, "4 attempts"),
    ],
)
def test_job_may_fail_only_if_faults_have_taken_its_workers(
    is_poison: bool, attempts: int, losses: int, violation: str | None
) -> None:
    observations = Observations()
    view = {"status": "failed", "error": {"code": "worker_lost", "message": "lost"}}
    check_outcome(AcknowledgedJob("a", 0, False, is_poison), view, attempts, losses, observations)
    assert bool(observations.violations) == bool(violation)
    assert violation is None or violation in " ".join(observations.violations)


def test_slow_failover_is_a_violation(tmp_path: Path) -> None:
    observations = Observations()
    primary = Primary(ReplicatedRedis(tmp_path))
    primary.promotions_s, primary.recoveries_s = [2.0, 3.0], [4.0, 11.0]
    assert check_failovers(observations, primary)["failovers"] == 2
    assert observations.violations == ["failover 2: a job was acknowledged only after 11.0 s"]


def test_is_signed_rejects_bad_or_stale_signature() -> None:
    at = 1_700_000_000
    body = b'{"data": {"id": "a"}}'
    signature = Webhook(SECRET).sign("a", datetime.fromtimestamp(at, UTC), body.decode())
    headers = {"webhook-id": "a", "webhook-timestamp": str(at), "webhook-signature": f"v1,eA== {signature}"}
    assert is_signed(Received("/", headers, body, at + 10))
    assert not is_signed(Received("/", headers, body + b" ", at + 10))
    assert not is_signed(Received("/", headers | {"webhook-id": "b"}, body, at + 10))
    assert not is_signed(Received("/", headers, body, at + 1000))


def test_recovery_time_excludes_outages() -> None:
    monitor = RecoveryMonitor(Redis(), lambda: True)
    monitor.outages = [(30.0, 50.0), (0.0, 5.0), (3.0, 8.0), (4.0, 6.0)]
    lost = LostJob("a", b"1", "worker-0", since=2.0, recovered_at=40.0)
    assert monitor.net_s(lost) == pytest.approx(40 - 2 - (8 - 2) - (40 - 30))
