"""Trace one POST /img2img with a mask and a canny control through the API server.

    python -m benchmarks.request_path [--functions]

Starts the API server in this process with its own redis-server and no worker, sends the request twice, and traces the
second one. Prints the distinct functions and files of `app/` and `img2img/` that it calls, the file-to-file hops (how
often the file changes in the list of functions ordered by first call), and the Redis commands that it sends and that
its scripts run inside Redis.
"""

import argparse
import sys
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from types import CodeType, FrameType
from typing import Any

import httpx
from PIL import Image
from redis import Redis

from benchmarks.api_server import CARD
from img2img.app.settings import ApiSettings
from img2img.app.supervisor.supervisor import free_port
from img2img.domain.conditioning import ControlType
from img2img.domain.parameters import Task
from img2img.redis.model_registry import ModelRegistry
from tests.support.servers import http_server, redis_server

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (f"{ROOT}/app/", f"{ROOT}/img2img/")
CARD_WITH_CONTROL = CARD.model_copy(
    update={
        "tasks": (Task.IMG2IMG, Task.INPAINT, Task.CONTROL),
        "controls": (ControlType.CANNY,),
        "preprocessors": (ControlType.CANNY,),
    }
)
# Runs when any job changes, beside the requests.
BACKGROUND = f"{ROOT}/img2img/redis/notifications.py"
SIZE = (640, 480)
LUA = "lua:"
BEGIN, END = "request_path:begin", "request_path:end"


@dataclass
class Trace:
    """The functions that a request calls, in the order of their first call."""

    enabled: bool = False
    functions: dict[CodeType, int] = field(default_factory=dict)  # and the thread that called it first

    def __call__(self, frame: FrameType, event: str, _arg: Any) -> None:
        """Record a call. A profile function as `sys.setprofile` takes it."""
        file = frame.f_code.co_filename
        if self.enabled and event == "call" and file.startswith(PACKAGES) and file != BACKGROUND:
            self.functions.setdefault(frame.f_code, threading.get_ident())

    @property
    def files(self) -> list[str]:
        """The file of each function, in the order of the first calls."""
        return [str(Path(code.co_filename).relative_to(ROOT)) for code in self.functions]

    @property
    def hops(self) -> int:
        return sum(a != b for a, b in pairwise(self.files))


def trace_request() -> tuple[Trace, list[str]]:
    """Return the trace of the request and its Redis commands."""
    trace = Trace()
    threading.setprofile(trace)  # for the threads of the server, which start below
    try:
        with TemporaryDirectory(prefix="i2i-") as folder, redis_server(Path(folder)) as redis_url:
            settings = ApiSettings(
                _env_file=None, data_dir=Path(folder), redis_url=redis_url, model=CARD.name, port=free_port()
            )
            with Redis.from_url(redis_url) as redis, http_server(settings) as url:
                ModelRegistry(redis).register("worker", [CARD_WITH_CONTROL], ttl_s=600)
                _submit(url, 0)
                commands = _Commands(redis_url)
                redis.echo(BEGIN)
                trace.enabled = True
                _submit(url, 1)
                trace.enabled = False
                redis.echo(END)
                return trace, commands.result()
    finally:
        threading.setprofile(None)


class _Commands:
    """Collects the commands that clients send to Redis between two ECHO commands."""

    def __init__(self, redis_url: str) -> None:
        self._redis_url = redis_url
        self._found: list[str] = []
        self._listening = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        self._listening.wait()

    def _listen(self) -> None:
        with Redis.from_url(self._redis_url) as client, client.monitor() as monitor, suppress(StopIteration):
            self._listening.set()
            entries = monitor.listen()
            while BEGIN not in next(entries)["command"]:
                pass
            while END not in (entry := next(entries))["command"]:
                name = entry["command"].split(" ")[0].upper()
                self._found.append(f"{LUA}{name}" if entry["client_type"] == "lua" else name)

    def result(self) -> list[str]:
        self._thread.join(timeout=10)
        return self._found


def _submit(url: str, shade: int) -> None:
    """Send the request. Requests of different shades share no image."""
    image, mask = Image.linear_gradient("L").resize(SIZE), Image.new("L", SIZE)
    mask.paste(255, (100, 100, 300, 300 + shade))
    files = {"image": _png(Image.merge("RGB", (image, image, Image.new("L", SIZE, shade)))), "mask": _png(mask)}
    data = {"prompt": "a house", "controls": '[{"type": "canny"}]'}
    response = httpx.post(f"{url}/img2img", files=files, data=data, timeout=30)
    assert response.status_code == 202, response.text


def _png(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--functions", action="store_true", help="also list the functions and the commands")
    options = parser.parse_args()
    trace, commands = trace_request()
    if options.functions:
        for file, code in zip(trace.files, trace.functions, strict=True):
            sys.stdout.write(f"{file}  {code.co_qualname}\n")
        sys.stdout.write(f"{dict(Counter(commands))}\n")
    sent = [command for command in commands if not command.startswith(LUA)]
    threads = list(trace.functions.values())
    sys.stdout.write(
        f"{len(trace.functions)} functions, {len(set(trace.files))} files, {trace.hops} file-to-file hops, "
        f"{sum(a != b for a, b in pairwise(threads))} thread changes\n"
        f"{len(sent)} Redis commands sent, {len(commands)} with those that scripts run\n"
    )


if __name__ == "__main__":
    main()
