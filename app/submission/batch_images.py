"""Reads the images of a batch: each image is decoded, resized and encoded once for all requests that name it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, cast

from PIL import Image

from img2img.imaging.sandbox_pool import SandboxedImage

from ..schemas.image_references import ImageReference, UploadReference
from .image_reader import ImageReader

# Decoded images that are kept for the next requests.
MAX_KEPT_BYTES = 64 * 1024 * 1024


@dataclass
class BatchImageReader(ImageReader):
    """Opens images like `ImageReader`, and keeps the results.

    Attributes:
        images: Images of the batch, by sha256, beside those that the service has.
        decoded: How often an image was decoded.
    """

    images: Mapping[str, bytes] = field(default_factory=dict)
    decoded: int = 0
    _kept: dict[object, dict[tuple[Any, ...], Any]] = field(default_factory=dict)
    _kept_bytes: int = 0
    # The images whose PNG is known, by their ids, and its SHA-256. They are kept, so that no other gets the same id.
    _digests: dict[int, tuple[Image.Image, str]] = field(default_factory=dict)

    @contextmanager
    def open(self, name: str, image: bytes | ImageReference | None) -> Iterator[SandboxedImage]:
        """Open an image; without decoding it, as long as the caller only asks for what was made of it before."""
        key: object = sha256(image).hexdigest() if isinstance(image, bytes) else image
        if isinstance(image, UploadReference) and image.sha256 in self.images:
            image = self.images[image.sha256]
        with ExitStack() as stack:

            def open_image() -> SandboxedImage:
                self.decoded += 1
                return stack.enter_context(super(BatchImageReader, self).open(name, image))

            kept = _KeptImage(self._kept.setdefault(key, {}), open_image, self._count)
            yield cast(SandboxedImage, kept)

    def add_blob(self, image: Image.Image) -> str:
        known = self._digests.get(id(image))
        if known:
            return known[1]
        digest = super().add_blob(image)
        self._digests[id(image)] = (image, digest)
        return digest

    def take_blobs(self) -> dict[str, bytes]:
        """Return the PNGs that were added since the last call. Drops kept images when they are too many."""
        blobs, self.blobs = self.blobs, {}
        if self._kept_bytes > MAX_KEPT_BYTES:
            self._kept.clear()
            self._digests.clear()
            self._kept_bytes = 0
        return blobs

    def _count(self, value: object) -> None:
        if isinstance(value, Image.Image):
            self._kept_bytes += value.width * value.height * len(value.getbands())


class _KeptImage:
    """A `SandboxedImage` whose answers are kept."""

    def __init__(
        self,
        kept: dict[tuple[Any, ...], Any],
        open_image: Callable[[], SandboxedImage],
        count: Callable[[object], None],
    ) -> None:
        self._kept = kept
        self._open = open_image
        self._count = count
        self._opened: SandboxedImage | None = None

    @property
    def size(self) -> tuple[int, int]:
        size: tuple[int, int] = self._answer(("size",), lambda image: image.size)
        return size

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            key = (name, args, tuple(sorted(options.items())))
            return self._answer(key, lambda image: getattr(image, name)(*args, **options))

        return call

    def _answer(self, key: tuple[Any, ...], ask: Callable[[SandboxedImage], Any]) -> Any:
        if key not in self._kept:
            if self._opened is None:
                self._opened = self._open()
            self._kept[key] = ask(self._opened)
            self._count(self._kept[key])
        return self._kept[key]
