"""Calls of the tools of `img2img mcp` with the client of the protocol's own library, in this process."""

from collections.abc import Callable
from typing import Any

import anyio
from mcp import Client
from mcp_types import CallToolResult, TextContent

from img2img.app.compat.mcp.jobs import Service
from img2img.app.compat.mcp.server import build_server

Call = Callable[..., CallToolResult]


def caller(service: Service) -> Call:
    """Return a function that calls a tool, by its name and arguments."""
    server = build_server(service)

    def run(tool: str, **arguments: Any) -> CallToolResult:
        async def work() -> CallToolResult:
            async with Client(server) as session:
                return await session.call_tool(tool, arguments)

        return anyio.run(work)

    return run


def text_of(result: CallToolResult) -> str:
    """Return the only text of a result."""
    [text] = [content.text for content in result.content if isinstance(content, TextContent)]
    return text
