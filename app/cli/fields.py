"""Options of a command generated from the fields of a request model."""

import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from enum import Enum
from functools import reduce
from operator import or_
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from rich.markup import escape

from .errors import WrongUsage
from .mask_options import mask_parameters, take_mask

# Options with another name than their field; that name also works, but is not in the help.
NAMES = {"num_inference_steps": "--steps"}
ALIAS = "_alias"
# Short forms of fields with structure: the option, which can be repeated, the form of its value, and its help.
SHORT_FORMS = {
    "controls": ("control", "TYPE[:SCALE][=FILE]", "A control, e.g. `canny:0.8`. Can be repeated."),
    "image_prompts": ("image_prompt", "FILE[:SCALE]", "An image prompt, e.g. `style.png:0.5`. Can be repeated."),
    "images": ("reference", "FILE", "A further image that the instruction refers to. Can be repeated."),
    "loras": ("lora", "NAME[:SCALE]", "A LoRA, e.g. `ink:0.8`. Can be repeated."),
}
LINK = re.compile(r" \(https?://[^)]*\)")
# The commands have an argument of this name, for images that each become a job.
SHORT_ONLY = frozenset({"images"})
MARGINS = re.compile(r"\d+(,\d+){3}")
PANELS = {
    "Prompt": (
        "prompt",
        "negative_prompt",
        "prompt_weighting",
        "weighting_method",
        "clip_skip",
        "regions",
        "instruction",
        "images",
    ),
    "Sampling": (
        "strength",
        "num_inference_steps",
        "exact_steps",
        "guidance_scale",
        "image_guidance_scale",
        "guidance_rescale",
        "guidance_until",
        "pag_scale",
        "pag_adaptive_scale",
        "freeu",
        "seamless_tiling",
        "scheduler",
        "sigmas",
        "eta",
        "denoising_start",
        "denoising_end",
        "seed",
        "subseed",
        "subseed_strength",
        "num_images",
        "speed",
        "fast_vae",
        "deterministic",
    ),
    "Size": ("width", "height", "resize", "upscale"),
    "Inpainting and outpainting": (
        "mask",
        "mask_blur",
        "mask_padding",
        "mask_content",
        "soft_inpainting",
        "outpaint",
        "background",
    ),
    "Controls, image prompts and LoRAs": ("controls", "guess_mode", "image_prompts", "loras"),
    "Job": ("model", "deadline_s", "deadline_policy", "priority", "reuse", "webhook"),
}
OTHER_PANEL = "Job"
ORDER = [name for names in PANELS.values() for name in names]
# Enumerations with more members are listed in the help text.
MOST_CHOICES = 3
PLAIN = (bool, int, float, str)
IMAGE_HELP = "A file, or a reference: the sha256 of an uploaded image, or /jobs/{id}/images/0."
JSON_HELP = "JSON, or @file with JSON; within it, an image is written as @file."


