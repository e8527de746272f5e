"""The OpenAPI document: complete, and true of what the service does."""

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
from schemathesis.specs.openapi.checks import positive_data_acceptance

from img2img.app.cli.openapi import FILE
from img2img.app.cli.openapi import document as document_now
from img2img.app.main import create_app
from img2img.app.settings import ApiSettings

OPERATIONS = {
    "submit_img2img": ("post", "/img2img"),
    "submit_control_map": ("post", "/control-maps"),
    "upload_image": ("post", "/images"),
    "list_jobs": ("get", "/jobs"),
    "delete_job": ("delete", "/jobs/{job_id}"),
    "get_job": ("get", "/jobs/{job_id}"),
    "stream_job_events": ("get", "/jobs/{job_id}/events"),
    "cancel_job": ("post", "/jobs/{job_id}/cancel"),
    "get_image": ("get", "/jobs/{job_id}/images/{index}"),
    "get_result": ("get", "/jobs/{job_id}/result"),
    "list_models": ("get", "/models"),
    "get_health": ("get", "/healthz"),
    "get_readiness": ("get", "/readyz"),
}


@pytest.fixture(scope="session")
def document(service_url: str) -> dict[str, Any]:
    return httpx.get(f"{service_url}/openapi.json", timeout=60).json()  # type: ignore[no-any-return]


def test_operations_have_short_names(document: dict[str, Any]) -> None:
    named = {
        operation["operationId"]: (method, path)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    assert named == OPERATIONS


def test_a_submit_takes_a_form_or_json(document: dict[str, Any]) -> None:
    content = document["paths"]["/img2img"]["post"]["requestBody"]["content"]
    assert set(content) == {"multipart/form-data", "application/json"}
    form, body = (document["components"]["schemas"][name] for name in ("Img2ImgForm", "Img2ImgRequest"))
    assert form["properties"].keys() == body["properties"].keys()
    assert form["properties"]["image"]["format"] == "binary"
    assert form["properties"]["mask"]["format"] == "binary"
    assert form["properties"]["controls"]["contentMediaType"] == "application/json"
    assert form["additionalProperties"] is body["additionalProperties"] is False
    assert all("description" in field for field in body["properties"].values())


def test_every_refusal_is_a_problem(document: dict[str, Any]) -> None:
    for path, methods in document["paths"].items():
        for operation in methods.values():
            for status, response in operation["responses"].items():
                if status >= "400" and path != "/readyz":
                    schema = response["content"]["application/problem+json"]["schema"]
                    assert schema == {"$ref": "#/components/schemas/Problem"}, (path, status)


def answers(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Operation, media type and its description, of every response with a body."""
    for methods in document["paths"].values():
        for operation in methods.values():
            for status, response in operation["responses"].items():
                assert ("content" in response) == (status not in ("204", "304", "307")), (
                    operation["operationId"],
                    status,
                )
                for media_type, content in response.get("content", {}).items():
                    yield f"{operation['operationId']} {status}", media_type, content


def test_every_answer_has_a_schema_and_an_example_that_it_allows(document: dict[str, Any]) -> None:
    for answer, media_type, content in answers(document):
        assert content["schema"], answer
        assert content["example"], answer
        if media_type.endswith("json"):
            schema = content["schema"] | {"components": document["components"]}
            jsonschema_rs.validator_for(schema).validate(content["example"])


def test_the_examples_of_refusals_are_what_is_said(document: dict[str, Any], http: httpx.Client) -> None:
    not_found = document["paths"]["/jobs/{job_id}"]["get"]["responses"]["404"]["content"]["application/problem+json"]
    said = {"detail": "There is no job 00000000000000000000000000000000."}
    assert http.get(f"/jobs/{'0' * 32}").json() == not_found["example"] | said


def test_the_committed_document_is_this_one() -> None:
    """`make openapi` writes it."""
    assert (Path(__file__).parents[2] / FILE).read_text("utf-8") == document_now()


def test_the_data_of_events_is_documented(document: dict[str, Any]) -> None:
    assert {"QueuedEvent", "ProgressEvent", "GoneEvent", "Job"} <= document["components"]["schemas"].keys()
    answers = document["paths"]["/jobs/{job_id}/events"]["get"]["responses"]
    assert list(answers["200"]["content"]) == ["text/event-stream"]


def test_the_event_of_a_webhook_is_documented(document: dict[str, Any]) -> None:
    told = document["webhooks"]["job.ended"]["post"]
    assert told["requestBody"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/JobEvent"}
    assert list(told["responses"]) == ["204"]
    named = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(document)))
    assert named <= document["components"]["schemas"].keys()


def test_the_document_needs_no_running_service() -> None:
    app: FastAPI = create_app(ApiSettings(_env_file=None))
    assert set(app.openapi()["paths"]) == {path for _, path in OPERATIONS.values()}


api = schemathesis.openapi.from_dict(create_app(ApiSettings(_env_file=None)).openapi())


@api.parametrize()
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_service_does_what_it_says(case: Case, http: httpx.Client, picture: bytes) -> None:
    """Requests made up from the document, good and bad: never a 500, never a status or a body that it does not name."""
    if isinstance(case.body, dict) and isinstance(case.body.get("image"), str):
        case.body["image"] = base64.b64encode(picture).decode()
    elif isinstance(case.body, dict) and isinstance(case.body.get("image"), bytes):
        case.body["image"] = picture
    # Whether a model or a size is taken depends on the workers, which a document cannot say.
    case.call_and_validate(base_url=str(http.base_url), excluded_checks=[positive_data_acceptance])
