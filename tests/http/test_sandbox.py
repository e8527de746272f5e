"""Decoders that crash, hang, grow or exceed a limit: real child processes, killed with signals."""

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

from img2img.domain.parameters import Resize
from img2img.errors import ImageError, Unavailable
from img2img.imaging import sandbox_pool
from img2img.imaging.sandbox_limits import SandboxLimits
from img2img.imaging.sandbox_pool import DecoderPool
from img2img.imaging.sandbox_protocol import receive, send
from tests.support.images import encoded, gradient

PLAIN = encoded(gradient(96, 64))


class LittleMemory(SandboxLimits):
    """Limits decoders to very little memory."""

    memory_bytes = 40_000_000  # type: ignore[assignment]


class LittleTime(SandboxLimits):
    """Limits decoders to the shortest processor time."""

    # The kernel allows at least one second.
    cpu_s = 0  # type: ignore[assignment]
    wall_s = 200.0  # type: ignore[assignment]


class ShortTimeout(SandboxLimits):
    """Limits the wait for a decoder to a few seconds."""

    wall_s = 3.0  # type: ignore[assignment]


@pytest.fixture
def make_decoders() -> Iterator[Callable[..., DecoderPool]]:
    pools = []

    def start(kind: type[SandboxLimits] = SandboxLimits, max_pixels: int = 30_000_000) -> DecoderPool:
        pools.append(DecoderPool(kind(max_pixels, max_bytes=8_000_000)))
        pools[-1].start()
        return pools[-1]

    yield start
    for decoders in pools:
        decoders.close()


def decodes(decoders: DecoderPool) -> bool:
    with decoders.open(PLAIN) as image:
        return image.fit(96, 64, Resize.CROP).tobytes() == gradient(96, 64).tobytes()


def read_size(decoders: DecoderPool) -> tuple[int, int]:
    with decoders.open(PLAIN) as image:
        return image.size


def pid_of(decoders: DecoderPool) -> int:
    """Return the process id of the only idle decoder, once it is ready."""
    assert decodes(decoders)
    [decoder] = decoders._idle
    return decoder.pid


def open_on_stopped_decoder(decoders: DecoderPool, pid: int) -> "Future[object]":
    """Stop the decoder, and open an image with it in a thread, which ends when the decoder continues or is killed."""
    os.kill(pid, signal.SIGSTOP)
    future = ThreadPoolExecutor(1).submit(read_size, decoders)
    while decoders._idle:
        assert not future.done()
        time.sleep(0.01)
    return future


def slow_jpeg() -> bytes:
    """Return a progressive JPEG with many scans: half a megabyte that takes seconds to decode."""
    data = encoded(Image.new("L", (8000, 8000), 99), "JPEG", progressive=True)
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * 50 + data[-2:]


def test_sequential_images_share_one_decoder(make_decoders: Callable[..., DecoderPool]) -> None:
    decoders = make_decoders()
    pid = pid_of(decoders)
    assert all(decodes(decoders) for _ in range(20))
    assert pid_of(decoders) == pid


def test_concurrent_images_use_separate_decoders(make_decoders: Callable[..., DecoderPool]) -> None:
    decoders = make_decoders()
    held = open_on_stopped_decoder(decoders, pid := pid_of(decoders))
    assert decodes(decoders)
    os.kill(pid, signal.SIGCONT)
    held.result()
    assert len(decoders._idle) == 2


def test_image_above_the_memory_limit_is_rejected(make_decoders: Callable[..., DecoderPool]) -> None:
    decoders = make_decoders(LittleMemory)
    pid = pid_of(decoders)
    with (
        decoders.open(encoded(Image.new("RGB", (5000, 5000)))) as large,
        pytest.raises(ImageError, match="more memory than"),
    ):
        large.rgb()
    assert pid_of(decoders) != pid


def test_image_above_the_time_limit_is_rejected(make_decoders: Callable[..., DecoderPool]) -> None:
    decoders = make_decoders(LittleTime, 64_000_000)
    pid = pid_of(decoders)
    with (
        decoders.open(slow_jpeg()) as slow,
        pytest.raises(ImageError, match="more than 0 s of processor time"),
    ):
        slow.luminance()
    assert pid_of(decoders) != pid


def test_hanging_decoder_is_replaced(make_decoders: Callable[..., DecoderPool]) -> None:
    decoders = make_decoders(ShortTimeout)
    held = open_on_stopped_decoder(decoders, pid := pid_of(decoders))
    with pytest.raises(ImageError, match="takes more than 3 s"):
        held.result()
    assert pid_of(decoders) != pid


@pytest.mark.parametrize("crash_signal", [signal.SIGSEGV, signal.SIGABRT])
def test_image_that_crashes_a_decoder_is_rejected(
    make_decoders: Callable[..., DecoderPool], crash_signal: signal.Signals
) -> None:
    decoders = make_decoders()
    held = open_on_stopped_decoder(decoders, pid := pid_of(decoders))
    os.kill(pid, crash_signal)
    os.kill(pid, signal.SIGCONT)
    with pytest.raises(ImageError, match="crash"):
        held.result()
    assert pid_of(decoders) != pid


