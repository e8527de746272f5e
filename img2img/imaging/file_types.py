"""Types of image files, by their first bytes."""

import re

from img2img.errors import UnsupportedMedia

ACCEPTED = {"PNG": rb"\x89PNG\r\n\x1a\n", "JPEG": rb"\xff\xd8\xff", "WEBP": rb"RIFF....WEBP"}
# Bytes by which these are identified.
MAGIC_BYTES = 16
# Types that clients send most often in place of those.
OTHERS = {
    "a HEIC": rb"....ftyp(?:hei[cxms]|hev[cxms]|mif1|msf1)",
    "an AVIF": rb"....ftypavi[fs]",
    "a GIF": rb"GIF8[79]a",
    "a BMP": rb"BM....\0\0\0\0",
    "a TIFF": rb"II\*\0|MM\0\*",
    "a JPEG XL": rb"\xff\x0a|\0\0\0\x0cJXL ",
    "a JPEG 2000": rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  ",
    "an SVG": rb"\s*(?:<\?xml[^>]*>\s*)?<svg",
    "an ICO": rb"\0\0[\1\2]\0",
    "a PDF": rb"%PDF-",
    "an HTML": rb"(?i:\s*<!doctype html|\s*<html)",
    "an MP4 or QuickTime": rb"....ftyp",
}


def identify(data: bytes) -> str:
    """Return Pillow's name of the type: PNG, JPEG or WEBP. Raises UnsupportedMedia, which names other types."""
    for kind, magic in ACCEPTED.items():
        if re.match(magic, data, re.DOTALL):
            return kind
    for name, magic in OTHERS.items():
        if re.match(magic, data[:1024], re.DOTALL):
            raise UnsupportedMedia(f"The image is {name} file, not a PNG, JPEG or WebP file; convert it first.")
    if not data:
        raise UnsupportedMedia("The image is an empty file, not a PNG, JPEG or WebP file.")
    raise UnsupportedMedia
