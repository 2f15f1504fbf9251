"""For which hosts a CA may sign: name constraints (RFC 5280, section 4.2.1.10), as they are made and as they are read.
`proxy.disk.ca` puts them into the local CA, and `proxy.core.rules.inspected` holds a policy against them.

Rules of this module:

- A name permits itself and every name below it: such a constraint cannot say less.
- Every kind of name is closed. To permit names alone would leave addresses free, and GnuTLS takes the two families of
  addresses for two kinds. Where a kind is closed by permitting something, that is a name or address that nobody has.
- Java compares an IPv4 address with IPv6 subtrees, and fails. So IPv4 comes first, and nothing is excluded beside
  addresses that are permitted.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from cryptography import x509

type Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_SHOWN = 5
MAX_OCTETS = 8 * 1024  # Java takes 32 KiB for all certificates of a handshake; and these come in each
_NO_NAME = "overcoat.invalid"  # RFC 6761, section 6.4: never a host's
_EVERYWHERE: tuple[Network, ...] = (ipaddress.IPv4Network("0.0.0.0/0"), ipaddress.IPv6Network("::/0"))
_NOWHERE: tuple[Network, ...] = (ipaddress.IPv4Network("0.0.0.0/32"), ipaddress.IPv6Network("::/128"))  # no host's


class TooMany(ValueError):
    """The hosts are more than a certificate should hold. The message says so."""


@dataclass(frozen=True, slots=True)
class Constraints:
    """The hosts for which a CA may sign.

    Attributes:
        names: the canonical names that are permitted, with all names below; None for any name.
        addresses: the addresses that are permitted; None for any address.
        excluded_names: names that are not, with all names below.
        excluded_addresses: addresses that are not.
    """

    names: frozenset[str] | None
    addresses: tuple[Network, ...] | None
    excluded_names: frozenset[str] = frozenset()
    excluded_addresses: tuple[Network, ...] = ()

    @classmethod
    def to(cls, hosts: Iterable[str]) -> Constraints:
        """Return the constraints to some hosts.

        Args:
            hosts: canonical names and addresses.

        Raises:
            TooMany: they are more than a certificate should hold.
        """
        names: set[str] = set()
        addresses: set[Network] = set()
        for host in hosts:
            try:
                addresses.add(ipaddress.ip_network(host))
            except ValueError:
                names.add(host)
        known = frozenset(names)
        least = frozenset(name for name in known if not _is_below(name.partition(".")[2], known))
        if sum(len(name) + 4 for name in least) + 36 * len(addresses) > MAX_OCTETS:
            raise TooMany(f"it inspects {len(names) + len(addresses)} hosts, too many for the constraints of one CA")
        permitted = least or frozenset((_NO_NAME,))
        if not addresses:
            return cls(permitted, None, excluded_addresses=_EVERYWHERE)
        closed = [none for none in _NOWHERE if all(each.version != none.version for each in addresses)]
        ordered = sorted([*addresses, *closed], key=lambda each: (each.version, int(each.network_address)))
        return cls(permitted, tuple(ordered))

    @classmethod
    def of(cls, certificate: x509.Certificate) -> Constraints | None:
        """Return the constraints in a CA's certificate; None if there are none about hosts.

        Raises:
            ValueError: they cannot be read.
        """
        try:
            found = certificate.extensions.get_extension_for_class(x509.NameConstraints).value
        except x509.ExtensionNotFound:
            return None
        names, addresses = _split(found.permitted_subtrees or ())
        excluded_names, excluded_addresses = _split(found.excluded_subtrees or ())
        if not (names or addresses or excluded_names or excluded_addresses):
            return None
        return cls(names or None, addresses or None, excluded_names, excluded_addresses)

    def extension(self) -> x509.NameConstraints:
        """Return them as they stand in a certificate."""
        return x509.NameConstraints(
            _joined(self.names or frozenset(), self.addresses or ()) or None,
            _joined(self.excluded_names, self.excluded_addresses) or None,
        )

    def permits(self, host: str, *, with_all_below: bool = False) -> bool:
        """Tell whether the CA may sign for a host.

        Args:
            host: its canonical name or address.
            with_all_below: whether it must be so for every name below it, too.
        """
        try:
            network: Network = ipaddress.ip_network(host)
        except ValueError:
            if _is_below(host, self.excluded_names):
                return False
            if with_all_below and any(_is_below(name.lstrip("."), frozenset((host,))) for name in self.excluded_names):
                return False
            return self.names is None or _is_below(host, self.names)
        if _is_in(network, self.excluded_addresses):
            return False
        return self.addresses is None or _is_in(network, self.addresses)

    def texts(self) -> list[str]:
        """Return the hosts that are permitted, for people: names, then addresses; those that nobody has left out."""
        names = sorted(name for name in self.names or () if name != _NO_NAME)
        networks = [each for each in self.addresses or () if each not in _NOWHERE]
        return names + [
            str(each.network_address if each.prefixlen == each.max_prefixlen else each) for each in networks
        ]

    def __str__(self) -> str:
        texts = self.texts()
        return ", ".join(texts[:_SHOWN]) + (f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else "")


def _is_below(name: str, names: frozenset[str]) -> bool:
    """Tell whether a name is one of some names, or below one. A name with a dot before it has only names below it."""
    if name in names or "" in names:
        return True
    while name := name.partition(".")[2]:
        if name in names or f".{name}" in names:
            return True
    return False


def _is_in(network: Network, networks: Iterable[Network]) -> bool:
    return any(
        network.version == each.version and network.subnet_of(each)  # type: ignore[arg-type]  # of one version
        for each in networks
    )


def _split(subtrees: Iterable[x509.GeneralName]) -> tuple[frozenset[str], tuple[Network, ...]]:
    names: set[str] = set()
    networks: list[Network] = []
    for subtree in subtrees:
        if isinstance(subtree, x509.DNSName):
            names.add(subtree.value.lower())
        elif isinstance(subtree, x509.IPAddress):
            networks.append(ipaddress.ip_network(str(subtree.value)))
    return frozenset(names), tuple(networks)


def _joined(names: frozenset[str], networks: Iterable[Network]) -> list[x509.GeneralName]:
    return [*map(x509.DNSName, sorted(names)), *map(x509.IPAddress, networks)]
