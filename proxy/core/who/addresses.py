"""IP addresses: whether one is public, or of a kind that an app must not reach or that must not use the proxy. The
transport rules, the engine and the policy file's reader call it.

Rules of this module:

- An address with an IPv4 address inside is judged by that one if packets always go there (IPv4-mapped). If a translator
  may send packets there (NAT64), it is public only if the IPv4 address is. Obsolete tunnels (6to4, Teredo) are
  reserved, wherever they lead.
- Addresses at which clouds give out credentials are a kind of their own (metadata). No wider kind and no wider network
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
    """The kinds of addresses that are not public."""

    LOOPBACK = "loopback"
    PRIVATE = "private"
    CGNAT = "cgnat"
    LINK_LOCAL = "link_local"
    METADATA = "metadata"
    MULTICAST = "multicast"
    RESERVED = "reserved"


def _networks(*texts: str) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(text) for text in texts)


# The first entry with the address counts. Taken from IANA's special-purpose registries (RFC 6890) and clouds' manuals.
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
            "2001::/23",  # includes Teredo
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
    """Return the address to which packets for `text` go; for an IPv4-mapped address, that is the IPv4 address.

    Args:
        text: an address as the system gives it; a zone id is ignored.

    Raises:
        ValueError: it is no address.
    """
    address = ipaddress.ip_address(text.partition("%")[0])
    return getattr(address, "ipv4_mapped", None) or address


@lru_cache(maxsize=CACHED)
def network_of(text: str) -> str:
    """Return the network that one client has to itself: an IPv4 address, or 64 bits of IPv6 (RFC 4291, section 2.5.4).

    Args:
        text: its address, as for `parse_ip`.
    """
    address = parse_ip(text)
    return str(address) if address.version == 4 else str(ipaddress.ip_network((address, 64), strict=False))


@lru_cache(maxsize=CACHED)
def kind_of(address: Address) -> AddressKind | None:
    """Return the kind of an address; None for a public one."""
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
    """A set of addresses.

    Attributes:
        kinds: kinds that are in it as a whole.
        networks: networks, or single addresses.
    """

    kinds: frozenset[AddressKind] = frozenset()
    networks: tuple[Network, ...] = ()

    def holds(self, address: Address) -> bool:
        """Tell whether an address is in the set."""
        kind = kind_of(address)
        if kind in self.kinds:
            return True
        return any(
            address in network and (kind is not AddressKind.METADATA or network.num_addresses == 1)
            for network in self.networks
        )

    def texts(self) -> list[str]:
        """Return its kinds and networks as the policy file writes them."""
        hosts = [str(each.network_address) if each.num_addresses == 1 else str(each) for each in self.networks]
        return [*sorted(self.kinds), *hosts]

    def forbids(self, address: Address) -> AddressKind | None:
        """Return the kind because of which an address is forbidden; None if it is public, or in this set."""
        kind = kind_of(address)
        return None if self.holds(address) else kind


def parse_addresses(text: str) -> AddressKind | Network:
    """Read a kind, a network (`10.0.0.0/8`) or an address.

    Raises:
        ValueError: the text is none of these; the message says what would be right.
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
            f"address{_meant(text)}"
        ) from None
    raise ValueError(f"the network's address has bits beyond its length: write {network}")


def _meant(text: str) -> str:
    """Return what was meant by a text that is no address, as far as that is clear."""
    if text.lower() == "localhost":
        return "; this machine is loopback"
    address, _, port = text.rpartition(":")
    try:
        return f"; no port stands here: write {ipaddress.ip_address(address.strip('[]'))}" if port.isdigit() else ""
    except ValueError:
        return ""


def address_set(entries: list[AddressKind | Network]) -> AddressSet:
    """Return the set of entries that `parse_addresses` returned."""
    return AddressSet(
        frozenset(entry for entry in entries if isinstance(entry, AddressKind)),
        tuple(entry for entry in entries if not isinstance(entry, AddressKind)),
    )
