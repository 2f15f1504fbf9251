"""Which IP addresses are what: public, or of a kind that an app must not reach, or that must not reach the proxy.

Rules of this module:

- An address that carries an IPv4 address inside is judged by it where packets go there without anybody's doing
  (IPv4-mapped), and where a translator may send them there (NAT64) only a public one is public. Ways of tunnelling that
  nobody needs any more (6to4, Teredo) are reserved, wherever they lead.
- The addresses where clouds answer with credentials are a kind of their own: neither a wider kind nor a wider network
  includes them.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

type Address = ipaddress.IPv4Address | ipaddress.IPv6Address
type Network = ipaddress.IPv4Network | ipaddress.IPv6Network

CACHED = 1024


class AddressKind(StrEnum):
    """What is no public address."""

    LOOPBACK = "loopback"
    PRIVATE = "private"
    CGNAT = "cgnat"
    LINK_LOCAL = "link_local"
    METADATA = "metadata"
    MULTICAST = "multicast"
    RESERVED = "reserved"


def _networks(*texts: str) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(text) for text in texts)


# The first that holds an address counts. From IANA's special-purpose registries (RFC 6890), and clouds' documentation.
_KINDS: tuple[tuple[AddressKind, tuple[Network, ...]], ...] = (
    (
        AddressKind.METADATA,
        _networks(
            "169.254.169.254/32",  # most clouds
            "169.254.170.2/32",  # ECS tasks
            "169.254.170.23/32",  # EKS pods
            "100.100.100.200/32",
            "192.0.0.192/32",
            "168.63.129.16/32",
            "fd00:ec2::254/128",
            "fd00:ec2::23/128",
            "fd20:ce::254/128",
        ),
    ),
    (AddressKind.LOOPBACK, _networks("127.0.0.0/8", "::1/128", "0.0.0.0/8", "::/128")),
    (AddressKind.PRIVATE, _networks("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7", "fec0::/10")),
    (AddressKind.CGNAT, _networks("100.64.0.0/10")),
    (AddressKind.LINK_LOCAL, _networks("169.254.0.0/16", "fe80::/10")),
    (AddressKind.MULTICAST, _networks("224.0.0.0/4", "ff00::/8")),
    (
        AddressKind.RESERVED,
        _networks(
            "192.0.0.0/24",
            "192.0.2.0/24",
            "192.88.99.0/24",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "240.0.0.0/4",
            "::/96",  # IPv4-compatible
            "::ffff:0:0:0/96",  # IPv4-translated (RFC 2765)
            "64:ff9b:1::/48",
            "100::/64",
            "2001::/23",  # Teredo is in there
            "2001:db8::/32",
            "2002::/16",  # 6to4
            "3fff::/20",
            "5f00::/16",
        ),
    ),
)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


@lru_cache(maxsize=CACHED)
def parse_ip(text: str) -> Address:
    """Return the address that packets to `text` go to; one in IPv4-mapped form is its IPv4 address.

    Args:
        text: an address as the system gives it; a zone id is left out.

    Raises:
        ValueError: it is none.
    """
    address = ipaddress.ip_address(text.partition("%")[0])
    return getattr(address, "ipv4_mapped", None) or address


@lru_cache(maxsize=CACHED)
def network_of(text: str) -> str:
    """Return what one client has for sure: its IPv4 address, or 64 bits of IPv6 addresses (RFC 4291, section 2.5.4).

    Args:
        text: its address, as for `parse_ip`.
    """
    address = parse_ip(text)
    return str(address) if address.version == 4 else str(ipaddress.ip_network((address, 64), strict=False))


@lru_cache(maxsize=CACHED)
def kind_of(address: Address) -> AddressKind | None:
    """Return what kind of address this is; None for a public one."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return kind_of(address.ipv4_mapped)
        if address in _NAT64:
            inside = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
            kind = kind_of(inside)
            return kind if kind in (None, AddressKind.METADATA) else AddressKind.RESERVED
    return next((kind for kind, networks in _KINDS if any(address in network for network in networks)), None)


@dataclass(frozen=True, slots=True)
class AddressSet:
    """Kinds of addresses, and networks.

    Attributes:
        kinds: whole kinds.
        networks: networks, or single addresses.
    """

    kinds: frozenset[AddressKind] = frozenset()
    networks: tuple[Network, ...] = ()

    def holds(self, address: Address) -> bool:
        """Tell whether an address is meant."""
        kind = kind_of(address)
        if kind in self.kinds:
            return True
        return any(
            address in network and (kind is not AddressKind.METADATA or network.num_addresses == 1)
            for network in self.networks
        )

    def forbids(self, address: Address) -> AddressKind | None:
        """Return the kind that makes an address forbidden as a destination; None if it is public, or in this set."""
        kind = kind_of(address)
        return None if self.holds(address) else kind


def parse_addresses(text: str) -> AddressKind | Network:
    """Read a kind, a network (`10.0.0.0/8`) or an address.

    Raises:
        ValueError: it is none of these; the message says what would be right.
    """
    if text in list(AddressKind):
        return AddressKind(text)
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        pass
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(
            f"{text[:40]!r} is none of the kinds ({', '.join(AddressKind)}), nor a network such as 10.0.0.0/8, nor an "
            f"address{'; this machine is loopback' if text.lower() == 'localhost' else ''}"
        ) from None
    raise ValueError(f"the network's address has bits beyond its length: write {network}")


def address_set(entries: list[AddressKind | Network]) -> AddressSet:
    """Return the set of what `parse_addresses` gave."""
    return AddressSet(
        frozenset(entry for entry in entries if isinstance(entry, AddressKind)),
        tuple(entry for entry in entries if not isinstance(entry, AddressKind)),
    )
