"""The fields of a job record's Redis hash."""

import json
from collections.abc import Mapping
from typing import Any

from img2img.domain.blob_keys import input_key
from img2img.domain.job import JobRecord
from img2img.domain.spec import parse_spec
from img2img.redis.decode import decode

# The type of a field of a Redis hash.
Scalar = bytes | str | int | float

_JSON_FIELDS = ("images", "withheld", "error", "timings", "webhook", "delivery")


def to_fields(record: JobRecord) -> dict[str, Scalar]:
    """Return the fields of a new record.

    Beside the fields of `JobRecord` these are `inputs`, `model`, `cost`, `webhook_on` and `webhook_host`, for scripts.
    """
    spec = record.spec
    fields: dict[str, Scalar] = {
        "status": record.status.value,
        "spec": spec.model_dump_json(),
        "inputs": " ".join(map(input_key, spec.inputs)),
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
        fields["deadline_policy"] = record.deadline_policy.value
    if record.traceparent is not None:
        fields["traceparent"] = record.traceparent
    if record.webhook is not None:
        fields["webhook"] = record.webhook.model_dump_json()
        fields["webhook_on"] = ",".join(record.webhook.statuses)
        fields["webhook_host"] = record.webhook.host
    return fields


def from_fields(job_id: str, fields: Mapping[Any, bytes | str]) -> JobRecord:
    """Return the record that a hash holds. An empty field counts as absent.

    Raises:
        ValueError: A field has an invalid value.
        KeyError: The hash has no job spec.
    """
    text = {decode(name): decode(value) for name, value in fields.items() if value}
    parsed: dict[str, object] = {"id": job_id, **text}
    parsed["spec"] = parse_spec(text["spec"])
    for name in _JSON_FIELDS:
        if name in text:
            parsed[name] = json.loads(text[name])
    return JobRecord.model_validate(parsed)
