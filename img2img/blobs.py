"""Blobs by key, in a local directory or an S3-compatible bucket, through one library (obstore)."""

import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import unquote, urlparse
from uuid import uuid4

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, GenericError
from obstore.store import AzureStore, GCSStore, LocalStore, S3Store, from_url

CONNECT_S = 2
REQUEST_S = 30  # a whole request, with the bytes of a picture
AGAIN_S = 0.5  # between two tries to write

# What a bucket says of a result to who fetches it there, by a signed URL.
_PNG = {"Content-Type": "image/png", "Cache-Control": "private, max-age=31536000, immutable"}


class UnusableStore(Exception):
    """This place cannot be the store; the message says why, in one line."""


class BlobStore(Protocol):
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

    def sign(self, method: Literal["GET", "HEAD"], key: str, expires_s: float) -> str:
        """A URL at which whoever has it can fetch the blob for so long. Raises StoreRefused where there are none."""
        ...

    def check(self) -> None:
        """Raises if the store cannot be written to and read from."""
        ...


class ObjectStore:
    """A store on obstore. Writes appear whole or not at all, and the first writer of a key wins."""

    def __init__(self, url: str, patience_s: float = 60.0) -> None:
        """url: file:///path for a directory, or any URL that obstore takes, such as s3://bucket/prefix.

        patience_s: for how long a request is tried again while a bucket does not answer. Raises StoreRefused.
        """
        self._url = url
        self._patience_s = 0.0
        parsed = urlparse(url)
        try:
            if parsed.scheme == "file":
                self._store: Any = LocalStore(Path(unquote(parsed.path)), automatic_cleanup=True, mkdir=True)
            else:
                self._store = _bucket(url, patience_s)
                self._patience_s = patience_s
        except (BaseError, OSError, ValueError) as error:
            raise UnusableStore(f"IMG2IMG_STORE_URL={url}: {_first_line(error)}") from None

    def put(self, key: str, data: bytes) -> bool:
        give_up_at = time.monotonic() + self._patience_s
        attributes = _PNG if key.endswith(".png") and not isinstance(self._store, LocalStore) else None
        while True:
            try:
                obstore.put(self._store, key, data, mode="create", use_multipart=False, attributes=attributes)
            except AlreadyExistsError:
                return False
            except GenericError:  # obstore does not send it twice after a timeout; to create the same twice is safe
                if time.monotonic() > give_up_at:
                    raise
                time.sleep(AGAIN_S)
            else:
                return True

    def get(self, key: str) -> bytes | None:
        try:
            return bytes(obstore.get(self._store, key).bytes())
        except FileNotFoundError:
            return None

    def delete(self, *keys: str) -> None:
        if isinstance(self._store, S3Store):  # in one request
            obstore.delete(self._store, list(keys))
            return
        for key in keys:
            with suppress(FileNotFoundError):
                obstore.delete(self._store, key)

    def sign(self, method: Literal["GET", "HEAD"], key: str, expires_s: float) -> str:
        if not isinstance(self._store, S3Store | GCSStore | AzureStore):
            raise UnusableStore(f"{self._url} cannot, only a bucket can, such as s3://bucket/prefix")
        return obstore.sign(self._store, method, key, timedelta(seconds=expires_s))

    def check(self) -> None:
        obstore.put(self._store, "check", b"ok")
        obstore.get(self._store, "check").bytes()

    def check_first_writer_wins(self) -> None:
        """Refuses a store that lets a second writer overwrite what the first one wrote. Raises StoreRefused.

        There are S3 servers that do not know `If-None-Match` and ignore it. One that does not answer now may do later:
        then this raises GenericError.
        """
        key = f"checks/{uuid4().hex}"
        try:
            wrote = [self.put(key, data) for data in (b"first", b"second")]
            self.delete(key)
        except GenericError:
            raise
        except (BaseError, OSError) as error:
            raise UnusableStore(f"the store {self._url} cannot be used: {_first_line(error)}") from None
        if wrote != [True, False]:
            raise UnusableStore(
                f"the store {self._url} ignores `If-None-Match: *`: a late worker could overwrite a finished picture. "
                "Use a store with conditional writes"
            )


def _bucket(url: str, patience_s: float) -> Any:
    """Reads credentials, region and endpoint from the environment: AWS_ACCESS_KEY_ID and so on."""
    client: Mapping[str, Any] = {
        "allow_http": True,  # where the endpoint is set to one
        "connect_timeout": timedelta(seconds=CONNECT_S),
        "timeout": timedelta(seconds=REQUEST_S),
    }
    retry: Mapping[str, Any] = {
        "max_retries": 100,
        "retry_timeout": timedelta(seconds=patience_s),
        "backoff": {
            "init_backoff": timedelta(seconds=0.1),
            "max_backoff": timedelta(seconds=2),
            "base": 2,
        },
    }
    return from_url(url, client_options=client, retry_config=retry)  # type: ignore[call-overload]


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0]
