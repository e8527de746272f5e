"""TCP proxies in front of Redis that misbehave when they are told to, one for each process that is to be cut off."""

import asyncio
import threading
from contextlib import suppress
from enum import StrEnum
from pathlib import Path

PIECE = 65536
LATE_S = 0.3  # by which a slow proxy holds back every piece


class Misbehaviour(StrEnum):
    NONE = "none"
    CUT = "cut"  # connections are closed and refused
    HANG = "hang"  # nothing passes; what was sent meanwhile arrives when it ends, when nobody expects it any more
    SLOW = "slow"  # every piece comes late
    LOSE_ANSWERS = "lose answers"  # commands reach Redis, and the connection closes in the place of the answer


class FaultProxy:
    """One port of loopback that leads to a unix socket."""

    def __init__(self, upstream: Path) -> None:
        self._upstream = upstream
        self._misbehaviour = Misbehaviour.NONE
        self._behaves = asyncio.Event()
        self._behaves.set()
        self._open: set[asyncio.StreamWriter] = set()
        self.port = 0

    async def start(self) -> None:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]

    def misbehave(self, how: Misbehaviour) -> None:
        """From now on. On the proxy's loop."""
        self._misbehaviour = how
        if how is Misbehaviour.HANG:
            self._behaves.clear()
        else:
            self._behaves.set()
        if how is Misbehaviour.CUT:
            for writer in list(self._open):
                writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._behaves.wait()
        if self._misbehaviour is Misbehaviour.CUT:
            writer.transport.abort()
            return
        try:
            from_redis, to_redis = await asyncio.open_unix_connection(str(self._upstream))
        except OSError:  # Redis is dead
            writer.transport.abort()
            return
        both = {writer, to_redis}
        self._open |= both
        try:
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(reader, to_redis, answers=False))
                pumps.create_task(self._pump(from_redis, writer, answers=True))
        except* OSError:
            pass
        finally:
            self._open -= both
            for end in both:
                end.transport.abort()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, answers: bool) -> None:
        """Passes on until one end closes, which it tells by an OSError: then the other direction is over as well."""
        while piece := await source.read(PIECE):
            await self._behaves.wait()
            if self._misbehaviour is Misbehaviour.SLOW:
                await asyncio.sleep(LATE_S)
            if answers and self._misbehaviour is Misbehaviour.LOSE_ANSWERS:
                break
            sink.write(piece)
            await sink.drain()
        raise ConnectionResetError


class Proxies:
    """Proxies by name, on an event loop in a thread of their own."""

    def __init__(self, upstream: Path) -> None:
        self._upstream = upstream
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxies", daemon=True)
        self._thread.start()
        self._proxies: dict[str, FaultProxy] = {}

    def url(self, name: str) -> str:
        """The URL of Redis for the process of this name."""
        if name not in self._proxies:
            proxy = self._proxies[name] = FaultProxy(self._upstream)
            asyncio.run_coroutine_threadsafe(proxy.start(), self._loop).result(10)
        return f"redis://127.0.0.1:{self._proxies[name].port}/0"

    def misbehave(self, name: str, how: Misbehaviour) -> None:
        self._loop.call_soon_threadsafe(self._proxies[name].misbehave, how)

    def close(self) -> None:
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
