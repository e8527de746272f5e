"""The API server's side of the sandbox: a pool of decoder processes. One that dies, hangs or grows is replaced."""

import fcntl
import logging
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Lock, Timer
from typing import Any

from anyio import CapacityLimiter
from PIL import Image

from img2img.container_limits import cpu_count, memory_bytes
from img2img.domain.parameters import Resize
from img2img.errors import ImageError, Unavailable, UnsupportedMedia
from img2img.imaging.fair_slots import FairSlots
from img2img.imaging.sandbox_limits import BYTES_PER_PIXEL, SandboxLimits
from img2img.imaging.sandbox_protocol import Header, receive, send

# Seconds until a new decoder is ready, on a busy machine.
START_S = 60.0
# Bytes of memory that a decoder may keep in addition to those it had when it was new.
MAX_GROWTH = 128 * 1024 * 1024
# Most images fit into a pipe of this size, so that neither side waits for the other to read.
PIPE_BYTES = 1024 * 1024
# Signals of the kernel or an operator, not caused by the image.
EXTERNAL_SIGNALS = (-signal.SIGKILL, -signal.SIGTERM)
# Environment variables that decoders get: none holds a secret.
ENVIRONMENT = ("PATH", "HOME", "PYTHONPATH", "LD_LIBRARY_PATH")
# Images up to this size are decoded in a fraction of a second.
LIGHT_PIXELS = 8_000_000
# Part of the memory of the machine, or of the container, for images that are being decoded.
MEMORY_SHARE = 0.5
# Requests that may wait for a decoder: each holds its images in memory.
MAX_WAITING = 256
MAX_WAITING_PER_OWNER = 64
OPEN: Header = {"do": "open"}
CLOSE: Header = {"do": "close"}

log = logging.getLogger(__name__)


class DecoderDied(Exception):
    """A decoder ended before it replied."""

    def __init__(self, reason: str, *, is_external: bool = False) -> None:
        super().__init__(reason)
        self.is_external = is_external


