"""Examples of what the service answers, for its OpenAPI document: what is told here, the rest from the schemas."""

from http import HTTPStatus
from typing import Any

from img2img.errors import Img2ImgError, ParameterError

from ..http.errors import InsufficientScope
from ..http.problem_details import STATUS

JOB_ID = "3f0c9a52d7e84b6ea1c5f2b8d9036e71"
SHA256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
MOMENT = "2026-01-31T12:00:00Z"

# By schema: the fields whose example the schema alone would tell badly.
TOLD: dict[str, dict[str, Any]] = {
    "Job": {
        "id": JOB_ID,
        "status": "succeeded",
        "created_at": MOMENT,
        "started_at": "2026-01-31T12:00:02Z",
        "finished_at": "2026-01-31T12:00:05Z",
        "expires_at": "2026-02-01T12:00:05Z",
        "timings": {"queued": 2.0, "run": 3.0},
        "worker": "gpu-1-4711-5be0",
    },
    "JobSpec": {
        "model": "demo",
        "image": SHA256,
        "prompt": "a watercolor painting",
        "strength": 0.6,
        "guidance_scale": 7.5,
        "num_inference_steps": 40,
        "seed": 7,
        "width": 512,
        "height": 512,
    },
    "JobProgress": {"step": 24, "steps": 24, "fraction": 1.0},
    "JobImage": {
        "seed": 7,
        "width": 512,
        "height": 512,
        "sha256": SHA256,
        "bytes": 412345,
        "url": f"/jobs/{JOB_ID}/images/0",
    },
    "UploadedImage": {"sha256": SHA256, "width": 1600, "height": 1200},
    "DryRunResult": {"cost": 13.1, "queue_position": 2, "eta_s": 14.5},
    "ServedModel": {
        "name": "demo",
        "family": "sd1",
        "native_size": 512,
        "size_multiple": 8,
        "min_size": 256,
        "max_size": 1024,
        "sizes": [[512, 512], [608, 448], [448, 608]],
        "schedulers": ["ddim", "euler"],
        "workers": ["gpu-1-4711-5be0"],
        "queued": 2,
        "default": True,
    },
    "DependencyStatus": {"ok": True, "detail": "answers"},
    "Readiness": {"ready": True},
}


def example_of(schema: dict[str, Any], definitions: dict[str, Any]) -> Any:
    """A value that the schema allows, as plain as can be."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        told, definition = TOLD.get(name, {}), definitions[name]
        if "properties" not in definition:
            return example_of(definition, definitions)
        properties = definition["properties"].items()
        return {field: told[field] if field in told else example_of(of, definitions) for field, of in properties}
    for word in ("examples", "enum"):
        if word in schema:
            return schema[word][0]
    for word in ("const", "default"):
        if word in schema:
            return schema[word]
    for word in ("anyOf", "oneOf"):
        if word in schema:
            return None if {"type": "null"} in schema[word] else example_of(schema[word][0], definitions)
    kind = schema.get("type")
    if kind == "array":
        return [example_of(item, definitions) for item in schema.get("prefixItems", [schema.get("items", {})])]
    if kind in ("integer", "number"):
        return schema.get("minimum", 0)
    if kind == "string":
        return MOMENT if schema.get("format") == "date-time" else "text"
    return {"object": {}, "boolean": False}.get(str(kind))


def problem_example(status: int) -> dict[str, Any]:
    """What a refusal with this status says: the message of an error that has it in the one table."""
    problem = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status}
    if status == HTTPStatus.UNPROCESSABLE_ENTITY:
        refused = {"field": "strength", "message": "Input should be less than or equal to 1", "got": "2"}
        detail = f"{refused['field']}: {refused['message']}"
        return {**problem, "detail": detail, "code": ParameterError.code, "errors": [refused]}
    said = HTTPStatus(status)
    kind = next((kind for kind, of in STATUS.items() if of == status), None)
    if kind is InsufficientScope:
        error: Img2ImgError | None = InsufficientScope("submit")
    else:
        error = kind() if kind else None
    detail, code = (error.message, error.code) if error else (said.description, said.name.lower())
    return {**problem, "detail": detail, "code": code}
