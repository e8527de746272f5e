"""Decoders that die, hang, grow or run out of what they may use: real child processes, really killed."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from img2img.app.http.errors import ImageError
from img2img.app.imaging import sandbox_pool as pool
from img2img.app.imaging.sandbox_limits import SandboxLimits
from img2img.app.imaging.sandbox_pool import DecoderPool
from img2img.app.imaging.sandbox_protocol import receive, send
from img2img.domain.parameters import Resize
from img2img.errors import Unavailable
from tests.support.images import encoded, gradient

PLAIN = encoded(gradient(96, 64))


class Frugal(SandboxLimits):
    """Gives decoders next to no memory."""

    memory_bytes = 40_000_000  # type: ignore[assignment]


class Hasty(SandboxLimits):
    """Gives decoders next to no processor time."""

    cpu_s = 0  # type: ignore[assignment]  # a process has a whole second at least
    wall_s = 200.0  # type: ignore[assignment]


class Impatient(SandboxLimits):
    """Waits for a decoder for a moment only."""

    wall_s = 3.0  # type: ignore[assignment]


@pytest.fixture
def make() -> Iterator[Callable[..., DecoderPool]]:
    made = []

    def decoders(kind: type[SandboxLimits] = SandboxLimits, max_pixels: int = 30_000_000) -> DecoderPool:
        made.append(DecoderPool(kind(max_pixels, max_bytes=8_000_000)))
        made[-1].start()
        return made[-1]

    yield decoders
    for one in made:
        one.close()


def works(decoders: DecoderPool) -> bool:
    with decoders.open(PLAIN) as image:
        return image.fit(96, 64, Resize.CROP).tobytes() == gradient(96, 64).tobytes()


def look(decoders: DecoderPool) -> tuple[int, int]:
    with decoders.open(PLAIN) as image:
        return image.size


def pid_of(decoders: DecoderPool) -> int:
    """Of the one that is idle, once it is ready."""
    assert works(decoders)
    [decoder] = decoders._idle
    return decoder.pid


def held_up(decoders: DecoderPool, pid: int) -> "Future[object]":
    """A picture that a decoder has begun with and does not go on with. The thread is the caller's to end."""
    os.kill(pid, signal.SIGSTOP)
    future = ThreadPoolExecutor(1).submit(look, decoders)
    while decoders._idle:
        assert not future.done()
        time.sleep(0.01)
    return future


def slow_jpeg() -> bytes:
    """A progressive JPEG of many passes over many pixels: seconds of work in half a megabyte."""
    data = encoded(Image.new("L", (8000, 8000), 99), "JPEG", progressive=True)
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * 50 + data[-2:]


def test_one_decoder_does_one_picture_after_another(make: Callable[..., DecoderPool]) -> None:
    decoders = make()
    pid = pid_of(decoders)
    assert all(works(decoders) for _ in range(20))
    assert pid_of(decoders) == pid


def test_pictures_at_the_same_time_have_a_decoder_each_and_keep_it(make: Callable[..., DecoderPool]) -> None:
    decoders = make()
    held = held_up(decoders, pid := pid_of(decoders))
    assert works(decoders)
    os.kill(pid, signal.SIGCONT)
    held.result()
    assert len(decoders._idle) == 2


def test_a_picture_that_takes_too_much_memory_is_refused(make: Callable[..., DecoderPool]) -> None:
    decoders = make(Frugal)
    pid = pid_of(decoders)
    with (
        decoders.open(encoded(Image.new("RGB", (5000, 5000)))) as large,
        pytest.raises(ImageError, match="more memory than"),
    ):
        large.rgb()
    assert pid_of(decoders) != pid


def test_a_picture_that_takes_too_much_time_is_refused(make: Callable[..., DecoderPool]) -> None:
    decoders = make(Hasty, 64_000_000)
    pid = pid_of(decoders)
    with (
        decoders.open(slow_jpeg()) as slow,
        pytest.raises(ImageError, match="more than 0 s of processor time"),
    ):
        slow.luminance()
    assert pid_of(decoders) != pid


def test_a_decoder_that_hangs_is_replaced(make: Callable[..., DecoderPool]) -> None:
    decoders = make(Impatient)
    held = held_up(decoders, pid := pid_of(decoders))
    with pytest.raises(ImageError, match="takes more than 3 s"):
        held.result()
    assert pid_of(decoders) != pid


@pytest.mark.parametrize("how", [signal.SIGSEGV, signal.SIGABRT])
def test_a_picture_that_makes_a_decoder_crash_is_refused(make: Callable[..., DecoderPool], how: signal.Signals) -> None:
    decoders = make()
    held = held_up(decoders, pid := pid_of(decoders))
    os.kill(pid, how)
    os.kill(pid, signal.SIGCONT)
    with pytest.raises(ImageError, match="crash"):
        held.result()
    assert pid_of(decoders) != pid


@pytest.mark.parametrize("busy", [False, True])
def test_a_decoder_that_others_kill_is_no_fault_of_the_picture(make: Callable[..., DecoderPool], busy: bool) -> None:
    decoders = make()
    pid = pid_of(decoders)
    held = held_up(decoders, pid) if busy else None
    os.kill(pid, signal.SIGKILL)
    if held:
        held.result()
    assert pid_of(decoders) != pid


