"""The blob store: a local directory or an S3-compatible bucket, through obstore."""

import errno
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import unquote, urlparse
from uuid import uuid4

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, GenericError
from obstore.store import AzureStore, GCSStore, LocalStore, S3Store, from_url

from img2img.durable_files import UNFINISHED, create_file, remove_unfinished
from img2img.private_files import make_private

CONNECT_S = 2
REQUEST_S = 30.0
RETRY_DELAY_S = 0.5
# Setting of obstore for another algorithm.
CHECKSUM = "AWS_CHECKSUM_ALGORITHM"

# Contents of the folder of a local store.
LOCAL_ENTRIES = ("inputs", "uploads", "results", "checks", "check", UNFINISHED)

# Response headers of a bucket when a client fetches a result by a signed URL.
_PNG = {"Content-Type": "image/png", "Cache-Control": "private, max-age=31536000, immutable"}


class UnusableStore(Exception):
    """The URL cannot be used as the blob store. The message is one line."""


def is_disk_full(error: Exception) -> bool:
    """Whether a store failed because its disk, or the quota of its user on the disk, is full."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return any(f"os error {code})" in str(error) for code in (errno.ENOSPC, errno.EDQUOT))


class BlobStore(Protocol):
    """Storage of images by key. The first writer of a key wins."""

    @property
    def is_local(self) -> bool:
        """Whether blobs are files on a disk of this machine."""
        ...

    def put(self, key: str, data: bytes) -> bool:
        """Write a blob unless the key exists. Returns whether this call wrote it."""
        ...

    def replace(self, key: str, data: bytes) -> None:
        """Write a blob in place of a damaged one."""
        ...

    def get(self, key: str) -> bytes | None:
        """Return a blob, or None if there is none."""
        ...

    def get_start(self, key: str, size: int) -> bytes | None:
        """Return the first bytes of a blob that is not shorter, or None if there is no blob."""
        ...

    def delete(self, *keys: str) -> None:
        """Delete blobs. Keys without a blob are ignored."""
        ...

    def sign(self, method: Literal["GET", "HEAD"], key: str, expires_s: float) -> str:
        """Return a URL that gives access to a blob for expires_s seconds.

        Raises:
            UnusableStore: The store cannot sign URLs.
        """
        ...

    def check(self) -> None:
        """Check that the store can be written to and read from."""
        ...


class ObjectStore:
    """A blob store on obstore. Writes are atomic and durable, and the first writer of a key wins.

    Args:
        url: file:///path for a directory, or any URL that obstore supports, such as s3://bucket/prefix.
        retry_timeout_s: How long a request is retried while a bucket does not respond.
        response_timeout_s: Time limit of one request to a bucket, including the bytes of an image.

    Raises:
        UnusableStore: The URL is invalid.
    """

    def __init__(self, url: str, retry_timeout_s: float = 60.0, response_timeout_s: float = REQUEST_S) -> None:
        self._url = url
        self._retry_timeout_s = 0.0
        self._folder: Path | None = None
        parsed = urlparse(url)
        try:
            if parsed.scheme == "file":
                self._folder = Path(unquote(parsed.path))
                make_private(self._folder, LOCAL_ENTRIES)
                self._store: Any = LocalStore(self._folder, automatic_cleanup=True)
                remove_unfinished(self._folder)
            else:
                self._store = _bucket(url, retry_timeout_s, response_timeout_s)
                self._retry_timeout_s = retry_timeout_s
        except (BaseError, OSError, ValueError) as error:
            raise UnusableStore(f"IMG2IMG_STORE_URL={url}: {_first_line(error)}") from None

    @property
    def is_local(self) -> bool:
        return isinstance(self._store, LocalStore)

    @property
    def is_s3(self) -> bool:
        """Whether blobs are in a bucket that is addressed as Amazon S3."""
        return isinstance(self._store, S3Store)

    def put(self, key: str, data: bytes) -> bool:
        try:
            return self._write(key, data, "create")
        except AlreadyExistsError:
            return False

    def replace(self, key: str, data: bytes) -> None:
        self._write(key, data, "overwrite")

    def _write(self, key: str, data: bytes, mode: Literal["create", "overwrite"]) -> bool:
        if self._folder is not None:
            return create_file(self._folder, key, data, replace=mode == "overwrite")
        give_up_at = time.monotonic() + self._retry_timeout_s
        attributes = _PNG if key.endswith(".png") else None
        while True:
            try:
                obstore.put(self._store, key, data, mode=mode, use_multipart=False, attributes=attributes)
            except AlreadyExistsError:
                raise
            except GenericError:
                # obstore does not retry after a timeout, because that could write twice. Writing twice is safe.
                if time.monotonic() > give_up_at:
                    raise
                time.sleep(RETRY_DELAY_S)
            else:
                return True

    def get(self, key: str) -> bytes | None:
        try:
            return bytes(obstore.get(self._store, key).bytes())
        except FileNotFoundError as error:
            # Without its folder or bucket the store is unavailable, and the blob may exist.
            if "NoSuchBucket" in str(error) or (self._folder is not None and not self._folder.is_dir()):
                raise GenericError(f"the store {self._url} does not exist") from error
            return None

    def get_start(self, key: str, size: int) -> bytes | None:
        try:
            return bytes(obstore.get_range(self._store, key, start=0, length=size))
        except FileNotFoundError:
            return None

    def delete(self, *keys: str) -> None:
        # Only S3 deletes several keys in one request.
        if isinstance(self._store, S3Store):
            obstore.delete(self._store, list(keys))
            return
        for key in keys:
            with suppress(FileNotFoundError):
                obstore.delete(self._store, key)

    def list_keys(self) -> Iterator[str]:
        """Yield the keys of all blobs."""
        for blobs in obstore.list(self._store):
            yield from (blob["path"] for blob in blobs)

    def sign(self, method: Literal["GET", "HEAD"], key: str, expires_s: float) -> str:
        if not isinstance(self._store, S3Store | GCSStore | AzureStore):
            raise UnusableStore(f"{self._url} cannot sign URLs; a bucket can, such as s3://bucket/prefix")
        return obstore.sign(self._store, method, key, timedelta(seconds=expires_s))

    def check(self) -> None:
        self.replace("check", b"ok")
        obstore.get(self._store, "check").bytes()

    def check_first_writer_wins(self) -> None:
        """Check that a second writer cannot overwrite a blob. Some S3 servers ignore `If-None-Match`.

        Raises:
            UnusableStore: The store lets a second writer overwrite a blob, or refuses requests.
            GenericError: The store does not respond or is full; it may be usable later.
        """
        key = f"checks/{uuid4().hex}"
        try:
            written = [self.put(key, data) for data in (b"first", b"second")]
            self.delete(key)
        except GenericError:
            raise
        except (BaseError, OSError) as error:
            if is_disk_full(error):
                raise GenericError(f"the store {self._url} is full") from error
            raise UnusableStore(f"the store {self._url} cannot be used: {_first_line(error)}") from None
        if written != [True, False]:
            raise UnusableStore(
                f"the store {self._url} ignores `If-None-Match: *`: a late worker could overwrite a finished image. "
                "Use a store with conditional writes"
            )


def _bucket(url: str, retry_timeout_s: float, response_timeout_s: float) -> Any:
    """Open a bucket. obstore reads credentials, region and endpoint from AWS_ACCESS_KEY_ID and so on."""
    client: Mapping[str, Any] = {
        # For endpoints in a private network.
        "allow_http": True,
        "connect_timeout": timedelta(seconds=CONNECT_S),
        "timeout": timedelta(seconds=response_timeout_s),
    }
    retry: Mapping[str, Any] = {
        "max_retries": 100,
        "retry_timeout": timedelta(seconds=retry_timeout_s),
        "backoff": {
            "init_backoff": timedelta(seconds=0.1),
            "max_backoff": timedelta(seconds=2),
            "base": 2,
        },
    }
    # S3 keeps the SHA-256 with the object, and compares it with what it has received and stored.
    config = {"checksum_algorithm": "SHA256"} if url.startswith("s3://") and CHECKSUM not in os.environ else {}
    return from_url(url, config=config, client_options=client, retry_config=retry)  # type: ignore[call-overload]


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0]
