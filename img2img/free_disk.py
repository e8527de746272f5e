"""Keeps a part of the disk of a local blob store free: for results of running jobs, and for the files of Redis."""

import os
import threading
import time
from pathlib import Path
from urllib.parse import unquote, urlparse

from img2img.errors import StorageFull

# Time for which the free space is not read again. What this process stores is subtracted at once.
CACHED_S = 1.0
RETRY_AFTER_S = 60


def parse_reserve(text: str) -> tuple[float, int]:
    """Return the fraction of the disk and the bytes of a reserve such as `5%` or `1000000000`. Raises ValueError."""
    number, is_percent = text.removesuffix("%"), text.endswith("%")
    try:
        value = float(number) if is_percent else int(number)
    except ValueError:
        value = -1
    if not (0 <= value < 100 if is_percent else value >= 0):
        raise ValueError("Input should be a percentage such as 5%, or a number of bytes")
    return (value / 100, 0) if is_percent else (0.0, int(value))


class FreeDisk:
    """The free space of a blob store's disk. A bucket counts as endless.

    Args:
        store_url: URL of the store.
        reserve: Space to keep free, see `parse_reserve`.
    """

    def __init__(self, store_url: str, reserve: str) -> None:
        parsed = urlparse(store_url)
        self._folder = Path(unquote(parsed.path)) if parsed.scheme == "file" else None
        self._reserve = reserve
        self._fraction, self._bytes = parse_reserve(reserve)
        self._lock = threading.Lock()
        self._read_at = float("-inf")
        self._room = 0

    def take(self, size: int) -> None:
        """Claim room for new bytes. Raises StorageFull if the reserve would be touched, OSError without a disk."""
        with self._lock:
            self._check(size)
            self._room -= size

    def check(self, size: int) -> None:
        """Check that there is room for this many bytes. Raises StorageFull or OSError."""
        with self._lock:
            self._check(size)

    def _check(self, size: int) -> None:
        if self._folder is None:
            return
        if time.monotonic() - self._read_at > CACHED_S:
            self._room, self._read_at = self._read(self._folder), time.monotonic()
        if size > self._room:
            kept = f", except for {self._describe()} that are kept free" if self._fraction or self._bytes else ""
            raise StorageFull(
                f"The disk of the service is full{kept}; try again when images have expired.",
                retry_after_s=RETRY_AFTER_S,
            )

    def _describe(self) -> str:
        return self._reserve if self._fraction else f"{self._bytes:,} bytes"

    def _read(self, folder: Path) -> int:
        """Return the bytes above the reserve."""
        disk = os.statvfs(folder)
        reserve = max(self._bytes, int(self._fraction * disk.f_blocks * disk.f_frsize))
        return disk.f_bavail * disk.f_frsize - reserve
