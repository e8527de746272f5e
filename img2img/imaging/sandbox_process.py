"""A decoder process: `python -m img2img.imaging.sandbox_process MAX_PIXELS MAX_BYTES MEMORY_BYTES CPU_S`.

Reads requests from standard input and writes replies to standard output until the input ends. A request opens an image
or converts the open one. Replies hold sizes and raw pixels, nothing that the API server would have to decode.
"""

import os
import signal
import sys
import warnings
from io import BytesIO
from typing import BinaryIO

from PIL import Image, ImageCms, JpegImagePlugin, MpoImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

from img2img.domain.parameters import Resize
from img2img.errors import ImageError, UnsupportedMedia
from img2img.imaging.decode import EncodedImage
from img2img.imaging.sandbox_limits import enter_sandbox, set_cpu_limit
from img2img.imaging.sandbox_protocol import Header, receive, send

# Pillow imports some of these for the first image that needs them. In the sandbox that is too late.
NEEDED = (ImageCms, JpegImagePlugin, MpoImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin)


def main() -> None:
    max_pixels, max_bytes, memory_bytes, cpu_s = map(int, sys.argv[1:])
    # Ctrl-C is for the API server. When that ends, so does our input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    Image.preinit()
    _decode_samples()
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    # Output of libraries belongs neither among replies nor into a log.
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    enter_sandbox(memory_bytes)
    send(replies, {})
    _serve(requests, replies, Session(max_pixels), max_bytes, cpu_s)


def _decode_samples() -> None:
    """Decode an image of each kind, so that all code that is loaded late is loaded."""
    for kind in ("PNG", "JPEG", "WEBP"):
        buffer, exif = BytesIO(), Image.Exif()
        exif[0x0112] = 6
        Image.new("RGB", (2, 2)).save(
            buffer, kind, exif=exif, icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        )
        EncodedImage(buffer.getvalue(), max_pixels=4).fit(1, 1, Resize.PAD)


def _serve(requests: BinaryIO, replies: BinaryIO, session: "Session", max_bytes: int, cpu_s: int) -> None:
    while True:
        try:
            header, data = receive(requests, max_bytes)
        except EOFError:
            return
        if header["do"] == "close":
            session.close()
            continue
        set_cpu_limit(cpu_s)
        try:
            reply, pixels = session.handle(header, data)
        except UnsupportedMedia as error:
            reply, pixels = {"refused": "kind", "message": error.message}, b""
        except ImageError as error:
            reply, pixels = {"refused": "image", "message": error.message[:500]}, b""
        except MemoryError:
            reply, pixels = {"refused": "memory"}, b""
        del data
        send(replies, reply, pixels)


class Session:
    """The image that is open in this process."""

    def __init__(self, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        self._data = b""

    def close(self) -> None:
        """Drop the image, so that there is memory for the next one."""
        self._data = b""

    def handle(self, header: Header, data: bytes) -> tuple[Header, bytes]:
        """Open an image or convert the open one. Raises UnsupportedMedia, ImageError or MemoryError."""
        if header["do"] == "open":
            self._data = data
        # Opened again for each conversion, because decoding changes Pillow's image. This reads the headers only.
        image = EncodedImage(self._data, self._max_pixels)
        match header["do"]:
            case "open":
                return {"size": image.size}, b""
            case "check":
                image.check()
                return {"size": image.size}, b""
            case "fit":
                result = image.fit(header["width"], header["height"], Resize(header["resize"]), is_map=header["is_map"])
            case "rgb":
                result = image.rgb()
            case "luminance":
                result = image.luminance()
            case "transparency":
                result = image.transparency()
            case other:
                raise ValueError(other)
        return {"size": result.size}, result.tobytes()


if __name__ == "__main__":
    main()
