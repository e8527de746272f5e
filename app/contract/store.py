"""Blobs by key, in a local directory or an S3-compatible bucket, through one library (obstore)."""

from contextlib import suppress
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlparse

import obstore
from obstore.exceptions import AlreadyExistsError
from obstore.store import LocalStore, from_url


class Store(Protocol):
    """What the service needs of a place for pictures."""

    def put(self, key: str, data: bytes) -> bool:
        """Writes `data` unless the key exists. Returns whether this call was the one that wrote."""
        ...

    def get(self, key: str) -> bytes | None:
        """The blob, or None where there is none."""
        ...

    def delete(self, *keys: str) -> None:
        """Deletes those of the blobs that are there."""
        ...

    def check(self) -> None:
        """Raises if the store cannot be written to and read from."""
        ...


class ObjectStore:
    """A store on obstore. Writes appear whole or not at all, and the first writer of a key wins."""

    def __init__(self, url: str) -> None:
        """url: file:///path for a directory, or any URL that obstore takes, such as s3://bucket/prefix."""
        parsed = urlparse(url)
        if parsed.scheme == "file":
            self._store = LocalStore(Path(unquote(parsed.path)), automatic_cleanup=True, mkdir=True)
        else:
            self._store = from_url(url)  # type: ignore[assignment]

    def put(self, key: str, data: bytes) -> bool:
        try:
            obstore.put(self._store, key, data, mode="create", use_multipart=False)
        except AlreadyExistsError:
            return False
        return True

    def get(self, key: str) -> bytes | None:
        try:
            return bytes(obstore.get(self._store, key).bytes())
        except FileNotFoundError:
            return None

    def delete(self, *keys: str) -> None:
        for key in keys:
            with suppress(FileNotFoundError):
                obstore.delete(self._store, key)

    def check(self) -> None:
        obstore.put(self._store, "check", b"ok")
        obstore.get(self._store, "check").bytes()


class MemoryStore:
    """The in-memory twin of ObjectStore."""

    def __init__(self) -> None:
        self._blobs: dict[str, bytes] = {}

    def put(self, key: str, data: bytes) -> bool:
        return self._blobs.setdefault(key, data) is data

    def get(self, key: str) -> bytes | None:
        return self._blobs.get(key)

    def delete(self, *keys: str) -> None:
        for key in keys:
            self._blobs.pop(key, None)

    def check(self) -> None:
        return None
