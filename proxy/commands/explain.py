"""`overcoat explain`: says what a policy would do with a request, and why, without sending it.

Rules of this module:

- It calls the same functions that decide on real requests, so it cannot say anything else.
- What it says of a denial, the protections themselves have said of this very request (`proxy.commands.denial`).
- Nothing is dialled or looked up; what depends on that is said with an "if".
- A body's values are shown to a person only, who has given the body; `--json` has paths and offsets.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import click

from proxy.commands.bodymarks import marked_spans, shown_body
from proxy.commands.denial import Asked, Refusal, refusal_of
from proxy.commands.shared import (
    destination_of,
    echo_json,
    encrypt_summary,
    entry_summary,
    json_option,
    load_or_exit,
    manner_of,
    marked_by,
    needs_plaintext,
    pins_life,
    policy_option,
    proxy_url,
    today,
)
from proxy.core.certificates.localca import Mandate
from proxy.core.decisions import Action, Decision, Denied
from proxy.core.destinations import HTTP_PORT, HTTPS_PORT, Destination
from proxy.core.fields.bodies import BodyHead, check_signature, covered_by
from proxy.core.fields.encodings import decode, parse_encoding
from proxy.core.fields.entries import Digests, FieldEntry, OnFailure, Signed, Work
from proxy.core.fields.readings import readings, with_body
from proxy.core.fields.signatures import covering
from proxy.core.http.digests import is_digest
from proxy.core.http.heads import Fields
from proxy.core.jose.keys import NoKey
from proxy.core.reasons import Reason
from proxy.core.rules.hsts import KnownHosts
from proxy.core.rules.policy import Mode, PlainHttp, Policy, Rule
from proxy.core.rules.transport import decide_https, decide_mirror, decide_plain_http, denied_by_address
from proxy.disk.ca import CaError, data_directory, published_mandates
from proxy.disk.preload import is_preloaded

_MAX_BODY_BYTES = 64 * 1024 * 1024
_URL = re.compile(r"(?:(https?)://)?([^/?#]*)([^?#]*)(?:\?([^#]*))?(?:#.*)?", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Explanation:
    """What would happen to one request.

    Attributes:
        scheme: `http` or `https`, as the app would send it.
        mirror: what the mirror listener says that stands for the host; None if none does.
        asked: the destination in the request.
        rule: the rule that counts, or None.
        mode: `enforce`, or `observe`: it is only decided, counted and logged.
        action: what would be done, before pins and keys are checked.
        why: one sentence.
        dials: the authority that would be dialled, or None.
        through: the URL of the upstream proxy that would be used, or None.
        allowed: the non-public addresses at which the host may be, if it is a name.
        raw_tcp: whether any protocol passes unchecked.
        strict: whether certificates must have the form that RFC 5280 prescribes; None if none is checked.
        client_certificate: the file of what is shown to a server that asks who comes; None for nothing.
        denial: the very denial that it would get, as far as can be known without dialling: reason, status (None if the
            connection is closed without an answer), detail and hint; None if nothing denies it.
        denied: the reason codes with which it would be denied today, as far as can be known without dialling.
        pins: the pins of which the upstream's chain must have one.
        pins_expire: the last day of these pins.
        pins_life: the same in words, and what comes then; and whether they are only observed.
        encrypt: the entries that apply to the request, as plain values; behind a mirror, to its response.
        decrypt: the entries that apply to its response; behind a mirror, to the request.
        other_entries: the rule's entries that do not apply, because of the method or the path.
        signed_by: what covers the request's body, if a field in it may have to be encrypted.
        places: the places in the given body that would be encrypted, with the key set, and the offsets in the decoded
            body; behind a mirror, those where a sealed value would be opened.
        shown: the body with these places marked.
    """

    scheme: str
    mirror: str | None
    asked: str
    rule: str | None
    mode: str
    action: str
    why: str
    dials: str | None
    through: str | None
    allowed: list[str]
    raw_tcp: bool
    strict: bool | None
    client_certificate: str | None
    denial: dict[str, Any] | None
    denied: list[str]
    pins: list[str]
    pins_expire: str | None
    pins_life: str
    encrypt: list[dict[str, Any]]
    decrypt: list[dict[str, Any]]
    other_entries: list[dict[str, Any]]
    signed_by: str | None
    places: list[dict[str, Any]] | None
    shown: str | None


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    path: str
    query: str
    fields: Fields
    body: bytes | None
    today: date


@click.command()
@policy_option
@click.option("-X", "--request", "method", metavar="METHOD", help="The method; GET, or POST with --body.")
@click.option(
    "--body",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
    metavar="FILE",
    help="A body (- for standard input): mark in it what would be encrypted.",
)
@click.option("-H", "--header", "headers", multiple=True, metavar="'NAME: VALUE'", help="A header field that it has.")
@json_option
@click.argument("url")
def explain(
    *, option: str | None, method: str | None, body: Path | None, headers: tuple[str, ...], as_json: bool, url: str
) -> None:
    """Say what would happen to a request for URL, and why. Nothing is sent.

    URL is http://…, https://…, or a host for both.

    \b
    Example:
      overcoat explain -X POST --body charge.json http://api.pay.example/v1/charges
    """
    try:
        requests, path, query = _requests(url)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="URL") from None
    policy = load_or_exit(option, as_json=as_json)
    if policy.mirror_for(requests[0][1].host) is not None:
        requests = requests[-1:]  # it is the same however it came
    method = method or ("POST" if body else "GET")
    fields = tuple(map(_field, headers))
    request = _Request(method, path, query, fields, _read_body(body) if body else None, today())
    explanations = [_explain(policy, scheme, destination, request) for scheme, destination in requests]
    if as_json:
        answer = {"mode": policy.mode.value, "method": method, "requests": [_as_values(item) for item in explanations]}
        echo_json(answer)
        return
    for explanation in explanations:
        _print_explanation(explanation, method, path)


def _as_values(explanation: Explanation) -> dict[str, Any]:
    """Return an explanation as plain values; none of them is a value of the body."""
    found = asdict(explanation)
    del found["shown"]
    return found


def _lacks_key(entry: FieldEntry, today: date) -> bool:
    """Tell whether an entry's key set has no key to seal with; of one that is fetched while a sidecar runs, nothing is
    known here.
    """
    if entry.keys.supply is not None:
        return False
    try:
        entry.keys.sealing_key(today)
    except NoKey:
        return True
    return False


def _field(text: str) -> tuple[bytes, bytes]:
    """Return a header field that is written as for curl."""
    name, colon, value = text.partition(":")
    if not colon or not name.isascii() or not name or name != name.strip():
        raise click.BadParameter("write 'NAME: VALUE'", param_hint="--header")
    return name.encode("ascii"), value.strip().encode("utf-8", "surrogateescape")


def _requests(url: str) -> tuple[list[tuple[str, Destination]], str, str]:
    """Return the schemes and destinations that a URL means, its path and its query."""
    match = _URL.fullmatch(url)
    if match is None or (match[1] is None and "://" in url):
        raise ValueError("write http://…, https://…, or only a host")
    scheme, authority, path = match[1], match[2], match[3] or "/"
    ports = {"http": HTTP_PORT, "https": HTTPS_PORT}
    schemes = [scheme.lower()] if scheme else list(ports)
    return [(each, destination_of(authority, ports[each])) for each in schemes], path, match[4] or ""


def _read_body(file: Path) -> bytes:
    with click.open_file(str(file), "rb") as opened:
        text: bytes = opened.read(_MAX_BODY_BYTES + 1)
    if len(text) > _MAX_BODY_BYTES:
        raise click.BadParameter(f"the body has more than {_MAX_BODY_BYTES} bytes", param_hint="--body")
    return text


def _explain(policy: Policy, scheme: str, asked: Destination, request: _Request) -> Explanation:
    mirror = policy.mirror_for(asked.host)
    if mirror is not None:
        asked = Destination(asked.host, HTTPS_PORT)
        rule, decision = decide_mirror(policy, asked, mirror.to)
    elif scheme == "http":
        rule, decision = decide_plain_http(policy, asked, KnownHosts(time.time, is_preloaded))
    else:
        rule, decision = decide_https(policy, asked)
    target = decision.target
    forbidden = denied_by_address(policy, rule, target.host) if target is not None and mirror is None else None
    if forbidden is not None:
        decision, target = Decision(Action.DENY, denied=forbidden), None
    refusal = refusal_of(policy, replace(_asked(scheme, asked, request), mirror=mirror), _mandate())
    if request.body is not None:
        request = replace(request, body=_decoded(request))
    proxy = policy.proxy_to(target) if target is not None and mirror is None else None
    denied = [decision.denied.reason.code] if decision.denied else []
    opened = rule if decision.action not in (Action.DENY, Action.TUNNEL) else None
    encrypt, not_encrypt = _split(opened.entries(Work.ENCRYPT) if opened else (), request)
    decrypt, not_decrypt = _split(opened.entries(Work.DECRYPT) if opened else (), request)
    pins = opened.pins if opened else None
    shakes_hands = decision.action in (Action.UPGRADE, Action.INSPECT)
    on_the_way = (pins, proxy.rule.pins if proxy is not None else None)
    if any(each is not None and each.have_run_out(request.today) for each in on_the_way):
        denied.append(Reason.PINS_EXPIRED.code)
    if any(_lacks_key(entry, request.today) for entry in encrypt):
        denied.append(Reason.KEY_UNAVAILABLE.code)
    if decision.action is Action.INSPECT and target is not None:
        denied += _ca_denies(target.host)
    head = BodyHead(signature=covering(request.fields, request.query), fields=request.fields)
    signed_by = covered_by(head, encrypt) if encrypt and mirror is None else None
    places = shown = None
    if request.body is not None and opened is not None:
        try:
            about = encrypt if mirror is None else decrypt
            spans = marked_spans(about, request.body, _content_types(request))
        except Denied as refused:
            denied.append(refused.reason.code)
        else:
            places = [
                {"path": span.path, "key": about[span.job].keys.name, "start": span.start, "end": span.end}
                for span in spans
            ]
            shown = shown_body(request.body, spans, is_terminal=sys.stdout.isatty())
            if mirror is None and not _may_change(head, [about[span.job] for span in spans]):
                denied.append(Reason.SIGNED_BODY.code)
    if refusal is not None and refusal.denied.reason.code not in denied:
        denied.insert(0, refusal.denied.reason.code)
    return Explanation(
        scheme=scheme,
        mirror=str(mirror) if mirror is not None else None,
        asked=str(asked),
        rule=rule.name if rule else None,
        mode=policy.mode_of(rule).value,
        action=decision.action.value,
        why=_why(policy, rule, decision, scheme) if mirror is None else f"a mirror listener stands for it: {mirror}",
        dials=str(target) if target else None,
        through=proxy_url(proxy) if proxy is not None else None,
        allowed=policy.reachable(rule).texts(),
        raw_tcp=rule is not None and rule.raw_tcp and decision.action is Action.TUNNEL,
        strict=policy.trust_for(rule).strict if shakes_hands else None,
        client_certificate=str(rule.client_certificate.file)
        if shakes_hands and rule is not None and rule.client_certificate is not None
        else None,
        denial=_denial_summary(refusal),
        denied=denied,
        pins=[str(pin) for pin in pins.any_of] if pins else [],
        pins_expire=pins.expires.isoformat() if pins and pins.expires else None,
        pins_life=pins_life(pins) if pins else "",
        encrypt=[encrypt_summary(entry) for entry in encrypt],
        decrypt=[entry_summary(entry) for entry in decrypt],
        other_entries=[*map(encrypt_summary, not_encrypt), *map(entry_summary, not_decrypt)],
        signed_by=signed_by,
        places=places,
        shown=shown,
    )


def _asked(scheme: str, destination: Destination, request: _Request) -> Asked:
    target = request.path + (f"?{request.query}" if request.query else "")
    return Asked(scheme, destination, request.method, target, request.fields, request.body)


def _denial_summary(refusal: Refusal | None) -> dict[str, Any] | None:
    if refusal is None:
        return None
    denied = refusal.denied
    return {"reason": denied.reason.code, "status": refusal.status, "detail": denied.detail, "hint": denied.hint}


def _mandate() -> Mandate | None:
    """Return that of the local CA; None if it does not exist, and would be made when needed."""
    try:
        return next(iter(published_mandates(data_directory(os.environ))), None)
    except CaError:  # there is no home directory; `serve` reports that itself
        return None


def _ca_denies(host: str) -> Iterator[str]:
    """Yield the reason for which the local CA signs nothing for a host; none if it does."""
    try:
        if (mandate := _mandate()) is not None:
            mandate.check(host, datetime.now(UTC))
    except Denied as denied:
        yield denied.reason.code


def _may_change(head: BodyHead, entries: Sequence[FieldEntry]) -> bool:
    """Tell whether fields of these entries may be encrypted in a body, whatever signs it, or holds a digest of it."""
    try:
        check_signature(head, entries, [1] * len(entries))
    except Denied:
        return False
    return True


def _split(entries: Sequence[FieldEntry], request: _Request) -> tuple[list[FieldEntry], list[FieldEntry]]:
    """Return the entries that apply to a request, and those that don't."""
    found = readings(request.method, request.path, request.query, request.fields)
    if request.body is not None:
        found = with_body(found, request.body, _content_types(request))
    applying = [entry for entry in entries if entry.when.applies(found)]
    return applying, [entry for entry in entries if entry not in applying]


