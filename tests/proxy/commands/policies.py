"""Policies for the tests of commands, and a function that runs a command with one."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner, Result

from proxy.cli import main
from proxy.core.jose.keys import Alg, new_key
from proxy.core.jose.keywriting import to_jwk
from proxy.core.who.clients import hash_password

PIN_A = "sha256/AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
PIN_B = "sha256/ISIjJCUmJygpKissLS4vMDEyMzQ1Njc4OTo7PD0+P0A="
JWK = json.dumps(to_jwk(new_key(Alg.A256KW, kid="app-1"), private=True))

POLICY = f"""\
version: 1
listen: ["forward://127.0.0.1:0"]
admin: null
keys:
  app: {{alg: A256KW, primary: {{kid: app-1, key: {{env: APP_KEY}}, not_after: 2999-01-01}}}}
rules:
  - name: pay
    hosts: [api.pay.example]
    https_port: 8443
    pins: {{any_of: ["{PIN_A}", "{PIN_B}"], expires: 2999-06-30}}
    request:
      - encrypt: ["$.card.number", "$..ssn"]
        key: app
        match: exact
        when: {{methods: [POST], paths: ["/v1/**"]}}
      - encrypt: ["$.note"]
        key: app
        match: exact
    response:
      - decrypt: ["$.card"]
        key: app
        when: {{methods: [GET]}}
  - name: printer
    hosts: [printer.lan]
    plain_http: allow
    https: inspect
  - name: none
    hosts: ["**.evil.example"]
    plain_http: reject
    https: reject
"""

WAY = """\
version: 1
listen: ["forward://127.0.0.1:0"]
admin: null
defaults: {plain_http: allow}
destinations: {allow: [private, 127.0.0.1, 192.0.2.0/24], egress: EGRESS}
clients: {allow: [loopback], users: [{name: reports, password_hash: "HASH"}]}
upstream_proxy: {url: "https://proxy.example:3128", pins: {any_of: ["PIN"]}, direct: [direct.example]}
hsts_preload: true
via: coat
workers: 2
rules: [{name: database, hosts: ["db.example:5432"], raw_tcp: allow}]
""".replace("PIN", PIN_A).replace("HASH", str(hash_password("x", bytes(16))))


def run(*arguments: str, policy: str = POLICY) -> Result:
    """Run `overcoat` with a policy and its key."""
    Path("policy.yaml").write_text(policy)
    runner = CliRunner(env={"OVERCOAT_POLICY": "policy.yaml", "APP_KEY": JWK})
    return runner.invoke(main, arguments, catch_exceptions=False)
