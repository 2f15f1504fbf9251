"""Overcoat as an addon of stock mitmproxy: declares its option, reads the policy, and puts the pipeline together.
`config/mitmproxy_addon.py`, which mitmproxy loads, makes the addon.

Rules of this module:

- Without a right policy, mitmproxy does not start; if it goes on all the same, every request is denied.
- Options of mitmproxy that would undo the policy are refused, at the start and later.
- The policy is read once. If somebody removes the addon, mitmproxy ends: it would go on without protection.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Set
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mitmproxy import connection, ctx
from mitmproxy.exceptions import OptionsError
from prometheus_client import CollectorRegistry

from addons.encryption import Encryption
from addons.gate import Gate
from addons.localca import LocalCaGuard
from addons.messages import Messages
from addons.metrics import Metrics
from addons.pinning import Pinning
from addons.stock.apps import Apps
from addons.stock.dials import Dials
from addons.stock.guard import Guard
from addons.stock.heads import Heads
from addons.telemetry import Telemetry
from addons.transport import Transport
from proxy.core.http.cookies import Cookies
from proxy.core.rules.hsts import KnownHosts
from proxy.core.rules.policy import Policy
from proxy.core.who.credentials import Verifier
from proxy.disk.ca import CaError, LocalCa, data_directory
from proxy.disk.preload import is_preloaded
from proxy.engine.roots import NoRoots, with_roots
from proxy.engine.tls import TlsConnections
from proxy.policyfile.findings import findings
from proxy.policyfile.load import load_policy
from proxy.policyfile.refusal import PolicyErrors
from proxy.processes.secrecy import SecretVariables
from proxy.processes.starting import asks_to_constrain, first_constraints, unfit

if TYPE_CHECKING:
    from mitmproxy.addonmanager import Loader
    from mitmproxy.addons.proxyserver import Proxyserver

logger = logging.getLogger("overcoat")

# Options that are set, because mitmproxy's defaults are wrong here.
_SET: dict[str, Any] = {
    "connection_strategy": "lazy",  # else a connection to port 80 opens before the upgrade
    "upstream_cert": False,
    "rawtcp": False,  # else unknown protocols pass
    "onboarding": False,  # it hands out mitmproxy's own CA, which is not used here
}
# Options that must keep their defaults, and why.
_KEPT: dict[str, tuple[Any, str]] = {
    "ssl_insecure": (False, "upstreams would not be verified"),
    "stream_large_bodies": (None, "bodies would leave before their fields are encrypted"),
    "validate_inbound_headers": (True, "requests could be smuggled"),
    "ignore_hosts": ([], "the policy says what is tunnelled: https: tunnel"),
    "allow_hosts": ([], "the policy says what is tunnelled: https: tunnel"),
    "tcp_hosts": ([], "the policy says what is tunnelled: https: tunnel"),
    "udp_hosts": ([], "nothing but TCP is served"),
    "ssl_verify_upstream_trusted_ca": (None, "the policy says whom to trust: trust.roots"),
    "ssl_verify_upstream_trusted_confdir": (None, "the policy says whom to trust: trust.roots"),
    "client_certs": (None, "connections to upstreams are the policy's"),
}


class Overcoat:
    """The addon: reads the policy that `overcoat_policy` names, and builds the pipeline."""

    name = "overcoat"

    def __init__(self) -> None:
        self._guard = Guard(_cut)
        self.addons = [self._guard]
        self._is_configured = False

    def load(self, loader: Loader) -> None:
        """Declare the option, and set those options of mitmproxy that must be set."""
        loader.add_option("overcoat_policy", str, "", "Overcoat's policy file, which all traffic is held to.")
        ctx.options.update(**_SET)

    def configure(self, updated: Set[str]) -> None:
        """Read the policy at the first call; later refuse changes that would undo it.

        Raises:
            OptionsError: an option was changed that must not be; mitmproxy takes the change back.
        """
        wrong = list(_wrong_options())
        if self._is_configured:
            if "overcoat_policy" in updated:
                wrong.append("overcoat_policy is read once: start mitmproxy again for another policy")
            if wrong:
                raise OptionsError("; ".join(wrong))
            return
        self._is_configured = True
        wrong = wrong or self._begin()
        for each in wrong:
            logger.error("%s", each)  # mitmproxy stops starting when it sees this
        if wrong:
            logger.error("nothing passes: Overcoat has no policy in force")

    def done(self) -> None:
        """End mitmproxy when this addon is removed."""
        self._guard.shut()
        ctx.master.shutdown()

    def _begin(self) -> list[str]:
        """Read the policy and build the pipeline; return the errors."""
        if not ctx.options.overcoat_policy:
            return ["name Overcoat's policy: --set overcoat_policy=FILE"]
        now = datetime.now(UTC)
        try:
            policy = load_policy(Path(ctx.options.overcoat_policy).expanduser(), os.environ, {}, SecretVariables())
            if missing := list(_missing(policy)):
                return missing
            policy = with_roots(policy)
            directory = data_directory(os.environ)
            constraints = first_constraints(policy, directory) if asks_to_constrain(os.environ) else None
            authority = LocalCa.open(directory, now, constraints=constraints)
            if (said := unfit(policy, authority)) is not None:
                return [said]
            self._build(policy, authority)
        except PolicyErrors as e:
            return [str(error) for error in e.errors]
        except (NoRoots, CaError) as e:
            return [str(e)]
        for finding in findings(policy, os.environ, now):
            logger.warning("%s", finding.text)
        rules, mode = len(policy.rules), policy.mode
        logger.info("Overcoat: policy %s: rules %d, mode %s, hash %s", policy.source, rules, mode, policy.short_hash)
        return []

    def _build(self, policy: Policy, authority: LocalCa) -> None:
        sessions = self._guard.sessions
        metrics = Metrics(CollectorRegistry())
        known = KnownHosts(time.time, is_preloaded)
        connections = TlsConnections(sessions, authority)
        connections.prepare(policy)
        dials = Dials(sessions, _own_ports, _cut)
        encryption = Encryption(sessions, used=metrics.key_used)
        stages = (
            Heads(sessions),
            Apps(sessions, policy, dials, authority.mandate),
            connections,
            Gate(sessions, Verifier(os.urandom(32), time.monotonic), known),
            LocalCaGuard(sessions, authority.mandate),
            Transport(sessions, known, Cookies(authority.tag)),
            Pinning(sessions),
            encryption,
            Messages(sessions, encryption.setting),
            dials,
            Telemetry(sessions, metrics, _say),
        )
        self._guard.open(stages, metrics.hook_failures.inc)


def _say(line: str) -> None:
    """Write a decision line to mitmproxy's console, or to mitmweb's event log."""
    logger.info("%s", line.rstrip("\n"))


def _wrong_options() -> Iterator[str]:
    for name, value in _SET.items():
        if getattr(ctx.options, name) != value:
            yield f"the option {name} must be {value!r} with Overcoat"
    if any(mode.partition("@")[0] != "regular" for mode in ctx.options.mode):
        yield "the option mode must not be set with Overcoat to anything but regular: it is a forward proxy"
    for name, (value, why) in _KEPT.items():
        if getattr(ctx.options, name) != value:
            yield f"the option {name} must not be set with Overcoat: {why}"


def _missing(policy: Policy) -> Iterator[str]:
    """Yield the parts of a policy that only Overcoat's own engine supports."""
    if policy.upstream_proxy is not None:
        yield f"{policy.source}: upstream_proxy is not served inside mitmproxy, which would dial straight"
    for name, key_set in policy.keys.items():
        if key_set.supply is not None:
            yield f"{policy.source}: keys.{name}: jwks is not fetched inside mitmproxy"
    for rule in policy.rules:
        if rule.raw_tcp:
            yield f"{policy.source}: rule {rule.name}: raw_tcp is not served inside mitmproxy"


def _proxyserver() -> Proxyserver:
    found: Proxyserver | None = ctx.master.addons.get("proxyserver")
    if found is None:
        raise RuntimeError("mitmproxy runs without its proxy server")
    return found


def _own_ports() -> set[int]:
    """Return the ports that mitmproxy listens on, including that of mitmweb's page."""
    ports = {int(port) for _, port, *_ in _proxyserver().listen_addrs()}
    return ports | ({int(ctx.options.web_port)} if "web_port" in ctx.options else set())


def _cut(client: connection.Client, server: connection.Server | None) -> None:
    """End a client connection, or one of its upstream connections, before another byte is written to it."""
    handler = _proxyserver().connections.get(client.id)
    for each, io in list(handler.transports.items()) if handler is not None else []:
        if (server is None or each is server) and io.writer is not None:
            io.writer.transport.abort()  # type: ignore[union-attr]  # of TCP, the only kind served, it is asyncio's
