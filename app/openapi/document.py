"""What FastAPI cannot know by itself: two kinds of request body, problem documents, PNG answers, API keys."""

from copy import deepcopy
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from ..http.authentication import PUBLIC_PATHS
from ..schemas.requests import ControlMapRequest, ImageRequest, Img2ImgRequest
from ..schemas.responses import GoneEvent, ImageFormat, JobEvent, PreviewEvent, Problem, ProgressEvent, QueuedEvent
from .examples import example_of, problem_example

SECURITY_SCHEMES = {
    "ApiKey": {"type": "http", "scheme": "bearer", "description": "`Authorization: Bearer i2i_...`"},
    "ApiKeyHeader": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same key."},
}
REF = "#/components/schemas/{model}"
# JSON first: generators that know one kind of body take the first, and write forms that lack fractions and structure.
SUBMIT_BODY = {
    "required": True,
    "content": {
        "application/json": {"schema": {"$ref": REF.format(model="Img2ImgRequest")}},
        "multipart/form-data": {"schema": {"$ref": REF.format(model="Img2ImgForm")}},
    },
}
CONTROL_MAP_BODY = {
    "required": True,
    "content": {
        "application/json": {"schema": {"$ref": REF.format(model="ControlMapRequest")}},
        "multipart/form-data": {"schema": {"$ref": REF.format(model="ControlMapForm")}},
    },
}
IMAGE_BODY = {
    "required": True,
    "content": {
        "application/json": {"schema": {"$ref": REF.format(model="ImageRequest")}},
        "multipart/form-data": {"schema": {"$ref": REF.format(model="ImageForm")}},
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
            for name in ("get_job", "stream_job_events", "cancel_job", "delete_job", "get_result")
        },
    }
}
# Some generators take the lowest success for the only one. So 200 says all that a submit can answer.
SUBMITTED_OR_NOT = {
    "title": "Submitted",
    "description": "The job; with `dry_run`, what it would be.",
    "oneOf": [{"$ref": REF.format(model="DryRunResult")}, {"$ref": REF.format(model="Job")}],
}
WOULD_BE_SUBMITTED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "With `dry_run`: no job, but what it would be.",
        "content": {"application/json": {"schema": {"$ref": REF.format(model="Submitted")}}},
    }
}
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
        "description": "Events; their `data` is a QueuedEvent, ProgressEvent, PreviewEvent, JobView or GoneEvent.",
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
            f"image/{image_format}": {
                "schema": {"type": "string", "format": "binary"},
                "example": f"the bytes of a {image_format.upper()}",
            }
            for image_format in ImageFormat
        },
    },
    304: {"description": "The client has it already."},
    307: {
        "description": "Where the service is set to redirect: the PNG lies at a signed URL of the store, for a minute.",
        "headers": {"Location": {"description": "The signed URL.", "schema": {"type": "string", "format": "uri"}}},
    },
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Documents the refusals of a route."""
    schema = {"$ref": REF.format(model="Problem")}
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {"application/problem+json": {"schema": schema, "example": problem_example(status)}},
        }
        for status in statuses
    }


def install_openapi(app: FastAPI, *, keys_required: bool) -> None:
    """Makes the application's OpenAPI document complete."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = get_openapi(
                title=app.title,
                version=app.version,
                summary=app.summary,
                routes=app.routes,
                webhooks=app.webhooks.routes,
            )
            _leave_out_refusals_that_never_come(app.openapi_schema)
            app.openapi_schema["components"]["schemas"] |= _schemas()
            _say_who_may_enter(app.openapi_schema, keys_required)
            _say_what_a_submit_answers(app.openapi_schema)
            _leave_out_null_where_there_is_none(app.openapi_schema)
            _give_examples(app.openapi_schema)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]
    app.webhooks.add_api_route(
        "job.ended", job_ended_webhook, methods=["POST"], operation_id="job_ended_webhook", status_code=204
    )


def job_ended_webhook(event: JobEvent) -> None:
    """A job has ended. Signed by Standard Webhooks; any 2xx is an acknowledgement, 410 means: no more tries.

    It may come more than once, then with the same `webhook-id`.
    """


def _leave_out_refusals_that_never_come(document: dict[str, Any]) -> None:
    """FastAPI documents a 422 of its own wherever there is a parameter, be it one that takes any text."""
    for operations in (*document["paths"].values(), *document["webhooks"].values()):
        for operation in operations.values():
            if "application/json" in operation["responses"].get("422", {}).get("content", {}):
                del operation["responses"]["422"]
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)


