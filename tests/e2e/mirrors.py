"""A mirror beside a server, for end-to-end tests: its policy, its certificate, and a forward sidecar before it.

with PlainUpstream() as server, mirror(tmp_path, server, authority, receiver) as beside:
    with peer(beside, roots) as client: ...
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.e2e.certificates import Authority, Identity
from tests.e2e.clients import RawClient
from tests.e2e.http2 import Http2Client
from tests.e2e.receiver import Receiver
from tests.e2e.sidecar import Sidecar
from tests.e2e.upstream import PlainUpstream, TlsUpstream

NAME = "api.pay.example"
RULE = """
    keys:
      server: {{alg: ECDH-ES+A256KW, primary: {{kid: {server.kid}, file: {server_file}}}}}
      app: {{alg: A256KW, primary: {{kid: {app.kid}, file: {app_file}}}}}
    rules:
      - name: pay
        hosts: [{name}]
        {more}
        {first}:
          - {{encrypt: ["$.card.number", "$..secret"], key: {seals}{form_sealed}}}
        {second}:
          - {{decrypt: ["$.token", "$..secret"], key: {opens}{form_opened}}}
"""


def write_identity(folder: Path, identity: Identity) -> tuple[Path, Path]:
    """Write a certificate and its key as a mirror reads them, and return the names of both files."""
    chain, key = folder / "server.pem", folder / "server.key"
    chain.write_bytes(b"".join(identity.chain_pem))
    key.touch(mode=0o600)
    key.write_bytes(identity.key_pem)
    return chain, key


def rule_of_mirror(folder: Path, server: Receiver, app: Receiver, more: str = "") -> str:
    """Return keys and rule of the server's side: it opens with its private key, and seals with the app's."""
    return _rule(folder, server, app, server_file=server.write_private(folder), is_mirror=True, more=more)


def rule_of_app(folder: Path, server: Receiver, app: Receiver, more: str = "") -> str:
    """Return keys and rule of the app's side, which is the other way round."""
    return _rule(folder, server, app, server_file=server.write_public(folder), is_mirror=False, more=more)


def _rule(folder: Path, server: Receiver, app: Receiver, *, server_file: str, is_mirror: bool, more: str) -> str:
    seals, opens = ("app", "server") if is_mirror else ("server", "app")
    text = RULE.format(
        server=server,
        server_file=server_file,
        app=app,
        app_file=app.write_private(folder),
        name=NAME,
        more=more,
        first="response" if is_mirror else "request",
        second="request" if is_mirror else "response",
        seals=seals,
        opens=opens,
        form_sealed="" if is_mirror else ", form: [card]",
        form_opened=", form: [card]" if is_mirror else "",
    )
    if is_mirror:  # the lists of the two ends select the same values
        return text.replace('encrypt: ["$.card.number"', 'encrypt: ["$.token"', 1).replace(
            'decrypt: ["$.token"', 'decrypt: ["$.card.number"', 1
        )
    return text


def listener_of(server: PlainUpstream | TlsUpstream | int, *, more: str = "&cert=server.pem&key=server.key") -> str:
    """Return the mirror listener before a server."""
    scheme, port = (
        "https" if isinstance(server, TlsUpstream) else "http",
        server if isinstance(server, int) else server.port,
    )
    return f"mirror://127.0.0.1:0?to={scheme}://127.0.0.1:{port}&for={NAME}{more}"


def mirror(
    folder: Path,
    server: PlainUpstream | TlsUpstream | int,
    authority: Authority,
    receiver: Receiver,
    app: Receiver,
    *,
    rule: str = "",
    more: str = "",
    listener: str | None = None,
    **options: Any,
) -> Sidecar:
    """Return a sidecar that mirrors a server.

    Args:
        folder: a folder of its own.
        server: the server behind it, or the port of one that speaks plain http.
        authority: who signs its certificate, and the server's if that speaks TLS.
        receiver: whose key opens requests.
        app: whose key seals responses.
        rule: further keys of its rule, in one line.
        more: further sections of its policy.
        listener: its listener, if it is another one.
        options: as for `Sidecar`.
    """
    folder.mkdir(exist_ok=True)
    write_identity(folder, authority.issue(NAME))
    listen = f"    listen: ['{listener or listener_of(server)}']\n"
    return Sidecar(listen + rule_of_mirror(folder, receiver, app, rule) + more, folder, authority=authority, **options)


def peer(sidecar: Sidecar, roots: Path, name: str = NAME) -> RawClient:
    """Return a peer's connection to a mirror, over TLS that is checked."""
    client = RawClient(sidecar.address)
    client.start_tls(name, roots)
    return client


def peer2(sidecar: Sidecar, roots: Path, name: str = NAME) -> Http2Client:
    """The same, with HTTP/2."""
    return Http2Client.open(RawClient(sidecar.address), name, roots)
