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


def connect(url: str, api_key: str | None, *, presigned_uploads: bool = False) -> "Client":
    """Return a client of the service. `presigned_uploads`: whether it sends images to the bucket, if there is one.

    Raises:
        WrongUsage: The URL is no HTTP URL.
    """
    from img2img.client import Client

    from .errors import WrongUsage

    if not url.startswith(("http://", "https://")):
        raise WrongUsage(f"--url must start with http:// or https://, got {url!r}")
    return Client(url, api_key=api_key, presigned_uploads=presigned_uploads)


def refuse_options_of_group(context: typer.Context) -> None:
    """End a command whose options were given before its name: `img2img models --json list`."""
    from .errors import USAGE, fail

    sources = {name: context.get_parameter_source(name) for name in context.params}
    if given := [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]:
        option = given[0].replace("as_", "").replace("_", "-")
        command = f"img2img {context.info_name} {context.invoked_subcommand}"
        fail(f"--{option} comes after the command: {command} --{option}", USAGE)
