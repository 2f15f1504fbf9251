"""Reads Android's `network_security_config.xml`.

Rules of this module, as Android reads the file:

- The most specific `domain` counts, whatever the order; one without `includeSubdomains` is for that name alone.
- A nested `domain-config` inherits the `pin-set` around it unless it has its own; an empty one means no pins.
- On the day `expiration` pinning stops, so the day before is the last one.
- Only pins with the digest SHA-256 count.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date

from proxy.core.pinimport.rules import (
    Imported,
    Pinned,
    in_order,
    last_day_before,
    limit_pins,
    pattern_of,
    pin_of_base64,
    quoted,
)
from proxy.core.pinimport.xmltext import Node, read_xml

ROOT = "network-security-config"
_APART = {  # what else may stand there, and has nothing to do with pins
    "base-config": "base-config is not carried over: what holds for all hosts is `defaults` and `trust` here",
    "debug-overrides": "debug-overrides are not carried over: there is no debug build of a sidecar",
}


def read_android(data: bytes) -> Imported:
    """Return the pins of such a file.

    Raises:
        ValueError: it is none. The message says why.
    """
    root = read_xml(data)
    if root.name != ROOT:
        raise ValueError(f"the root element is {quoted(root.name)}, not {ROOT}")
    notes: list[str] = []
    for child in root.children:
        if child.name in _APART:
            notes.append(_APART[child.name])
            notes += _overrides(child)
        elif child.name != "domain-config":
            notes.append(f"line {child.line}: {quoted(child.name)} is not known, and not carried over")
    found: list[Pinned] = []
    for child in root.all("domain-config"):
        found += _configured(child, None, notes)
    return in_order(found, notes)


def _configured(config: Node, around: Pinned | None, notes: list[str]) -> Iterator[Pinned]:
    sets = config.all("pin-set")
    if len(sets) > 1:
        notes.append(f"line {sets[1].line}: a second pin-set is not read")
    own = _pin_set(sets[0], notes) if sets else around or Pinned((), ())
    said = [*own.notes, *_overrides(config)]
    for child in config.children:
        if child.name == "certificateTransparency":
            said.append(f"line {child.line}: certificateTransparency is not carried over: Overcoat does not ask for it")
        elif child.name not in ("domain", "pin-set", "trust-anchors", "domain-config"):
            said.append(f"line {child.line}: {quoted(child.name)} is not known, and not carried over")
    if config.all("trust-anchors"):
        said.append(f"line {config.line}: trust-anchors are not carried over: name a PEM file in trust.roots")
    if config.attributes.get("cleartextTrafficPermitted") == "true":
        said.append(
            f"line {config.line}: cleartextTrafficPermitted is not carried over: where there are pins, plain http is "
            "upgraded"
        )
    hosts = []
    for domain in config.all("domain"):
        kind = "any_depth" if domain.attributes.get("includeSubdomains") == "true" else "exact"
        try:
            hosts.append(pattern_of(domain.text.strip(), kind))
        except ValueError as error:
            notes.append(f"line {domain.line}: {error}, and not carried over")
    inherited = Pinned((), own.pins, own.last_day, notes=own.notes, source=own.source)
    if hosts:
        yield Pinned(tuple(hosts), own.pins, own.last_day, notes=tuple(dict.fromkeys(said)), source=config.line)
    for child in config.all("domain-config"):
        yield from _configured(child, inherited, notes)


def _pin_set(node: Node, notes: list[str]) -> Pinned:
    """Return the pins of a pin-set, for no hosts yet."""
    pins, said = [], []
    limit_pins(len(node.all("pin")))  # those that are not carried over count, too: notes about them are inherited
    for pin in node.all("pin"):
        digest = pin.attributes.get("digest", "")
        if digest.upper() != "SHA-256":
            said.append(f"line {pin.line}: a pin with the digest {quoted(digest)} is not carried over")
            continue
        try:
            pins.append(pin_of_base64(pin.text))
        except ValueError as error:
            said.append(f"line {pin.line}: {error}, and not carried over")
    last_day = None
    if (expiration := node.attributes.get("expiration")) is not None:
        try:
            last_day = last_day_before(expiration)
            stops = date.fromordinal(last_day.toordinal() + 1)
            said.append(f"Android stops pinning on {stops}: the day before is the last, and after_expiry is warn")
        except ValueError as error:
            said.append(f"line {node.line}: expiration: {error}, and not carried over: the pins have no end")
    if said and not pins:  # then it is no empty one, which would mean an exception
        notes += said
        notes.append(f"line {node.line}: none of the pins could be carried over: these hosts are NOT pinned here")
        said = []
    return Pinned((), tuple(dict.fromkeys(pins)), last_day if pins else None, notes=tuple(said), source=node.line)


def _overrides(node: Node) -> list[str]:
    """Return notes on anchors that are not held to pins."""
    return [
        f"line {anchor.line}: overridePins is not carried over: what {quoted(anchor.attributes.get('src', ''))} has "
        "signed is held to the pins here, too"
        for anchors in node.all("trust-anchors")
        for anchor in anchors.all("certificates")
        if anchor.attributes.get("overridePins") == "true"
    ]
