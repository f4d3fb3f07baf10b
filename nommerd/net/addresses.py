"""Which addresses outbound requests may reach: the public internet, and networks that the operator names.

The lists are IANA's special-purpose registries (RFC 6890 and its updates), written out so that they do not depend on the
Python version. IPv6 is allowed by list: global unicast without its special parts.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from nommerd.errors import ConfigError

Address = IPv4Address | IPv6Address

_PRIVATE_4 = tuple(IPv4Network(text) for text in (
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3",
    "168.63.129.16/32",  # Azure's service address: public by number, the machine's own by nature
))
_GLOBAL_6 = IPv6Network("2000::/3")
_PRIVATE_6 = tuple(IPv6Network(text) for text in (
    "2001::/23",  # protocol assignments: Teredo, ORCHID, benchmarking
    "2001:db8::/32", "2002::/16",  # documentation; 6to4, which wraps any IPv4 address
    "3fff::/20",
))
_NAT64 = IPv6Network("64:ff9b::/96")
LOOPBACK: tuple[Address, Address] = (IPv4Address("127.0.0.1"), IPv6Address("::1"))  # what localhost spells


class Policy:
    """Public addresses, and those in `allow_networks` (CIDR). ConfigError config.bad_network for what is no network."""

    def __init__(self, allow_networks: Sequence[str] = ()) -> None:
        try:
            self._allowed = [ip_network(text, strict=False) for text in allow_networks]
        except ValueError:
            raise ConfigError("config.bad_network", "One of net.allow_networks is no network.",
                              "Write 10.0.0.0/8 or fd00::/8.", place="net.allow_networks") from None

    def permits(self, address: Address) -> bool:
        """Whether requests may go there. An IPv4 address within an IPv6 one is judged as itself, too."""
        inner = _inner(address)
        return any(a in network for network in self._allowed for a in (address, inner)) or _public(inner)


def literal(host: str) -> Address | None:
    """The address that a host name spells, as the system's resolver would read it (also 0x7f.1 or 2130706433)."""
    try:
        return ip_address(host.strip("[]"))
    except ValueError:
        pass
    try:
        return IPv4Address(socket.inet_aton(host)) if host[:1].isdigit() else None
    except (OSError, UnicodeEncodeError):
        return None


def resolve(host: str, port: int) -> list[Address]:
    """A name's addresses, best first. Raises socket.gaierror; UnicodeError for what cannot be a name."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [ip_address(str(entry[4][0])) for entry in found if entry[0] in (socket.AF_INET, socket.AF_INET6)]


def _inner(address: Address) -> Address:
    """The IPv4 address inside a mapped or NAT64 one, else the address."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in _NAT64:
            return IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def _public(address: Address) -> bool:
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _PRIVATE_4)
    return address in _GLOBAL_6 and not any(address in network for network in _PRIVATE_6)
