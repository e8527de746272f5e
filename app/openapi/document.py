"""Builds the OpenAPI document: FastAPI's, with form bodies, event data, API keys and the webhook."""

from copy import deepcopy
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from img2img.domain.model_config import ComponentSource, ModelConfig

from ..http.authentication import PUBLIC_PATHS
from ..schemas.batches import BatchEvent, BatchItem, BatchProgressEvent, BatchRequest
from ..schemas.events import GoneEvent, JobEvent, PreviewEvent, ProgressEvent, QueuedEvent
from ..schemas.problems import Problem
from ..schemas.requests import ControlMapRequest, ImageRequest, Img2ImgRequest, MaskRequest, UploadRequest
from . import batches
from .completion import complete, remove_unused
from .operations import SUBMITTED_OR_DRY_RUN, message_schemas, problems, ref

SECURITY_SCHEMES = {
    "ApiKey": {"type": "http", "scheme": "bearer", "description": "`Authorization: Bearer i2i_...`"},
    "ApiKeyHeader": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same key."},
}
REQUESTS = (Img2ImgRequest, ControlMapRequest, MaskRequest, ImageRequest)
STREAM_DATA = (QueuedEvent, ProgressEvent, PreviewEvent, GoneEvent, BatchProgressEvent)


def install_openapi(app: FastAPI, *, keys_required: bool) -> None:
    """Make `app` serve the complete document, which is built at the first request for it."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _build(app, keys_required)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]
    app.webhooks.add_api_route(
        "job.ended", job_ended_webhook, methods=["POST"], operation_id="job_ended_webhook", status_code=204
    )
    app.webhooks.add_api_route(
        "batch.ended", batch_ended_webhook, methods=["POST"], operation_id="batch_ended_webhook", status_code=204
    )


def batch_ended_webhook(event: BatchEvent) -> None:
    """The last job of a batch has ended. Signed and acknowledged like `job.ended`."""


def job_ended_webhook(event: JobEvent) -> None:
    """A job has ended. Signed as specified by Standard Webhooks.

    Any 2xx status acknowledges the event; 410 stops further attempts. An event may be delivered more than once, with
    the same `webhook-id`.
    """


def _build(app: FastAPI, keys_required: bool) -> dict[str, Any]:
    document = get_openapi(
        title=app.title, version=app.version, summary=app.summary, routes=app.routes, webhooks=app.webhooks.routes
    )
    schemas = document["components"]["schemas"]
    _remove_default_validation_errors(document)
    schemas |= _model_schemas() | message_schemas() | batches.message_schemas() | {"Submitted": SUBMITTED_OR_DRY_RUN}
    schemas |= {_form_name(request): _form_schema(request, schemas[request.__name__]) for request in REQUESTS}
    _add_security(document, keys_required)
    _remove_null(document)
    _rename_item_schemas(document)
    accepted = document["paths"]["/img2img"]["post"]["responses"]["202"]
    accepted["content"]["application/json"]["schema"] = ref("Job")
    complete(document)
    remove_unused(document)
    return document


def _remove_default_validation_errors(document: dict[str, Any]) -> None:
    """Remove the 422 that FastAPI adds to every operation with parameters. Ours are problem documents."""
    for operations in (*document["paths"].values(), *document["webhooks"].values()):
        for operation in operations.values():
            if "application/json" in operation["responses"].get("422", {}).get("content", {}):
                del operation["responses"]["422"]
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)


def _rename_item_schemas(document: dict[str, Any]) -> None:
    """Rename `itemSchema` of event streams to an extension.

    It is part of OpenAPI 3.2, and validators of 3.1 such as openapi-generator reject the document with it.
    """
    for operations in document["paths"].values():
        for operation in operations.values():
            for response in operation["responses"].values():
                for content in response.get("content", {}).values():
                    if "itemSchema" in content:
                        content["x-item-schema"] = content.pop("itemSchema")
                        events = {"type": "array", "items": content["x-item-schema"]}
                        content["schema"] = {"type": "string", "contentSchema": events}


def _model_schemas() -> dict[str, Any]:
    """Return the schemas of models that no route names as a parameter or return type."""
    documents = (*REQUESTS, BatchRequest, BatchItem, ComponentSource, ModelConfig, Problem, UploadRequest)
    models = [*((model, "validation") for model in documents), *((e, "serialization") for e in STREAM_DATA)]
    _, definitions = models_json_schema(models, ref_template=ref("{model}")["$ref"])  # type: ignore[arg-type]
    schemas: dict[str, Any] = definitions["$defs"]
    return schemas


def _form_name(request: type) -> str:
    return request.__name__.replace("Request", "Form")


def _form_schema(
    request: type[Img2ImgRequest | ControlMapRequest | MaskRequest | ImageRequest], schema: Any
) -> dict[str, Any]:
    """Return the schema of a form: images are files, and nested fields are JSON text."""
    form: dict[str, Any] = deepcopy(schema) | {"title": _form_name(request)}
    fields = form["properties"]
    for name, field in fields.items():
        description = field.get("description", "The image: PNG, JPEG or WebP.")
        if name in request.FORM_JSON:
            description = f"{description} As JSON."
            fields[name] = {"type": "string", "contentMediaType": "application/json", "description": description}
        elif name in request.REPEATED:
            file = {"type": "string", "format": "binary"}
            fields[name] = {"type": "array", "items": file, "description": f"{description} One part for each."}
        elif request.FILES.fullmatch(name):
            if name == "image" and request is not ImageRequest:
                description += " Also as text: a reference to an image, as in JSON."
            if name == "mask":
                description += " The object, `alpha` or a reference as text."
            fields[name] = {"type": "string", "format": "binary", "description": description}
        elif name == "webhook":
            fields[name] = {"type": "string", "description": f"{field['description']} The object as JSON."}
    if "controls" in fields:
        fields["image"]["description"] += (
            " Images of `controls` and `image_prompts` can be sent as files named `controls.0.image` and so on."
        )
    return form


def _add_security(document: dict[str, Any], keys_required: bool) -> None:
    """Document API keys, also if this service needs none: a client may be used with one that does."""
    document["components"]["securitySchemes"] = SECURITY_SCHEMES
    schemes: list[dict[str, list[str]]] = [{name: []} for name in SECURITY_SCHEMES]
    for path, operations in document["paths"].items():
        for operation in operations.values():
            if PUBLIC_PATHS.fullmatch(path):
                operation["security"] = []
                continue
            operation["security"] = schemes if keys_required else [{}, *schemes]
            errors = problems(401, 403, 408) if "requestBody" in operation else problems(401, 403)
            operation["responses"] |= {str(status): error for status, error in errors.items()}


def _remove_null(document: dict[str, Any]) -> None:
    """Remove `null` from the types of form fields and parameters.

    A form, a query and a header cannot send null, and some generators produce no type for an enum that may be null.
    """
    for request in REQUESTS:
        properties = document["components"]["schemas"][_form_name(request)]["properties"]
        properties |= {name: _without_null(schema) for name, schema in properties.items()}
    for operations in document["paths"].values():
        for operation in operations.values():
            for parameter in operation.get("parameters", []):
                parameter["schema"] = _without_null(parameter["schema"])


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    options = [option for option in schema.get("anyOf", []) if option != {"type": "null"}]
    if len(options) == len(schema.get("anyOf", [])):
        return schema
    rest = {key: value for key, value in schema.items() if key != "anyOf" and (key, value) != ("default", None)}
    return rest | (options[0] if len(options) == 1 else {"anyOf": options})
