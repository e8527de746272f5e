"""Checks of the guarantees after a chaos run. Each adds violations to the observations and returns figures."""

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

from img2img.blobs import ObjectStore
from img2img.domain.job import JobStatus
from img2img.durable_files import UNFINISHED
from img2img.redis.job_queue import MAX_ATTEMPTS
from img2img.redis.job_store import JobStore
from img2img.redis.keys import INPUT_IMAGE_USES, INPUT_IMAGES, JOBS
from img2img.stored_images import has_digest
from tests.chaos.deadlines import StatusTimes
from tests.chaos.deployment import SECRET
from tests.chaos.observations import TERMINAL, AcknowledgedJob, Figures, Observations
from tests.chaos.recovery import MAX_RECOVERY_S, RecoveryMonitor
from tests.chaos.state_history import FileRewritten, find_error, read_states
from tests.support.webhook_receivers import Received

# A deadline counts from the arrival of the request, and Redis may announce the queued job this much later.
MAX_EARLY_S = 3.0
MAX_SIGNATURE_AGE_S = 300  # recommended for receivers by Standard Webhooks


def check_jobs(
    observations: Observations, url: str, keys: Sequence[str], redis: Redis, losses: Mapping[str, int]
) -> Figures:
    """Check every acknowledged job and its images through the API, with the key of its owner.

    Args:
        losses: by job id, how often a fault has taken the worker that ran the job.
    """
    ends: Counter[str] = Counter()
    attempts: Counter[int] = Counter()
    images = 0
    job_store = JobStore(redis)
    with httpx.Client(base_url=url, timeout=20, trust_env=False) as http:
        for job in observations.jobs.values():
            headers = {"X-API-Key": keys[job.owner]}
            response = http.get(f"/jobs/{job.id}", headers=headers)
            if response.status_code != 200:
                observations.add_violation(f"job {job.id}: acknowledged, but now HTTP {response.status_code}")
                continue
            view = response.json()
            observations.observe(view)
            if view["status"] not in TERMINAL:
                observations.add_violation(f"job {job.id}: still {view['status']}")
                continue
            record = job_store.find(job.id)
            attempts[record.attempts] += 1
            code = f" ({view['error']['code']})" if view["error"] else ""
            ends[view["status"] + code] += 1
            images += _check_images(job, view, http, headers, observations)
            check_outcome(job, view, record.attempts, losses.get(job.id, 0), observations)
        _check_owners(observations, http, keys)
    known = {job_id.decode() for job_id in redis.zrange(JOBS, 0, -1)}
    for job_id in known - observations.jobs.keys():
        observations.add_violation(f"job {job_id}: exists, but was not acknowledged")
    figures: Figures = {"jobs acknowledged": len(observations.jobs)}
    figures |= {f"ended: {end}": count for end, count in sorted(ends.items())}
    figures["images with the recorded SHA-256"] = images
    figures["jobs run more than once"] = sum(count for number, count in attempts.items() if number > 1)
    return figures


def _check_images(
    job: AcknowledgedJob,
    view: Mapping[str, Any],
    http: httpx.Client,
    headers: Mapping[str, str],
    observations: Observations,
) -> int:
    if view["status"] != "succeeded":
        if view["images"]:
            observations.add_violation(f"job {job.id}: {view['status']}, but has images")
        return 0
    if len(view["images"]) != view["request"]["num_images"]:
        observations.add_violation(f"job {job.id}: {len(view['images'])} images of {view['request']['num_images']}")
    for image in view["images"]:
        png = http.get(image["url"], headers=headers)
        if png.status_code != 200 or sha256(png.content).hexdigest() != image["sha256"]:
            observations.add_violation(f"job {job.id}: image {image['index']} differs from the record")
    return len(view["images"])


def check_outcome(
    job: AcknowledgedJob, view: Mapping[str, Any], attempts: int, losses: int, observations: Observations
) -> None:
    """Check that a job failed only if it kills its worker, or if faults have taken its worker in every attempt."""
    code = view["error"]["code"] if view["error"] else None
    is_lost_by_faults = code == "worker_lost" and attempts == MAX_ATTEMPTS <= losses
    if job.is_cancelled and view["status"] != "cancelled":
        observations.add_violation(f"job {job.id}: cancelled, but now {view['status']}")
    if view["status"] == "failed" and not job.is_poison and not is_lost_by_faults:
        observations.add_violation(f"job {job.id}: failed: {view['error']['code']}: {view['error']['message']}")
    if attempts > MAX_ATTEMPTS:
        observations.add_violation(f"job {job.id}: {attempts} attempts")
    if job.is_poison and (view["status"], code, attempts) != ("failed", "worker_lost", MAX_ATTEMPTS):
        observations.add_violation(
            f"job {job.id}: kills its worker, but {view['status']} ({code}) after {attempts} attempts"
        )


def _check_owners(observations: Observations, http: httpx.Client, keys: Sequence[str]) -> None:
    for job in list(observations.jobs.values())[::10]:
        other_key = keys[(job.owner + 1) % len(keys)]
        status = http.get(f"/jobs/{job.id}", headers={"X-API-Key": other_key}).status_code
        if status != 404:
            observations.add_violation(f"job {job.id}: HTTP {status} with the key of another owner")


