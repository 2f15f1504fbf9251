"""`overcoat keys`: makes, converts and lists the keys of encrypted values, and seals and opens values by hand.

Rules of this module:

- A key file is never overwritten; it is created with mode 0600 before its first byte is written.
- Secret key files that others may read are refused, as they are in a policy.
- Values pass as the exact bytes that they are. An error is one line on stderr, and quotes no key and no value.
- cryptography is imported where it is used, so that `--help` is fast.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from proxy.commands.failed import Failed, key_failures
from proxy.commands.keysrotate import add_key, public_set, rotate

if TYPE_CHECKING:
    from proxy.core.jose.keys import Alg, Key, KeySet
    from proxy.core.jose.place import Place
    from proxy.core.rules.policy import Policy

ALGORITHMS = ("ECDH-ES+A256KW", "RSA-OAEP-256", "A256KW")
ENCRYPTIONS = ("A256GCM", "A128GCM")
CURVES = ("P-256", "X25519")
FORMATS = ("pem", "jwk")
_SHOWN = 300  # characters of what a token says of itself


@click.group(short_help="Make, convert, list and try out keys.")
def keys() -> None:
    """Make, convert, list and try out the keys of encrypted values.

    \b
    Example:
      overcoat keys new --kid pay-2026 --out pay-2026.pem
      echo '"4111 1111"' | overcoat keys seal --key pay-2026.pub.pem --kid pay-2026 \\
          --host api.pay.example --path '$.card.number'
    """


_alg_option = click.option("--alg", type=click.Choice(ALGORITHMS), help="The algorithm; else what the key's kind says.")
_unsafe_option = click.option(
    "--unsafe-key-permissions", "unsafe", is_flag=True, help="Read a secret key file although others can read it, too."
)
_password_option = click.option(
    "--password-file",
    "password_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="What opens PKCS#12 or an encrypted PEM.",
)
_policy_option = click.option("-p", "--policy", "policy", type=click.Path(), metavar="FILE", help="The policy file.")


@dataclass(frozen=True, slots=True)
class Source:
    """The key and the place that `seal` and `open` are to use, from their common options."""

    file: Path | None
    alg: str | None
    kid: str | None
    policy: str | None
    set_name: str | None
    host: str | None
    path: str | None
    unsafe: bool
    password_file: Path | None
    enc: str | None
    envelope: str | None = None


def _source_options(command: Callable[[Source], None]) -> Callable[..., None]:
    """Add the options of a `Source` to a command, and pass them to it as one value."""
    options = (
        click.option("--key", "file", type=click.Path(path_type=Path), metavar="FILE", help="A key file, PEM or JWK."),
        _alg_option,
        click.option("--enc", type=click.Choice(ENCRYPTIONS), help="The content encryption; A256GCM if not given."),
        click.option("--kid", help="The key's name, where the file has none or it is not the thumbprint."),
        _policy_option,
        click.option("--set", "set_name", metavar="NAME", help="A key set of the policy, in place of --key."),
        click.option("--host", help="The host that the value is bound to."),
        click.option("--path", "path", metavar="'$.x'", help="Where in the body it stands, array indexes as *."),
        _unsafe_option,
        _password_option,
    )

    @wraps(command)
    def with_source(**values: Any) -> None:
        command(Source(**values))

    decorated: Callable[..., None] = with_source
    for option in reversed(options):
        decorated = option(decorated)
    return decorated


@keys.command()
@click.option("--alg", type=click.Choice(ALGORITHMS), default=ALGORITHMS[0], show_default=True)
@click.option("--curve", type=click.Choice(CURVES), help="For ECDH-ES+A256KW; P-256 if not given.")
@click.option("--kid", help="Its name in tokens and policies; the RFC 7638 thumbprint if not given.")
@click.option("--format", "form", type=click.Choice(FORMATS), help="pem, but jwk for A256KW, which has no PEM form.")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="A new file; stdout if not given.")
@click.option("--into", type=click.Path(path_type=Path), metavar="FILE", help="A JWK Set, which may be there already.")
def new(
    *,
    alg: str,
    curve: Literal["P-256", "X25519"] | None,
    kid: str | None,
    form: str | None,
    out: Path | None,
    into: Path | None,
) -> None:
    """Make a private or symmetric key, and its public half beside it; or write it into a JWK Set: a new one, or beside
    the keys that are there, to follow.

    \b
    Example: overcoat keys new --kid pay-2026 --out pay-2026.pem
    """
    from proxy.core.jose.keys import Alg, new_key
    from proxy.disk.keyfiles import create_file

    if curve is not None and alg != Alg.ECDH_ES_A256KW:
        raise click.UsageError(f"--curve is for {Alg.ECDH_ES_A256KW} only")
    symmetric = alg == Alg.A256KW
    if symmetric and form == "pem":
        raise click.UsageError("a symmetric key has no PEM form; use --format jwk")
    if into is not None and (out is not None or form is not None):
        raise click.UsageError("--into names a JWK Set; --out and --format are for a key of its own")
    form = form or ("jwk" if symmetric else "pem")
    with key_failures(into):
        key = new_key(Alg(alg), curve=curve or "P-256", kid=kid)
        if into is not None:
            add_key(into, key)
            click.echo(f"kid: {key.kid}", err=True)
            click.echo(f"# In the policy:\nkeys:\n  NAME: {{alg: {alg}, set: {json.dumps(str(into))}}}", err=True)
            return
        secret = _encode(key, form, private=True)
        if out is None:
            click.echo(secret, nl=False)
            _explain(key, f"PRIVATE.{form}", None if symmetric else f"PUBLIC.{form}")
            click.echo(
                "note: the key was printed, and is in no file; --out FILE writes it, and its public half", err=True
            )
            return
        create_file(out, secret, mode=0o600)
        if symmetric:
            _explain(key, str(out), None)
            return
        public_file = out.with_name(f"{out.stem}.pub.{form}")
        try:
            create_file(public_file, _encode(key, form, private=False), mode=0o644)
        except OSError:
            out.unlink()  # just made, and not used by anybody yet
            raise
        _explain(key, str(out), str(public_file))


@keys.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(FORMATS), default="pem", show_default=True)
@_alg_option
@click.option("--kid", help="The name to write into a JWK.")
@_unsafe_option
@_password_option
def public(
    *, file: Path, form: str, alg: str | None, kid: str | None, unsafe: bool, password_file: Path | None
) -> None:
    """Print the public half of the key in FILE; of a JWK Set without --kid, all its public halves as a set.

    \b
    Example: overcoat keys public pay-2026.pem --format jwk --kid pay-2026
    """
    from proxy.disk.keyfiles import read_key_file

    with key_failures(file):
        whole = public_set(read_key_file(file, unsafe_permissions=unsafe)) if kid is None else None
        if whole is not None:
            click.echo(whole, nl=False)
            return
        click.echo(_encode(_read_key(file, alg, kid, unsafe, password_file), form, private=False), nl=False)


keys.add_command(rotate)


@keys.command("list")
@_policy_option
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
def list_keys(policy: str | None, as_json: bool) -> None:
    """List the keys of the policy: which seals, which open, from when and for how long, and where they come from.

    \b
    Example: overcoat keys list -p overcoat.yaml
    """
    from proxy.commands.shared import echo_json

    with key_failures():
        loaded = _load_policy(policy)
    today = _today()
    rows = [row for key_set in loaded.keys.values() for row in _rows(key_set, today)]
    if as_json:
        echo_json(rows)
        return
    if not rows:
        click.echo("the policy has no keys")
        return
    titles = ("set", "alg", "kid", "role", "kind", "made", "good", "from", "thumbprint")
    table = [titles, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(titles))]
    for line in table:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


@keys.command()
@_source_options
@click.option("--envelope", metavar="NAME", help='Print {"NAME": "<JWE>"}, as an entry with that envelope would.')
def seal(source: Source) -> None:
    """Encrypt the JSON value on stdin, as Overcoat would at that place, and print the JWE.

    \b
    Example: echo '"4111"' | overcoat keys seal --key pay.pub.pem --kid pay --host api.pay.example --path '$.card'
    """
    from proxy.core.fields.jsontext import NotJson, find_spans
    from proxy.core.jose.keys import Bind, NoKey
    from proxy.core.jose.sealing import seal as seal_value

    with key_failures(source.file):
        place = _place(source)
        key_set = _key_set(source)
        value = sys.stdin.buffer.read().removesuffix(b"\n")
        try:
            find_spans(value, [])
        except NotJson as error:
            raise Failed(f"stdin is no JSON value: {error}") from None
        try:
            token = seal_value(value, key_set, place, key_set.sealing_key(_today()), time.time())
        except NoKey as error:
            raise Failed(f"{error}: {error.hint}") from None
        if place is None and source.set_name is not None and key_set.bind is not Bind.NONE:
            click.echo(f"note: without --host and --path, key set {source.set_name} opens this nowhere", err=True)
    click.echo(token if source.envelope is None else json.dumps({source.envelope: token}))


@keys.command("open")
@_source_options
def open_value(source: Source) -> None:
    """Decrypt the JWE on stdin, bare, as a JSON string or in an envelope, and print the exact bytes it holds. On a
    terminal, what that would take for a command is shown as an escape.

    What the JWE says of itself goes to stderr: its key, and the place that it was sealed for. Without --host and --path
    that place is not checked.

    \b
    Example: overcoat keys open --key pay.pem --kid pay < token
    """
    from proxy.commands.bodymarks import shown_text
    from proxy.core.fields.splice import token_of
    from proxy.core.jose.jwe import JweError, open_token

    with key_failures(source.file):
        place = _place(source)
        key_set = _key_set(source)
        text = sys.stdin.buffer.read().strip()
        if text.startswith(b"{"):
            token = _enveloped(text)
        else:
            token = token_of(text) if text.startswith(b'"') else text.decode("ascii", "replace")
        if token is None:
            raise Failed("stdin holds no JWE, no JSON string with one, and no object with such a string alone")
        try:
            plaintext = open_token(token, key_set, place, _today())
        except JweError as error:
            unnamed = source.kid is None and source.file is not None and "kid" in str(error)
            hint = f"; say --kid {_kid_of(token)} if that is the key in the file" if unnamed else ""
            says = _says_of_itself(token)
            raise Failed(f"{error}{hint}{f' (the token says: {says})' if says else ''}") from None
    is_terminal = sys.stdout.isatty()  # elsewhere exactly what was sealed, and nothing more
    click.echo(shown_text(plaintext) if is_terminal else plaintext, nl=is_terminal)
    click.echo(f"note: {_says_of_itself(token)}", err=True)


def _enveloped(text: bytes) -> str | None:
    """Return the string that an object holds as its only member; None if it is something else."""
    from proxy.core.jose.encoding import parse_object

    try:
        members = list(parse_object(text).values())
    except ValueError:
        return None
    return members[0] if len(members) == 1 and isinstance(members[0], str) else None


def _says_of_itself(token: str) -> str:
    """Return what the header of a token says about its key and its place, in words; empty if it cannot be read."""
    from proxy.core.jose.encoding import parse_object, unbase64url
    from proxy.core.jose.place import read_media_type

    try:
        header = parse_object(unbase64url(token.partition(".")[0]))
        _, place = read_media_type(str(header.get("cty", "json")))
    except ValueError:
        return ""
    kid, alg, enc = (_shortly(header.get(name, "none")) for name in ("kid", "alg", "enc"))
    has_place = {"host", "path"} <= place.keys()
    bound = f"{_shortly(place['path'])} at {_shortly(place['host'])}" if has_place else "no place"
    return f"sealed with key {kid}, {alg}, {enc}; bound to {bound}"


def _shortly(value: object) -> str:
    """Return what a header says in one line that no terminal takes for anything else."""
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def _kid_of(token: str) -> str:
    """Return the key name in a token, quoted for a shell."""
    from proxy.core.jose.encoding import parse_object, unbase64url

    kid = parse_object(unbase64url(token.partition(".")[0])).get("kid")
    return shlex.quote(kid) if isinstance(kid, str) and kid.isprintable() else "NAME"


def _today() -> date:
    return datetime.now(UTC).date()


def _encode(key: Key, form: str, *, private: bool) -> bytes:
    from proxy.core.jose.keywriting import to_jwk, to_pem

    if form == "jwk":
        return json.dumps(to_jwk(key, private=private), indent=1).encode("ascii") + b"\n"
    return to_pem(key, private=private)


def _explain(key: Key, secret_file: str, public_file: str | None) -> None:
    """Print on stderr what to write into which policy; the strings are quoted as in JSON, which YAML reads."""

    def entry(file: str) -> str:
        return f"{{kid: {json.dumps(key.kid)}, file: {json.dumps(file)}}}"

    click.echo(f"kid: {key.kid}", err=True)
    click.echo(
        f"# In the policy, where values are {'encrypted' if public_file else 'encrypted or decrypted'}:", err=True
    )
    click.echo(f"keys:\n  NAME:\n    alg: {key.alg}\n    primary: {entry(public_file or secret_file)}", err=True)
    if public_file:
        click.echo(f"# and only where they are decrypted:\n#   primary: {entry(secret_file)}", err=True)


def _read_key(file: Path, alg: str | None, kid: str | None, unsafe: bool, password_file: Path | None) -> Key:
    from proxy.core.jose.keys import Alg, alg_for, load_key
    from proxy.disk.keyfiles import read_key_file

    data = read_key_file(file, unsafe_permissions=unsafe)
    password = None
    if password_file is not None:
        password = read_key_file(password_file, unsafe_permissions=unsafe).strip(b"\r\n")
    chosen: Alg = Alg(alg) if alg else alg_for(data, kid=kid, password=password)
    return load_key(data, alg=chosen, kid=kid, password=password)


def _load_policy(option: str | None) -> Policy:
    from proxy.policyfile.load import load_policy
    from proxy.policyfile.nearby import find_policy
    from proxy.policyfile.refusal import PolicyErrors
    from proxy.processes.secrecy import SecretVariables

    try:
        return load_policy(find_policy(option, os.environ), os.environ, secrets=SecretVariables())
    except PolicyErrors as errors:
        raise Failed("\nerror: ".join(map(str, errors.errors)), 2) from None


def _key_set(source: Source) -> KeySet:
    """Return the policy's key set, or a key set made of the key in the file."""
    from proxy.core.jose.keys import Enc, KeySet

    if source.file is not None and source.set_name is None:
        if source.policy is not None:
            raise click.UsageError("--policy goes with --set, not with --key")
        key = _read_key(source.file, source.alg, source.kid, source.unsafe, source.password_file)
        return KeySet("--key", key.alg, key, enc=Enc(source.enc or Enc.A256GCM))
    if source.set_name is None or source.file is not None:
        raise click.UsageError("give either --key FILE, or --set NAME for a key set of the policy")
    if (
        any(option is not None for option in (source.alg, source.enc, source.kid, source.password_file))
        or source.unsafe
    ):
        what = "--alg, --enc, --kid, --password-file and --unsafe-key-permissions"
        raise click.UsageError(f"{what} go with --key; the policy has its own")
    loaded = _load_policy(source.policy)
    if source.set_name not in loaded.keys:
        known = ", ".join(loaded.keys) or "none"
        raise Failed(f"the policy ({loaded.source}) has no key set {source.set_name}; it has: {known}")
    return loaded.keys[source.set_name]


