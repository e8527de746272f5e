"""The OpenAPI document: it is complete, and the service behaves as documented."""

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, settings
from schemathesis import Case
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from img2img.app.cli.openapi import FILE
from img2img.app.cli.openapi import document as current_document
from img2img.app.main import create_app
from img2img.app.settings import ApiSettings

OPERATIONS = {
    "submit_img2img": ("post", "/img2img"),
    "submit_control_map": ("post", "/control-maps"),
    "submit_mask": ("post", "/masks"),
    "upload_image": ("post", "/images"),
    "create_upload": ("post", "/uploads"),
    "delete_upload": ("delete", "/uploads/{upload_id}"),
    "delete_image": ("delete", "/images/{sha256}"),
    "list_jobs": ("get", "/jobs"),
    "delete_job": ("delete", "/jobs/{job_id}"),
    "get_job": ("get", "/jobs/{job_id}"),
    "stream_job_events": ("get", "/jobs/{job_id}/events"),
    "cancel_job": ("post", "/jobs/{job_id}/cancel"),
    "get_image": ("get", "/jobs/{job_id}/images/{index}"),
    "get_result": ("get", "/jobs/{job_id}/result"),
    "submit_batch": ("post", "/batches"),
    "list_batches": ("get", "/batches"),
    "get_batch": ("get", "/batches/{batch_id}"),
    "list_batch_jobs": ("get", "/batches/{batch_id}/jobs"),
    "stream_batch_events": ("get", "/batches/{batch_id}/events"),
    "get_batch_results": ("get", "/batches/{batch_id}/results"),
    "cancel_batch": ("post", "/batches/{batch_id}/cancel"),
    "delete_batch": ("delete", "/batches/{batch_id}"),
    "list_models": ("get", "/models"),
    "get_model": ("get", "/models/{name}"),
    "put_model": ("put", "/models/{name}"),
    "delete_model": ("delete", "/models/{name}"),
    "reset_model": ("post", "/models/{name}/reset"),
    "put_lora": ("put", "/models/{name}/loras/{lora}"),
    "delete_lora": ("delete", "/models/{name}/loras/{lora}"),
    "get_health": ("get", "/healthz"),
    "get_readiness": ("get", "/readyz"),
}


@schemathesis.serializer("application/jsonl")
def json_lines(_: object, value: object) -> bytes:
    """Return a body of JSON lines, which is text."""
    return value.encode("utf-8", "replace") if isinstance(value, str) else json.dumps(value).encode()


@pytest.fixture(scope="session")
def document(service_url: str) -> dict[str, Any]:
    return httpx.get(f"{service_url}/openapi.json", timeout=60).json()  # type: ignore[no-any-return]