def test_a_decoder_that_has_grown_is_replaced(
    make: Callable[..., DecoderPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoders = make()
    pid = pid_of(decoders)
    monkeypatch.setattr(pool, "MAX_GROWTH", -1_000_000_000)
    assert works(decoders)
    monkeypatch.undo()
    assert pid_of(decoders) != pid


def test_where_decoders_cannot_start_the_service_is_unavailable(
    make: Callable[..., DecoderPool], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    decoders = make()
    pid = pid_of(decoders)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/bin/false")
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(Unavailable, match="cannot be decoded just now"):
            works(decoders)
        patch.setattr(sys, "executable", str(tmp_path / "no such program"))
        with pytest.raises(Unavailable, match="cannot be decoded just now"):
            works(decoders)
    assert works(decoders)


def test_an_image_crosses_the_pipe_once(make: Callable[..., DecoderPool], monkeypatch: pytest.MonkeyPatch) -> None:
    decoders, bodies = make(), []
    assert works(decoders)

    def counting(pipe: object, header: dict[str, object], body: bytes = b"") -> None:
        bodies.append(body)
        send(pipe, header, body)  # type: ignore[arg-type]

    monkeypatch.setattr(pool, "send", counting)
    with decoders.open(PLAIN) as image:
        assert image.rgb().size == image.luminance().size == image.fit(96, 64, Resize.CROP).size == image.size
        assert image.transparency().getbbox() is None
    assert [body for body in bodies if body] == [PLAIN]


def test_an_open_image_survives_the_killing_of_its_decoder(make: Callable[..., DecoderPool]) -> None:
    decoders = make()
    pid = pid_of(decoders)
    with decoders.open(PLAIN) as image:
        os.kill(pid, signal.SIGKILL)
        assert image.rgb().tobytes() == gradient(96, 64).tobytes()
    assert pid_of(decoders) != pid


def test_nothing_is_left_when_they_are_closed(make: Callable[..., DecoderPool]) -> None:
    decoders = make()
    held = held_up(decoders, busy := pid_of(decoders))
    idle = pid_of(decoders)
    decoders.close()
    os.kill(busy, signal.SIGCONT)
    held.result()
    for pid in (idle, busy):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


TRIES = """
import os, socket
from img2img.app.imaging.sandbox_limits import enter_sandbox
enter_sandbox(50_000_000)
for try_it in (lambda: open("/etc/passwd"), lambda: open("/tmp/x", "w"), socket.socket, os.pipe, lambda: os.dup(1),
               lambda: bytearray(60_000_000), lambda: os.truncate("/dev/null", 1)):
    try:
        try_it()
        print("done")
    except (OSError, MemoryError) as error:
        print(type(error).__name__)
"""


def test_what_is_shut_in_opens_nothing() -> None:
    ran = subprocess.run([sys.executable, "-c", TRIES], capture_output=True, text=True, check=True)
    assert ran.stdout.split()[:6] == ["OSError"] * 5 + ["MemoryError"]


def test_a_decoder_knows_no_secret(make: Callable[..., DecoderPool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMG2IMG_REDIS_URL", "redis://:secret@127.0.0.1/0")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    pid = pid_of(make())
    assert b"secret" not in Path(f"/proc/{pid}/environ").read_bytes()
    limits = Path(f"/proc/{pid}/limits").read_text()
    for name in ("open files", "core file size", "file size", "processes"):
        assert re.search(rf"Max {name} +0 +0 ", limits), limits
    assert "unlimited" not in re.search(r"Max address space.*", limits)[0]


@pytest.mark.parametrize(
    ("header", "body"),
    [
        ({"size": [96]}, b""),
        ({"size": ["96", 64]}, b""),
        ({"size": [0, 64]}, b""),
        ({"size": [9e9, 9e9]}, b""),
        ({}, b""),
    ],
)
def test_a_decoder_in_other_hands_is_not_believed(header: dict[str, object], body: bytes) -> None:
    class InOtherHands:
        has_grown = False

        def request(self, *_: object) -> tuple[dict[str, object], bytes]:
            return header, body

        def forget(self) -> None:
            pass

        def kill(self) -> None:
            pass

    decoders = DecoderPool(SandboxLimits(1_000_000, 1_000_000))
    decoders.release(InOtherHands())  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="invalid reply"):
        look(decoders)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\0" * 5,
        b"\xff" * 12,
        b"\0\0\0\2" + b"\0" * 7 + b"\1{}x",
        b"\0\0\0\2" + b"\0" * 8 + b"[]",
        b"\0\0\0\1" + b"\0" * 8 + b"{",
    ],
)
def test_what_is_no_message_is_refused(message: bytes) -> None:
    with pytest.raises((EOFError, ValueError)):
        receive(BytesIO(message), max_body=0)


def test_messages_come_as_they_were_sent() -> None:
    pipe = BytesIO()
    send(pipe, {"do": "look"}, b"pixels")
    pipe.seek(0)
    assert receive(pipe, max_body=6) == ({"do": "look"}, b"pixels")