def check_deadlines(observations: Observations, times: StatusTimes) -> Figures:
    """Check that no job was cancelled before its deadline, whatever the clocks of workers and API servers."""
    margins = []
    for job in observations.jobs.values():
        if job.deadline_s is None or not job.end or (job.end["error"] or {}).get("code") != "deadline_exceeded":
            continue
        passed_s = times.between(job.id, "queued", "cancelled")
        if passed_s is None:
            continue
        margins.append(passed_s - job.deadline_s)
        if margins[-1] < -MAX_EARLY_S:
            observations.add_violation(f"job {job.id}: cancelled {-margins[-1]:.1f} s before its deadline")
    return {"cancelled after the deadline, maximum": f"{max(margins):.1f} s"} if margins else {}


def check_store(observations: Observations, store: ObjectStore, redis: Redis) -> Figures:
    """Check that Redis knows every blob, so that none is kept for ever, and that every input has its SHA-256."""
    jobs = {job_id.decode() for job_id in redis.zrange(JOBS, 0, -1)}
    counts: Counter[str] = Counter()
    for key in store.list_keys():
        folder, _, rest = key.partition("/")
        counts[folder] += 1
        if folder == "results" and rest.partition("/")[0] not in jobs:
            observations.add_violation(f"{key} is stored, but its job does not exist")
        if folder in ("inputs", "uploads"):
            is_known = redis.zscore(INPUT_IMAGES, key) is not None or redis.exists(INPUT_IMAGE_USES.format(key=key))
            if not is_known:
                observations.add_violation(f"{key} is stored, but Redis does not know it")
            if not has_digest(store.get(key) or b"", rest.removesuffix(".png")):
                observations.add_violation(f"{key} is damaged")
    return {f"blobs at the end: {folder}": counts[folder] for folder in ("inputs", "results", UNFINISHED)}


def check_states(observations: Observations, data: Path) -> Figures:
    """Check in the append-only file of Redis that every job had legal states only and ended once."""
    try:
        states = read_states(data)
    except FileRewritten:
        observations.add_violation("Redis has compacted its append-only file: the states cannot be checked")
        return {}
    for job_id in observations.jobs:
        error = find_error(states[job_id]) if job_id in states else "not in the append-only file"
        if error:
            observations.add_violation(f"job {job_id}: {error}")
    ends = sum(state.is_terminal for path in states.values() for state in path)
    twice = sum(path.count(JobStatus.SUCCEEDED) > 1 for path in states.values())
    return {"terminal states in the append-only file": ends, "published twice": twice}


def check_webhooks(observations: Observations, requests: Sequence[Received]) -> Figures:
    """Check that every webhook was delivered, signed, and equal to the job."""
    deliveries: dict[str, int] = {}
    for received in requests:
        if not is_signed(received):
            observations.add_violation(f"job {received.headers.get('webhook-id')}: delivered with a bad signature")
            continue
        event = json.loads(received.body)["data"]
        deliveries[event["id"]] = deliveries.get(event["id"], 0) + 1
        observations.observe(event)
    for job in observations.jobs.values():
        if job.has_webhook and job.id not in deliveries:
            observations.add_violation(f"job {job.id}: webhook not delivered")
        if not job.has_webhook and job.id in deliveries:
            observations.add_violation(f"job {job.id}: delivered a webhook that was not requested")
    repeated = sum(count > 1 for count in deliveries.values())
    return {"webhooks delivered": len(deliveries), "webhooks delivered more than once": repeated}


def is_signed(received: Received) -> bool:
    """Return whether the signature is valid and was fresh on arrival."""
    headers = received.headers
    moment = datetime.fromtimestamp(int(headers["webhook-timestamp"]), UTC)
    expected = Webhook(SECRET).sign(headers["webhook-id"], moment, received.body.decode())
    return (
        expected in headers["webhook-signature"].split() and abs(received.at - moment.timestamp()) < MAX_SIGNATURE_AGE_S
    )


def check_recovery(observations: Observations, recovery: RecoveryMonitor) -> Figures:
    """Check that the jobs of lost workers were recovered in time."""
    for lost in recovery.lost:
        if lost.recovery_s is None or recovery.net_s(lost) > MAX_RECOVERY_S:
            when = "never" if lost.recovery_s is None else f"after {lost.recovery_s:.1f} s"
            observations.add_violation(f"job {lost.job_id}: lost with {lost.worker}, and recovered {when}")
    times = sorted(lost.recovery_s for lost in recovery.lost if lost.recovery_s is not None)
    if not times:
        return {"jobs lost with a worker": 0}
    return {
        "jobs lost with a worker": len(recovery.lost),
        "recovered, median": f"{median(times):.1f} s",
        "recovered, maximum": f"{times[-1]:.1f} s",
        "recovered, maximum without outages": f"{max(map(recovery.net_s, recovery.lost)):.1f} s",
    }
