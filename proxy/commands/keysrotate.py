"""`overcoat keys rotate`: makes one step of a rotation in a JWK Set, and says what comes next. `overcoat keys new` adds
a key to a set with it, and `overcoat keys public` takes the public half of one.

Rules of this module:

- A set is replaced in one step, under a lock, with the mode and the owner that it had. What would not be a right set
  afterwards is not written.
- With a public set beside it, whoever opens is first: a key is there before anybody may seal with it, and is sealed
  with no more before it goes.
- Nothing here prints a key.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proxy.core.jose.keys import Alg, Key

STEPS = ("add", "promote", "retire")


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--step", type=click.Choice(STEPS), help="The step to make; the next one if not given.")
@click.option("--kid", help="The name of a key that is added; its RFC 7638 thumbprint if not given.")
@click.option(
    "--public",
    "public_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A JWK Set with the public halves, for those who seal; it is written at each step.",
)
@click.option("--unsafe-key-permissions", "unsafe", is_flag=True, help="Go on although others can read FILE, too.")
def rotate(file: Path, step: str | None, kid: str | None, public_file: Path | None, unsafe: bool) -> None:
    """Make the next step of a rotation in the JWK Set FILE: add a key, make it the primary one, or take the oldest one
    out. A sidecar whose policy has the set (`set: FILE`) reads it again by itself.

    \b
    Example:
      overcoat keys new --into app.jwks
      overcoat keys rotate app.jwks --public app.pub.jwks
    """
    from proxy.commands.failed import key_failures
    from proxy.core.jose.keys import BadKey
    from proxy.core.jose.rotation import Step, standing
    from proxy.disk.keyfiles import exclusively

    with key_failures(file), exclusively(file) as real:
        members, keys = _read(real, unsafe)
        if not all(key.is_secret for key in keys):
            raise BadKey("there are public keys in this set: rotate it where the private ones are, with --public")
        chosen = Step(step) if step is not None else standing(members["keys"]).next_step
        if kid is not None and chosen is not Step.ADD:
            raise click.UsageError(f"--kid names a key that is added; this step is {chosen}")
        after = _stepped(members["keys"], chosen, keys[0], kid)
        _write(real, {**members, "keys": after}, public_file, keys[0].alg, is_public_first=chosen is Step.RETIRE)
    _tell(file, chosen, members["keys"], after, public_file)


def add_key(file: Path, key: Key, unsafe: bool = False) -> None:
    """Write a new key into a set: into a new file as its only one, or beside those that are there, to follow.

    Args:
        file: the set's file.
        key: the key.
        unsafe: whether others may read it.

    Raises:
        BadKey: the set is none, or has keys for another algorithm, or one of this name.
        OSError: it cannot be read or written.
        proxy.disk.keyfiles.KeyFileError: others can read it.
    """
    from proxy.core.jose.keywriting import to_jwk
    from proxy.core.jose.rotation import add
    from proxy.disk.keyfiles import create_file, exclusively

    new = to_jwk(key, private=True)
    try:
        create_file(file, _text({"keys": [{**new, "iat": int(time.time())}]}), mode=0o600)
    except FileExistsError:
        with exclusively(file) as real:
            members, _ = _read(real, unsafe)
            _write(real, {**members, "keys": add(members["keys"], new, int(time.time()))}, None, key.alg)


def public_set(data: bytes) -> bytes | None:
    """Return the public halves of a JWK Set as one; None if the data is no set.

    Raises:
        BadKey: it is one that cannot be read, or has symmetric keys.
    """
    from proxy.core.jose.encoding import parse_object

    try:
        members = parse_object(data)
    except ValueError:
        return None
    return _public_text(members, _alg_of(members)) if "keys" in members else None


def _read(path: Path, unsafe: bool) -> tuple[dict[str, Any], Sequence[Key]]:
    from proxy.core.jose.encoding import parse_object
    from proxy.core.jose.jwksets import keys_of_set
    from proxy.core.jose.keys import BadKey
    from proxy.disk.keyfiles import read_key_file

    data = read_key_file(path, unsafe_permissions=unsafe)
    try:
        members = parse_object(data)
    except ValueError:
        members = {}
    if "keys" not in members:
        raise BadKey("this is no JWK Set; overcoat keys new --into FILE makes one")
    return members, keys_of_set(data, alg=_alg_of(members))


def _alg_of(members: dict[str, Any]) -> Alg:
    """Return the algorithm of the first key of a set, which all others must have, too."""
    from proxy.core.jose.keyformats import members_of_set
    from proxy.core.jose.keys import alg_for

    return alg_for(json.dumps(next(members_of_set(members))).encode())


def _stepped(keys: list[dict[str, Any]], step: str, primary: Key, kid: str | None) -> Sequence[Any]:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    from proxy.core.jose.keys import new_key
    from proxy.core.jose.keywriting import to_jwk
    from proxy.core.jose.rotation import Step, add, promote, retire

    if step == Step.ADD:
        curve: Literal["P-256", "X25519"] = "X25519" if isinstance(primary.material, X25519PrivateKey) else "P-256"
        return add(keys, to_jwk(new_key(primary.alg, curve=curve, kid=kid), private=True), int(time.time()))
    return promote(keys) if step == Step.PROMOTE else retire(keys)


def _write(
    real: Path, members: dict[str, Any], public_file: Path | None, alg: Alg, *, is_public_first: bool = False
) -> None:
    """Write a set, and its public half if that is wanted; nothing if one of them would not be right."""
    from proxy.core.jose.jwksets import keys_of_set
    from proxy.core.jose.keys import BadKey, is_public
    from proxy.disk.keyfiles import MAX_KEY_FILE_BYTES, read_key_file, replace_file

    text = _text(members)
    keys_of_set(text, alg=alg)
    if len(text) > MAX_KEY_FILE_BYTES:
        raise BadKey(f"the set would have more than {MAX_KEY_FILE_BYTES // 1024} KiB: take old keys out first")
    files = [(real, text, 0o600)]
    if public_file is not None:
        if public_file.exists() and not is_public(read_key_file(public_file, unsafe_permissions=True)):
            raise BadKey(
                f"{public_file} holds something secret, and is not written over: name another file with --public"
            )
        files.append((public_file, _public_text(members, alg), 0o644))
    for path, data, mode in reversed(files) if is_public_first else files:
        replace_file(path, data, mode=mode)


def _public_text(members: dict[str, Any], alg: Alg) -> bytes:
    from proxy.core.jose.jwksets import keys_of_set
    from proxy.core.jose.keywriting import to_jwk

    keys = keys_of_set(_text(members), alg=alg)
    days = ("iat", "nbf", "exp")
    public = [
        {**to_jwk(key, private=False), **{name: each[name] for name in days if name in each}}
        for key, each in zip(keys, members["keys"], strict=True)
    ]
    return _text({"keys": public})


def _text(members: dict[str, Any]) -> bytes:
    return json.dumps(members, indent=1).encode("ascii") + b"\n"


def _tell(file: Path, step: str, before: Sequence[Any], after: Sequence[Any], public_file: Path | None) -> None:
    """Say what was done, what comes next, and when that is safe."""
    from proxy.core.jose.jwksets import keys_of_set
    from proxy.core.jose.rotation import Step, standing

    each = [*before, *(member for member in after if member not in before)]
    kids = [key.kid for key in keys_of_set(_text({"keys": each}), alg=_alg_of({"keys": each}))]

    def name(member: Any) -> str:
        return kids[each.index(member)]

    now = standing(after)
    primary, next_one = name(now.primary), now.next_step
    if step == Step.ADD:
        click.echo(f"{file}: key {name(after[-1])} was added. It opens; key {primary} goes on sealing.")
    elif step == Step.PROMOTE:
        click.echo(f"{file}: key {primary} seals now; key {name(before[0])} still opens.")
    else:
        gone = next(each for each in before if each not in after)
        click.echo(f"{file}: key {name(gone)} was taken out, and opens nothing any more; key {primary} seals.")
    if public_file is not None:
        click.echo(f"{public_file}: the public halves, in the same order")
    if next_one is Step.PROMOTE:
        click.echo(
            f"next: promote {name(now.following[0])}. Safe once everybody who opens has this set: overcoat keys list "
            "there shows the key, and their log says that the policy was read again."
        )
    elif next_one is Step.RETIRE:
        click.echo(
            f"next: retire {name(now.old[-1])}. Safe once everybody who seals has the set as it is now, and nothing "
            "that was sealed before is still to be opened: there, overcoat_key_uses_total of that kid no longer rises."
        )
    else:
        click.echo("next: add, whenever there is to be a new key.")
