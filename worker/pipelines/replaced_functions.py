"""Functions of diffusers that are replaced by functions of equal results."""

import sys
from collections.abc import Callable
from typing import Any


def replace_in_diffusers(name: str, stock: Callable[..., Any], replacement: Callable[..., Any]) -> None:
    """Replace a function in all modules that have imported it. Those that will import it get the replacement."""
    for module in list(sys.modules.values()):
        if getattr(module, "__dict__", {}).get(name) is stock:
            setattr(module, name, replacement)