def test_operation_ids(document: dict[str, Any]) -> None:
    operations = {
        operation["operationId"]: (method, path)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    assert operations == OPERATIONS


def test_submit_accepts_a_form_or_json(document: dict[str, Any]) -> None:
    content = document["paths"]["/img2img"]["post"]["requestBody"]["content"]
    assert set(content) == {"multipart/form-data", "application/json"}
    form, body = (document["components"]["schemas"][name] for name in ("Img2ImgForm", "Img2ImgRequest"))
    assert form["properties"].keys() == body["properties"].keys()
    assert form["properties"]["image"]["format"] == "binary"
    assert form["properties"]["mask"]["format"] == "binary"
    assert form["properties"]["controls"]["contentMediaType"] == "application/json"
    assert form["additionalProperties"] is body["additionalProperties"] is False
    assert all("description" in field for field in body["properties"].values())


def test_every_error_is_a_problem_document(document: dict[str, Any]) -> None:
    for path, methods in document["paths"].items():
        for operation in methods.values():
            for status, response in operation["responses"].items():
                if status >= "400" and path != "/readyz":
                    schema = response["content"]["application/problem+json"]["schema"]
                    assert schema == {"$ref": "#/components/schemas/Problem"}, (path, status)


def responses(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield operation and status, media type and its description, for every response with a body."""
    for methods in document["paths"].values():
        for operation in methods.values():
            for status, response in operation["responses"].items():
                assert ("content" in response) == (status not in ("204", "304", "307")), (
                    operation["operationId"],
                    status,
                )
                for media_type, content in response.get("content", {}).items():
                    yield f"{operation['operationId']} {status}", media_type, content


def example_of(schema: dict[str, Any], document: dict[str, Any]) -> Any:
    """Return the example that documentation tools show for a schema: from examples of its fields, else by type."""
    if "examples" in schema:
        return schema["examples"][0]
    for keyword in ("const", "default"):
        if keyword in schema:
            return schema[keyword]
    if "$ref" in schema:
        return example_of(document["components"]["schemas"][schema["$ref"].rpartition("/")[2]], document)
    options = schema.get("anyOf", schema.get("oneOf"))
    if options:
        return None if {"type": "null"} in options else example_of(options[0], document)
    if "enum" in schema:
        return schema["enum"][0]
    match schema.get("type"):
        case "object":
            return {name: example_of(field, document) for name, field in schema.get("properties", {}).items()}
        case "array":
            return [example_of(schema["items"], document)] * schema.get("minItems", 1)
        case "integer" | "number":
            return schema.get("minimum", schema.get("exclusiveMinimum", -1) + 1)
        case kind:
            return {"string": "string", "boolean": True}[kind]


def test_every_response_has_a_schema_and_a_valid_example(document: dict[str, Any]) -> None:
    for response, media_type, content in responses(document):
        assert content["schema"], response
        example = content["example"] if "example" in content else example_of(content["schema"], document)
        assert example, response
        assert "example" in content or media_type == "application/json", response
        if media_type.endswith("json"):
            schema = content["schema"] | {"components": document["components"]}
            jsonschema_rs.validator_for(schema).validate(example)


def test_problem_example_equals_a_real_response(document: dict[str, Any], http: httpx.Client) -> None:
    not_found = document["paths"]["/jobs/{job_id}"]["get"]["responses"]["404"]["content"]["application/problem+json"]
    detail = {"detail": "There is no job 00000000000000000000000000000000."}
    assert http.get(f"/jobs/{'0' * 32}").json() == not_found["example"] | detail


def test_committed_document_is_up_to_date() -> None:
    """`make openapi` writes it."""
    assert (Path(__file__).parents[2] / FILE).read_text("utf-8") == current_document()


def test_stream_events_are_documented_by_name(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    assert {"QueuedEvent", "ProgressEvent", "PreviewEvent", "GoneEvent", "Job"} <= schemas.keys()
    content = document["paths"]["/jobs/{job_id}/events"]["get"]["responses"]["200"]["content"]
    assert list(content) == ["text/event-stream"]
    item = content["text/event-stream"]["x-item-schema"]
    assert item["discriminator"]["propertyName"] == "event"
    mapping = item["discriminator"]["mapping"]
    assert {ref["$ref"] for ref in item["oneOf"]} == set(mapping.values())
    data = {}
    for event, ref in mapping.items():
        message = schemas[ref.rpartition("/")[2]]
        assert event in message["properties"]["event"]["enum"]
        data[event] = message["properties"]["data"]["contentSchema"]["$ref"].rpartition("/")[2]
    ended = dict.fromkeys(("succeeded", "failed", "cancelled"), "Job")
    assert data == ended | {
        "error": "Problem",
        "queued": "QueuedEvent",
        "progress": "ProgressEvent",
        "preview": "PreviewEvent",
        "gone": "GoneEvent",
    }


def test_webhook_is_documented(document: dict[str, Any]) -> None:
    webhook = document["webhooks"]["job.ended"]["post"]
    assert webhook["requestBody"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/JobEvent"}
    assert list(webhook["responses"]) == ["204"]
    referenced = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(document)))
    assert referenced <= document["components"]["schemas"].keys()


def test_document_needs_no_running_service() -> None:
    app: FastAPI = create_app(ApiSettings(_env_file=None))
    assert set(app.openapi()["paths"]) == {path for _, path in OPERATIONS.values()}


api = schemathesis.openapi.from_dict(create_app(ApiSettings(_env_file=None)).openapi())


@api.parametrize()
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_service_conforms_to_the_document(case: Case, http: httpx.Client, image_bytes: bytes) -> None:
    """Valid and invalid requests generated from the document: no 500, and only documented statuses and bodies."""
    if isinstance(case.body, dict) and isinstance(case.body.get("image"), str):
        case.body["image"] = base64.b64encode(image_bytes).decode()
    elif isinstance(case.body, dict) and isinstance(case.body.get("image"), bytes):
        case.body["image"] = image_bytes
    # Which models and sizes are accepted depends on the workers, which the document cannot describe.
    excluded = [positive_data_acceptance]
    if "null" in repr_of(case.body) or '""' in repr_of(case.body):
        # Null and empty fields count as absent, whatever their type.
        excluded.append(negative_data_rejection)
    if set(case.query or {}) - {parameter["name"] for parameter in case.operation.definition.raw.get("parameters", ())}:
        # Query parameters that the service does not know are ignored.
        excluded.append(negative_data_rejection)
    case.call_and_validate(base_url=str(http.base_url), excluded_checks=excluded)


def repr_of(body: object) -> str:
    """Return a body as JSON, with files as text."""
    return json.dumps(body, default=repr)
