"""Request bodies and responses of `/batches`, as FastAPI cannot derive them from the routes."""

from typing import Any

from ..schemas.batches import EXAMPLE_BATCH_ID, Batch, BatchProgressEvent
from ..schemas.events import GoneEvent
from ..schemas.problems import Problem
from ..schemas.responses import EXAMPLE_SHA256, Job
from .operations import JOB, REPLAYED_HEADER, Responses, event_messages, event_stream, ref

OPERATIONS = (
    "get_batch",
    "list_batch_jobs",
    "stream_batch_events",
    "get_batch_results",
    "cancel_batch",
    "delete_batch",
)
STREAM_EVENTS: dict[type, tuple[str, ...]] = {
    BatchProgressEvent: ("progress",),
    Job: ("job",),
    Batch: ("ended",),
    GoneEvent: ("gone",),
    Problem: ("error",),
}
LINES = (
    f'{{"name":"IMG_0001","image":"{EXAMPLE_SHA256}","prompt":"a watercolor painting"}}\n'
    f'{{"name":"IMG_0002","image":"{EXAMPLE_SHA256}","prompt":"a watercolor painting"}}\n'
)
BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {
            "schema": ref("BatchRequest"),
            "examples": {
                "product": {
                    "summary": "Two prompts with three strengths: six jobs",
                    "value": {
                        "request": {"image": EXAMPLE_SHA256, "seed": 1},
                        "vary": {"prompt": ["a watercolor painting", "a pencil sketch"], "strength": [0.3, 0.5, 0.7]},
                    },
                }
            },
        },
        "application/jsonl": {
            "schema": {"type": "string", "description": "A BatchItem as JSON on each line."},
            "x-item-schema": ref("BatchItem"),
            "example": LINES,
        },
    },
}
SUBMITTED: Responses = {
    202: {
        "description": "All jobs were queued.",
        "headers": {"Location": {"description": "URL of the batch.", "schema": {"type": "string"}}, **REPLAYED_HEADER},
        "links": {name: {"operationId": name, "parameters": {"batch_id": "$response.body#/id"}} for name in OPERATIONS},
    }
}
BATCH: Responses = {200: {"description": "The batch.", "headers": JOB[200]["headers"]}}
EVENTS: Responses = {
    200: event_stream(
        "Batch",
        STREAM_EVENTS,
        "Events whose `data` is a BatchProgressEvent, Job, Batch, GoneEvent or Problem as JSON.",
        f'event: progress\ndata: {{"id":"{EXAMPLE_BATCH_ID}","status":"running","total":200,"counts":{{...}}}}\n\n'
        'event: job\nid: 1\ndata: {"id":...,"status":"succeeded",...}\n\n'
        f'event: ended\nid: 201\ndata: {{"id":"{EXAMPLE_BATCH_ID}","status":"ended",...}}\n\n',
    ),
    204: {"description": "The batch has ended and the client has received its last event."},
}
ARCHIVE: Responses = {
    200: {
        "description": "The archive.",
        "content": {
            "application/zip": {"schema": {"type": "string", "format": "binary"}, "example": "(bytes of a ZIP file)"}
        },
    }
}


def message_schemas() -> dict[str, Any]:
    """Return the schemas of the events of a batch's stream, as fields of the Server-Sent Events format."""
    return event_messages("Batch", STREAM_EVENTS, (Job, Batch), "Number of ended jobs, for `Last-Event-ID`.")
