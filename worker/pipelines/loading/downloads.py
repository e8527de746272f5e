"""Counts the bytes that huggingface_hub downloads. The worker logs and reports them instead of progress bars."""

import importlib
from typing import Any
from weakref import WeakSet

from huggingface_hub.utils.tqdm import tqdm as hub_tqdm

_bars: "WeakSet[CountingBar]" = WeakSet()


class CountingBar(hub_tqdm):
    """A progress bar that is not shown."""

    def __init__(self, *args: Any, **options: Any) -> None:
        # A transfer bar counts the same bytes as the bar beside it.
        counts = options.get("unit") == "B" and not str(options.get("name")).endswith(".transfer")
        super().__init__(*args, **{**options, "disable": True})  # type: ignore[no-untyped-call]
        if counts:
            _bars.add(self)

    def update(self, n: float | None = 1) -> None:
        """Count bytes or files."""
        self.n += n or 0


def count_downloads() -> None:
    """Let all downloads of this process be counted."""
    # No argument of diffusers or transformers chooses the class of the bars.
    for module, name in (("huggingface_hub.utils.tqdm", "tqdm"), ("huggingface_hub._snapshot_download", "hf_tqdm")):
        setattr(importlib.import_module(module), name, CountingBar)


def download_progress() -> tuple[int, int]:
    """Return the downloaded and the total bytes of the downloads in progress; 0 and 0 without one."""
    bars = list(_bars)
    return int(sum(bar.n for bar in bars)), int(sum(bar.total or 0 for bar in bars))
