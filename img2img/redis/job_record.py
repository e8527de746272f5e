"""The fields of a job record's Redis hash."""

import json
from collections.abc import Mapping
from typing import Any

from img2img.domain.job import DeadlinePolicy, JobRecord
from img2img.domain.spec import SPEC_VERSION, dump_spec, parse_spec
from img2img.domain.webhook import PredictionWebhook
from img2img.errors import UnreadableJob
from img2img.redis.decode import decode

# The type of a field of a Redis hash.
Scalar = bytes | str | int | float

_JSON_FIELDS = ("images", "withheld", "error", "timings", "webhook", "delivery", "batch")


def to_fields(record: JobRecord) -> dict[str, Scalar]:
    """Return the fields of a new record.

    Beside the fields of `JobRecord` these are `spec_version`, and for scripts `inputs`, `model`, `cost`, `webhook_on`,
    `webhook_host`, `webhook_interim` and `batch_id`.
    """
    spec = record.spec
    fields: dict[str, Scalar] = {
        "status": record.status.value,
        "spec": dump_spec(spec),
        "spec_version": SPEC_VERSION,
        "inputs": " ".join(spec.input_keys),
        "model": spec.model,
        "owner": record.owner,
        "priority": record.priority.value,
        "cost": spec.cost,
        "revision": 1,
        "created_at": record.created_at,
        "result_ttl_s": record.result_ttl_s,
        "attempts": 0,
        "step": 0,
        "steps": record.steps,
    }
    if record.key_id:
        fields["key_id"] = record.key_id
    if record.deadline_at is not None:
        fields["deadline_at"] = record.deadline_at
    if record.deadline_policy is not DeadlinePolicy.CANCEL:
        fields["deadline_policy"] = record.deadline_policy.value
    if record.traceparent is not None:
        fields["traceparent"] = record.traceparent
    if record.webhook is not None:
        fields["webhook"] = record.webhook.model_dump_json()
        fields["webhook_on"] = ",".join(record.webhook.statuses)
        fields["webhook_host"] = record.webhook.host
        if isinstance(record.webhook, PredictionWebhook) and record.webhook.interim:
            fields["webhook_interim"] = ",".join(record.webhook.interim)
    if record.batch is not None:
        fields["batch"] = record.batch.model_dump_json()
        fields["batch_id"] = record.batch.id
    if record.reused_from is not None:
        fields |= {
            "reused_from": record.reused_from,
            "result_digest": record.result_digest or "",
            "images": json.dumps([image.model_dump() for image in record.images]),
            "step": record.steps,
            "started_at": record.created_at,
            "finished_at": record.created_at,
        }
    return fields


def from_fields(job_id: str, fields: Mapping[Any, bytes | str]) -> JobRecord:
    """Return the record that a hash holds. An empty field counts as absent.

    Raises:
        UnreadableJob: A later version of the service has written it, with values that this one does not know.
    """
    text = {decode(name): decode(value) for name, value in fields.items() if value}
    if int(text.get("spec_version", 1)) > SPEC_VERSION:
        raise UnreadableJob
    try:
        return _parse(job_id, text)
    except (ValueError, KeyError) as error:
        raise UnreadableJob from error


def _parse(job_id: str, text: Mapping[str, str]) -> JobRecord:
    parsed: dict[str, object] = {"id": job_id, **text}
    parsed["spec"], parsed["unknown_fields"] = parse_spec(text["spec"])
    for name in _JSON_FIELDS:
        if name in text:
            parsed[name] = json.loads(text[name])
    # The clocks of two processes differ by milliseconds, by more on a busy machine.
    moment = float(text["created_at"])
    for name in ("started_at", "finished_at"):
        if name in text:
            moment = max(moment, float(text[name]))
            parsed[name] = moment
    return JobRecord.model_validate(parsed)
