"""Builds models without their weights, and counts the bytes of weight files that are read.

The components that load weights ask this module, so that no function between them and the caller has to pass it on.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from transformers import AutoConfig

from .downloads import download_progress

META = "meta"


class WeightFiles:
    """The weight files of one model: how many bytes were read, of how many.

    Attributes:
        is_complete: whether the sizes of all files are known.
    """

    def __init__(self, total: int | None = None) -> None:
        self.total = total
        self.is_complete = True
        self._counted: set[Path] = set()
        self._done = 0
        self._reading = 0
        self._read_before = 0

    @property
    def size(self) -> int:
        """Bytes of the files so far."""
        return self._done

    @property
    def percent(self) -> int | None:
        """Bytes read in percent of the total, or downloaded if that is unknown; None without either."""
        if not self.total:
            downloaded, size = download_progress()
            return min(99, 100 * downloaded // size) if size else None
        # Files in the page cache are mapped without being read: they count once their component is loaded.
        read = min(self._reading, max(0, _bytes_from_disk() - self._read_before)) if self._reading else 0
        return min(99, 100 * (self._done + read) // self.total)

    def size_of(self, files: list[Path]) -> int:
        """Return the bytes of those of the files that were not counted yet."""
        new = set(files) - self._counted
        self._counted |= new
        return sum(file.stat().st_size for file in new)

    @contextmanager
    def reading(self, size: int) -> Iterator[None]:
        """Count files as read at the end of the block, and within it by the bytes from the disk."""
        outer = self._read_before, self._reading
        self._read_before, self._reading = _bytes_from_disk(), size
        try:
            yield
        finally:
            self._read_before, self._reading = outer
        self._done += size


_files: ContextVar[WeightFiles | None] = ContextVar("weight_files", default=None)
_weightless: ContextVar[bool] = ContextVar("weightless", default=False)


@contextmanager
def counting(files: WeightFiles) -> Iterator[None]:
    """Count the weight files that the block reads."""
    token = _files.set(files)
    try:
        yield
    finally:
        _files.reset(token)


@contextmanager
def without_weights(files: WeightFiles) -> Iterator[None]:
    """Build components in the block on the meta device, from their configurations, and add up their files."""
    token = _weightless.set(True)
    try:
        with counting(files):
            yield
    finally:
        _weightless.reset(token)


def is_weightless() -> bool:
    """Return whether components are built without weights."""
    return _weightless.get()


@contextmanager
def reading(files: list[Path]) -> Iterator[None]:
    """Count the files that the block reads."""
    counter = _files.get()
    if counter is None:
        yield
        return
    with counter.reading(counter.size_of(files)):
        yield


def add_unknown() -> None:
    """Note that there are files of unknown size: they are not downloaded yet."""
    counter = _files.get()
    if counter is not None:
        counter.is_complete = False


def is_in_hub_cache(folder: Path) -> bool:
    """Return whether a folder is part of the cache of downloads from the hub."""
    return folder.resolve().is_relative_to(Path(constants.HF_HUB_CACHE).resolve())


def build_without_weights(kind: Any, folder: Path, dtype: torch.dtype) -> torch.nn.Module:
    """Build a module of diffusers or transformers on the meta device."""
    with torch.device(META):
        if hasattr(kind, "load_config"):
            module: torch.nn.Module = kind.from_config(kind.load_config(folder))
        elif hasattr(kind, "config_class"):
            module = kind(kind.config_class.from_pretrained(folder))
        else:
            module = kind.from_config(AutoConfig.from_pretrained(folder))
    return module.to(dtype).eval()


def _bytes_from_disk() -> int:
    """Return the bytes that this process has read from disks; 0 where that is not counted."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return 0
    counts = dict(line.split(": ") for line in lines)
    return int(counts.get("read_bytes", 0))
