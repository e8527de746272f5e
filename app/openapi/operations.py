"""Request bodies and responses of operations, as FastAPI cannot derive them from the routes.

Bodies come in two media types, and responses have headers, links, images, event streams and problem documents.
"""

import json
from collections.abc import Collection, Mapping
from http import HTTPStatus
from typing import Any

from img2img.errors import Img2ImgError, ParameterError

from ..http.error_formats import PROBLEM_JSON
from ..http.errors import InsufficientScope
from ..http.problem_details import STATUS, problem_response
from ..schemas.events import GoneEvent, PreviewEvent, ProgressEvent, QueuedEvent
from ..schemas.model_details import ModelDetails
from ..schemas.problems import Problem, status_phrase
from ..schemas.responses import EXAMPLE_JOB_ID, ImageFormat, Job
from . import examples

Responses = dict[int | str, dict[str, Any]]

JOB_OPERATIONS = ("get_job", "stream_job_events", "cancel_job", "delete_job", "get_result")
# Names of the events of a job's stream, by the model of their data.
STREAM_EVENTS: dict[type, tuple[str, ...]] = {
    QueuedEvent: ("queued",),
    ProgressEvent: ("progress",),
    PreviewEvent: ("preview",),
    Job: ("succeeded", "failed", "cancelled"),
    GoneEvent: ("gone",),
    Problem: ("error",),
}


def ref(schema: str) -> dict[str, str]:
    """Return a reference to a schema of the document's components."""
    return {"$ref": f"#/components/schemas/{schema}"}


def request_body(name: str, json_examples: examples.Examples) -> dict[str, Any]:
    """Return a body that comes as JSON (schema `{name}Request`) or as a form (schema `{name}Form`).

    JSON comes first: generators that support one media type take the first, and some cannot express the nested fields
    and fractions of a form.
    """
    return {
        "required": True,
        "content": {
            "application/json": {"schema": ref(f"{name}Request"), "examples": json_examples},
            "multipart/form-data": {"schema": ref(f"{name}Form")},
        },
    }


def json_body(schema: str) -> dict[str, Any]:
    """Return a JSON body with this schema."""
    return {"required": True, "content": {"application/json": {"schema": ref(schema)}}}


def problems(*statuses: int) -> Responses:
    """Return the error responses of an operation, each with an example."""
    return {
        status: {
            "description": status_phrase(status),
            "content": {PROBLEM_JSON: {"schema": ref("Problem"), "example": _problem_example(status)}},
        }
        for status in statuses
    }


def _problem_example(status: int) -> Any:
    errors: dict[int, Img2ImgError] = {
        HTTPStatus.FORBIDDEN: InsufficientScope("submit"),
        HTTPStatus.UNPROCESSABLE_ENTITY: ParameterError("strength", "Input should be less than or equal to 1", got="2"),
    }
    error = errors.get(status) or next(kind for kind, of in STATUS.items() if of == status)()
    return json.loads(bytes(problem_response(error).body))


def message_name(prefix: str, model: type) -> str:
    """Return the name of the schema of a server-sent event that carries `model`."""
    return f"{'' if model.__name__.startswith(prefix) else prefix}{model.__name__}Message"


def event_messages(
    prefix: str, events: Mapping[type, tuple[str, ...]], with_id: Collection[type], id_description: str
) -> dict[str, Any]:
    """Return the schemas of the events of a stream, as fields of the Server-Sent Events format.

    Args:
        prefix: Of the names of the schemas.
        events: Names of the events by the model of their data.
        with_id: Models of events with an id.
        id_description: Description of the id.
    """
    schemas = {}
    for model, names in events.items():
        fields: dict[str, Any] = {
            "event": {"type": "string", "enum": list(names)},
            "data": {"type": "string", "contentMediaType": "application/json", "contentSchema": ref(model.__name__)},
        }
        if model in with_id:
            fields["id"] = {"type": "string", "description": id_description}
        name = message_name(prefix, model)
        schemas[name] = {"title": name, "type": "object", "required": list(fields), "properties": fields}
    return schemas


def event_stream(prefix: str, events: Mapping[type, tuple[str, ...]], description: str, example: str) -> dict[str, Any]:
    """Return the response that is a stream of these events."""
    return {
        "description": description,
        "content": {
            "text/event-stream": {
                "schema": {"type": "string"},
                "itemSchema": {
                    "oneOf": [ref(message_name(prefix, model)) for model in events],
                    "discriminator": {
                        "propertyName": "event",
                        "mapping": {
                            name: ref(message_name(prefix, model))["$ref"]
                            for model, names in events.items()
                            for name in names
                        },
                    },
                },
                "example": example,
            }
        },
    }


