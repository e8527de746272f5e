"""The decoder pool as one owner may use it: in turns with other owners, and at a price."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar, TypeVarTuple, Unpack

from anyio.to_thread import run_sync

from img2img.domain.presigned_upload import PresignedUpload
from img2img.imaging.dimensions import MOST_PASSES, pixel_count
from img2img.imaging.sandbox_pool import LIGHT_PIXELS, DecoderPool, SandboxedImage

from ..http.rate_limit import RateLimiter

Args = TypeVarTuple("Args")
T = TypeVar("T")


@dataclass(frozen=True)
class DecoderShare:
    """Decodes images for one owner.

    Attributes:
        pool: The decoders that all owners share.
        rate_limiter: Counts the pixels that the owner has decoded; None: no rate limit.
        owner: Id of the API key; "" for all clients without one.
    """

    pool: DecoderPool
    rate_limiter: RateLimiter | None
    owner: str

    async def run(self, function: Callable[[Unpack[Args]], T], *args: *Args, images: Iterable[object] = ()) -> T:
        """Call a function that opens images, on a thread, when it is the owner's turn.

        Args:
            images: Images that the function opens, or references to stored ones. Large ones leave slots for small ones.

        Raises:
            DecodersBusy: Too many requests are waiting.
        """
        async with self.pool.slots.hold(self.owner, heavy=any(map(_is_heavy, images))):
            return await run_sync(function, *args, limiter=self.pool.limiter)

    async def convert(self, function: Callable[[Unpack[Args]], T], *args: *Args) -> T:
        """Call a function that converts an image of a job that has ended, when it is the owner's turn.

        It waits for as long as it takes: the client could not get the result of its job with another request.
        """
        async with self.pool.slots.hold(self.owner, heavy=False, may_refuse=False):
            return await run_sync(function, *args, limiter=self.pool.limiter)

    @contextmanager
    def open(self, data: bytes) -> Iterator[SandboxedImage]:
        """Count the pixels of an image and open it.

        Raises:
            UnsupportedMedia, ImageError, Unavailable: The image cannot be opened.
            JobTooExpensive, RateLimited: The owner has reached the rate limit.
        """
        pixels = pixel_count(data)
        self.spend(pixels)
        with self.pool.open(data) as image:
            if not pixels:
                self.spend(image.size[0] * image.size[1])
            yield image

    def spend(self, pixels: int) -> None:
        """Count pixels that are decoded for the owner. Raises JobTooExpensive or RateLimited."""
        # An image with more is refused before its pixels are decoded.
        if self.rate_limiter and 0 < pixels <= MOST_PASSES * self.pool.limits.max_pixels:
            self.rate_limiter.spend_decoding(self.owner, pixels)


def _is_heavy(image: object) -> bool:
    """Whether decoding an image may take long. The size of a referenced image is not known yet."""
    if isinstance(image, PresignedUpload) and image.size:
        return image.size[0] * image.size[1] > LIGHT_PIXELS
    if isinstance(image, bytes):
        return not 0 < pixel_count(image) <= LIGHT_PIXELS
    return image is not None and not isinstance(image, str)
