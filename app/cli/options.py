"""Options that several commands have."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from img2img.client import Client

Url = Annotated[str, typer.Option(envvar="IMG2IMG_URL", help="URL of the service.", rich_help_panel="Service")]
ApiKey = Annotated[
    str | None,
    typer.Option(envvar="IMG2IMG_API_KEY", help="API key, sent as a bearer token.", rich_help_panel="Service"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print only JSON on stdout, one document a line.")]
LOCAL = "http://127.0.0.1:8000"


def connect(url: str, api_key: str | None) -> "Client":
    """Return a client of the service.

    Raises:
        WrongUsage: The URL is no HTTP URL.
    """
    from img2img.client import Client

    from .errors import WrongUsage

    if not url.startswith(("http://", "https://")):
        raise WrongUsage(f"--url must start with http:// or https://, got {url!r}")
    return Client(url, api_key=api_key)