class Decoder:
    """A decoder process. Handles one image at a time."""

    def __init__(self, limits: SandboxLimits) -> None:
        """Start the process without waiting until it is ready. Raises Unavailable."""
        self._timeout_s, self._cpu_s = limits.wall_s, limits.cpu_s
        numbers = (limits.max_pixels, limits.max_bytes, limits.memory_bytes, limits.cpu_s)
        try:
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-P", "-m", "img2img.imaging.sandbox_process", *map(str, numbers)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
            )
        except OSError as error:
            raise Unavailable(f"Images cannot be decoded just now ({error.strerror}); try again soon.") from None
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe
            # On Linux only, and up to a limit of the system. A smaller pipe is slower.
            with suppress(OSError, AttributeError):
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        # None until the process is ready.
        self._initial_memory: int | None = None

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def has_grown(self) -> bool:
        """Whether the process keeps too much memory."""
        if self._initial_memory is None:
            return False
        return self._resident_memory() > self._initial_memory + MAX_GROWTH

    def request(self, header: Header, body: bytes, max_reply: int) -> tuple[Header, bytes]:
        """Send a request and return the reply.

        Raises:
            ImageError, Unavailable, DecoderDied: The decoder cannot be used after any of these.
        """
        if self._initial_memory is None:
            self._wait_until_ready()
        started_at, timeout_s = time.monotonic(), self._timeout_s
        try:
            return self._exchange(header, body, max_reply, timeout_s)
        except ValueError as error:
            # Not a reply of our own code.
            self.kill()
            raise DecoderDied(str(error)) from None
        except (OSError, EOFError):
            code = self.kill()
        if time.monotonic() - started_at >= timeout_s:
            raise ImageError(f"Decoding the image takes more than {timeout_s:g} s.")
        if code == -signal.SIGXCPU:
            raise ImageError(f"Decoding the image takes more than {self._cpu_s} s of processor time.")
        raise DecoderDied(f"exit code {code}", is_external=code in EXTERNAL_SIGNALS)

    def forget(self) -> None:
        """Have the process drop its image. It sends no reply."""
        if self._initial_memory is None:
            return
        assert self._process.stdin
        # If it has died, the next request finds out.
        with suppress(OSError, ValueError):
            send(self._process.stdin, CLOSE)  # type: ignore[arg-type]

    def _wait_until_ready(self) -> None:
        try:
            self._exchange(None, b"", 0, START_S)
        except (OSError, EOFError, ValueError):
            log.error("an image decoder did not start: exit code %s", self.kill())
            raise Unavailable("Images cannot be decoded just now; try again in a moment.") from None
        self._initial_memory = self._resident_memory()

    def _exchange(self, header: Header | None, body: bytes, max_reply: int, timeout_s: float) -> tuple[Header, bytes]:
        assert self._process.stdin
        assert self._process.stdout
        # Killing the process closes both pipes, which ends the write or read.
        timer = Timer(timeout_s, self._process.kill)
        timer.start()
        try:
            if header is not None:
                send(self._process.stdin, header, body)  # type: ignore[arg-type]
            return receive(self._process.stdout, max_reply)  # type: ignore[arg-type]
        finally:
            timer.cancel()

    def _resident_memory(self) -> int:
        """Return the bytes of memory that the process uses; 0 if the system does not report it."""
        try:
            # Called for every image: faster than pathlib.
            with open(f"/proc/{self.pid}/statm", "rb") as pages:  # noqa: PTH123
                return int(pages.read().split()[1]) * resource.getpagesize()
        except OSError:
            return 0

    def kill(self) -> int | None:
        """End the process. Returns its exit code: its own if it had ended before."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdout.close()
        # Closing flushes the rest of a message.
        with suppress(OSError):
            self._process.stdin.close()
        if self._process.poll() is None:
            self._process.kill()
        return self._process.wait()


class DecoderPool:
    """Decoders that are started when needed and kept. Threads that decode hold one of the `slots`."""

    def __init__(self, limits: SandboxLimits, *, max_waiting_per_owner: int = MAX_WAITING) -> None:
        self.limits = limits
        self.slots = _fair_slots(limits, max_waiting_per_owner)
        self.limiter = CapacityLimiter(self.slots.slots)
        self._idle: list[Decoder] = []
        self._lock = Lock()
        self._closed = False

    def start(self) -> None:
        """Start a decoder, so that the first image does not wait for one."""
        self.release(Decoder(self.limits))

    def close(self) -> None:
        """End all idle decoders now, and busy ones as soon as they are released."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for decoder in idle:
            decoder.kill()

    @contextmanager
    def open(self, data: bytes) -> Iterator["SandboxedImage"]:
        """Open an image in a decoder that is leased for the duration of the context.

        A thread should have one image open at a time, so that there are as many decoders as threads.

        Raises:
            UnsupportedMedia, ImageError, Unavailable: The image cannot be opened.
        """
        image = SandboxedImage(data, self)
        try:
            image.open()
            yield image
        finally:
            image.close()

    def lease(self) -> Decoder:
        """Return an idle decoder, or a new one. Raises Unavailable."""
        with self._lock:
            if self._idle:
                # The one that was used last: its memory is in caches.
                return self._idle.pop()
        return Decoder(self.limits)

    def release(self, decoder: Decoder) -> None:
        """Return a decoder to the pool, or a new one in its place if it has grown."""
        decoder.forget()
        if decoder.has_grown:
            log.warning("an image decoder is replaced: it has grown")
            decoder.kill()
            decoder = Decoder(self.limits)
        with self._lock:
            if not self._closed:
                self._idle.append(decoder)
                return
        decoder.kill()

    def replace(self, decoder: Decoder, reason: object) -> None:
        """End a decoder and put a new one into the pool."""
        log.warning("an image decoder is replaced: %s", reason)
        decoder.kill()
        self.release(Decoder(self.limits))


