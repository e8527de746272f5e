"""The process that decodes pictures: `python -m app.decoding.child MAX_PIXELS MAX_BYTES MEMORY_BYTES CPU_S`.

It reads pictures from its standard input and answers on its standard output, one after the other, until the input ends.
It keeps nothing of a picture, and gives back sizes and raw pixels: nothing that the front end would have to decode.
"""

import os
import signal
import sys
import warnings
from io import BytesIO
from typing import BinaryIO

from PIL import Image, ImageCms, JpegImagePlugin, MpoImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

from img2img.domain.parameters import Resize

from ..http.errors import ImageError, UnsupportedMedia
from .decode import EncodedImage
from .sandbox_limits import enter_sandbox, set_cpu_limit
from .sandbox_protocol import Header, receive, send

# Pillow imports some of these when it meets a picture that needs them, and then it would be too late.
NEEDED = (ImageCms, JpegImagePlugin, MpoImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin)


def main() -> None:
    max_pixels, max_bytes, memory_bytes, cpu_s = map(int, sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the front end, whose end is the end of our input
    warnings.simplefilter("ignore")
    Image.preinit()
    _rehearse()
    pictures, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):  # what a library prints belongs neither among answers nor into a log
        os.dup2(nowhere, stream)
    enter_sandbox(memory_bytes)
    send(answers, {})
    _work(pictures, answers, max_pixels, max_bytes, cpu_s)


def _rehearse() -> None:
    """Decodes one picture of each kind, so that all that is loaded late is there."""
    for kind in ("PNG", "JPEG", "WEBP"):
        buffer, exif = BytesIO(), Image.Exif()
        exif[0x0112] = 6
        Image.new("RGB", (2, 2)).save(
            buffer, kind, exif=exif, icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        )
        EncodedImage(buffer.getvalue(), max_pixels=4).fit(1, 1, Resize.PAD)


def _work(pictures: BinaryIO, answers: BinaryIO, max_pixels: int, max_bytes: int, cpu_s: int) -> None:
    while True:
        try:
            asked, data = receive(pictures, max_bytes)
        except EOFError:
            return
        set_cpu_limit(cpu_s)
        try:
            answer, pixels = act(asked, data, max_pixels)
        except UnsupportedMedia:
            answer, pixels = {"refused": "kind"}, b""
        except ImageError as error:
            answer, pixels = {"refused": "picture", "message": error.message[:500]}, b""
        except MemoryError:
            answer, pixels = {"refused": "memory"}, b""
        send(answers, answer, pixels)


def act(asked: Header, data: bytes, max_pixels: int) -> tuple[Header, bytes]:
    """Does what is asked with one picture. Raises UnsupportedMedia, PictureError or MemoryError."""
    upload = EncodedImage(data, max_pixels)
    match asked["do"]:
        case "look":
            return {"size": upload.size}, b""
        case "check":
            upload.check()
            return {"size": upload.size}, b""
        case "fit":
            image = upload.fit(asked["width"], asked["height"], Resize(asked["resize"]))
        case "rgb":
            image = upload.rgb()
        case "luminance":
            image = upload.luminance()
        case "transparency":
            image = upload.transparency()
        case other:
            raise ValueError(other)
    return {"size": image.size}, image.tobytes()


if __name__ == "__main__":
    main()
