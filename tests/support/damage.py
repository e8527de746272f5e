"""Damage to stored images, as disks, file systems and people cause it."""

from collections.abc import Callable
from pathlib import Path

from img2img.blobs import ObjectStore
from tests.support.images import encoded, gradient


def flip_bit(data: bytes, at: int) -> bytes:
    """Return the data with one bit changed."""
    at %= len(data)
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "truncated": lambda png: png[: len(png) // 2],
    "without its end": lambda png: png[:-12],
    "one bit in the signature": lambda png: flip_bit(png, 1),
    "one bit in the header": lambda png: flip_bit(png, 20),
    "one bit in the pixels": lambda png: flip_bit(png, len(png) // 2),
    "one bit in the last checksum": lambda png: flip_bit(png, -1),
    "a block of zeros": lambda png: png[: len(png) // 3] + bytes(len(png) - len(png) // 3),
    "another image": lambda _: encoded(gradient(32, 16)),
}


def damage(store: ObjectStore, key: str, change: Callable[[bytes], bytes] | None) -> None:
    """Change a file of a local store; None deletes it."""
    assert store._folder is not None
    file: Path = store._folder / key
    if change is None:
        file.unlink()
    else:
        file.write_bytes(change(file.read_bytes()))
