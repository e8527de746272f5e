"""Pages of the site that are made from code when it is built: the REST API, the settings, the command line."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

from img2img.app.cli import app

Json = dict[str, Any]
ROOT = Path(__file__).parents[1]
CLIENT = """# Client API

From the docstrings of `img2img`. [Python client](../python-client.md) explains its use. `AsyncClient` and
`AsyncBatches` have the same methods for asyncio.

::: img2img.client.sync_client.Client

::: img2img.client.sync_batches.Batches

::: img2img.client.models

::: img2img.client.events

::: img2img.client.errors
"""
# Images in examples are shortened to this many characters.
MAX_TEXT = 60


def pages() -> dict[str, str]:
    """Return the Markdown of the pages by their path on the site."""
    return {
        "reference/rest.md": rest(json.loads((ROOT / "openapi.json").read_text("utf-8"))),
        "reference/settings.md": settings((ROOT / ".env.example").read_text("utf-8")),
        "reference/cli.md": command_line(),
        "reference/client.md": CLIENT,
    }


def rest(document: Json) -> str:
    """Return the reference of all operations of an OpenAPI document."""
    parts = [
        "# REST API\n",
        "From [openapi.json](../project/openapi.json). [HTTP API](../api.md) explains the fields, and "
        "[Errors](../errors.md) the codes of errors. A running service has the same at `/docs`, with forms to try.\n",
    ]
    for tag in document["tags"]:
        parts.append(f"## {tag['name'].capitalize()}\n\n{tag['description']}\n")
        for path, item in document["paths"].items():
            for method, operation in item.items():
                if tag["name"] in operation["tags"]:
                    parts += _operation(document, method, path, operation)
    parts.append("## Schemas\n")
    for name, schema in document["components"]["schemas"].items():
        if schema.get("properties"):
            parts.append(f"### {name}\n\n{schema.get('description', '')}\n\n{_fields(schema)}")
    return "\n".join(parts)


def _operation(document: Json, method: str, path: str, operation: Json) -> Iterator[str]:
    yield f"### {method.upper()} {path}\n\n{operation.get('description', '')}\n"
    parameters = [one if "name" in one else _resolved(document, one) for one in operation.get("parameters", ())]
    if parameters:
        rows = [
            f"| `{one['name']}` | {one['in']} | {_type(one['schema'])} | {_cell(one.get('description', ''))} |"
            for one in parameters
        ]
        yield "\n".join(["| parameter | in | type | meaning |", "|---|---|---|---|", *rows, ""])
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        yield f"Body: `{kind}`, {_type(content.get('schema', {}))}\n"
        for example in list(content.get("examples", {}).values())[:3]:
            text = json.dumps(_short(example["value"]), indent=2, ensure_ascii=False)
            yield f"{example['summary']}:\n\n```json\n{text}\n```\n"
    rows = []
    for status, response in sorted(operation["responses"].items()):
        content = response.get("content", {})
        types = ", ".join(f"`{kind}` {_type(value.get('schema', {}))}".strip() for kind, value in content.items())
        rows.append(f"| {status} | {_cell(response['description'])} | {types} |")
    yield "\n".join(["| status | meaning | body |", "|---|---|---|", *rows, ""])


def _resolved(document: Json, reference: Json) -> Json:
    node: Any = document
    for part in reference["$ref"].removeprefix("#/").split("/"):
        node = node[part]
    return dict(node)


def _fields(schema: Json) -> str:
    required = schema.get("required", ())
    rows = [
        f"| `{name}` | {_type(field)} | {'yes' if name in required else ''} | {_cell(field.get('description', ''))} |"
        for name, field in schema["properties"].items()
    ]
    return "\n".join(["| field | type | required | meaning |", "|---|---|---|---|", *rows, ""])


def _type(schema: Json) -> str:
    """Return a short type of a schema, in Markdown."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    for many in ("anyOf", "oneOf", "allOf"):
        if many in schema:
            return " or ".join(dict.fromkeys(filter(None, map(_type, schema[many]))))
    if "enum" in schema:
        return " ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    limits = [f"{sign} {schema[key]:g}" for key, sign in LIMITS.items() if key in schema]
    kind = schema.get("type", "")
    return ", ".join([kind if isinstance(kind, str) else " or ".join(kind), *limits])


LIMITS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}


def _cell(text: str) -> str:
    """Return text for a cell of a table."""
    return re.sub(r"\s+", " ", text).replace("|", "\\|")


def _short(value: Any) -> Any:
    """Return an example with its images shortened."""
    if isinstance(value, dict):
        return {name: _short(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_short(one) for one in value]
    return f"{value[:MAX_TEXT]}..." if isinstance(value, str) and len(value) > MAX_TEXT else value


def settings(example: str) -> str:
    """Return the reference of all settings from the text of .env.example: comments, then lines `NAME=default`."""
    parts = [
        "# Settings\n",
        "From `.env.example`. Each is an environment variable, a line of `.env`, a file `/run/secrets/img2img_NAME`, "
        "or an option of the command; a misspelt name stops the start. A name without a default is unset.\n",
    ]
    comment: list[str] = []
    is_complete = False
    for line in example.splitlines():
        if match := re.fullmatch(r"(# )?([A-Z][A-Z0-9_]+)=(.*)", line):
            unset, name, value = match.groups()
            default = (
                f"Default: `{value}`" if value and not unset else f"Unset. Example: `{value}`" if value else "Unset."
            )
            parts.append("\n\n".join(filter(None, [f"## {name}", " ".join(comment), default])) + "\n")
            is_complete = True
        elif is_complete or not line:
            comment, is_complete = [line.lstrip("# ")] * bool(line), False
        else:
            comment.append(line.lstrip("# "))
    return "\n".join(parts)


def command_line() -> str:
    """Return the reference of all commands with their arguments and options."""
    parts = ["# Commands\n", "From `img2img --help`. [Command line](../cli.md) explains how they work.\n"]
    parts += _commands("img2img", get_command(app))
    return "\n".join(parts)


def _commands(prefix: str, group: Any) -> Iterator[str]:
    for name, command in group.commands.items():
        path = f"{prefix} {name}"
        summary = re.sub(r"\s+", " ", (command.help or "").partition("\f")[0]).strip()
        yield f"## {path}\n\n{summary}\n"
        rows = []
        for parameter in command.params:
            if parameter.name in ("help", "install_completion", "show_completion"):
                continue
            names = ", ".join(f"`{one}`" for one in (*parameter.opts, *parameter.secondary_opts))
            if parameter.param_type_name == "argument":
                names = f"`{parameter.metavar or parameter.name.upper()}`"
            rows.append(f"| {names} | {_cell(getattr(parameter, 'help', None) or '')} |")
        if rows:
            yield "\n".join(["| argument or option | meaning |", "|---|---|", *rows, ""])
        if hasattr(command, "commands"):
            yield from _commands(path, command)
