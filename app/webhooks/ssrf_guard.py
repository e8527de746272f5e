"""Decides which addresses webhooks may be sent to: public ones, as a guard against server-side request forgery.

`ipaddress.is_global` follows the IANA special-purpose address registries (RFC 6890) as of the Python release. The
networks below are special, but global in some releases.
"""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from img2img.domain.webhook import BatchWebhook
from img2img.errors import ParameterError

NOT_PUBLIC_V4 = (
    # IETF protocol assignments (RFC 6890); 192.0.0.192 is a cloud's metadata service.
    ip_network("192.0.0.0/24"),
    # 6to4 relay anycast, deprecated (RFC 7526).
    ip_network("192.88.99.0/24"),
    # Metadata service of a cloud.
    ip_network("168.63.129.16/32"),
)
# All unicast addresses assigned so far (RFC 4291). Excludes mapped and site-local addresses.
PUBLIC_V6 = ip_network("2000::/3")
NOT_PUBLIC_V6 = (
    # IETF protocol assignments (RFC 2928), including Teredo, which embeds an IPv4 address.
    ip_network("2001::/23"),
    # 6to4 (RFC 3056), which embeds an IPv4 address.
    ip_network("2002::/16"),
    # Documentation (RFC 9637).
    ip_network("3fff::/20"),
)
# NAT64 (RFC 6052) embeds an IPv4 address: an IPv6-only network reaches IPv4 hosts by it.
NAT64 = ip_network("64:ff9b::/96")


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether `address` is a unicast address of the public internet."""
    if address in NAT64:
        return is_public(IPv4Address(int(address) & 0xFFFFFFFF))
    if not address.is_global or address.is_multicast:
        return False
    if isinstance(address, IPv6Address):
        return address in PUBLIC_V6 and not any(address in network for network in NOT_PUBLIC_V6)
    return not address.is_reserved and not any(address in network for network in NOT_PUBLIC_V4)


def check_webhook(webhook: BatchWebhook, *, allow_private: bool) -> None:
    """Reject URLs that are invalid without a DNS lookup. Raises ParameterError.

    Host names are checked when a webhook is sent, by `PinnedTransport`.
    """
    if allow_private:
        return
    if webhook.url.scheme != "https":
        raise ParameterError("webhook.url", "URL should begin with https://", got=str(webhook.url))
    if not _may_be_public(webhook.host):
        raise ParameterError("webhook.url", "URL should have a public host", got=str(webhook.url))


def _may_be_public(host: str) -> bool:
    try:
        return is_public(ip_address(host.strip("[]")))
    except ValueError:
        name = host.rstrip(".")
        return name != "localhost" and not name.endswith(".localhost")
