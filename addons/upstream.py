"""The state of one connection to an upstream (`Upstream`), for all addons and the engine. The engine makes it before it
dials, pinning writes into it what the handshake has shown, and decision lines and metrics read it.

Rules of this module:

- It has the rule and the policy for which it was opened, for good: a request of another rule never uses it.
- What refuses it stands in `denied`. What only observe mode or a lenient pin would have refused it for stands beside
  that (`observed`, `noted`), and refuses nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from proxy.core.decisions import Denied
from proxy.core.destinations import Destination
from proxy.core.handshakes import Handshake
from proxy.core.pins import PinMatch, PinVerdict
from proxy.core.rules.policy import Mirror, Policy, Rule
from proxy.core.rules.trust import KeyExchange


@dataclass(slots=True)
class Upstream:
    """One connection to an upstream: the rule for which it was opened, and what its handshake showed.

    Attributes:
        policy: the policy under which it was opened.
        rule: the rule whose pins it must match; a request of another rule never uses this connection.
        denied: why it could not be used.
        observed: in observe mode, why it could not have been used.
        noted: what its pins would have refused it for, where they are only observed (`pins.mode`), or have ended and
            only warn (`pins.after_expiry`); or those of the upstream proxy on the way.
        would_refuse: whether that is so since they are only observed: enforced, they would have refused it.
        matches: which of its pins stand in the verified chain, and at which level.
        address: the address and port that it leads to, once it is open.
        is_proxy: whether it leads to the policy's upstream proxy.
        alpn: the protocols to offer there, in order of preference (RFC 7301).
        errors: OpenSSL's reasons for a handshake that failed, or for the end of the connection.
        wants_certificate: whether the server has asked for a client certificate.
        group: the group of the key exchange, as OpenSSL calls it.
        mirror: the mirror listener behind which it is, if it is a mirror's server.
        through: the pins of the upstream proxy through which it leads, as a rule; None if it leads there directly.
    """

    policy: Policy
    rule: Rule | None
    pin: PinVerdict | None = None
    denied: Denied | None = None
    observed: Denied | None = None
    noted: Denied | None = None
    would_refuse: bool = False
    matches: tuple[PinMatch, ...] = ()
    address: str | None = None
    is_proxy: bool = False
    alpn: tuple[bytes, ...] = (b"http/1.1",)
    errors: tuple[str, ...] = ()
    wants_certificate: bool = False
    group: str | None = None
    mirror: Mirror | None = None
    through: Rule | None = None

    def handshake(self, where: Destination) -> Handshake:
        """Return what is known of its TLS, for the words of a failure.

        Args:
            where: the server.
        """
        trust = self.policy.trust_for(self.rule)
        return Handshake(
            f"{where.host} port {where.port}",
            self.errors,
            trust.min_tls,
            is_hybrid=trust.key_exchange is KeyExchange.HYBRID,
            wants_certificate=self.wants_certificate,
            has_certificate=self.rule is not None and self.rule.client_certificate is not None,
        )