def message_schemas() -> dict[str, Any]:
    """Return the schemas of the events of a job's stream, as fields of the Server-Sent Events format."""
    with_id = (QueuedEvent, ProgressEvent, Job)
    return event_messages("", STREAM_EVENTS, with_id, "Revision of the job, for `Last-Event-ID`.")


SUBMIT_BODY = request_body("Img2Img", examples.IMG2IMG)
CONTROL_MAP_BODY = request_body("ControlMap", examples.CONTROL_MAP)
MASK_BODY = request_body("Mask", examples.FIND_MASK)
IMAGE_BODY = request_body("Image", examples.UPLOAD)

REPLAYED_HEADER = {
    "Idempotency-Replayed": {
        "description": "`true` if an earlier request with the same idempotency key had the same result.",
        "schema": {"type": "string", "enum": ["true"]},
    }
}
SUBMITTED: Responses = {
    202: {
        "description": "The job was queued.",
        "headers": {
            "Location": {"description": "URL of the job.", "schema": {"type": "string"}},
            **REPLAYED_HEADER,
        },
        "links": {
            name: {"operationId": name, "parameters": {"job_id": "$response.body#/id"}} for name in JOB_OPERATIONS
        },
    }
}
MODEL_CHANGE: Responses = {
    200: {"description": "The change was made before: nothing changes.", "model": ModelDetails},
    202: {
        "description": "The change was stored. Workers follow it within 2 seconds, and load what it needs.",
        "headers": {"Location": {"description": "URL of the model.", "schema": {"type": "string"}}},
    },
}
UPLOAD_CREATED: Responses = {201: {"description": "The image can be sent.", "headers": REPLAYED_HEADER}}
UPLOADED: Responses = {201: {"description": "The image was stored.", "headers": REPLAYED_HEADER}}
# Some generators take the lowest success status for the only one, so its schema covers every body of a submit.
SUBMITTED_OR_DRY_RUN = {
    "title": "Submitted",
    "description": "The job; with `dry_run`, the job that would be created.",
    "oneOf": [ref("DryRunResult"), ref("Job")],
}
DRY_RUN: Responses = {
    200: {
        "description": "With `dry_run`: the job that would be created.",
        "content": {"application/json": {"schema": ref("Submitted")}},
    }
}
JOB: Responses = {
    200: {
        "description": "The job.",
        "headers": {
            "Preference-Applied": {
                "description": "The wait that was granted, for a request with `Prefer: wait`.",
                "schema": {"type": "string", "pattern": "^wait=[0-9]+$"},
            }
        },
    }
}
EVENTS: Responses = {
    200: event_stream(
        "",
        STREAM_EVENTS,
        "Events whose `data` is a QueuedEvent, ProgressEvent, PreviewEvent, Job, GoneEvent or Problem as JSON.",
        f'event: queued\nid: 1\ndata: {{"id":"{EXAMPLE_JOB_ID}","status":"queued",'
        '"queue_position":2,"eta_s":14.5}\n\n'
        f'event: progress\nid: 5\ndata: {{"id":"{EXAMPLE_JOB_ID}","status":"running",'
        '"progress":{"step":6,"steps":24,"fraction":0.25}}\n\n'
        f'event: succeeded\nid: 24\ndata: {{"id":"{EXAMPLE_JOB_ID}","status":"succeeded",...}}\n\n',
    ),
    204: {"description": "The job has ended and the client has received its last event."},
}
RESULT_IMAGE: Responses = {
    200: {
        "description": "The image.",
        "headers": {
            "ETag": {"description": "For a PNG its SHA-256, in double quotes.", "schema": {"type": "string"}},
        },
        "content": {
            f"image/{image_format}": {
                "schema": {"type": "string", "format": "binary"},
                "example": f"(bytes of a {image_format.upper()} file)",
            }
            for image_format in ImageFormat
        },
    },
    304: {"description": "The client already has this image."},
    307: {
        "description": "If the service redirects downloads: the PNG is at a signed URL of the store, for one minute.",
        "headers": {"Location": {"description": "The signed URL.", "schema": {"type": "string", "format": "uri"}}},
    },
}
