"""Parts of the OpenAPI document that generators and validators expect, and that follow from the rest of it."""

from collections.abc import Iterator
from typing import Any

DESCRIPTION = """Submit an image with `POST /img2img`, follow the job at its `Location` (`GET /jobs/{id}?wait=30`, its
events, or a webhook), and download the results. Errors are problem documents (RFC 9457) with a stable `code`."""
TAGS = {
    "jobs": "Submit jobs, follow and cancel them, and download their images.",
    "batches": "Many jobs as one.",
    "images": "Images that several jobs use.",
    "models": "The models of the service, and changes of them.",
    "health": "Checks for supervisors and load balancers.",
}


def complete(document: dict[str, Any]) -> None:
    """Add description, license, servers and tags, and repair schemas."""
    document["info"] |= {
        "description": DESCRIPTION,
        "license": {"name": "Apache 2.0", "identifier": "Apache-2.0"},
    }
    document["servers"] = [{"url": ".", "description": "This service, also below a path of a proxy."}]
    document["tags"] = [{"name": name, "description": text} for name, text in TAGS.items()]
    for operations in document["webhooks"].values():
        for operation in operations.values():
            # Webhooks are signed: see their descriptions.
            operation["security"] = []
    for schema in _objects(document):
        _describe_items(schema)
        _require_discriminator(schema, document["components"]["schemas"])


def remove_unused(document: dict[str, Any]) -> None:
    """Remove schemas that nothing refers to."""
    schemas = document["components"]["schemas"]
    while True:
        used = {one["$ref"] for one in _objects(document) if isinstance(one.get("$ref"), str)}
        used |= {target for one in _objects(document) for target in _mapping(one).values()}
        unused = [name for name in schemas if f"#/components/schemas/{name}" not in used]
        if not unused:
            return
        for name in unused:
            del schemas[name]


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """Yield all objects within a part of the document."""
    if isinstance(value, dict):
        yield value
        for item in value.values():
            yield from _objects(item)
    elif isinstance(value, list):
        for item in value:
            yield from _objects(item)


def _mapping(schema: dict[str, Any]) -> dict[str, str]:
    discriminator = schema.get("discriminator")
    return discriminator.get("mapping", {}) if isinstance(discriminator, dict) else {}


def _describe_items(schema: dict[str, Any]) -> None:
    """Describe tuples of equal items as lists of this length: many generators know no `prefixItems`."""
    prefix = schema.get("prefixItems")
    if isinstance(prefix, list) and "items" not in schema and all(item == prefix[0] for item in prefix):
        schema["items"] = schema.pop("prefixItems")[0]


def _require_discriminator(schema: dict[str, Any], schemas: dict[str, Any]) -> None:
    """Require the property that distinguishes the alternatives. Responses always have it."""
    discriminator = schema.get("discriminator")
    for target in _mapping(schema).values():
        alternative = schemas.get(target.rpartition("/")[2], {})
        name = discriminator["propertyName"] if isinstance(discriminator, dict) else ""
        if name in alternative.get("properties", {}) and name not in alternative.get("required", []):
            alternative["required"] = [name, *alternative.get("required", [])]
