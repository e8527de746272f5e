"""`AsyncClient` with blocking methods, so that one test covers both clients."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Iterator
from typing import Any, Self

from img2img import AsyncClient


class BlockingAsyncClient:
    """Runs each method of an `AsyncClient` to completion on an event loop of this thread."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._runner = asyncio.Runner()
        self._client = AsyncClient(*args, **options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._runner.run(self._client.close())
        self._runner.close()

    def __getattr__(self, name: str) -> Any:
        return _Batches(self) if name == "batches" else self._blocking(getattr(self._client, name))

    def _blocking(self, method: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            result = method(*args, **options)
            return self._iterate(result) if inspect.isasyncgen(result) else self._runner.run(result)

        return call

    def _iterate(self, items: AsyncIterator[Any]) -> Iterator[Any]:
        while True:
            try:
                yield self._runner.run(anext(items))
            except StopAsyncIteration:
                return


class _Batches:
    """Runs each method of `AsyncClient.batches` to completion."""

    def __init__(self, client: BlockingAsyncClient) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return self._client._blocking(getattr(self._client._client.batches, name))
