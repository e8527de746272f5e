"""Names by which requests may reach the tools: a web page can rebind its own name to the address of this machine."""

import socket
from collections.abc import Sequence
from contextlib import suppress

from mcp.server.transport_security import TransportSecuritySettings

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
ANY = "*"


def accepted_names(host: str, names: Sequence[str]) -> TransportSecuritySettings:
    """Return the accepted `Host` and `Origin` headers, for all ports.

    Args:
        host: Address on which the server listens.
        names: Further names, such as that of a proxy; `*` accepts all.
    """
    if ANY in names:
        return TransportSecuritySettings(enable_dns_rebinding_protection=False)
    own = [socket.gethostname(), f"[{host}]" if ":" in host else host]
    with suppress(OSError):
        own += socket.gethostbyname_ex(socket.gethostname())[2]
    known = dict.fromkeys(name.lower() for name in (*LOOPBACK, *own, *names))
    hosts = [form for name in known for form in (name, f"{name}:*")]
    origins = [f"{scheme}://{name}" for scheme in ("http", "https") for name in hosts]
    return TransportSecuritySettings(allowed_hosts=hosts, allowed_origins=origins)