def _content_types(request: _Request) -> list[str]:
    """Return the values of Content-Type; a body without one is taken for JSON."""
    types = [value.decode("latin-1") for name, value in request.fields if name.lower() == b"content-type"]
    return types or ["application/json"]


def _decoded(request: _Request) -> bytes:
    """Return a request's body without its content encoding; as it is, if that cannot be taken off."""
    codings = [value.decode("latin-1") for name, value in request.fields if name.lower() == b"content-encoding"]
    try:
        return decode(request.body or b"", parse_encoding(", ".join(codings)), _MAX_BODY_BYTES)
    except Denied:
        return request.body or b""


def _why(policy: Policy, rule: Rule | None, decision: Decision, scheme: str) -> str:
    if decision.denied:
        return decision.denied.detail
    where = f"rule {rule.name} says" if rule else "no rule names this host, and the defaults say"
    if decision.action is Action.INSPECT and rule and needs_plaintext(rule):
        return f"inspected because rule {rule.name} has {', '.join(needs_plaintext(rule))}"
    if scheme == "http":
        what = rule.plain_http if rule else policy.defaults.plain_http
        if what is PlainHttp.ALLOW and decision.action is Action.UPGRADE:
            return f"{where} plain_http: {what}, but the host is on the browsers' HSTS preload list (hsts_preload)"
        unless = ", unless its Strict-Transport-Security was seen" if decision.action is Action.ALLOW else ""
        return f"{where} plain_http: {what}{unless}"
    return f"{where} https: {rule.https if rule else policy.defaults.https}"


