"""Messages between the API server and a decoder: a JSON header and a body of bytes, each preceded by its length.

No pickle: the API server must be able to read the replies of a decoder that an attacker controls.
"""

import json
import struct
from typing import Any, BinaryIO

LENGTHS = struct.Struct(">IQ")
MAX_HEADER = 4096

Header = dict[str, Any]


def send(pipe: BinaryIO, header: Header, body: bytes = b"") -> None:
    """Write a message. Raises OSError if the other side is closed."""
    head = json.dumps(header).encode()
    pipe.write(LENGTHS.pack(len(head), len(body)) + head)
    pipe.write(body)
    pipe.flush()


def receive(pipe: BinaryIO, max_body: int) -> tuple[Header, bytes]:
    """Read a message. Raises EOFError at the end of the input, and ValueError for an invalid message."""
    head_size, body_size = LENGTHS.unpack(_read_exactly(pipe, LENGTHS.size))
    if head_size > MAX_HEADER or body_size > max_body:
        raise ValueError("the message is too long")
    header = json.loads(_read_exactly(pipe, head_size))
    if not isinstance(header, dict):
        raise ValueError("the message has no header")
    return header, _read_exactly(pipe, body_size)


def _read_exactly(pipe: BinaryIO, size: int) -> bytes:
    data = pipe.read(size)
    if len(data) < size:
        raise EOFError
    return data
