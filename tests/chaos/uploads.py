"""A client that fills the disk with uploads. They expire, and then the service must work again by itself."""

import os
import time
import zlib
from dataclasses import dataclass, field

import httpx
from PIL import Image

from tests.chaos.deployment import UPLOAD_TTL_S
from tests.support.images import encoded, gradient

# Pixels of the uploads: smaller and smaller, until the disk has no space for the smallest. Noise needs 3 bytes a pixel,
# and a body may have 32 MB.
SIDES = (2800, 900, 300, 90, 16)
MAX_UPLOADS = 40  # more than the disk has space for
REFUSALS = (413, 429, 503, 507)
HEALS_WITHIN_S = 60.0  # after the last upload has expired
PNG_HEADER = 33  # bytes of the signature and the first chunk


@dataclass
class Filled:
    """What became of the uploads."""

    violations: list[str] = field(default_factory=list)
    figures: dict[str, object] = field(default_factory=dict)


def fill_disk_by_uploads(url: str, key: str) -> Filled:
    """Upload images until the service refuses one, and wait until it accepts images again."""
    filled = Filled()
    accepted_bytes = accepted = 0
    with httpx.Client(base_url=url, headers={"X-API-Key": key}, timeout=30, trust_env=False) as http:
        for side in SIDES:
            noise = _noise(side)
            while (status := _upload(http, _with_comment(noise, accepted))) == 201:
                accepted += 1
                accepted_bytes += len(noise)
                if accepted == MAX_UPLOADS:
                    filled.violations.append(f"{accepted_bytes} bytes of uploads were accepted on a small disk")
                    return filled
            if status not in (0, *REFUSALS):
                filled.violations.append(f"HTTP {status} for an upload on a full disk")
        started = time.monotonic()
        heals_at = started + UPLOAD_TTL_S + HEALS_WITHIN_S
        while (status := _upload(http, encoded(gradient(100, 100)))) != 201:
            if time.monotonic() > heals_at:
                filled.violations.append(
                    f"HTTP {status} for an upload {heals_at - started:.0f} s after the disk was full"
                )
                break
            time.sleep(0.5)
    filled.figures["uploads until the disk was full"] = f"{accepted}: {accepted_bytes / 1e6:.0f} MB"
    filled.figures["uploads accepted again after"] = f"{time.monotonic() - started:.1f} s"
    return filled


def _upload(http: httpx.Client, image: bytes) -> int:
    """Return the status, or 0 without a response."""
    try:
        return http.post("/images", files={"image": image}).status_code
    except httpx.TransportError:
        return 0


def _noise(side: int) -> bytes:
    return encoded(Image.frombytes("RGB", (side, side), os.urandom(side * side * 3)), compress_level=1)


def _with_comment(png: bytes, number: int) -> bytes:
    """Return the same image as another file."""
    chunk = b"tEXt" + f"Comment\0{number}".encode()
    comment = (len(chunk) - 4).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    return png[:PNG_HEADER] + comment + png[PNG_HEADER:]
