"""`img2img mcp`: the tools of agents."""

from typing import Annotated

import typer

from .errors import USAGE, client_errors, fail
from .options import LOCAL, ApiKey, Url

# Of a request of the protocol: two images in base64.
MAX_BODY_BYTES = 128 * 1024 * 1024


def mcp(
    url: Url = LOCAL,
    api_key: ApiKey = None,
    http: Annotated[
        bool, typer.Option("--http", help="Listen for streamable HTTP at /mcp, instead of stdin and stdout.")
    ] = False,
    host: Annotated[str, typer.Option(help="Address to listen on, with --http.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on, with --http.")] = 8765,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Name by which clients reach it, with --http, beside those of this machine; can be repeated.",
        ),
    ] = None,
) -> None:
    """Give agents tools that change images (Model Context Protocol).

    Programs of agents start it themselves and use stdin and stdout. With --http, each client sends its own API key.
    """
    try:
        from ..compat.mcp.hosts import accepted_names
        from ..compat.mcp.jobs import Service
        from ..compat.mcp.server import build_server
    except ModuleNotFoundError as error:
        fail(f"the tools are not installed ({error}): pip install 'img2img-server[mcp]'", USAGE)
    from .options import connect

    with client_errors():
        connect(url, api_key).close()
    if not http:
        build_server(Service(url, api_key, with_files=True)).run("stdio")
        return
    if api_key:
        fail("--api-key cannot be used with --http: each client sends its own key as a bearer token", USAGE)
    server = build_server(Service(url, None, with_files=False))
    names = accepted_names(host, allowed_host or ())
    limit = MAX_BODY_BYTES
    server.run("streamable-http", host=host, port=port, max_request_body_size=limit, transport_security=names)
