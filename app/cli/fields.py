"""The fields of a request as options of a command: one option each, made from the model, so that none is missing."""

import base64
import inspect
import json
import sys
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from rich.markup import escape

from ..schemas.image_references import parse_reference
from .errors import WrongUsage

SHORT_NAMES = {"num_inference_steps": ("--steps",)}
PLAIN = (bool, int, float, str)
OF_A_PICTURE = "A file, or a reference: the sha256 of a picture sent before, or /jobs/{id}/images/0."
OF_JSON = "JSON, or @file with JSON; in it, a picture is written as @file."


def with_model_options(model: type[BaseModel], *, but: frozenset[str]) -> Callable[[Callable[..., None]], Any]:
    """Gives a command that ends in `**fields` an option for each field of the model; None is: not given."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command)
        own = [one for one in signature.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
        fields = {name: field for name, field in model.model_fields.items() if name not in but}
        options = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_option(name, field))
            for name, field in fields.items()
        ]
        parameters = [*own, *options]
        command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {one.name: one.annotation for one in parameters}
        return command

    return decorate


def option_values(model: type[BaseModel], given: dict[str, Any]) -> dict[str, Any]:
    """What the options say, as it is sent: pictures as bytes or a reference, the rest as JSON has it.

    Raises WrongUsage or OSError.
    """
    return {
        name: _value(name, value, model.model_fields[name].annotation)
        for name, value in given.items()
        if value is not None
    }


def read_image(text: str) -> bytes | str:
    """A picture by its file or `-`, or a reference to one that the service has. Raises OSError."""
    if parse_reference(text):
        return text
    return sys.stdin.buffer.read() if text == "-" else Path(text).read_bytes()


def _option(name: str, field: FieldInfo) -> Any:
    members = list(_members(field.annotation))
    help_text = field.description or ""
    if bytes in members:
        help_text = " ".join(filter(None, [help_text, OF_A_PICTURE]))
    elif any(map(_has_structure, members)):
        help_text = " ".join(filter(None, [help_text, OF_JSON]))
    default = field.get_default(call_default_factory=True) if not field.is_required() else None
    if isinstance(default, Enum):
        default = default.value
    option = typer.Option(
        f"--{name.replace('_', '-')}",
        *SHORT_NAMES.get(name, ()),
        help=escape(help_text),
        show_default=str(default) if default not in (None, "", [], ()) else False,
        rich_help_panel="What to make",
    )
    return Annotated[_type(members) | None, option]


def _type(members: list[Any]) -> Any:
    """The type that Typer checks; text where it knows none."""
    if len(members) == 1:
        [only] = members
        if only in PLAIN or get_origin(only) is Literal or (inspect.isclass(only) and issubclass(only, Enum)):
            return only
    return str


def _value(name: str, value: Any, annotation: Any) -> Any:
    members = list(_members(annotation))
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, str) and bytes in members:
        return read_image(value)
    if isinstance(value, str) and any(map(_has_structure, members)):
        text = Path(value[1:]).read_text("utf-8") if value.startswith("@") else value
        try:
            return _with_pictures(json.loads(text), annotation)
        except json.JSONDecodeError as error:
            if str in members:
                return value
            raise WrongUsage(f"--{name.replace('_', '-')} takes JSON or @file, and this is none: {error}") from None
    return value


def _with_pictures(value: Any, annotation: Any) -> Any:
    """A JSON value in which `@file`, where the model takes a picture, is the picture as base64."""
    members = list(_members(annotation))
    if isinstance(value, str) and value.startswith("@") and bytes in members:
        return base64.b64encode(Path(value[1:]).read_bytes()).decode()
    if isinstance(value, list):
        items: Any = Union.__getitem__(tuple(arg for one in members for arg in get_args(one)) or (Any,))
        return [_with_pictures(item, items) for item in value]
    if isinstance(value, dict):
        models = [one for one in members if inspect.isclass(one) and issubclass(one, BaseModel)]
        types = {name: field.annotation for one in models for name, field in one.model_fields.items()}
        return {name: _with_pictures(item, types.get(name)) for name, item in value.items()}
    return value


def _members(annotation: Any) -> Iterator[Any]:
    """The types that an annotation allows, without None and without what stands beside them in Annotated."""
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
