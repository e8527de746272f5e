"""How front end and decoder speak over a pipe: a JSON header and a body of bytes, each with its length in front.

No pickle: the front end must be able to read what a decoder says that somebody else has taken over.
"""

import json
import struct
from typing import Any, BinaryIO

LENGTHS = struct.Struct(">IQ")
MAX_HEADER = 4096

Header = dict[str, Any]


def send(pipe: BinaryIO, header: Header, body: bytes = b"") -> None:
    """Writes one message. Raises OSError where nobody reads."""
    head = json.dumps(header).encode()
    pipe.write(LENGTHS.pack(len(head), len(body)) + head)
    pipe.write(body)
    pipe.flush()


def receive(pipe: BinaryIO, max_body: int) -> tuple[Header, bytes]:
    """Reads one message. Raises EOFError where nobody writes, and ValueError for what is no message."""
    head_size, body_size = LENGTHS.unpack(_exactly(pipe, LENGTHS.size))
    if head_size > MAX_HEADER or body_size > max_body:
        raise ValueError("the message is too long")
    header = json.loads(_exactly(pipe, head_size))
    if not isinstance(header, dict):
        raise ValueError("the message has no header")
    return header, _exactly(pipe, body_size)


def _exactly(pipe: BinaryIO, size: int) -> bytes:
    data = pipe.read(size)
    if len(data) < size:
        raise EOFError
    return data
