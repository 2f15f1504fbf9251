"""For which hosts a CA may sign: the fewest constraints that close every kind of name, and those of others, read."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.certificates.constraints import MAX_OCTETS, Constraints, TooMany

KEY = ec.generate_private_key(ec.SECP256R1())
DNS = x509.DNSName
LABELS = st.sampled_from(["a", "b", "xn--bcher-kva", "my_db", "1"])
NAMES = st.lists(LABELS, min_size=1, max_size=4).map(lambda labels: ".".join([*labels, "example"]))
ADDRESSES = st.sampled_from(["192.0.2.7", "10.0.0.1", "2001:db8::1", "::1"])


def net(text: str) -> x509.IPAddress:
    return x509.IPAddress(ipaddress.ip_network(text))


def certificate(extension: x509.ExtensionType | None) -> x509.Certificate:
    name = x509.Name([])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(KEY.public_key())
    builder = builder.serial_number(1)
    builder = builder.not_valid_before(datetime(2027, 1, 1, tzinfo=UTC)).not_valid_after(
        datetime(2028, 1, 1, tzinfo=UTC)
    )
    if extension is not None:
        builder = builder.add_extension(extension, critical=True)
    return builder.sign(KEY, hashes.SHA256())


def of(
    permitted: list[x509.GeneralName] | None = None, excluded: list[x509.GeneralName] | None = None
) -> Constraints | None:
    return Constraints.of(certificate(x509.NameConstraints(permitted, excluded)))


class TestWhatIsMade:
    """Its form is that which every client tried takes, and holds the CA to: see docs/decisions/constrained-ca.md."""

    @pytest.mark.parametrize(
        ("hosts", "permitted", "excluded"),
        [
            (["b.example", "a.example"], [DNS("a.example"), DNS("b.example")], [net("0.0.0.0/0"), net("::/0")]),
            # A name has those below it already.
            (["x.a.example", "a.example", "y.x.a.example", "xa.example"], [DNS("a.example"), DNS("xa.example")], True),
            (["192.0.2.7"], [DNS("overcoat.invalid"), net("192.0.2.7/32"), net("::/128")], None),
            (["::1", "a.example"], [DNS("a.example"), net("0.0.0.0/32"), net("::1/128")], None),
            (
                ["::1", "10.0.0.9", "10.0.0.10"],
                [DNS("overcoat.invalid"), *map(net, ("10.0.0.9", "10.0.0.10", "::1"))],
                None,
            ),
        ],
    )
    def test_it_permits_no_more_than_it_must(
        self, hosts: list[str], permitted: list[x509.GeneralName], excluded: list[x509.GeneralName] | bool | None
    ) -> None:
        found = Constraints.to(hosts).extension()
        assert found.permitted_subtrees == permitted
        everywhere = [net("0.0.0.0/0"), net("::/0")]
        assert found.excluded_subtrees == (everywhere if excluded is True else excluded)

    @given(hosts=st.sets(NAMES | ADDRESSES, min_size=1), other=NAMES | ADDRESSES)
    def test_it_permits_its_hosts_and_what_is_below_and_nothing_else(self, hosts: set[str], other: str) -> None:
        made = Constraints.to(hosts)
        assert all(made.permits(host) for host in hosts)
        below = any(other == host or other.endswith(f".{host}") for host in hosts)
        assert made.permits(other) is below
        assert not made.permits("overcoat.example")
        assert not made.permits("198.51.100.1")
        assert not made.permits("2001:db8::2")
        assert Constraints.of(certificate(made.extension())) == made

    def test_people_are_told_the_hosts_and_not_what_closes_the_other_kinds(self) -> None:
        assert str(Constraints.to(["b.example", "a.example"])) == "a.example, b.example"
        assert str(Constraints.to(["::1", "192.0.2.7"])) == "192.0.2.7, ::1"
        assert str(Constraints.to(f"{each}.example" for each in "abcdefg")).endswith("e.example and 2 more")
        assert Constraints.to(["::1", "a.example"]).texts() == ["a.example", "::1"]

    def test_more_than_clients_take_in_a_handshake_is_refused(self) -> None:
        fits = [f"host{number:04}.example" for number in range(MAX_OCTETS // 20)]
        Constraints.to(fits)
        with pytest.raises(TooMany, match="it inspects 410 hosts, too many"):
            Constraints.to([*fits, "one.more.example"])
        Constraints.to([*fits, "one.more.host0001.example"])
        with pytest.raises(TooMany):
            Constraints.to(str(ipaddress.ip_address("10.0.0.0") + number) for number in range(MAX_OCTETS // 36 + 1))


class TestWhatIsRead:
    def test_a_ca_without_any_may_sign_for_all(self) -> None:
        assert Constraints.of(certificate(None)) is None
        assert of([x509.RFC822Name("example.com")]) is None  # says nothing of hosts

    @pytest.mark.parametrize(
        ("permitted", "excluded", "yes", "no"),
        [
            ([DNS("a.example")], None, ["a.example", "b.a.example", "192.0.2.7"], ["example", "ba.example"]),
            ([DNS("A.Example")], None, ["a.example"], ["b.example"]),
            ([DNS(".a.example")], None, ["b.a.example"], ["a.example"]),
            ([DNS("")], None, ["a.example"], []),
            (None, [DNS("a.example")], ["example", "::1"], ["a.example", "b.a.example"]),
            (None, [DNS("")], ["::1"], ["a.example"]),
            ([net("192.0.2.0/24")], None, ["192.0.2.7", "a.example"], ["192.0.3.7", "::1"]),
            ([net("192.0.2.0/24")], [net("192.0.2.7/32")], ["192.0.2.8"], ["192.0.2.7"]),
            (None, [net("::/0")], ["192.0.2.8"], ["::1"]),
        ],
    )
    def test_it_counts_as_rfc_5280_says(
        self,
        permitted: list[x509.GeneralName] | None,
        excluded: list[x509.GeneralName] | None,
        yes: list[str],
        no: list[str],
    ) -> None:
        found = of(permitted, excluded)
        assert found is not None
        assert [host for host in yes if not found.permits(host)] == []
        assert [host for host in no if found.permits(host)] == []

    def test_all_below_a_name_is_permitted_only_if_nothing_there_is_excluded(self) -> None:
        for excluded in ("x.a.example", ".a.example"):
            found = of([DNS("example")], [DNS(excluded)])
            assert found is not None
            assert found.permits("a.example")
            assert not found.permits("a.example", with_all_below=True)
            assert found.permits("b.example", with_all_below=True)

    def test_networks_are_told_as_such(self) -> None:
        assert str(of([net("10.0.0.0/8"), net("192.0.2.7/32")])) == "10.0.0.0/8, 192.0.2.7"
