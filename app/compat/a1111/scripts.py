"""Scripts of the web UI: `sd upscale`, ControlNet, ADetailer, and others as long as they are off."""

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from img2img.domain.model_card import ModelCard
from img2img.errors import ParameterError

from .adetailer import ADETAILER
from .always_on_scripts import SCRIPTS, Script, known_script
from .controlnet_units import Unit
from .neutral import EMPTY
from .upscalers import RESAMPLING, upscalers_of

CONTROLNET = "controlnet"
UPSCALE = "sd upscale"
SUPPORTED = (CONTROLNET, ADETAILER)


def check_scripts(scripts: Mapping[str, Script | None]) -> None:
    """Raise ParameterError for a script that is on, other than those that are supported."""
    for name, script in scripts.items():
        is_known = name.lower() in SUPPORTED or known_script(name)
        if not is_known and script and not all(map(is_off, script.args or ())):
            others = ", ".join(SCRIPTS)
            message = f"This script is not supported; leave it out. Supported are: ControlNet, ADetailer, {others}"
            raise ParameterError(f"alwayson_scripts.{name}", message)


def units_of(scripts: Mapping[str, Script | None]) -> tuple[Unit, ...]:
    """Return the ControlNet units. Raises ParameterError."""
    units = []
    for name, script in scripts.items():
        if name.lower() == CONTROLNET and script:
            for index, argument in enumerate(script.args or ()):
                if argument in EMPTY or isinstance(argument, bool):
                    continue
                try:
                    units.append(Unit.model_validate(argument))
                except ValidationError as error:
                    [first, *_] = error.errors()
                    field = ".".join(map(str, ("alwayson_scripts", name, "args", index, *first["loc"])))
                    raise ParameterError(field, first["msg"]) from None
    return tuple(units)


def upscale_of(name: str | None, args: Iterable[Any], card: ModelCard) -> int | None:
    """Return the factor of the script `sd upscale`; None if no script is named.

    Its arguments are an unused text, the overlap of tiles, an upscaler and the factor. Tiles overlap as needed here.

    Raises:
        ParameterError: Another script is named, or the model does not have the factor or the upscaler.
    """
    if name in EMPTY:
        return None
    if str(name).lower() != UPSCALE:
        raise ParameterError("script_name", f"Input should be `{UPSCALE}` or absent", got=name)
    _, _, upscaler, factor, *_ = (*args, *(None,) * 4)
    factor = 2 if factor is None else factor
    if factor not in card.upscales:
        supported = ", ".join(map(str, card.upscales))
        message = f"The factor should be one of: {supported}" if supported else f"The model {card.name} cannot upscale"
        raise ParameterError("script_args.3", message, got=factor)
    # A number is an index in a list of the web UI, which is not the same for all clients.
    known = (*RESAMPLING, *upscalers_of(card))
    if isinstance(upscaler, str) and upscaler not in ("", *known):
        raise ParameterError("script_args.2", f"Input should be one of: {', '.join(known)}", got=upscaler)
    return int(factor)


def is_off(argument: Any) -> bool:
    if isinstance(argument, dict):
        return not argument or not argument.get("enabled", True) or argument.get("ad_model") == "None"
    return argument in EMPTY
