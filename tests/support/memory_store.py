"""A blob store in memory."""

from typing import Literal

from img2img.blobs import UnusableStore


class MemoryStore:
    """A `BlobStore` for tests that need only its semantics."""

    def __init__(self) -> None:
        self._blobs: dict[str, bytes] = {}

    @property
    def is_local(self) -> bool:
        return False

    def put(self, key: str, data: bytes) -> bool:
        return self._blobs.setdefault(key, data) is data

    def replace(self, key: str, data: bytes) -> None:
        self._blobs[key] = data

    def get(self, key: str) -> bytes | None:
        return self._blobs.get(key)

    def get_start(self, key: str, size: int) -> bytes | None:
        return self._blobs[key][:size] if key in self._blobs else None

    def delete(self, *keys: str) -> None:
        for key in keys:
            self._blobs.pop(key, None)

    def sign(self, method: Literal["GET", "HEAD"], key: str, expires_s: float) -> str:
        raise UnusableStore(f"a memory store cannot sign URLs: {method} {key} for {expires_s:g} s")

    def check(self) -> None:
        return None
