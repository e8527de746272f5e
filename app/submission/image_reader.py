"""Opens the images of a request, and collects the blobs of its job."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256

from PIL import Image

from img2img.blobs import BlobStore
from img2img.domain.presigned_upload import PresignedUpload
from img2img.errors import ImageError, UnsupportedMedia
from img2img.imaging.decode import encode_png
from img2img.imaging.sandbox_pool import SandboxedImage
from img2img.redis.job_queue import JobQueue

from ..backends.decoder_share import DecoderShare
from ..schemas.image_references import ImageReference, check_sent, fetch_reference


@contextmanager
def error_field(name: str) -> Iterator[None]:
    """Set the field of image errors that are raised in the context."""
    try:
        yield
    except (ImageError, UnsupportedMedia) as error:
        error.field = name
        raise


@dataclass
class ImageReader:
    """Opens the images of a request, one at a time, and collects the blobs of its job."""

    decoders: DecoderShare
    store: BlobStore
    # Calls a function that uses the store, or fails at once while the store does not respond.
    call_store: Callable[..., bytes]
    # Returns the queue with the jobs and input images that the caller can refer to.
    visible_queue: Callable[[], JobQueue]
    # Seconds for which a referenced image is kept.
    keep_s: float
    # Whether workers may decode an image that was sent to the bucket. If not, it is decoded here.
    may_defer: bool = False
    # PNGs by their sha256.
    blobs: dict[str, bytes] = field(default_factory=dict)

    @contextmanager
    def open(self, name: str, image: bytes | ImageReference | None) -> Iterator[SandboxedImage]:
        """Open an image or the image that a reference names. Image errors name the field."""
        if isinstance(image, ImageReference):
            image = self.call_store(fetch_reference, name, image, self.visible_queue(), self.store, self.keep_s)
        assert image is not None
        with error_field(name), self.decoders.open(image) as opened:
            yield opened

    def defer(self, name: str, upload: PresignedUpload) -> bool:
        """Return whether a worker decodes this image, which the caller has sent to the bucket.

        Raises:
            ParameterError, ImageError: There is no such upload of the caller, or it is too large.
            JobTooExpensive, RateLimited: The caller has reached the rate limit.
        """
        if not self.may_defer:
            return False
        check_sent(name, upload, self.visible_queue(), self.keep_s)
        if upload.size is not None:
            self.decoders.spend(upload.size[0] * upload.size[1])
        return True

    def add_blob(self, image: Image.Image) -> str:
        """Encode an image for the worker and return its sha256."""
        png = encode_png(image)
        digest = sha256(png).hexdigest()
        self.blobs[digest] = png
        return digest