_ACTIONS = {
    Action.UPGRADE: "upgrade: plain http from the app leaves as https",
    Action.ALLOW: "allow: plain http leaves as it came",
    Action.INSPECT: "inspect: https is opened, checked and sent on as https",
    Action.TUNNEL: "tunnel: https is carried end to end, untouched",
    Action.MIRROR: "mirror: requests are opened for the server behind it, and its responses are sealed",
    Action.DENY: "deny: nothing leaves",
}


def _dials_text(explanation: Explanation) -> str:
    if explanation.dials is None:
        return "nothing"
    if explanation.through is not None:
        return f"{explanation.dials}, through {explanation.through}, which looks names up"
    if explanation.mirror is not None:
        return f"{explanation.dials}, the server behind it"
    where = " or ".join(["public", *explanation.allowed])
    return f"{explanation.dials}, if its address is {where}"


def _print_explanation(explanation: Explanation, method: str, path: str) -> None:
    lines = [
        ("rule", explanation.rule or "none"),
        ("action", _ACTIONS[Action(explanation.action)]),
        ("why", explanation.why),
        ("dials", _dials_text(explanation)),
    ]
    if explanation.mode == Mode.OBSERVE:
        lines.insert(1, ("mode", "observe: all this is decided, counted and logged, but nothing is changed"))
    if explanation.raw_tcp:
        lines.append(("raw tcp", "anything passes here, and nothing of it is looked at"))
    if explanation.strict is False:
        lines.append(("trust", "not strict: certificates whose form RFC 5280 forbids are taken"))
    if explanation.client_certificate is not None:
        lines.append(("shows", f"{explanation.client_certificate}, where the server asks for a client certificate"))
    if explanation.pins:
        life = f", {explanation.pins_life}" if explanation.pins_life else ""
        lines.append(("pins", f"one of {len(explanation.pins)}{life}"))
        lines += [("", pin) for pin in explanation.pins]
    works = [("encrypt", explanation.encrypt), ("decrypt", explanation.decrypt)]
    for name, entries in works if explanation.mirror is None else reversed(works):
        for entry in entries:
            even = "; what cannot be opened passes" if entry.get("on_failure") == OnFailure.PASS else ""
            how = manner_of(entry) + even
            lines.append((name, f"{', '.join(marked_by(entry))} with {entry['key']} ({entry['name']}){how}"))
    for entry in explanation.other_entries:
        conditions = [*(entry["methods"] or ()), *(entry["paths"] or ())]
        lines.append(("not here", f"{', '.join(marked_by(entry))} ({entry['name']}): only {' '.join(conditions)}"))
    if explanation.signed_by is not None:
        if is_digest(explanation.signed_by.removeprefix("the field ").encode("latin-1")):
            kinds = {entry["digests"] for entry in explanation.encrypt}
            passes, how = Digests.DENY.value not in kinds, f"digests: {', '.join(sorted(kinds))}"
        else:
            passes, how = all(entry["signed"] == Signed.PASS for entry in explanation.encrypt), "signed: pass"
        what = f"passes nevertheless ({how})" if passes else "denied where a field must be encrypted"
        lines.append(("signed", f"{explanation.signed_by} covers the body: {what}"))
    if explanation.places is not None:
        lines += [("in body", f"{place['path']} with {place['key']}") for place in explanation.places]
        if not explanation.places:
            lines.append(
                (
                    "in body",
                    f"nothing to {'encrypt' if explanation.mirror is None else 'decrypt'}: no marked field is in it",
                )
            )
    if explanation.denied:
        lines.append(("denied", ", ".join(explanation.denied)))
    if (denial := explanation.denial) is not None:
        status = "no answer, the connection is closed" if denial["status"] is None else str(denial["status"])
        lines += [("answer", f"{status}: {denial['detail']}"), ("hint", denial["hint"])]
    click.echo(f"{method} {explanation.scheme}://{explanation.asked}{path}")
    for name, text in lines:
        click.echo(f"  {name:<9}{text}")
    if explanation.shown and explanation.places:
        click.echo(explanation.shown)