def _place(source: Source) -> Place | None:
    from proxy.core.destinations import canonical_host
    from proxy.core.jose.place import Place, ascii_text

    if source.host is None and source.path is None:
        return None
    if source.host is None or source.path is None:
        raise click.UsageError("--host and --path go together")
    if not source.path.startswith("$"):
        raise click.BadParameter("a place starts with $, as in '$.items[*].secret'", param_hint="--path")
    return Place(canonical_host(source.host), ascii_text(source.path))


type Row = dict[str, str | bool | None]


def _rows(key_set: KeySet, today: date) -> list[Row]:
    """Return a row for each key of a set; for one that is fetched while a sidecar runs, one that says from where."""
    if (supply := key_set.supply) is not None:
        nothing = dict.fromkeys(("made", "not_before", "not_after", "opens_until", "thumbprint"))
        return [
            {
                "set": key_set.name,
                "alg": key_set.alg.value,
                "kid": supply.kid,
                "role": "fetched",
                "kind": "public",
                "can_open": False,
                "expired": False,
                "source": supply.shown,
                **nothing,
            }
        ]
    return [_row(key_set, key, today) for key in key_set.keys]


def _row(key_set: KeySet, key: Key, today: date) -> Row:
    from proxy.core.jose.keymaterial import SecretBytes
    from proxy.core.jose.keywriting import thumbprint

    primary = key_set.primary
    is_newer = primary is not None and key.made is not None and (primary.made is None or key.made > primary.made)
    last = key_set.last_opening(key)
    return {
        "set": key_set.name,
        "alg": key.alg.value,
        "kid": key.kid,
        "role": "primary" if key is primary else "next" if is_newer else "older",
        "kind": "symmetric" if isinstance(key.material, SecretBytes) else "private" if key.is_secret else "public",
        "can_open": key.can_open,
        "made": key.made.date().isoformat() if key.made else None,
        "not_before": key.not_before.isoformat() if key.not_before else None,
        "not_after": key.not_after.isoformat() if key.not_after else None,
        "opens_until": last.isoformat() if last and key.can_open else None,
        "expired": key.expired(today),
        "source": key.source,
        "thumbprint": thumbprint(key),
    }


def _cells(row: Row) -> tuple[str, ...]:
    begins = f"from {row['not_before']} " if row["not_before"] else ""
    ends = f"until {row['not_after']}{' (expired)' if row['expired'] else ''}" if row["not_after"] else ""
    longer = f", opens until {row['opens_until']}" if row["opens_until"] not in (None, row["not_after"]) else ""
    named = [str(row[name] or "-") for name in ("set", "alg", "kid", "role", "kind", "made")]
    return (*named, f"{begins}{ends}{longer}".strip() or "-", str(row["source"] or "-"), str(row["thumbprint"] or "-"))
