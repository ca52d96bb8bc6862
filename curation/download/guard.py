"""Which machines an address inside data may reach."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

from granary.curation.download.errors import DownloadError

EMBEDDED_IPV4 = ipaddress.ip_network("64:ff9b::/96")  # NAT64 (RFC 6052): the last 32 bits are an IPv4 address
REFUSED = "PrivateAddress"


class RefusedPeer(OSError):
    """The address to connect to is not one of the public Internet; all of them say the same, so that they add up."""

    def __init__(self) -> None:
        super().__init__("it leads to this machine or a private network")


def is_public(address: str) -> bool:
    """Say whether an IP address is of the public Internet: not loopback, link-local, private, reserved or multicast."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if ip in EMBEDDED_IPV4:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        ip = inner or ip
    return ip.is_global and not ip.is_multicast


def public_socket(info: tuple[Any, ...]) -> socket.socket:
    """Return a socket for one resolved address, which is the one that is connected to, however its name resolves next.

    Args:
        info: (family, type, protocol, name, address) as of `socket.getaddrinfo`.

    Raises:
        RefusedPeer: it is no public address.
    """
    family, kind, protocol, _, address = info
    if not is_public(address[0]):
        raise RefusedPeer
    return socket.socket(family, kind, protocol)


def refused() -> DownloadError:
    """Return what the row of such an address says."""
    return DownloadError(REFUSED, f"{RefusedPeer()}; private_addresses true takes it")
