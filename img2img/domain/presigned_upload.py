"""PresignedUpload: an image that a client sends to the bucket itself, as the client has declared it.

Its id holds what was declared, and identifies the upload among those that Redis has reserved for an owner.
"""

import re
from dataclasses import dataclass
from secrets import token_hex
from typing import Self

# Seconds until which a client can begin to send the image.
URL_S = 900
# Time at which the URL expires, 24 random digits, SHA-256, bytes, width and height; 0x0 if the size was not declared.
ID = r"[0-9a-f]{8}[0-9a-f]{24}-[0-9a-f]{64}-[0-9]{1,10}-[0-9]{1,5}x[0-9]{1,5}"
_PARTS = re.compile(r"([0-9a-f]{8})([0-9a-f]{24})-([0-9a-f]{64})-([0-9]{1,10})-([0-9]{1,5})x([0-9]{1,5})")
PATH = "/uploads/"


@dataclass(frozen=True)
class PresignedUpload:
    """What a client has declared of an image before it sends it.

    Attributes:
        expires_at: When the URL to send it to expires, in whole seconds since the epoch.
        nonce: 24 random hexadecimal digits.
        size: Width and height of the upright image; None if they were not declared.
    """

    expires_at: int
    nonce: str
    sha256: str
    bytes: int
    size: tuple[int, int] | None

    @classmethod
    def new(cls, sha256: str, size_bytes: int, size: tuple[int, int] | None, now: float) -> Self:
        """Return an upload whose URL is valid for URL_S from now on."""
        return cls(int(now) + URL_S, token_hex(12), sha256, size_bytes, size)

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Return the upload with this id, None if it is no id."""
        found = _PARTS.fullmatch(text)
        if found is None:
            return None
        expires_at, nonce, sha256, size_bytes, width, height = found.groups()
        size = (int(width), int(height))
        return cls(int(expires_at, 16), nonce, sha256, int(size_bytes), size if all(size) else None)

    @property
    def id(self) -> str:
        width, height = self.size or (0, 0)
        return f"{self.expires_at:08x}{self.nonce}-{self.sha256}-{self.bytes}-{width}x{height}"

    @property
    def path(self) -> str:
        """The reference to the image in a request."""
        return PATH + self.id
