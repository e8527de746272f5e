"""The journal of a batch: a file next to the results, with which the same command continues after an interruption."""

import json
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

NAME = ".img2img-batch.jsonl"


@dataclass(frozen=True)
class Entry:
    """An input of a batch, its job and the files with its results.

    Attributes:
        key: Hash of the input and of everything that determines its results.
        input: Name of the input.
        idempotency_key: Sent with the job. It is stored first, so that no submission is repeated after an interruption.
        id: Id of the job; empty until the service has responded.
        files: Paths of the results, relative to the folder of the journal; empty until all are saved.
    """

    key: str
    input: str
    idempotency_key: str = ""
    id: str = ""
    files: tuple[str, ...] = ()


class Journal:
    """The entries of the batches whose results are in one folder. Threads may share it.

    Each change is a line of JSON; the last line with a key counts.

    Raises:
        OSError: The file cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / NAME
        self._lock = threading.Lock()
        self._entries: dict[str, Entry] = {}
        lines = self._path.read_text("utf-8").split("\n") if self._path.exists() else [""]
        # The command may have been killed while it wrote the last line.
        self._is_torn = lines[-1] != ""
        for line in lines:
            entry = _parse(line)
            if entry:
                self._entries[entry.key] = entry

    def find(self, key: str) -> Entry | None:
        """Return the entry with this key."""
        return self._entries.get(key)

    def entry_of_job(self, job_id: str) -> Entry | None:
        """Return the entry of a job."""
        return next((entry for entry in self._entries.values() if entry.id == job_id), None)

    def unfinished(self) -> list[Entry]:
        """Return the entries with a job whose results are not saved."""
        return [entry for entry in self._entries.values() if entry.id and not entry.files]

    def results(self) -> Iterator[tuple[Path, str]]:
        """Yield the files with results that exist, and the names of their inputs."""
        for entry in self._entries.values():
            for path in self.paths(entry):
                if path.exists():
                    yield path, entry.input

    def paths(self, entry: Entry) -> list[Path]:
        """Return the files with the results of an entry."""
        return [self._folder / file for file in entry.files]

    def is_done(self, entry: Entry) -> bool:
        """Return whether all results of an entry are saved and exist."""
        return bool(entry.files) and all(path.exists() for path in self.paths(entry))

    def saved(self, entry: Entry, files: list[Path]) -> None:
        """Record that the results of an entry are saved."""
        self.record(replace(entry, files=tuple(os.path.relpath(file, self._folder) for file in files)))

    def record(self, entry: Entry) -> None:
        """Append a new state of an entry.

        Raises:
            OSError: The file cannot be written.
        """
        with self._lock, self._path.open("a", encoding="utf-8") as file:
            file.write("\n" * self._is_torn + json.dumps(asdict(entry)) + "\n")
            self._is_torn = False
            self._entries[entry.key] = entry


def key_of(*parts: Any) -> str:
    """Return a hash of JSON values, which may contain bytes."""
    text = json.dumps(parts, sort_keys=True, default=lambda image: sha256(image).hexdigest())
    return sha256(text.encode()).hexdigest()


def _parse(line: str) -> Entry | None:
    try:
        document = json.loads(line)
        if not isinstance(document, Mapping):
            return None
        entry = Entry(**document)
    except (ValueError, TypeError):
        return None
    return replace(entry, files=tuple(entry.files))