@pytest.mark.parametrize("busy", [False, True])
def test_killed_decoder_does_not_reject_the_image(make_decoders: Callable[..., DecoderPool], busy: bool) -> None:
    decoders = make_decoders()
    pid = pid_of(decoders)
    held = open_on_stopped_decoder(decoders, pid) if busy else None
    os.kill(pid, signal.SIGKILL)
    if held:
        held.result()
    assert pid_of(decoders) != pid


def test_decoder_that_has_grown_is_replaced(
    make_decoders: Callable[..., DecoderPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoders = make_decoders()
    pid = pid_of(decoders)
    monkeypatch.setattr(sandbox_pool, "MAX_GROWTH", -1_000_000_000)
    assert decodes(decoders)
    monkeypatch.undo()
    assert pid_of(decoders) != pid


def test_service_is_unavailable_if_no_decoder_starts(
    make_decoders: Callable[..., DecoderPool], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    decoders = make_decoders()
    pid = pid_of(decoders)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/bin/false")
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(Unavailable, match="cannot be decoded just now"):
            decodes(decoders)
        patch.setattr(sys, "executable", str(tmp_path / "no such program"))
        with pytest.raises(Unavailable, match="cannot be decoded just now"):
            decodes(decoders)
    assert decodes(decoders)


def test_image_is_sent_to_its_decoder_once(
    make_decoders: Callable[..., DecoderPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoders, bodies = make_decoders(), []
    assert decodes(decoders)

    def counting(pipe: object, header: dict[str, object], body: bytes = b"") -> None:
        bodies.append(body)
        send(pipe, header, body)  # type: ignore[arg-type]

    monkeypatch.setattr(sandbox_pool, "send", counting)
    with decoders.open(PLAIN) as image:
        assert image.rgb().size == image.luminance().size == image.fit(96, 64, Resize.CROP).size == image.size
        assert image.transparency().getbbox() is None
    assert [body for body in bodies if body] == [PLAIN]


def test_open_image_survives_a_killed_decoder(make_decoders: Callable[..., DecoderPool]) -> None:
    decoders = make_decoders()
    pid = pid_of(decoders)
    with decoders.open(PLAIN) as image:
        os.kill(pid, signal.SIGKILL)
        assert image.rgb().tobytes() == gradient(96, 64).tobytes()
    assert pid_of(decoders) != pid


def test_close_leaves_no_processes(make_decoders: Callable[..., DecoderPool]) -> None:
    decoders = make_decoders()
    held = open_on_stopped_decoder(decoders, busy := pid_of(decoders))
    idle = pid_of(decoders)
    decoders.close()
    os.kill(busy, signal.SIGCONT)
    held.result()
    for pid in (idle, busy):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


ATTEMPTS = """
import os, socket
from img2img.imaging.sandbox_limits import enter_sandbox
enter_sandbox(50_000_000)
for attempt in (lambda: open("/etc/passwd"), lambda: open("/tmp/x", "w"), socket.socket, os.pipe, lambda: os.dup(1),
               lambda: bytearray(60_000_000), lambda: os.truncate("/dev/null", 1)):
    try:
        attempt()
        print("done")
    except (OSError, MemoryError) as error:
        print(type(error).__name__)
"""


def test_sandboxed_process_opens_nothing() -> None:
    completed = subprocess.run([sys.executable, "-c", ATTEMPTS], capture_output=True, text=True, check=True)
    assert completed.stdout.split()[:6] == ["OSError"] * 5 + ["MemoryError"]


def test_decoder_has_resource_limits_and_no_secrets(
    make_decoders: Callable[..., DecoderPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMG2IMG_REDIS_URL", "redis://:secret@127.0.0.1/0")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    pid = pid_of(make_decoders())
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
def test_invalid_reply_of_a_compromised_decoder_is_rejected(header: dict[str, object], body: bytes) -> None:
    class CompromisedDecoder:
        has_grown = False

        def request(self, *_: object) -> tuple[dict[str, object], bytes]:
            return header, body

        def forget(self) -> None:
            pass

        def kill(self) -> None:
            pass

    decoders = DecoderPool(SandboxLimits(1_000_000, 1_000_000))
    decoders.release(CompromisedDecoder())  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="invalid reply"):
        read_size(decoders)


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
def test_receive_rejects_malformed_messages(message: bytes) -> None:
    with pytest.raises((EOFError, ValueError)):
        receive(BytesIO(message), max_body=0)


def test_receive_returns_the_sent_message() -> None:
    pipe = BytesIO()
    send(pipe, {"do": "open"}, b"pixels")
    pipe.seek(0)
    assert receive(pipe, max_body=6) == ({"do": "open"}, b"pixels")
