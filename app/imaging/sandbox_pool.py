"""Decoders kept warm: the front end's side. A decoder that dies, hangs or grows is replaced by a new one."""

import fcntl
import logging
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from threading import Lock, Timer
from typing import Any

from anyio import CapacityLimiter
from PIL import Image

from img2img.domain.parameters import Resize
from img2img.errors import Unavailable

from ..http.errors import ImageError, UnsupportedMedia
from .sandbox_limits import SandboxLimits, memory_of
from .sandbox_protocol import Header, receive, send

START_S = 60.0  # a decoder may take this long to be ready, on a busy machine
MAX_GROWTH = 128 * 1024 * 1024  # bytes that a decoder may keep in memory beyond those it had when it was new
PIPE_BYTES = 1024 * 1024  # most pictures fit in, so that neither side waits for the other to read
BY_OTHERS = (-signal.SIGKILL, -signal.SIGTERM)  # the kernel or an operator: no fault of the picture's
ENVIRONMENT = ("PATH", "HOME", "PYTHONPATH", "LD_LIBRARY_PATH")  # and no secret

log = logging.getLogger(__name__)


class DecoderDied(Exception):
    """A decoder ended before it answered."""

    def __init__(self, how: str, *, by_others: bool = False) -> None:
        super().__init__(how)
        self.by_others = by_others


class Decoder:
    """One child process, which does one thing at a time."""

    def __init__(self, limits: SandboxLimits) -> None:
        """Starts it and does not wait. Raises Unavailable."""
        self._limits = limits
        numbers = (limits.max_pixels, limits.max_bytes, limits.memory_bytes, limits.cpu_s)
        try:
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-P", "-m", "img2img.app.imaging.sandbox_process", *map(str, numbers)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
            )
        except OSError as error:
            raise Unavailable(f"Pictures cannot be decoded just now ({error.strerror}); try again soon.") from None
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe
            with suppress(OSError, AttributeError):  # Linux only, and there are limits: smaller ones are slower
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._memory_when_new: int | None = None  # None until it is ready

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def has_grown(self) -> bool:
        """Whether it keeps more memory than it should."""
        return memory_of(self.pid, resident=True) > (self._memory_when_new or 0) + MAX_GROWTH

    def ask(self, asked: Header, picture: bytes, max_answer: int) -> tuple[Header, bytes]:
        """Has something done with a picture. Raises PictureError, Unavailable or Died; of no use after that."""
        if self._memory_when_new is None:
            self._wait_until_ready()
        started_at, most_s = time.monotonic(), self._limits.wall_s
        try:
            return self._exchange(asked, picture, max_answer, most_s)
        except ValueError as error:  # no answer that a decoder of ours would give
            self.kill()
            raise DecoderDied(str(error)) from None
        except (OSError, EOFError):
            code = self.kill()
        if time.monotonic() - started_at >= most_s:
            raise ImageError(f"Decoding the picture takes more than {most_s:g} s.")
        if code == -signal.SIGXCPU:
            raise ImageError(f"Decoding the picture takes more than {self._limits.cpu_s} s of processor time.")
        raise DecoderDied(f"exit code {code}", by_others=code in BY_OTHERS)

    def _wait_until_ready(self) -> None:
        try:
            self._exchange(None, b"", 0, START_S)
        except (OSError, EOFError, ValueError):
            log.error("a decoder of pictures did not start: exit code %s", self.kill())
            raise Unavailable("Pictures cannot be decoded just now; try again in a moment.") from None
        self._memory_when_new = memory_of(self.pid, resident=True)

    def _exchange(self, asked: Header | None, picture: bytes, max_answer: int, most_s: float) -> tuple[Header, bytes]:
        assert self._process.stdin
        assert self._process.stdout
        overdue = Timer(most_s, self._process.kill)  # which ends both pipes, and so whatever we wait for
        overdue.start()
        try:
            if asked is not None:
                send(self._process.stdin, asked, picture)  # type: ignore[arg-type]
            return receive(self._process.stdout, max_answer)  # type: ignore[arg-type]
        finally:
            overdue.cancel()

    def kill(self) -> int | None:
        """Ends it. Returns the exit code: its own, if it had ended already."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdout.close()
        with suppress(OSError):  # something was left to write
            self._process.stdin.close()
        if self._process.poll() is None:
            self._process.kill()
        return self._process.wait()


class DecoderPool:
    """As many decoders as there are cores to keep them busy, started when they are first needed, and then kept."""

    def __init__(self, limits: SandboxLimits) -> None:
        self.limits = limits
        self.limiter = CapacityLimiter(os.cpu_count() or 1)  # for threads that decode: bounds decoders and memory
        self._idle: list[Decoder] = []
        self._lock = Lock()
        self._closed = False

    def start(self) -> None:
        """Starts the first one, so that the first picture need not wait."""
        self._give_back(Decoder(self.limits))

    def close(self) -> None:
        """Ends all; those that are busy end when they are done."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for decoder in idle:
            decoder.kill()

    def open(self, data: bytes) -> "SandboxedImage":
        """A picture that a client sent, looked at. Raises UnsupportedMedia, PictureError or Unavailable."""
        return SandboxedImage(data, self)

    def ask(self, asked: Header, picture: bytes, max_answer: int = 0) -> tuple[Header, bytes]:
        """Has a decoder do something. Raises UnsupportedMedia, PictureError or Unavailable."""
        try:
            answer, pixels = self._ask_once(asked, picture, max_answer)
        except DecoderDied as death:
            if not death.by_others:
                raise ImageError("The picture makes the decoder crash.") from None
            answer, pixels = self._ask_again(asked, picture, max_answer)
        match answer.get("refused"):
            case None:
                return answer, pixels
            case "kind":
                raise UnsupportedMedia
            case "memory":
                raise ImageError("Decoding the picture takes more memory than a picture may take.")
        raise ImageError(str(answer.get("message")))

    def _ask_again(self, asked: Header, picture: bytes, max_answer: int) -> tuple[Header, bytes]:
        try:
            return self._ask_once(asked, picture, max_answer)
        except DecoderDied:
            raise ImageError("The picture makes the decoder crash.") from None

    def _ask_once(self, asked: Header, picture: bytes, max_answer: int) -> tuple[Header, bytes]:
        decoder = self._take()
        try:
            answer = decoder.ask(asked, picture, max_answer)
        except Exception as error:
            log.warning("a decoder of pictures is replaced: %s", error)
            decoder.kill()
            self._give_back(Decoder(self.limits))
            raise
        if answer[0].get("refused") == "memory" or decoder.has_grown:
            decoder.kill()
            decoder = Decoder(self.limits)
        self._give_back(decoder)
        return answer

    def _take(self) -> Decoder:
        with self._lock:
            if self._idle:
                return self._idle.pop()  # the one that was busy last: its memory is warm
        return Decoder(self.limits)

    def _give_back(self, decoder: Decoder) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(decoder)
                return
        decoder.kill()


