"""Scripts of the web UI that are always on, besides ControlNet: soft inpainting, FreeU and perturbed attention."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from img2img.errors import ParameterError


class Script(BaseModel):
    """The arguments of a script that is always on."""

    model_config = ConfigDict(frozen=True)

    # By position, or one object with the labels of the script's page.
    args: list[Any] | None = None


@dataclass(frozen=True)
class Argument:
    """An argument of a script after the one that switches it on.

    Attributes:
        label: name in an object of arguments.
        default: the only value that this service has, if there is no `field`.
        field: path of the field of `POST /img2img`.
    """

    label: str
    default: float
    field: str = ""


# By the start of their titles, in lower case.
SCRIPTS: Mapping[str, tuple[Argument, ...]] = {
    "soft inpainting": (
        Argument("Schedule bias", 1),
        Argument("Preservation strength", 0.5),
        Argument("Transition contrast boost", 4),
        Argument("Mask influence", 0),
        Argument("Difference threshold", 0.5),
        Argument("Difference contrast", 2),
    ),
    "freeu": (
        Argument("B1", 1.01, "freeu.b1"),
        Argument("B2", 1.02, "freeu.b2"),
        Argument("S1", 0.99, "freeu.s1"),
        Argument("S2", 0.95, "freeu.s2"),
        Argument("Start", 0),
        Argument("End", 1),
    ),
    "perturbedattentionguidance": (
        Argument("Scale", 3, "pag_scale"),
        Argument("Attenuation", 0),
        Argument("Start", 0),
        Argument("End", 1),
    ),
}
# The field that switches a script on by itself.
SWITCHES = {"soft inpainting": "soft_inpainting"}


def known_script(title: str) -> str | None:
    """Return the entry of SCRIPTS that a title begins with."""
    return next((name for name in SCRIPTS if title.lower().startswith(name)), None)


def script_fields(scripts: Mapping[str, Script | None], *, is_masked: bool) -> dict[str, Any]:
    """Return the fields of `POST /img2img` that the scripts set.

    Args:
        is_masked: whether the request has a mask, without which soft inpainting does nothing.

    Raises:
        ParameterError: An argument has a value that this service does not have.
    """
    fields: dict[str, Any] = {}
    for title, script in scripts.items():
        name = known_script(title)
        given = _given(name, script.args) if name and script and script.args else None
        if name is None or given is None or (name == "soft inpainting" and not is_masked):
            continue
        if name in SWITCHES:
            fields[SWITCHES[name]] = True
        for argument, value in zip(SCRIPTS[name], given, strict=True):
            if argument.field:
                parent, _, child = argument.field.rpartition(".")
                (fields.setdefault(parent, {}) if parent else fields)[child] = value
            elif value != argument.default:
                message = f"{argument.label} of this script can only be {argument.default}; leave it out"
                raise ParameterError(f"alwayson_scripts.{title}", message, got=value)
    return fields


def _given(name: str, args: Iterable[Any]) -> list[Any] | None:
    """Return the arguments of a script, None if it is off."""
    first, *others = args
    arguments = SCRIPTS[name]
    if isinstance(first, dict):
        switch = first.get("enabled", next((value for key, value in first.items() if key.lower() == name), True))
        by_label = {key.lower(): value for key, value in first.items()}
        given = [by_label.get(argument.label.lower(), argument.default) for argument in arguments]
        return given if switch else None
    defaults = [argument.default for argument in arguments]
    return [*others, *defaults[len(others) :]][: len(arguments)] if first else None
