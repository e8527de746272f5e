"""Generates the parts of `img2img.client` that follow from other files: `make client`.

- `fields.py` from the request models of the API server, so that the client has every field with its description;
- `sync_client.py` and `sync_batches.py` from their files for asyncio, as httpcore does it.
"""

import re
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from img2img.app.schemas.batches import BatchItem
from img2img.app.schemas.requests import ControlMapRequest, Img2ImgRequest, MaskRequest

Json = dict[str, Any]

CLIENT = Path(__file__).parents[1] / "img2img" / "client"
WIDTH = 120
FIELDS_HEADER = '''"""Fields of requests, as keyword arguments. Generated from the request models by `make client`."""

from collections.abc import Mapping, Sequence
from typing import Literal, Required, TypedDict

from .images import ImageInput
'''
NAMES = {
    "BackgroundPrompt": "BackgroundFields",
    "ControlRequest": "ControlFields",
    "FreeU": "FreeUFields",
    "ImagePromptRequest": "ImagePromptFields",
    "Lora": "LoraFields",
    "MaskObject": "MaskFields",
    "Padding": "PaddingFields",
    "Refinement": "RefineFields",
    "RegionRequest": "RegionFields",
    "Webhook": "WebhookFields",
}
IMAGE_FIELDS = {"image": "ImageInput", "mask": "ImageInput | MaskFields", "images": "Sequence[ImageInput]"}
# Of `Client.control_map` and `Client.find_mask`, positional arguments.
POSITIONAL = ("image", "type")
# Arguments of `Client.inpaint`, `outpaint`, `edit` and `upscale`. Only a mask and margins can be combined.
TASK_ARGUMENTS = ("image", "mask", "outpaint", "instruction", "upscale")
TYPES = {"string": "str", "integer": "int", "number": "float", "boolean": "bool"}
# Files for asyncio, and those that are generated from them.
SYNC_FILES = {"async_client.py": "sync_client.py", "async_batches.py": "sync_batches.py"}
SYNC = (
    (
        r'"""The client for asyncio. .*"""',
        '"""The client that blocks. Generated from `async_client.py` by `make client`."""',
    ),
    (
        r'"""Batches of jobs, for asyncio\. `.*"""',
        '"""Batches of jobs. Generated from `async_batches.py` by `make client`."""',
    ),
    (r"Batches of jobs, for asyncio: up", "Batches of jobs: up"),
    (r"Client of one service, for asyncio\.", "Client of one service. Threads may share it."),
    (r"AsyncIterator, Callable, Iterable, Mapping", "Callable, Iterable, Iterator, Mapping"),
    # In the order of imports.
    (r"from \.async_batches import AsyncBatches\n", ""),
    (r"(from \.models import DryRun.*\n)", r"\1from .sync_batches import Batches\n"),
    (r"\bAsync(Client|Iterator|Batches)\b", r"\1"),
    (r"\b(async|await) ", ""),
    (r"\basyncio\b", "time"),
    (r"__a(enter|exit)__", r"__\1__"),
    (r"\ba(close|read|iter_sse|iter_bytes)\(", r"\1("),
    (r"for (job|event|batch) in (.*):\n +yield \1", r"yield from \2"),
)


def sync_source(name: str) -> str:
    """Return the source that is generated from a file for asyncio."""
    source = (CLIENT / name).read_text("utf-8")
    for pattern, replacement in SYNC:
        source = re.sub(pattern, replacement, source)
    return source


