"""What FastAPI cannot know by itself: two kinds of request body, problem documents, PNG answers."""

from copy import deepcopy
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from app.schemas import ControlMapRequest, ImageRequest, Img2ImgRequest
from app.views import DryRun, GoneEvent, ImageFormat, Problem, ProgressEvent, QueuedEvent

REF = "#/components/schemas/{model}"
SUBMIT_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {"schema": {"$ref": REF.format(model="Img2ImgForm")}},
        "application/json": {"schema": {"$ref": REF.format(model="Img2ImgRequest")}},
    },
}
CONTROL_MAP_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {"schema": {"$ref": REF.format(model="ControlMapForm")}},
        "application/json": {"schema": {"$ref": REF.format(model="ControlMapRequest")}},
    },
}
IMAGE_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {"schema": {"$ref": REF.format(model="ImageForm")}},
        "application/json": {"schema": {"$ref": REF.format(model="ImageRequest")}},
    },
}
_JOB_ID_LINK = {"parameters": {"job_id": "$response.body#/id"}}
SUBMITTED: dict[int | str, dict[str, Any]] = {
    202: {
        "description": "Queued.",
        "headers": {
            "Location": {"description": "Where the job is.", "schema": {"type": "string"}},
            "Idempotency-Replayed": {
                "description": "`true` where the request had made this job before.",
                "schema": {"type": "string", "enum": ["true"]},
            },
        },
        "links": {
            name: {"operationId": name, **_JOB_ID_LINK}
            for name in ("get_job", "follow_job", "cancel_job", "delete_job", "get_result")
        },
    }
}
WOULD_BE_SUBMITTED: dict[int | str, dict[str, Any]] = {200: {"model": DryRun, "description": "With `dry_run`: no job."}}
JOB: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The job.",
        "headers": {
            "Preference-Applied": {
                "description": "How long a `Prefer: wait` was granted.",
                "schema": {"type": "string", "pattern": "^wait=[0-9]+$"},
            }
        },
    }
}
EVENTS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Server-Sent Events. `data` is JSON: a QueuedEvent, a ProgressEvent, a JobView or a GoneEvent.",
        "content": {
            "text/event-stream": {
                "schema": {"type": "string"},
                "example": (
                    'event: queued\nid: 1\ndata: {"id":"3f0c","status":"queued","queue_position":2,"eta_s":14.5}\n\n'
                    "event: progress\nid: 5\n"
                    'data: {"id":"3f0c","status":"running","progress":{"step":6,"steps":24,"fraction":0.25}}\n\n'
                    'event: succeeded\nid: 24\ndata: {"id":"3f0c","status":"succeeded","images":[...],...}\n\n'
                ),
            }
        },
    },
    204: {"description": "The client has had the last event already."},
}
RESULT_IMAGE: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The picture.",
        "headers": {"ETag": {"description": "Of a PNG its sha256, in quotes.", "schema": {"type": "string"}}},
        "content": {
            f"image/{image_format}": {"schema": {"type": "string", "format": "binary"}} for image_format in ImageFormat
        },
    },
    304: {"description": "The client has it already."},
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Documents the refusals of a route."""
    content = {"application/problem+json": {"schema": {"$ref": REF.format(model="Problem")}}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


def install(app: FastAPI) -> None:
    """Makes the application's OpenAPI document complete."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = get_openapi(
                title=app.title, version=app.version, summary=app.summary, routes=app.routes
            )
            _leave_out_refusals_that_never_come(app.openapi_schema)
            app.openapi_schema["components"]["schemas"] |= _schemas()
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _leave_out_refusals_that_never_come(document: dict[str, Any]) -> None:
    """FastAPI documents a 422 of its own wherever there is a parameter, be it one that takes any text."""
    for operations in document["paths"].values():
        for operation in operations.values():
            if "application/json" in operation["responses"].get("422", {}).get("content", {}):
                del operation["responses"]["422"]
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)


def _schemas() -> dict[str, Any]:
    events = (QueuedEvent, ProgressEvent, GoneEvent)
    read = (Img2ImgRequest, ControlMapRequest, ImageRequest, Problem)
    models = [*((model, "validation") for model in read), *((event, "serialization") for event in events)]
    _, definitions = models_json_schema(models, ref_template=REF)  # type: ignore[arg-type]
    schemas: dict[str, Any] = definitions["$defs"]
    for request in ("Img2ImgRequest", "ControlMapRequest", "ImageRequest"):
        form = request.replace("Request", "Form")
        schemas[form] = deepcopy(schemas[request])
        schemas[form]["title"] = form
        schemas[form]["properties"]["image"] = {
            "type": "string",
            "format": "binary",
            "description": "The picture: PNG, JPEG or WebP.",
        }
    for form in ("Img2ImgForm", "ControlMapForm"):
        schemas[form]["properties"]["image"]["description"] += " Or, as text: what refers to one, as in JSON."
    return schemas
