"""Prints the parameters that a PNG file holds: of this service, or of the AUTOMATIC1111 web UI."""

import json
from pathlib import Path
from typing import Any

from .errors import WrongUsage
from .printing import echo, print_fields, to_json


def print_parameters(file: Path, *, as_json: bool) -> None:
    """Print the parameters of an image. Raises WrongUsage if it holds none."""
    parameters = _read(file)
    if as_json:
        echo(to_json(parameters))
    else:
        print_fields(parameters)


def _read(file: Path) -> dict[str, Any]:
    from img2img.domain.infotext import parse_infotext

    # Needs Pillow, which other commands do not.
    try:
        from img2img.imaging.png import SIGNATURE, read_texts
    except ImportError:
        raise WrongUsage('files are read with Pillow: pip install "img2img-server[watch]"') from None

    content = file.read_bytes()
    texts = read_texts(content) if content.startswith(SIGNATURE) else {}
    try:
        own = json.loads(texts.get("img2img", "{}"))
    except ValueError:
        own = {}
    if isinstance(own, dict) and own:
        return own
    if "parameters" in texts:
        return parse_infotext(texts["parameters"])
    raise WrongUsage(f"{file} holds no parameters")