def _say_who_may_enter(document: dict[str, Any], keys_required: bool) -> None:
    """Keys are part of the contract even of a service that asks for none: a client of it may meet one that does."""
    document["components"]["securitySchemes"] = SECURITY_SCHEMES
    ways_in: list[dict[str, list[str]]] = [{name: []} for name in SECURITY_SCHEMES]
    for path, operations in document["paths"].items():
        for operation in operations.values():
            if PUBLIC_PATHS.fullmatch(path):
                operation["security"] = []
                continue
            operation["security"] = ways_in if keys_required else [{}, *ways_in]
            refusals = problems(401, 403, 408) if "requestBody" in operation else problems(401, 403)
            operation["responses"] |= {str(status): refusal for status, refusal in refusals.items()}


def _say_what_a_submit_answers(document: dict[str, Any]) -> None:
    """The route's one return type is what the two statuses answer between them."""
    document["components"]["schemas"]["Submitted"] = SUBMITTED_OR_NOT
    accepted = document["paths"]["/img2img"]["post"]["responses"]["202"]["content"]["application/json"]
    accepted["schema"] = {"$ref": REF.format(model="Job")}


def _leave_out_null_where_there_is_none(document: dict[str, Any]) -> None:
    """A form, a query and a header cannot say null; and generators do without a type where an enum or null may come."""
    schemas = document["components"]["schemas"]
    for form in ("Img2ImgForm", "ControlMapForm", "ImageForm"):
        properties = schemas[form]["properties"]
        schemas[form]["properties"] = {name: _never_null(schema) for name, schema in properties.items()}
    for operations in document["paths"].values():
        for operation in operations.values():
            for parameter in operation.get("parameters", []):
                parameter["schema"] = _never_null(parameter["schema"])


def _never_null(schema: dict[str, Any]) -> dict[str, Any]:
    kinds = [one for one in schema.get("anyOf", []) if one != {"type": "null"}]
    if len(kinds) == len(schema.get("anyOf", [])):
        return schema
    rest = {word: value for word, value in schema.items() if word != "anyOf" and (word, value) != ("default", None)}
    return rest | (kinds[0] if len(kinds) == 1 else {"anyOf": kinds})


def _give_examples(document: dict[str, Any]) -> None:
    """Every answer in JSON has an example."""
    for operations in document["paths"].values():
        for operation in operations.values():
            for response in operation["responses"].values():
                for content in response.get("content", {}).values():
                    if "example" not in content:
                        content["example"] = example_of(content["schema"], document["components"]["schemas"])


def _schemas() -> dict[str, Any]:
    events = (QueuedEvent, ProgressEvent, PreviewEvent, GoneEvent)
    read = (Img2ImgRequest, ControlMapRequest, ImageRequest, Problem)
    models = [*((model, "validation") for model in read), *((event, "serialization") for event in events)]
    _, definitions = models_json_schema(models, ref_template=REF)  # type: ignore[arg-type]
    schemas: dict[str, Any] = definitions["$defs"]
    for request in (Img2ImgRequest, ControlMapRequest, ImageRequest):
        form = request.__name__.replace("Request", "Form")
        schemas[form] = deepcopy(schemas[request.__name__])
        schemas[form]["title"] = form
        for name, field in schemas[form]["properties"].items():
            if name in request.FORM_JSON:
                told = field.get("description", "")
                field.clear()
                field |= {"type": "string", "contentMediaType": "application/json", "description": f"{told} As JSON."}
            elif request.FILES.fullmatch(name):
                told = field.get("description", "The picture: PNG, JPEG or WebP.")
                field.clear()
                field |= {"type": "string", "format": "binary", "description": told}
    for form in ("Img2ImgForm", "ControlMapForm"):
        schemas[form]["properties"]["image"]["description"] += " Or, as text: what refers to one, as in JSON."
    told = " Pictures of `controls` and `image_prompts` can come as files named `controls.0.image` and so on."
    schemas["Img2ImgForm"]["properties"]["image"]["description"] += told
    schemas["Img2ImgForm"]["properties"]["webhook"] = {
        "type": "string",
        "description": schemas["Img2ImgRequest"]["properties"]["webhook"]["description"] + " The object as JSON text.",
    }
    return schemas
