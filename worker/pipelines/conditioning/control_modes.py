"""Control modes of union ControlNets: the numbers by which they know the kind of a control map."""

from collections.abc import Mapping
from typing import Any

from img2img.domain.conditioning import ControlName, ControlType

from ...errors import StartupError

# Published: xinsir/controlnet-union-sdxl-1.0 has modes 0 to 5, its Pro Max version 0 to 7.
_SDXL: Mapping[str, int] = {
    ControlType.POSE: 0,
    ControlType.DEPTH: 1,
    ControlType.SOFTEDGE: 2,
    ControlType.SCRIBBLE: 2,
    ControlType.CANNY: 3,
    ControlType.LINEART: 3,
    ControlType.MLSD: 3,
    ControlType.NORMAL: 4,
    ControlType.SEGMENTATION: 5,
    ControlType.TILE: 6,
    "repaint": 7,
}
# Published: InstantX/FLUX.1-dev-Controlnet-Union and Shakker-Labs/FLUX.1-dev-ControlNet-Union-Pro.
_FLUX: Mapping[str, int] = {
    ControlType.CANNY: 0,
    ControlType.TILE: 1,
    ControlType.DEPTH: 2,
    ControlType.BLUR: 3,
    ControlType.POSE: 4,
    ControlType.GRAY: 5,
    ControlType.LOW_QUALITY: 6,
}
# By class of the ControlNet: modes by control type, and the key of its configuration that has their number.
_UNIONS: Mapping[str, tuple[Mapping[str, int], str]] = {
    "ControlNetUnionModel": (_SDXL, "num_control_type"),
    "FluxControlNetModel": (_FLUX, "num_mode"),
}


def control_mode(control_type: ControlName, given: int | None, net: Any) -> int | None:
    """Return the mode of a control type; None if the ControlNet is for one type only.

    Args:
        given: mode that the model file gives.
        net: the ControlNet.

    Raises:
        StartupError: the ControlNet has no such mode.
    """
    modes, key = _UNIONS.get(type(net).__name__, ({}, ""))
    count = net.config.get(key) if key else None
    if count is None:
        if given is not None:
            raise StartupError("`mode` is for union ControlNets; remove it")
        return None
    mode = modes.get(control_type) if given is None else given
    if mode is not None and mode < count:
        return mode
    if given is not None:
        raise StartupError(f"it has the modes 0 to {count - 1}, not {given}")
    known = ", ".join(name for name, number in modes.items() if number < count)
    raise StartupError(f"it is a union ControlNet with the types {known}; set `mode` to use it for another type")
