"""Base class of what watches the deployment during a run."""

import threading
from abc import ABC, abstractmethod


class Watcher(ABC):
    """Watches on a thread from `start` to `stop`."""

    def __init__(self, name: str) -> None:
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    @abstractmethod
    def _watch(self) -> None:
        """Watch until `_stopped` is set."""