def fields_source() -> str:
    """Return the source of `fields.py`."""
    submit, control_map, item = _schema(Img2ImgRequest), _schema(ControlMapRequest), _schema(BatchItem)
    find = _schema(MaskRequest)
    find["properties"] = {name: field for name, field in find["properties"].items() if name not in POSITIONAL}
    definitions: Json = submit["$defs"] | control_map["$defs"] | find["$defs"]
    control_map["properties"] = {
        name: field for name, field in control_map["properties"].items() if name not in POSITIONAL
    }
    parts = [FIELDS_HEADER]
    for name, definition in sorted(definitions.items()):
        if "enum" in definition:
            parts.append(f"{name} = {_literal(definition['enum'], name)}\n")
    for name, typed_dict in NAMES.items():
        parts.append("\n" + _typed_dict(typed_dict, definitions[name]))
    others = [name for name in submit["properties"] if name not in TASK_ARGUMENTS]
    description = "Fields of `POST /img2img`, besides those that select the task."
    parts.append("\n" + _typed_dict("TaskFields", _part(submit, others), description))
    for name, own, description in (
        ("InpaintFields", ("outpaint",), "Fields of `POST /img2img` besides the arguments of `inpaint`."),
        ("OutpaintFields", ("mask",), "Fields of `POST /img2img` besides the arguments of `outpaint`."),
        ("SubmitFields", TASK_ARGUMENTS, "Fields of `POST /img2img`."),
    ):
        parts.append("\n" + _typed_dict(name, _part(submit, own), description, base="TaskFields"))
    names = {"name": item["properties"]["name"]}
    item = item | {"properties": names}
    description = "Fields of `POST /img2img`, and a name, for `POST /batches`."
    parts.append("\n" + _typed_dict("BatchItemFields", item, description, base="SubmitFields"))
    parts.append("\n" + _typed_dict("ControlMapFields", control_map, "Fields of `POST /control-maps`."))
    parts.append("\n" + _typed_dict("FindMaskFields", find, "Fields of `POST /masks`."))
    return "\n".join(parts)


def _part(schema: Json, names: Iterable[str]) -> Json:
    return schema | {"properties": {name: schema["properties"][name] for name in names}}


def _schema(model: type[BaseModel]) -> Json:
    return model.model_json_schema(ref_template="{model}")


def _typed_dict(name: str, schema: Json, description: str | None = None, base: str = "TypedDict") -> str:
    lines = [f"class {name}({base}, total=False):", *_docstring(description or schema["description"]), ""]
    required = schema.get("required", ())
    for field, field_schema in schema["properties"].items():
        kind = IMAGE_FIELDS.get(field) or _type(field_schema)
        lines.append(f"    {field}: {f'Required[{kind}]' if field in required else kind}")
        # Not the encodings that JSON carries: the client takes any `ImageInput`.
        if "description" in field_schema and "base64" not in field_schema["description"]:
            lines += _docstring(field_schema["description"])
    return "\n".join(lines) + "\n"


def _docstring(text: str) -> list[str]:
    text = text.split("\n\n")[0].replace("\n", " ")
    raw = "r" if "\\" in text else ""
    lines = textwrap.wrap(f'{raw}"""{text}"""', WIDTH - 4)
    return textwrap.indent("\n".join(lines), "    ").split("\n")


def _type(schema: Json) -> str:
    if "$ref" in schema:
        return NAMES.get(schema["$ref"], schema["$ref"])
    if "anyOf" in schema:
        return " | ".join(_type(one) for one in schema["anyOf"] if one != {"type": "null"})
    if "enum" in schema:
        return _literal(schema["enum"], "")
    if schema["type"] == "array":
        items = [schema["items"]] if "items" in schema else schema["prefixItems"]
        return f"Sequence[{' | '.join(dict.fromkeys(map(_type, items)))}]"
    if schema["type"] == "object":
        return f"Mapping[str, {_type(schema['additionalProperties'])}]"
    return TYPES[schema["type"]]


def _literal(values: list[Any], name: str) -> str:
    line = f"Literal[{', '.join(map(_quoted, values))}]"
    if len(name) + len(" = ") + len(line) <= WIDTH:
        return line
    rows = "\n".join(f'    "{value}",' for value in values)
    return f"Literal[\n{rows}\n]"


def _quoted(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def main() -> None:
    (CLIENT / "fields.py").write_text(fields_source(), "utf-8")
    for name, sync_name in SYNC_FILES.items():
        (CLIENT / sync_name).write_text(sync_source(name), "utf-8")


if __name__ == "__main__":
    main()
