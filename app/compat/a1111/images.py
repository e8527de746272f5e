"""Images in bodies of the web UI, and its way of filling borders."""

from base64 import b64encode

from PIL import Image

from img2img.domain.parameters import Resize
from img2img.errors import ParameterError
from img2img.imaging.decode import encode_png
from img2img.imaging.sandbox_pool import SandboxedImage

from ...schemas.request_fields import parse_image


def parse_web_image(name: str, text: str) -> bytes:
    """Return the bytes of an image in base64. Raises ParameterError."""
    try:
        return parse_image(text)
    except ValueError as error:
        raise ParameterError(name, str(error)) from None


def encoded(image: bytes) -> str:
    """Return an image in base64."""
    return b64encode(image).decode()


def fill_borders(image: SandboxedImage, size: tuple[int, int]) -> bytes:
    """Return the whole image on a canvas of a size, with its outermost pixels repeated to the borders, as a PNG."""
    width, height = size
    scale = min(width / image.size[0], height / image.size[1])
    inner = (max(1, min(width, round(image.size[0] * scale))), max(1, min(height, round(image.size[1] * scale))))
    fitted = image.fit(*inner, Resize.STRETCH)
    left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
    canvas = Image.new("RGB", size)
    canvas.paste(fitted, (left, top))
    _repeat_edge(canvas, (0, top, width, 1), (0, 0, width, top))
    _repeat_edge(canvas, (0, top + inner[1] - 1, width, 1), (0, top + inner[1], width, height - top - inner[1]))
    _repeat_edge(canvas, (left, 0, 1, height), (0, 0, left, height))
    _repeat_edge(canvas, (left + inner[0] - 1, 0, 1, height), (left + inner[0], 0, width - left - inner[0], height))
    return encode_png(canvas)


def _repeat_edge(canvas: Image.Image, edge: tuple[int, int, int, int], border: tuple[int, int, int, int]) -> None:
    """Fill a border with an edge, each given by its left, top, width and height."""
    left, top, width, height = border
    if width <= 0 or height <= 0:
        return
    line = canvas.crop((edge[0], edge[1], edge[0] + edge[2], edge[1] + edge[3]))
    canvas.paste(line.resize((width, height), Image.Resampling.NEAREST), (left, top))
