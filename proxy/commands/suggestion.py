"""Writes the policy that `overcoat suggest` prints: text that is a right policy as it stands, with what a person has to
decide as comments.

Rules of this module:

- What is written loads: names, hosts and selectors are what the policy file's reader accepts.
- It observes until a person says otherwise. Pins and fields are comments: pins must be compared first, and fields need
  a key.
- Whatever came from lines or servers is printable, and stands on one line.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from proxy.commands.seen import MOST_HOSTS, Host, Seen
from proxy.commands.tried import Keys, Tried
from proxy.core.destinations import HTTPS_PORT, Destination
from proxy.core.fields.shapes import Shape
from proxy.core.rules.policy import upgraded

_NOT_IN_NAMES = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True, slots=True)
class Findings:
    """All that is known: the lines, and what servers said.

    Attributes:
        upgrades: by host; empty if nobody was asked.
        keys: by host; empty if nobody was asked.
    """

    seen: Seen
    upgrades: dict[str, Tried] = field(default_factory=dict)
    keys: dict[str, Keys] = field(default_factory=dict)


def policy_text(found: Findings) -> str:
    """Return the policy."""
    return "\n".join([*_head(found), *_rules(found)]) + "\n"


def by_use(seen: Seen) -> list[tuple[str, Host]]:
    """Return the hosts, those first that were asked most often."""
    return sorted(seen.hosts.items(), key=lambda item: (-item[1].requests, item[0]))


def https_target(name: str, host: Host, tried: Tried | None = None) -> Destination:
    """Return where a host speaks https, as far as is known."""
    if tried is not None and tried.works:
        return tried.target
    if host.https:
        return Destination(name, host.https.most_common(1)[0][0])
    return upgraded(Destination(name, host.plain.most_common(1)[0][0]), None)


def _head(found: Findings) -> Iterator[str]:
    seen = found.seen
    yield f"# Suggested by `overcoat suggest` from {_some(seen.lines, 'decision line')}" + (
        f", {seen.first[:16]} to {seen.last[:16]} (UTC)." if seen.lines else "."
    )
    if seen.torn or seen.foreign:
        yield f"# Passed over: {seen.torn} torn, {seen.foreign} that are no decision lines."
    if seen.left_out:
        yield f"# Only {MOST_HOSTS} hosts are here: {_some(seen.left_out, 'line')} of others were left out."
    yield "# Read it, add what your own policy says of listen, clients, destinations and trust, and then:"
    yield "#   overcoat check -p FILE     is it right, and what does it do"
    yield "#   overcoat serve -p FILE     it observes, and changes nothing, until mode is enforce here or in a rule"
    yield "version: 1"
    yield "mode: observe"
    yield ""
    yield "# For hosts that are not below. To let nothing else out:  destinations: {egress: listed}"
    yield "defaults: {plain_http: upgrade, https: tunnel}"
    if any(host.fields for host in seen.hosts.values()):
        yield ""
        yield "# For the fields below. Their receiver makes the key pair, and gives you receiver.pub.pem:"
        yield "#   overcoat keys new --kid receiver-1 --out receiver.pem"
        yield "# keys:"
        yield "#   receiver: {alg: ECDH-ES+A256KW, primary: {kid: receiver-1, file: receiver.pub.pem}}"


def _rules(found: Findings) -> Iterator[str]:
    if not found.seen.hosts:
        return
    yield ""
    yield "rules:"
    names: Counter[str] = Counter()
    for name, host in by_use(found.seen):
        short = (_NOT_IN_NAMES.sub("-", name).strip("-") or "host")[:50]
        names[short] += 1
        rule = short if names[short] == 1 else f"{short}_{names[short]}"
        yield f"  - name: {json.dumps(rule)}"
        yield f"    hosts: [{json.dumps(f'[{name}]' if ':' in name else name)}]"
        for line in _rule(name, host, found):
            yield f"    {line}"
        yield ""


def _rule(name: str, host: Host, found: Findings) -> Iterator[str]:
    tried = found.upgrades.get(name)
    yield f"# {_traffic(host)}"
    if host.encrypted:
        yield "# What your policy encrypts here already is in no line: take keys and request over from it."
    if host.denied:
        yield f"# denied, or it would have been: {_counted(host.denied)}"
    if host.kinds:
        kinds = ", ".join(sorted(host.kinds))
        yield "# Its address is not a public one, and is only reached if the policy says so:"
        yield f"# destinations: {{allow: [{kinds}]}}"
    if host.plain:
        yield from _upgrade(name, host, tried)
    else:
        yield "# https is tunnelled end to end, unless pins or fields make it inspected"
    if name in found.keys:
        yield from _pins(name, host, found)
    elif host.https or (tried is not None and tried.works):
        target = https_target(name, host, tried)
        where = target.url_host if target.port == HTTPS_PORT else target.authority
        yield f"# pins: not looked up (--pins, or overcoat pins fetch {where})"
    if host.fields:
        yield from _fields(host.fields)


def _upgrade(name: str, host: Host, tried: Tried | None) -> Iterator[str]:
    if tried is None:
        yield "plain_http: upgrade     # whether https works there was not tried (--try)"
        return
    if not tried.works:
        yield f"# Tried, and https does not work at {tried.target}: {_clean(tried.said)}"
        yield "# So enforcing would deny it. If it has to be reached without TLS, and may be:  plain_http: allow"
        yield "plain_http: upgrade"
        return
    same = "the same answer" if tried.is_same else "ANOTHER answer: look at it before you enforce"
    if tried.is_same is None:
        same = "it works, and there is no answer over plain http to compare it with"
    yield f"# Tried {_clean(tried.path)}: {same}; {_clean(tried.said)}."
    yield "plain_http: upgrade"
    usual = upgraded(Destination(name, host.plain.most_common(1)[0][0]), None)
    if tried.target.port != usual.port:
        yield f"https_port: {tried.target.port}"


def _pins(name: str, host: Host, found: Findings) -> Iterator[str]:
    keys = found.keys[name]
    target = https_target(name, host, found.upgrades.get(name))
    if not keys.pins:
        yield f"# pins: none to be had from {target}: {_clean(keys.said)}"
        return
    yield "# Pins, as the network showed them: compare them over another channel, with the server's operator."
    yield "# Have a backup, or a new key ends everything: a key that the operator keeps in reserve, or the issuing CA's"
    yield "# below, which any other certificate of that CA for this name has, too."
    yield "# pins:"
    yield "#   any_of:"
    for depth, pin in enumerate(keys.pins):
        what = "the server" if depth == 0 else "the root" if depth == len(keys.pins) - 1 else "the issuing CA"
        is_taken = depth == 0 or (depth == 1 and what == "the issuing CA")
        yield f"#     {'- ' if is_taken else '# '}{pin}     # {what}"
    yield "#   expires: YYYY-MM-DD     # the day by which you will have looked again"


def _fields(fields: Counter[tuple[str, Shape]]) -> Iterator[str]:
    yield "# Members that look like secrets. Take out what is none, and what the server itself must read:"
    yield "# request:"
    yield "#   - encrypt:"
    for (selector, shape), count in sorted(fields.items()):
        yield f"#       - {json.dumps(selector)}     # {shape}, {count} x"
    yield "#     key: receiver"
    yield "#     match: ignore_case      # or exact, if the server takes no other case of a name for the same"
    if any("*" in selector.replace("[*]", "") for selector, _ in fields):
        yield "# A name that looked as if no person had chosen it may be a secret itself, and stands as * here."


def _traffic(host: Host) -> str:
    parts = []
    for what, ports in (("plain http", host.plain), ("https", host.https)):
        if ports:
            at = ", ".join(str(port) for port, _ in ports.most_common(5))
            parts.append(f"{ports.total()} x {what} (port {at})")
    methods = ", ".join(method for method, _ in host.methods.most_common(8))
    encrypted = f"; {_some(host.encrypted, 'field')} encrypted" if host.encrypted else ""
    return ", ".join(parts) + (f"; {methods}" if methods else "") + encrypted


def _counted(reasons: Counter[str]) -> str:
    return ", ".join(f"{reason} ({count} x)" for reason, count in reasons.most_common(8))


def _some(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _clean(text: str) -> str:
    """Return text that stays in a comment."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)
