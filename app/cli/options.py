"""Options that several commands have."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from img2img.client import Client

Url = Annotated[str, typer.Option(envvar="IMG2IMG_URL", help="The service.")]
ApiKey = Annotated[str | None, typer.Option(envvar="IMG2IMG_API_KEY", help="Sent as a bearer token.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document a line on stdout, and nothing else there.")]
LOCAL = "http://127.0.0.1:8000"


def connect(url: str, api_key: str | None) -> "Client":
    """A client of the service. Raises WrongUsage."""
    from img2img.client import Client

    from .errors import WrongUsage

    if not url.startswith(("http://", "https://")):
        raise WrongUsage(f"the URL of a service starts with http:// or https://, and this one is {url!r}")
    return Client(url, api_key=api_key)