def _fair_slots(limits: SandboxLimits, max_waiting_per_owner: int) -> FairSlots:
    """Return a slot for each core, as far as there is memory for the images."""
    memory = int(memory_bytes() * MEMORY_SHARE) // BYTES_PER_PIXEL
    slots = max(1, min(cpu_count(), memory // min(LIGHT_PIXELS, limits.max_pixels)))
    heavy = max(1, min(slots - 1, memory // limits.max_pixels))
    return FairSlots(slots, heavy, max_waiting=MAX_WAITING, max_waiting_per_owner=max_waiting_per_owner)


class SandboxedImage:
    """An untrusted image that is open in a decoder. Its bytes are sent once, for all conversions."""

    def __init__(self, data: bytes, pool: DecoderPool) -> None:
        self._data = data
        self._pool = pool
        self._decoder: Decoder | None = None
        self._is_closed = False
        # Width and height of the upright image.
        self.size = (0, 0)

    def open(self) -> None:
        """Send the image to a decoder. Raises UnsupportedMedia, ImageError or Unavailable."""
        reply, _ = self._request(OPEN)
        match reply.get("size"):
            case [int(width), int(height)] if width > 0 < height and width * height <= self._pool.limits.max_pixels:
                self.size = width, height
            case _:
                raise _invalid_reply()

    def close(self) -> None:
        """Return the decoder to the pool."""
        decoder, self._decoder, self._is_closed = self._decoder, None, True
        if decoder is not None:
            self._pool.release(decoder)

    def check(self) -> None:
        """Decode the image without using the result. Raises ImageError."""
        self._request({"do": "check"})

    def fit(self, width: int, height: int, resize: Resize, *, is_map: bool = False) -> Image.Image:
        """Return the image brought to a size, in RGB. Transparency is blended with white, in a map with black.

        Raises ImageError.
        """
        size = {"width": width, "height": height}
        return self._pixels("RGB", (width, height), do="fit", **size, resize=resize.value, is_map=is_map)

    def rgb(self) -> Image.Image:
        """Return the whole image in RGB. Raises ImageError."""
        return self._pixels("RGB", self.size, do="rgb")

    def luminance(self) -> Image.Image:
        """Return the whole image in grey, transparent pixels black. Raises ImageError."""
        return self._pixels("L", self.size, do="luminance")

    def transparency(self) -> Image.Image:
        """Return a mask: white where the image is transparent, black where it is opaque. Raises ImageError."""
        return self._pixels("L", self.size, do="transparency")

    def _pixels(self, mode: str, size: tuple[int, int], **header: Any) -> Image.Image:
        expected = size[0] * size[1] * len(mode)
        _, pixels = self._request(header, expected)
        if len(pixels) != expected:
            raise _invalid_reply()
        return Image.frombytes(mode, size, pixels)

    def _request(self, header: Header, max_reply: int = 0) -> tuple[Header, bytes]:
        try:
            reply, pixels = self._request_once(header, max_reply)
        except DecoderDied as death:
            if not death.is_external:
                raise ImageError("The image could not be decoded: the decoder crashed.") from None
            try:
                reply, pixels = self._request_once(header, max_reply)
            except DecoderDied:
                raise ImageError("The image could not be decoded: the decoder crashed.") from None
        match reply.get("refused"):
            case None:
                return reply, pixels
            case "kind":
                raise UnsupportedMedia(str(reply.get("message")))
            case "memory":
                raise ImageError("Decoding the image takes more memory than an image may take.")
        raise ImageError(str(reply.get("message")))

    def _request_once(self, header: Header, max_reply: int) -> tuple[Header, bytes]:
        assert not self._is_closed, "the decoder is leased within the context only"
        is_leased = self._decoder is not None
        decoder = self._decoder = self._decoder or self._pool.lease()
        try:
            if not is_leased and header is not OPEN:
                # A new decoder in place of one that was killed: it needs the image, too.
                decoder.request(OPEN, self._data, 0)
            reply = decoder.request(header, self._data if header is OPEN else b"", max_reply)
        except Exception as error:
            self._decoder = None
            self._pool.replace(decoder, error)
            raise
        if reply[0].get("refused") == "memory":
            self._decoder = None
            self._pool.replace(decoder, "it has no memory left")
        return reply


def _invalid_reply() -> ImageError:
    return ImageError("The image could not be decoded: the decoder sent an invalid reply.")
