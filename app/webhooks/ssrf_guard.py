"""Which addresses a webhook may lead to: those of the public internet, and nothing that only looks like one."""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from img2img.domain.webhook import Webhook
from img2img.errors import ParameterError

# `is_global` follows the registry of the day when Python was released, and takes these for public, or has.
NOT_PUBLIC_V4 = (
    ip_network("192.0.0.0/24"),  # protocol assignments; metadata of a cloud at 192.0.0.192
    ip_network("192.88.99.0/24"),  # once relays of 6to4
    ip_network("168.63.129.16/32"),  # metadata of a cloud
)
PUBLIC_V6 = ip_network("2000::/3")  # all that has ever been given out; mapped, site-local and the rest lie outside
NOT_PUBLIC_V6 = (
    ip_network("2001::/23"),  # Teredo, which carries an IPv4 address, and other protocols
    ip_network("2002::/16"),  # 6to4, which carries one, too
    ip_network("3fff::/20"),  # for documentation
)
NAT64 = ip_network("64:ff9b::/96")  # carries an IPv4 address: how a network without IPv4 reaches all of it


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether it is a unicast address of the public internet."""
    if address in NAT64:
        return is_public(IPv4Address(int(address) & 0xFFFFFFFF))
    if not address.is_global or address.is_multicast:
        return False
    if isinstance(address, IPv6Address):
        return address in PUBLIC_V6 and not any(address in network for network in NOT_PUBLIC_V6)
    return not address.is_reserved and not any(address in network for network in NOT_PUBLIC_V4)


def check_webhook(webhook: Webhook, *, allow_private: bool) -> None:
    """Refuses what can be seen to lead nowhere without asking DNS. Raises ParameterError."""
    if allow_private:
        return
    if webhook.url.scheme != "https":
        raise ParameterError("webhook.url", "URL should begin with https://", got=str(webhook.url))
    if not _may_be_public(webhook.host):
        raise ParameterError("webhook.url", "URL should lead to a public address", got=str(webhook.url))


def _may_be_public(host: str) -> bool:
    try:
        return is_public(ip_address(host.strip("[]")))
    except ValueError:
        name = host.rstrip(".")
        return name != "localhost" and not name.endswith(".localhost")
