"""TCP proxies between processes and Redis, or the S3 server, that inject network faults. Each process has its own."""

import asyncio
import threading
from contextlib import suppress
from enum import StrEnum
from pathlib import Path

CHUNK_BYTES = 65536
DELAY_S = 0.3  # of each chunk in a slow proxy


class ProxyFault(StrEnum):
    NONE = "none"
    CUT = "cut"  # connections are closed and refused
    HANG = "hang"  # nothing passes; data sent in that time arrives late
    SLOW = "slow"  # each chunk is delayed
    LOSE_REPLIES = "lose replies"  # requests arrive, but the connection closes instead of the reply


Upstream = Path | int  # a unix socket, or a loopback port


class FaultProxy:
    """Forwards a loopback port to a unix socket or to another loopback port."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._fault = ProxyFault.NONE
        self._passes = asyncio.Event()
        self._passes.set()
        self._open: set[asyncio.StreamWriter] = set()
        self.port = 0

    async def start(self) -> None:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]

    def inject(self, fault: ProxyFault) -> None:
        """Replace the present fault. Called on the event loop of the proxy."""
        self._fault = fault
        if fault is ProxyFault.HANG:
            self._passes.clear()
        else:
            self._passes.set()
        if fault is ProxyFault.CUT:
            for writer in list(self._open):
                writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._passes.wait()
        if self._fault is ProxyFault.CUT:
            writer.transport.abort()
            return
        try:
            if isinstance(self._upstream, Path):
                replies, requests = await asyncio.open_unix_connection(str(self._upstream))
            else:
                replies, requests = await asyncio.open_connection("127.0.0.1", self._upstream)
        except OSError:
            # The server does not run.
            writer.transport.abort()
            return
        both = {writer, requests}
        self._open |= both
        try:
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(reader, requests, is_reply=False))
                pumps.create_task(self._pump(replies, writer, is_reply=True))
        except* OSError:
            pass
        finally:
            self._open -= both
            for end in both:
                end.transport.abort()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, is_reply: bool) -> None:
        """Forward data until one end closes. The error then ends the other direction too."""
        while chunk := await source.read(CHUNK_BYTES):
            await self._passes.wait()
            if self._fault is ProxyFault.SLOW:
                await asyncio.sleep(DELAY_S)
            if is_reply and self._fault is ProxyFault.LOSE_REPLIES:
                break
            sink.write(chunk)
            await sink.drain()
        raise ConnectionResetError


class Proxies:
    """Proxies by name, on an event loop in a thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxies", daemon=True)
        self._thread.start()
        self._proxies: dict[str, FaultProxy] = {}

    def port(self, name: str, upstream: Upstream) -> int:
        """Return the port of the proxy of this name, which forwards to `upstream`."""
        if name not in self._proxies:
            proxy = self._proxies[name] = FaultProxy(upstream)
            asyncio.run_coroutine_threadsafe(proxy.start(), self._loop).result(10)
        return self._proxies[name].port

    def inject(self, name: str, fault: ProxyFault) -> None:
        self._loop.call_soon_threadsafe(self._proxies[name].inject, fault)

    def close(self) -> None:
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