def with_model_options(model: type[BaseModel], *, but: frozenset[str]) -> Callable[[Callable[..., None]], Any]:
    """Return a decorator that replaces `**fields` of a command by an option for each field of the model.

    An option that is not given is None.

    Args:
        but: Fields without an option.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command)
        own = [one for one in signature.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
        fields = {name: field for name, field in model.model_fields.items() if name not in but}
        options = [
            inspect.Parameter(parameter, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
            for name in sorted(fields, key=_position)
            for parameter, annotation in _options(name, fields[name])
        ]
        # The help shows the panels in this order.
        argument, *others = own
        others = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in others]
        parameters = [argument, *options, *others]
        command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {one.name: one.annotation for one in parameters}
        return command

    return decorate


def option_values(model: type[BaseModel], given: dict[str, Any]) -> dict[str, Any]:
    """Return the options that were given as fields of the client: images as bytes or references, the rest as JSON.

    Raises:
        WrongUsage: An option is no JSON.
        OSError: A file cannot be read.
    """
    values = {name: value for name, value in given.items() if value is not None and value != []}
    for name, option in NAMES.items():
        alias = values.pop(name + ALIAS, None)
        if alias is not None and values.setdefault(name, alias) != alias:
            raise WrongUsage(f"{option} and {_flag(name)} exclude each other")
    mask = take_mask(values) if "mask" in model.model_fields else None
    if mask and "mask" in values:
        raise WrongUsage("--mask and the options that find a mask exclude each other")
    request: dict[str, Any] = {"mask": mask} if mask else {}
    for name, field in model.model_fields.items():
        short, form, _ = SHORT_FORMS.get(name, ("", "", ""))
        if name in values and short in values:
            raise WrongUsage(f"{_flag(short)} and {_flag(name)} exclude each other")
        if short in values:
            request[name] = [_short_form(name, form, text) for text in values[short]]
        elif name in values:
            request[name] = _value(name, values[name], field.annotation)
    return request


def read_image(text: str) -> bytes | str:
    """Return the bytes of a file or, for `-`, of stdin; or the text if it is a reference."""
    from img2img.client.images import load_image

    return sys.stdin.buffer.read() if text == "-" else load_image(text)


def _options(name: str, field: FieldInfo) -> Iterator[tuple[str, Any]]:
    """Yield the parameters of the command for a field, and their annotations."""
    members = list(_members(field.annotation))
    panel = next((panel for panel, names in PANELS.items() if name in names), OTHER_PANEL)
    if name in SHORT_FORMS:
        short, form, text = SHORT_FORMS[name]
        yield (
            short,
            Annotated[
                list[str] | None,
                typer.Option(_flag(short), metavar=form, help=escape(text), show_default=False, rich_help_panel=panel),
            ],
        )
    if name in SHORT_ONLY:
        return
    # Links are wider than the column of the help.
    words = [LINK.sub("", field.description or "")]
    if bytes in members:
        words.append(IMAGE_HELP)
    elif name == "outpaint":
        words.append("LEFT,TOP,RIGHT,BOTTOM or JSON.")
    elif any(map(_has_structure, members)):
        words.append(JSON_HELP)
    kind = _type(members)
    choices = _choices(kind)
    if len(choices) > MOST_CHOICES:
        words.append(f"One of {', '.join(choices)}.")
    default = field.get_default(call_default_factory=True) if not field.is_required() else None
    if isinstance(default, Enum):
        default = default.value
    if default not in (None, "", [], (), False):
        words.append(f"Default: {default}.")
    option = typer.Option(
        NAMES.get(name, _flag(name)),
        help=escape(" ".join(filter(None, words))),
        metavar=_metavar(members, kind, choices),
        show_default=False,
        rich_help_panel=panel,
    )
    yield name, Annotated[kind | None, option]
    if name == "mask":
        yield from mask_parameters(panel)
    if name in NAMES:
        yield name + ALIAS, Annotated[kind | None, typer.Option(_flag(name), hidden=True)]


def _position(name: str) -> int:
    return ORDER.index(name) if name in ORDER else len(ORDER)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _choices(kind: Any) -> list[str]:
    if get_origin(kind) is Literal:
        return [str(one) for one in get_args(kind)]
    return [str(one.value) for one in kind] if inspect.isclass(kind) and issubclass(kind, Enum) else []


def _metavar(members: list[Any], kind: Any, choices: list[str]) -> str | None:
    """Return the form of the value for the help; None for that of the type."""
    if choices:
        return "NAME" if len(choices) > MOST_CHOICES else "|".join(choices)
    if bytes in members:
        return "FILE"
    return "JSON" if kind is str and any(map(_has_structure, members)) else None


def _short_form(name: str, form: str, text: str) -> dict[str, Any] | bytes | str:
    """Return an entry of a field from its short form.

    Raises:
        WrongUsage: The text has another form.
        OSError: The file cannot be read.
    """
    if name == "images":
        return read_image(text)
    first, _, file = text.partition("=") if name == "controls" else (text, "", "")
    head, colon, tail = first.rpartition(":")
    entry: dict[str, Any] = {}
    if colon:
        with suppress(ValueError):
            entry["scale"] = float(tail)
            first = head
    if not first or ("=" in text and name == "controls" and not file):
        raise WrongUsage(f"{_flag(SHORT_FORMS[name][0])} takes {form}, got {text!r}")
    if name == "image_prompts":
        return {"image": read_image(first), **entry}
    if file:
        entry["image"] = read_image(file)
    return {"type" if name == "controls" else "name": first, **entry}


def _type(members: list[Any]) -> Any:
    """Return the type that Typer checks, text if it knows none."""
    if len(members) == 1:
        [only] = members
        if only in PLAIN or get_origin(only) is Literal or (inspect.isclass(only) and issubclass(only, Enum)):
            return only
    return str


def _value(name: str, value: Any, annotation: Any) -> Any:
    members = list(_members(annotation))
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, str) and bytes in members and not value.startswith("{"):
        return read_image(value)
    if isinstance(value, str) and name == "outpaint" and MARGINS.fullmatch(value):
        return dict(zip(("left", "top", "right", "bottom"), map(int, value.split(",")), strict=True))
    if isinstance(value, str) and any(map(_has_structure, members)):
        text = Path(value[1:]).read_text("utf-8") if value.startswith("@") else value
        try:
            return _with_images(json.loads(text), annotation)
        except json.JSONDecodeError as error:
            if str in members or value in [one for member in members for one in _choices(member)]:
                return value
            short, form, _ = SHORT_FORMS.get(name, ("", "", ""))
            hint = f"; the short form is {_flag(short)} {form}" if short else ""
            raise WrongUsage(f"{_flag(name)} takes JSON or @file: {error}{hint}") from None
    return value


def _with_images(value: Any, annotation: Any) -> Any:
    """Return a JSON value with images as the client takes them: `@file` as bytes, base64 as a `data:` URI."""
    members = list(_members(annotation))
    if isinstance(value, str) and bytes in members:
        return _nested_image(value)
    if isinstance(value, list):
        # A tuple of any length is `tuple[X, ...]`.
        kinds = (arg for one in members for arg in get_args(one) if arg is not Ellipsis)
        items: Any = reduce(or_, kinds, NoneType)
        return [_with_images(item, items) for item in value]
    if isinstance(value, dict):
        models = [one for one in members if inspect.isclass(one) and issubclass(one, BaseModel)]
        types = {name: field.annotation for one in models for name, field in one.model_fields.items()}
        return {name: _with_images(item, types.get(name)) for name, item in value.items()}
    return value


def _nested_image(text: str) -> bytes | str:
    from img2img.client import is_image_reference

    if text.startswith("@"):
        return Path(text[1:]).read_bytes()
    return text if is_image_reference(text) or text.startswith("data:") else f"data:;base64,{text}"


def _members(annotation: Any) -> Iterator[Any]:
    """Yield the types that an annotation allows, without None and without the metadata of Annotated."""
    if get_origin(annotation) is Annotated:
        yield from _members(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType):
        for member in get_args(annotation):
            yield from _members(member)
    elif annotation not in (None, NoneType):
        yield annotation


def _has_structure(member: Any) -> bool:
    return get_origin(member) in (list, tuple, dict, set, frozenset) or (
        inspect.isclass(member) and issubclass(member, BaseModel | list | tuple | dict)
    )
