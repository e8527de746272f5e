"""Client of an img2img service, and the code that its processes share.

`from img2img import Client, AsyncClient` gives the client; `img2img.client` has its types and errors.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .client import AsyncClient, Client

    __version__: str

__all__ = ["AsyncClient", "Client", "__version__"]

DISTRIBUTION = "img2img-server"


def __getattr__(name: str) -> Any:
    """Import lazily: the API server and the worker import this package too, and need neither httpx nor the version."""
    if name == "__version__":
        from importlib.metadata import version

        return version(DISTRIBUTION)
    if name in __all__:
        from . import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
