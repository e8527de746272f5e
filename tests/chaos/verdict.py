"""What must hold when the storm is over: every check, as breaches and figures."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import Any

import httpx
from redis import Redis
from standardwebhooks import Webhook

from img2img.domain.job import JobRecord, JobStatus
from img2img.redis.job_queue import MAX_ATTEMPTS
from img2img.redis.job_store import JobStore
from img2img.redis.keys import JOBS
from tests.chaos import history
from tests.chaos.ledger import TERMINAL, Acknowledged, Ledger
from tests.chaos.plant import SECRET
from tests.chaos.recovery import LIMIT_S, RecoveryWatch
from tests.support.webhook_receivers import Received

FRESH_S = 300  # as Standard Webhooks asks of receivers

Figures = dict[str, object]


def check_jobs(ledger: Ledger, url: str, keys: Sequence[str], redis: Redis) -> Figures:
    """Asks the service for every acknowledged job as its owner would, and for its pictures."""
    ends: Counter[str] = Counter()
    attempts: Counter[int] = Counter()
    pictures = 0
    records = JobStore(redis)
    with httpx.Client(base_url=url, timeout=20, trust_env=False) as http:
        for job in ledger.jobs.values():
            headers = {"X-API-Key": keys[job.owner]}
            answer = http.get(f"/jobs/{job.id}", headers=headers)
            if answer.status_code != 200:
                ledger.breach(f"job {job.id}: acknowledged, and now {answer.status_code}")
                continue
            view = answer.json()
            ledger.see(view)
            if view["status"] not in TERMINAL:
                ledger.breach(f"job {job.id}: still {view['status']}")
                continue
            record = records.find(job.id)
            attempts[record.attempts] += 1
            code = f" ({view['error']['code']})" if view["error"] else ""
            ends[view["status"] + code] += 1
            pictures += _check_pictures(job, view, http, headers, ledger)
            _check_promises(job, view, record, ledger)
        _check_owners(ledger, http, keys)
    known = {job_id.decode() for job_id in redis.zrange(JOBS, 0, -1)}
    for job_id in known - ledger.jobs.keys():
        ledger.breach(f"job {job_id}: made, but acknowledged to nobody")
    figures: Figures = {"jobs acknowledged": len(ledger.jobs)}
    figures |= {f"ended: {end}": count for end, count in sorted(ends.items())}
    figures["pictures with the recorded sha256"] = pictures
    figures["jobs run more than once"] = sum(count for tries, count in attempts.items() if tries > 1)
    return figures


def _check_pictures(
    job: Acknowledged, view: Mapping[str, Any], http: httpx.Client, headers: Mapping[str, str], ledger: Ledger
) -> int:
    if view["status"] != "succeeded":
        if view["images"]:
            ledger.breach(f"job {job.id}: {view['status']}, with pictures")
        return 0
    if len(view["images"]) != view["request"]["num_images"]:
        ledger.breach(f"job {job.id}: {len(view['images'])} pictures of {view['request']['num_images']}")
    for image in view["images"]:
        png = http.get(image["url"], headers=headers)
        if png.status_code != 200 or sha256(png.content).hexdigest() != image["sha256"]:
            ledger.breach(f"job {job.id}: picture {image['index']} is not the one of the record")
    return len(view["images"])


def _check_promises(job: Acknowledged, view: Mapping[str, Any], record: JobRecord, ledger: Ledger) -> None:
    if job.cancelled and view["status"] != "cancelled":
        ledger.breach(f"job {job.id}: cancelled, and now {view['status']}")
    if record.attempts > MAX_ATTEMPTS:
        ledger.breach(f"job {job.id}: {record.attempts} attempts")
    if job.poison:
        code = view["error"]["code"] if view["error"] else None
        if (view["status"], code, record.attempts) != ("failed", "worker_lost", MAX_ATTEMPTS):
            ledger.breach(f"job {job.id}: poison, and {view['status']} ({code}) after {record.attempts} attempts")


def _check_owners(ledger: Ledger, http: httpx.Client, keys: Sequence[str]) -> None:
    for job in list(ledger.jobs.values())[::10]:
        stranger = keys[(job.owner + 1) % len(keys)]
        status = http.get(f"/jobs/{job.id}", headers={"X-API-Key": stranger}).status_code
        if status != 404:
            ledger.breach(f"job {job.id}: answers {status} to another key")


def check_history(ledger: Ledger, data: Path) -> Figures:
    """That every job began once, moved as it may, and ended once, by what Redis wrote down."""
    try:
        states = history.states(data)
    except history.Rewritten:
        ledger.breach("Redis has rewritten its file: nothing can be said of who ended twice")
        return {}
    for job_id in ledger.jobs:
        problem = history.wrong(states[job_id]) if job_id in states else "no history"
        if problem:
            ledger.breach(f"job {job_id}: {problem}")
    ends = sum(state.is_terminal for moves in states.values() for state in moves)
    twice = sum(moves.count(JobStatus.SUCCEEDED) > 1 for moves in states.values())
    return {"ends in the history of Redis": ends, "published twice": twice}


def check_webhooks(ledger: Ledger, got: Sequence[Received]) -> Figures:
    """That every end was told to whom it was promised, signed, and as it is."""
    told: dict[str, int] = {}
    for received in got:
        if not is_signed(received):
            ledger.breach(f"job {received.headers.get('webhook-id')}: told with a bad signature")
            continue
        event = json.loads(received.body)["data"]
        told[event["id"]] = told.get(event["id"], 0) + 1
        ledger.see(event)
    for job in ledger.jobs.values():
        if job.url_of_webhook and job.id not in told:
            ledger.breach(f"job {job.id}: its end was not told")
        if not job.url_of_webhook and job.id in told:
            ledger.breach(f"job {job.id}: told, and nobody had asked")
    return {"ends told by webhook": len(told), "told more than once": sum(times > 1 for times in told.values())}


def is_signed(received: Received) -> bool:
    """Whether the signature is good and was fresh when it came; now it may be older than a receiver would take."""
    headers = received.headers
    moment = datetime.fromtimestamp(int(headers["webhook-timestamp"]), UTC)
    good = Webhook(SECRET).sign(headers["webhook-id"], moment, received.body.decode())
    return good in headers["webhook-signature"].split() and abs(received.at - moment.timestamp()) < FRESH_S


def check_recovery(ledger: Ledger, recovery: RecoveryWatch) -> Figures:
    """That what a silent worker held was found in time."""
    for lost in recovery.lost:
        if lost.took_s is None or recovery.net_s(lost) > LIMIT_S:
            took = "never" if lost.took_s is None else f"after {lost.took_s:.1f} s"
            ledger.breach(f"job {lost.job_id}: lost with {lost.worker}, and found {took}")
    found = sorted(lost.took_s for lost in recovery.lost if lost.took_s is not None)
    if not found:
        return {"jobs lost with a worker": 0}
    return {
        "jobs lost with a worker": len(recovery.lost),
        "found again, median": f"{median(found):.1f} s",
        "found again, at most": f"{found[-1]:.1f} s",
        "the same without the time in which nobody could look": f"{max(map(recovery.net_s, recovery.lost)):.1f} s",
    }