class SandboxedImage:
    """A picture that a client sent: looked at, not yet decoded. What it becomes, a decoder makes of it."""

    def __init__(self, data: bytes, decoders: DecoderPool) -> None:
        """Raises UnsupportedMedia, PictureError or Unavailable."""
        self._data = data
        self._decoders = decoders
        answer, _ = decoders.ask({"do": "look"}, data)
        self._size = self._size_in(answer)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the upright picture."""
        return self._size

    def check(self) -> None:
        """Decodes the picture for nothing but to see that it can be. Raises PictureError."""
        self._decoders.ask({"do": "check"}, self._data)

    def fit(self, width: int, height: int, resize: Resize) -> Image.Image:
        """The picture brought to a size, in RGB. Raises PictureError."""
        return self._pixels("RGB", (width, height), do="fit", width=width, height=height, resize=resize.value)

    def rgb(self) -> Image.Image:
        """The whole picture in RGB. Raises PictureError."""
        return self._pixels("RGB", self.size, do="rgb")

    def luminance(self) -> Image.Image:
        """The whole picture in grey, transparent parts black. Raises PictureError."""
        return self._pixels("L", self.size, do="luminance")

    def transparency(self) -> Image.Image:
        """White where the picture is transparent, black where it is opaque. Raises PictureError."""
        return self._pixels("L", self.size, do="transparency")

    def _pixels(self, mode: str, size: tuple[int, int], **asked: Any) -> Image.Image:
        expected = size[0] * size[1] * len(mode)
        _, pixels = self._decoders.ask(asked, self._data, expected)
        if len(pixels) != expected:
            raise ImageError("The picture makes the decoder answer nonsense.")
        return Image.frombytes(mode, size, pixels)

    def _size_in(self, answer: Header) -> tuple[int, int]:
        match answer.get("size"):
            case [int(width), int(height)] if width > 0 < height and width * height <= self._decoders.limits.max_pixels:
                return width, height
        raise ImageError("The picture makes the decoder answer nonsense.")
