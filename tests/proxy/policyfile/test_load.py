"""The policy file: what it means, and every way to get one wrong, with its place and what would be right."""

from __future__ import annotations

import json
import re
from dataclasses import fields, replace
from datetime import date
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import trustme
import yaml
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, pkcs12
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.core.destinations import Destination
from proxy.core.fields.entries import AlreadySealed, Match
from proxy.core.fields.envelopes import Envelope
from proxy.core.fields.readings import readings
from proxy.core.jose.keys import Alg, Bind, Enc, Key, new_key
from proxy.core.jose.keywriting import to_jwk, to_pem
from proxy.core.jose.profiles import fingerprint
from proxy.core.pinfiles import pin_of_pem
from proxy.core.pins import parse_pin
from proxy.core.rules.policy import Defaults, HostPattern, Https, Limits, Listener, Mode, PlainHttp, Policy
from proxy.core.who.clients import PasswordHash
from proxy.policyfile.load import load_policy
from proxy.policyfile.model.schema import policy_schema, policy_table, schema_text
from proxy.policyfile.nearby import find_policy
from proxy.policyfile.refusal import PolicyError, PolicyErrors
from proxy.processes.wires import pack, unpack

CONFIG = Path(__file__).resolve().parents[3] / "config"
EXAMPLES = sorted((CONFIG / "examples").glob("*.yaml"))

PIN_A = "sha256/AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
PIN_B = "sha256/ISIjJCUmJygpKissLS4vMDEyMzQ1Njc4OTo7PD0+P0A="

SECRET = new_key(Alg.A256KW)


def _jwk(key: Key) -> str:
    """A JWK without a kid, so that the policy names the key."""
    members = to_jwk(key, private=True)
    del members["kid"]
    return json.dumps(members)


SECRET_JWK = _jwk(SECRET)
RECEIVER = new_key(Alg.ECDH_ES_A256KW)
RECEIVER_PRIVATE = to_pem(RECEIVER, private=True)
RECEIVER_PUBLIC = to_pem(RECEIVER.public(), private=False)
SERVER_PUBLIC = to_pem(new_key(Alg.ECDH_ES_A256KW).public(), private=False)
CA_PEM = trustme.CA().cert_pem.bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all the key material that the policies here and the examples name."""
    folder = tmp_path_factory.mktemp("policies")
    (folder / "keys").mkdir()
    (folder / "keys/pay-2026.pub.pem").write_bytes(RECEIVER_PUBLIC)
    (folder / "keys/pay-tls.pem").write_bytes(SERVER_PUBLIC)
    (folder / "keys/pay-tls-next.pem").write_bytes(CA_PEM)
    (folder / "roots.pem").write_bytes(CA_PEM)
    served = trustme.CA().issue_cert("api.pay.example")
    (folder / "server.pem").write_bytes(served.cert_chain_pems[0].bytes())
    (folder / "app-2026.pub.pem").write_bytes(RECEIVER_PUBLIC)
    for name, data in (("server.key", served.private_key_pem.bytes()), ("pay-2026.pem", RECEIVER_PRIVATE)):
        (folder / name).touch(mode=0o600)
        (folder / name).write_bytes(data)
    (folder / "empty.pem").write_bytes(b"")
    (folder / "large.pem").write_bytes(b"x" * 70_000)
    for name, mode in (("app.jwk", 0o600), ("old.jwk", 0o600), ("open.jwk", 0o644)):
        (folder / "keys" / name).write_text(SECRET_JWK if name != "old.jwk" else _jwk(new_key(Alg.A256KW)))
        (folder / "keys" / name).chmod(mode)
    return folder


def _load(folder: Path, text: str | bytes, **env: str) -> Policy:
    file = folder / "policy.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_policy(file, env)


def _errors(folder: Path, text: str | bytes, **env: str) -> tuple[PolicyError, ...]:
    with pytest.raises(PolicyErrors) as caught:
        _load(folder, text, **env)
    return caught.value.errors


WHOLE_EXAMPLE = f"""\
version: 1
listen: [forward://127.0.0.1:8080]
admin: 127.0.0.1:9464
mode: enforce

defaults:
  plain_http: upgrade
  https: tunnel
trust:
  roots: system
  min_tls: "1.2"
  strict: true

keys:
  payments:
    alg: ECDH-ES+A256KW
    primary: {{kid: pay-2026, file: keys/pay-2026.pub.pem}}
  app:
    alg: A256KW
    primary: {{kid: app-2, file: keys/app.jwk}}
    older: [{{kid: app-1, file: keys/old.jwk, not_after: 2027-01-31}}]

rules:
  - name: payments
    hosts: [api.pay.example, "**.sandbox.pay.example"]
    plain_http: upgrade
    https_port: 443
    pins:
      any_of: ["{PIN_A}", "{PIN_B}"]
      expires: 2027-06-30
    request:
      - encrypt: ["$.card.number", "$.card.cvv", "$..ssn"]
        key: payments
        when: {{methods: [POST, PUT], paths: ["/v1/charges/**"]}}
    response:
      - decrypt: ["$.card.number"]
        key: app
"""


def test_the_whole_of_a_policy_is_read(folder: Path) -> None:
    policy = _load(folder, WHOLE_EXAMPLE)
    assert policy.listen == (Listener("127.0.0.1", 8080),)
    assert policy.admin == Listener("127.0.0.1", 9464)
    assert policy.mode is Mode.ENFORCE
    assert policy.source == str(folder / "policy.yaml")
    app = policy.keys["app"]
    assert (app.alg, app.keys[0].kid, app.bind) == (Alg.A256KW, "app-2", Bind.PLACE)
    assert [(key.kid, key.not_after) for key in app.older] == [("app-1", date(2027, 1, 31))]
    assert not policy.keys["payments"].keys[0].can_open
    (rule,) = policy.rules
    assert rule.hosts == (
        HostPattern("exact", "api.pay.example"),
        HostPattern("any_depth", "sandbox.pay.example"),
    )
    assert (rule.plain_http, rule.https, rule.https_port) == (PlainHttp.UPGRADE, Https.INSPECT, 443)
    assert rule.pins is not None
    assert rule.pins.any_of == (parse_pin(PIN_A), parse_pin(PIN_B))
    assert rule.pins.expires == date(2027, 6, 30)
    (encrypt,), (decrypt,) = rule.request, rule.response
    assert [selector.text for selector in encrypt.selectors] == ["$.card.number", "$.card.cvv", "$..ssn"]
    assert encrypt.keys is policy.keys["payments"]
    assert encrypt.when.applies(readings("PUT", "/v1/charges/ch_1"))
    assert not encrypt.when.applies(readings("GET", "/v1/charges/ch_1"))
    assert decrypt.keys is app
    assert decrypt.when.applies(readings("GET", "/anything"))


def contents(policy: Policy) -> dict[str, object]:
    """Return what a policy says: two that say the same are two policies all the same."""
    made_of = ("content", "secrets", "files")
    return {field.name: getattr(policy, field.name) for field in fields(policy) if field.name not in made_of}


@pytest.mark.parametrize("entry", ["request: [{encrypt: ", "response: [{decrypt: "])
def test_how_names_match_and_inside_what_is_read_for_both_directions(entry: str, folder: Path) -> None:
    rest = ", key: k, match: ignore_case, inside: %s}]"
    for written, inside in (("$.m", ["$.m"]), ('["$.m", $..n]', ["$.m", "$..n"])):
        text = f"{KEYS}rules:\n  - name: a\n    hosts: [x.example]\n    {entry}[$.a, $..b]{rest % written}\n"
        (field,) = _load(folder, text).rules[0].fields
        assert (field.match, [each.text for each in field.inside]) == (Match.IGNORE_CASE, inside)
        assert field.marks.texts == [f"{''.join(inside)}$.a", f"{''.join(inside)}$..b"]


@pytest.mark.parametrize(
    ("selectors", "more", "said"),
    [
        ("[$.card.number]", "", "NUMBER"),
        ("[$.card_number, $..ssn]", "", "SSN"),
        ("[$.card_number, \"$['x-y']\"]", "", None),
        ('["$.*", "$[0]"]', "", None),
        ("[$..ssn]", ", match: ignore_case", None),
        ("[$..ssn]", ", match: exact", None),
    ],
)
def test_where_names_are_letters_it_is_recommended_to_say_how_they_match(
    selectors: str, more: str, said: str | None, folder: Path
) -> None:
    text = f"{KEYS}rules:\n  - name: a\n    hosts: [x.example]\n    request: [{{encrypt: {selectors}, key: k{more}}}]\n"
    remarks = _load(folder, text).remarks
    assert len(remarks) == (said is not None)
    for remark in remarks:
        assert remark.startswith("rules[0].request[0]: ")
        assert "match: ignore_case" in remark
        assert f"read {said!r}, too" in remark


def test_the_built_in_policy_is_the_committed_default() -> None:
    built_in = load_policy(None, {})
    assert built_in.source == "built-in"
    same = contents(replace(load_policy(CONFIG / "default.yaml", {}), source="built-in"))
    assert same == contents(built_in) == contents(Policy())


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_every_example_loads(example: Path, folder: Path) -> None:
    policy = _load(folder, example.read_bytes(), APP_KEY=SECRET_JWK)
    assert policy.rules
    assert _shown(unpack(pack(policy), Policy)) == _shown(policy)  # as a worker gets it


def _shown(policy: Policy) -> str:
    """Return a policy as text, without where things lie in memory, and sets in one order."""
    text = re.sub(r"0x[0-9a-f]+", "", repr(policy))
    return re.sub(r"frozenset\(\{(.*?)\}\)", lambda found: str(sorted(found[1].split(", "))), text)


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 5


def _plain(value: Any) -> Any:
    """YAML data as an editor's schema checker sees it: dates are text."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.isoformat() if isinstance(value, date) else value


@pytest.mark.parametrize("file", [CONFIG / "default.yaml", *EXAMPLES], ids=lambda path: path.name)
def test_the_default_and_every_example_fit_the_json_schema(file: Path) -> None:
    jsonschema.validate(_plain(yaml.safe_load(file.read_text())), policy_schema())


def test_the_whole_policy_fits_the_json_schema() -> None:
    jsonschema.validate(_plain(yaml.safe_load(WHOLE_EXAMPLE)), policy_schema())


@pytest.mark.parametrize(
    "text",
    [
        "{version: 2}",
        "{}",
        "{version: 1, unknown: 1}",
        "{version: 1, mode: 'off'}",
        "{version: 1, rules: []}",
        "{version: 1, rules: [{name: a, hosts: [x.example], pins: null}]}",
        "{version: 1, keys: {Upper: {alg: A256KW, primary: {file: a}}}}",
        "{version: 1, limits: {held_body: 1}}",
    ],
)
def test_the_json_schema_refuses_what_the_policy_refuses(text: str, folder: Path) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load(text), policy_schema())
    assert _errors(folder, text)


def test_the_json_schema_allows_no_admin_listener() -> None:
    jsonschema.validate({"version": 1, "admin": None}, policy_schema())


def test_a_profile_says_enc_envelope_name_and_that_nothing_is_bound(tmp_path: Path) -> None:
    key = new_key(Alg.RSA_OAEP_256)
    (tmp_path / "rsa.pem").write_bytes(to_pem(key, private=True))
    (tmp_path / "rsa.pem").chmod(0o600)
    text = (
        "version: 1\nkeys:\n"
        "  m: {alg: RSA-OAEP-256, profile: mastercard, primary: {file: rsa.pem}}\n"
        "  v: {alg: RSA-OAEP-256, profile: visa-mle, primary: {kid: v-1, file: rsa.pem}}\n"
        "  w: {alg: RSA-OAEP-256, enc: A256GCM, profile: visa-mle, primary: {kid: v-1, file: rsa.pem}}\n"
        "rules:\n  - name: a\n    hosts: [x.example]\n"
        "    request: [{encrypt: [$.a], key: m}, {encrypt: [$.b], key: v}, {encrypt: [$.c], key: w, envelope: e}]\n"
        "    response: [{decrypt: [$], key: m}]\n"
    )
    policy = unpack(pack(_load(tmp_path, text)), Policy)
    (rule,) = policy.rules
    assert [(entry.keys.enc, entry.keys.bind, entry.envelope) for entry in (*rule.request, *rule.response)] == [
        (Enc.A256GCM, Bind.NONE, Envelope("encryptedData")),
        (Enc.A128GCM, Bind.NONE, Envelope("encData")),
        (Enc.A256GCM, Bind.NONE, Envelope("e")),
        (Enc.A256GCM, Bind.NONE, Envelope("encryptedData")),
    ]
    assert policy.keys["m"].keys[0].kid == fingerprint(key.material)
    in_form = text.replace("{encrypt: [$.a], key: m}", "{encrypt: [$.a], key: m, form: [b]}")
    assert [error.path for error in _errors(tmp_path, in_form)] == ["rules[0].request[0].form"]
    (error,) = _errors(tmp_path, text.replace("kid: v-1", "kid: ü"))[:1]
    assert (error.path, error.message) == (
        "keys.v",
        "with profile visa-mle each kid is a header field's value, so in ASCII",
    )


def test_how_values_are_sealed_comes_from_the_entry_and_the_key_set(folder: Path) -> None:
    text = KEYS.replace("alg: A256KW", "alg: A256KW\n    enc: A128GCM") + (
        "rules:\n  - name: a\n    hosts: [x.example]\n"
        "    request: [{encrypt: [$.a], key: k, pad: 16, envelope: e, rename: b, already_sealed: deny}, "
        "{encrypt: [$.b], key: k}]\n"
        "    response: [{decrypt: [$.b], key: k, envelope: f, rename: a}]\n"
    )
    (rule,) = _load(folder, text).rules
    first, second = rule.request
    assert (first.keys.enc, first.pad, first.rename, first.already_sealed) == (
        *(Enc.A128GCM, 16, "b", AlreadySealed.DENY),
    )
    assert first.envelope == Envelope("e")
    assert (second.pad, second.rename, second.envelope, second.already_sealed) == (1, None, None, AlreadySealed.KEEP)
    (opened,) = rule.response
    assert (opened.envelope, opened.rename) == (Envelope("f"), "a")
    assert unpack(pack(_load(folder, text)), Policy).rules[0].request[0].envelope == Envelope("e")


def test_the_committed_json_schema_is_the_models() -> None:
    assert (CONFIG / "policy.schema.json").read_text() == schema_text()
    jsonschema.Draft202012Validator.check_schema(policy_schema())


def test_the_json_schemas_defaults_are_the_built_in_policys() -> None:
    properties, definitions = policy_schema()["properties"], policy_schema()["$defs"]
    policy = Policy()
    assert properties["listen"]["default"] == [str(listener) for listener in policy.listen]
    assert f"forward://{properties['admin']['default']}" == str(policy.admin)
    assert properties["mode"]["default"] == policy.mode
    assert definitions["LimitsSection"]["properties"]["held_body"]["default"] == policy.limits.held_body
    assert definitions["TrustSection"]["properties"]["min_tls"]["default"] == policy.trust.min_tls
    assert definitions["DefaultsSection"]["properties"]["https"]["default"] == policy.defaults.https


def test_the_reference_table_has_every_key_with_a_meaning() -> None:
    rows = [line.split(" | ") for line in policy_table().splitlines()[2:]]
    paths = [row[0] for row in rows]
    for path in ("version", "keys.NAME.older[].not_after", "rules[].pins.any_of", "rules[].request[].when.paths"):
        assert f"| `{path}`" in paths
    assert all(row[-1].removesuffix(" |") for row in rows)


RULE = "version: 1\nrules:\n  - name: a\n    hosts: [x.example]\n"
KEYS = "version: 1\nkeys:\n  k:\n    alg: A256KW\n    primary: {kid: a, file: keys/app.jwk}\n"
PUBLIC = "version: 1\nkeys:\n  k:\n    alg: ECDH-ES+A256KW\n    primary: {kid: a, file: keys/pay-2026.pub.pem}\n"
HOST = "version: 1\nrules:\n  - name: a\n    hosts: [{}]\n"
PIN = RULE + "    pins:\n      any_of:\n        - {}\n"
HASH = PasswordHash(12, 8, 1, bytes(16), bytes(32))
USERS = (
    "version: 1\nclients:\n  users:\n    - {{name: a, password_hash: '{}'}}\n    - {{name: b, password_hash: '{}'}}\n"
)

# Each of these is wrong in exactly one way: text, line, column, path, and what the message must say.
BAD: list[tuple[str, str, int, int, str, str]] = [
    # The text
    ("empty", "", 1, 1, "", "the file is empty"),
    ("only a comment", "# nothing\n", 1, 1, "", "the file is empty"),
    ("null", "~\n", 1, 1, "", "the file is empty"),
    ("a list", "- version: 1\n", 1, 1, "", "must be a mapping, not a list"),
    ("plain text", "version 1\n", 1, 1, "", "must be a mapping, not text"),
    ("a syntax error", "version: 1\nlisten: [forward://127.0.0.1:1\n", 3, 1, "", "this is not valid YAML"),
    ("a tab", "version: 1\n\tmode: enforce\n", 2, 1, "", "this is not valid YAML"),
    ("an impossible escape", 'version: 1\nmode: "\\UFFFFFFFF"\n', 2, 10, "", "out of range"),
    ("two documents", "version: 1\n---\nversion: 1\n", 2, 1, "", "a second document starts here"),
    ("a duplicate key", "version: 1\nmode: enforce\nmode: observe\n", 3, 1, "mode", "stands twice; first in line 2"),
    ("an anchor", "version: 1\nmode: &m enforce\n", 2, 7, "mode", "an anchor (&m) is not accepted"),
    ("an anchor on a list", "version: 1\nlisten: &l [forward://127.0.0.1:1]\n", 2, 9, "listen", "an anchor (&l)"),
    ("an alias", "version: 1\nmode: *m\n", 2, 7, "mode", "an alias (*m) is not accepted"),
    ("a merge key", "version: 1\n<<: {mode: observe}\n", 2, 1, "", "a merge key (<<) is not accepted"),
    ("a tag", "version: 1\nmode: !!str enforce\n", 2, 7, "mode", "a tag (tag:yaml.org,2002:str)"),
    ("a tag on a mapping", "version: 1\nlimits: !x {held_body: 1024}\n", 2, 9, "limits", "a tag (!x)"),
    ("a tag on a key", "version: 1\n!x mode: enforce\n", 2, 1, "", "a key has no anchor and no tag"),
    ("a number as a key", "version: 1\n1: x\n", 2, 1, "", "YAML reads 1 as a number: put it in quotes"),
    ("yes as a key", "version: 1\nyes: x\n", 2, 1, "", "YAML reads yes as true or false"),
    ("a list as a key", "version: 1\n? [a]\n: x\n", 2, 3, "", "a key is plain text"),
    ("a control character in a key", 'version: 1\n"a\\e": x\n', 2, 1, "", "a control character"),
    ("a control character in a value", 'version: 1\nmode: "a\\e"\n', 2, 7, "mode", "a control character"),
    ("half a surrogate pair", 'version: 1\nmode: "\\ud800"\n', 2, 7, "mode", "a control character"),
    ("a character YAML forbids", "version: 1\nmode: a\x07b\n", 2, 8, "", "not allowed in YAML"),
    ("deep nesting", "version: 1\nlisten: " + "[" * 500, 2, 24, "listen" + "[0]" * 15, "nested deeper than 16"),
    ("an empty value", "version: 1\nmode:\n", 2, 6, "mode", "the value is missing"),
    ("an empty list", "version: 1\nlisten: []\n", 2, 9, "listen", "an empty list does nothing"),
    ("an empty mapping", "version: 1\ntrust: {}\n", 2, 8, "trust", "an empty mapping does nothing"),
    # Keys, types and values
    ("no version", "mode: enforce\n", 1, 1, "version", "this key is missing: write version: 1"),
    ("another version", "version: 2\n", 1, 10, "version", "must be 1"),
    ("true as the version", "version: true\n", 1, 10, "version", "must be 1"),
    ("a quoted version", "version: '1'\n", 1, 10, "version", "must be 1"),
    (
        "an unknown key",
        "version: 1\nmodes: enforce\n",
        2,
        1,
        "modes",
        "unknown key 'modes'; did you mean mode or names?",
    ),
    (
        "a key of the top in a section",
        "version: 1\nlimits: {drain_wait: 5}\n",
        *(
            2,
            10,
            "limits.drain_wait",
            "unknown key 'drain_wait'; it belongs to the top of the file (known here: held_body,",
        ),
    ),
    (
        "a section's key at the top",
        "version: 1\nheld_body: 5\n",
        *(2, 1, "held_body", "unknown key 'held_body'; it belongs into limits (known here: version,"),
    ),
    (
        "a key of two sections in a third",
        "version: 1\ndefaults: {roots: a.pem}\n",
        *(2, 12, "defaults.roots", "it belongs into trust or into rules.trust (known here: plain_http, https)"),
    ),
    (
        "a key of many sections is none of these",
        "version: 1\ndefaults: {mode: observe}\n",
        *(2, 12, "defaults.mode", "unknown key 'mode' (known here: plain_http, https)"),
    ),
    ("a far unknown key", "version: 1\nzzz: 1\n", 2, 1, "zzz", "(known here: version, listen, admin, probes, mode,"),
    (
        "an unknown value",
        "version: 1\nmode: enforced\n",
        2,
        7,
        "mode",
        "must be enforce or observe, not 'enforced'; did",
    ),
    (
        "a value in another case",
        KEYS.replace("A256KW", "ecdh-es+a256kw"),
        *(4, 10, "keys.k.alg", "not 'ecdh-es+a256kw'; did you mean ECDH-ES+A256KW?"),
    ),
    ("off as a value", "version: 1\nmode: off\n", 2, 7, "mode", "not true or false: YAML reads off as that"),
    ("no list", "version: 1\nlisten: forward://127.0.0.1:1\n", 2, 9, "listen", "write [forward://127.0.0.1:1]"),
    ("no mapping", "version: 1\ntrust: system\n", 2, 8, "trust", "not text: write {roots: system}"),
    (
        "no mapping, but a list",
        RULE + "    pins: [sha256/6i3E07fTKeEHqJvPWfTYrPPYlTE0XoLfnV4wm+Y6fwU=]\n",
        *(5, 11, "rules[0].pins"),
        "not a list: write {any_of: […]}",
    ),
    ("no mapping, but much text", "version: 1\ntrust: " + "x" * 61 + "\n", 2, 8, "trust", "not text: write {roots: …}"),
    (
        "no mapping, but a file's name",
        "version: 1\nkeys: {a: {alg: A256KW, primary: a.key}}\n",
        *(2, 34, "keys.a.primary", "not text: write {file: a.key}"),
    ),
    (
        "no mapping, but what may be a key",
        "version: 1\nkeys: {a: {alg: A256KW, primary: 3q2+7w==}}\n",
        *(2, 34, "keys.a.primary", "not text: write {file: …}"),
    ),
    ("no mapping, but text as in quotes", "version: 1\ntrust: '1'\n", 2, 8, "trust", 'not text: write {roots: "1"}'),
    ("no mapping, but what fits no key", "version: 1\ntrust: 1\n", 2, 8, "trust", "must be a mapping, not a number"),
    (
        "no list, but its item",
        RULE + "    request:\n      encrypt: [$.a]\n      key: k\n",
        *(6, 7, "rules[0].request"),
        'not a mapping: put a "- " before its first key, or [ ] round its { }',
    ),
    ("no list, but a mapping", "version: 1\nlisten: {a: b}\n", 2, 9, "listen", "must be a list, not a mapping"),
    ("a fraction", "version: 1\ntrust: {min_tls: 1.2}\n", 2, 18, "trust.min_tls", "put it in quotes"),
    ("TLS 1.1", "version: 1\ntrust: {min_tls: '1.1'}\n", 2, 18, "trust.min_tls", "must be 1.2 or 1.3"),
    ("octal", "version: 1\nlimits: {held_body: 04000}\n", 2, 21, "limits.held_body", "not a number in plain decimal"),
    (
        "a text number",
        "version: 1\nlimits: {held_body: '4096'}\n",
        2,
        21,
        "limits.held_body",
        "not text: write 4096, without quotes",
    ),
    (
        "a unit",
        "version: 1\nlimits: {held_body: 10MB}\n",
        2,
        21,
        "limits.held_body",
        "not text; it stands here alone, without a unit",
    ),
    (
        "a text number that is too little",
        "version: 1\nlimits: {held_body: '3'}\n",
        2,
        21,
        "limits.held_body",
        "must be a whole number, not text",
    ),
    (
        "true as text",
        "version: 1\ntrust: {strict: 'true'}\n",
        2,
        17,
        "trust.strict",
        "not text: write true, without quotes",
    ),
    ("too little", "version: 1\nlimits: {held_body: 1023}\n", 2, 21, "limits.held_body", "at least 1024, not 1023"),
    ("too much", "version: 1\nlimits: {held_body: 1073741825}\n", 2, 21, "limits.held_body", "at most 1073741824"),
    ("no roots", "version: 1\ntrust: {roots: no.pem}\n", 2, 16, "trust.roots", "no.pem cannot be read: No such file"),
    (
        "empty roots",
        "version: 1\ntrust: {roots: empty.pem}\n",
        2,
        16,
        "trust.roots",
        "there is no certificate in PEM in it",
    ),
    ("strict as text", "version: 1\ntrust: {strict: 'no'}\n", 2, 17, "trust.strict", "must be true or false"),
    (
        "a rule's trust of nothing",
        HOST.format("x.example") + "    trust: {}\n",
        *(5, 12, "rules[0].trust", "an empty mapping does nothing"),
    ),
    (
        "trust for what is not looked at",
        HOST.format("x.example") + "    plain_http: reject\n    trust: {strict: false}\n",
        *(
            6,
            12,
            "rules[0].trust",
            "no certificate of this rule's hosts is looked at (plain_http: reject, https: tunnel)",
        ),
    ),
    (
        "roots of a rule that are not there",
        HOST.format("x.example") + "    trust: {strict: true, roots: no.pem}\n",
        *(5, 34, "rules[0].trust.roots", "no.pem cannot be read: No such file"),
    ),
    # Listeners
    ("no aim", "version: 1\nlisten: [reverse://127.0.0.1:1]\n", 2, 10, "listen[0]", "which https host it stands for"),
    ("another scheme", "version: 1\nlisten: [ftp://127.0.0.1:1]\n", 2, 10, "listen[0]", "a listener is forward://"),
    ("no scheme", "version: 1\nlisten: ['127.0.0.1:1']\n", 2, 10, "listen[0]", "a listener is forward://HOST:PORT"),
    ("no port", "version: 1\nlisten: [forward://127.0.0.1]\n", 2, 10, "listen[0]", "an address is HOST:PORT"),
    ("a large port", "version: 1\nlisten: [forward://127.0.0.1:65536]\n", 2, 10, "listen[0]", "from 0 to 65535"),
    (
        "a listener without a host",
        "version: 1\nlisten: ['forward://:8080']\n",
        *(2, 10, "listen[0]", "put 127.0.0.1 before the colon for this machine alone, or 0.0.0.0"),
    ),
    ("IPv6 without brackets", "version: 1\nlisten: [forward://::1:80]\n", 2, 10, "listen[0]", "[::1]:8080"),
    ("a path", "version: 1\nlisten: [forward://127.0.0.1:80/]\n", 2, 10, "listen[0]", "the port is a number"),
    (
        "a path behind a reverse listener's host",
        "version: 1\nlisten: ['reverse://127.0.0.1:1?to=https://a.example/v1']\n",
        *(2, 10, "listen[0]", "a reverse listener stands for a whole host: write no path"),
    ),
    ("a scheme for admin", "version: 1\nadmin: http://127.0.0.1:1\n", 2, 8, "admin", "has no scheme"),
    ("admin off", "version: 1\nadmin: off\n", 2, 8, "admin", "write null"),
    ("admin a number", "version: 1\nadmin: 9464\n", 2, 8, "admin", "must be text, not a number"),
    # Hosts
    ("every host", HOST.format("'*'"), 4, 13, "rules[0].hosts[0]", "`defaults`"),
    ("every host twice", HOST.format("'**'"), 4, 13, "rules[0].hosts[0]", "`defaults`"),
    ("a star within", HOST.format("'a.*.example'"), 4, 13, "rules[0].hosts[0]", "only as the whole first label"),
    ("a star in a label", HOST.format("'a*.example'"), 4, 13, "rules[0].hosts[0]", "only as the whole first label"),
    ("two stars", HOST.format("'*.*.example'"), 4, 13, "rules[0].hosts[0]", "only as the whole first label"),
    ("a star and nothing", HOST.format("'*.'"), 4, 13, "rules[0].hosts[0]", "the host is empty"),
    ("a star and an address", HOST.format("'*.192.0.2.1'"), 4, 13, "rules[0].hosts[0]", "an address has no labels"),
    ("a star and IPv6", HOST.format("'**.[::1]'"), 4, 13, "rules[0].hosts[0]", "an address has no labels"),
    ("a URL", HOST.format("'https://x.example/'"), 4, 13, "rules[0].hosts[0]", "leave https:// out"),
    ("a host and a path", HOST.format("x.example/v1"), 4, 13, "rules[0].hosts[0]", "`when.paths`"),
    ("a network", HOST.format("10.0.0.0/8"), 4, 13, "rules[0].hosts[0]", "`destinations` says which networks"),
    ("a network, IPv6", HOST.format("'fd00::/8'"), 4, 13, "rules[0].hosts[0]", "`destinations` says which networks"),
    ("a numeric host", HOST.format("'127.1'"), 4, 13, "rules[0].hosts[0]", "dotted-quad"),
    ("a host's port 0", HOST.format("x.example:0"), 4, 13, "rules[0].hosts[0]", "from 1 to 65535"),
    ("no international name", HOST.format("'x_\u2764\ufe0f\u200d.example'"), 4, 13, "rules[0].hosts[0]", "UTS 46"),
    (
        "a host twice",
        HOST.format("x.example, X.example."),
        4,
        24,
        "rules[0].hosts[1]",
        "hosts[0] says x.example already",
    ),
    ("a number as a host", HOST.format("8080"), 4, 13, "rules[0].hosts[0]", "is no plain dotted-quad"),
    # Rules
    ("no hosts", "version: 1\nrules:\n  - name: a\n", 3, 5, "rules[0].hosts", "this key is missing"),
    ("a bad name", "version: 1\nrules: [{name: A, hosts: [x.example]}]\n", 2, 16, "rules[0].name", "a name is 1 to 63"),
    ("no as a name", "version: 1\nrules: [{name: no, hosts: [x.example]}]\n", 2, 16, "rules[0].name", 'quotes, "no"'),
    ("a name twice", RULE + "  - {name: a, hosts: [y.example]}\n", 5, 12, "rules[1].name", "rules[0] has the name a"),
    ("a shadowed rule", RULE + "  - {name: b, hosts: ['x.example:443']}\n", 5, 22, "rules[1].hosts", "taken by rule a"),
    (
        "a shadowed host",
        HOST.format("'**.example'") + "  - {name: b, hosts: [y.test, '*.x.example']}\n",
        *(5, 31, "rules[1].hosts[1]", "rule a above takes it"),
    ),
    ("port 0", RULE + "    https_port: 0\n", 5, 17, "rules[0].https_port", "at least 1"),
    (
        "no time for a response",
        *("version: 1\nlimits: {response_seconds: 0}\n", 2, 28, "limits.response_seconds", "at least 1"),
    ),
    (
        "more time for a response than silence lasts",
        *("version: 1\nlimits: {response_seconds: 601}\n", 2, 28, "limits.response_seconds", "idle_seconds (600)"),
    ),
    (
        "more time for a rule's responses than silence lasts",
        RULE + "    limits: {response_seconds: 11}\nlimits: {idle_seconds: 10}\n",
        *(5, 32, "rules[0].limits.response_seconds", "idle_seconds (10)"),
    ),
    (
        "empty limits of a rule",
        *(RULE + "    limits: {}\n", 5, 13, "rules[0].limits", "an empty mapping"),
    ),
    (
        "another limit in a rule",
        RULE + "    limits: {response_seconds: 1, held_body: 2048}\n",
        *(5, 35, "rules[0].limits.held_body", "unknown"),
    ),
    ("null where it means nothing", RULE + "    limits: null\n", 5, 13, "rules[0].limits", "the value is missing"),
    (
        "a useless https_port",
        RULE + "    plain_http: reject\n    https_port: 1\n",
        6,
        17,
        "rules[0].https_port",
        "reject here",
    ),
    (
        "tunnelled pins",
        RULE + f"    https: tunnel\n    pins: {{any_of: ['{PIN_A}']}}\n",
        5,
        12,
        "rules[0].https",
        "pins",
    ),
    (
        "plain pins",
        RULE + f"    plain_http: allow\n    pins: {{any_of: ['{PIN_A}']}}\n",
        5,
        17,
        "rules[0].plain_http",
        "reject",
    ),
    (
        "plain pins by default",
        f"version: 1\ndefaults: {{plain_http: allow}}\nrules:\n  - name: a\n    hosts: [x.example]\n"
        f"    pins: {{any_of: ['{PIN_A}']}}\n",
        *(4, 5, "rules[0]", "plain_http: upgrade"),
    ),
    ("true for raw TCP", RULE + "    raw_tcp: true\n", 5, 14, "rules[0].raw_tcp", "must be allow, not true or false"),
    ("raw TCP to any port", RULE + "    raw_tcp: allow\n", 5, 14, "rules[0].raw_tcp", "must name its port"),
    # Who may use it, and the way out
    (
        "hashes that take longer than others",
        USERS.format(HASH, replace(HASH, ln=13)),
        *(4, 5, "clients.users", "all hashes take the same cost (ln, r, p)"),
    ),
    (
        "a hash with other blocks",
        USERS.format(HASH, replace(HASH, r=9)),
        *(4, 5, "clients.users", "all hashes take the same cost (ln, r, p)"),
    ),
    (
        "an unset variable of the proxy's credentials",
        "version: 1\nupstream_proxy: {url: 'http://p.example:1', credentials: {env: CORP_PROXY}}\n",
        *(2, 64, "upstream_proxy.credentials.env", "the environment variable CORP_PROXY is not set"),
    ),
    # Pins
    ("a short pin", PIN.format("sha256/AAAA"), 7, 11, "rules[0].pins.any_of[0]", "3 bytes, not 32"),
    ("a SHA-1 pin", PIN.format("sha1/AAAA"), 7, 11, "rules[0].pins.any_of[0]", "only SHA-256"),
    (
        "a pin twice",
        PIN.format(f"{PIN_A}\n        - {PIN_A}"),
        8,
        11,
        "rules[0].pins.any_of[1]",
        "any_of[0] is the same pin",
    ),
    ("a number as a pin", PIN.format("5"), 7, 11, "rules[0].pins.any_of[0]", "a pin is text such as"),
    ("a pin from env", PIN.format("{env: A}"), 7, 11, "rules[0].pins.any_of[0]", "{file: NAME.pem}"),
    ("no pin file", PIN.format("{file: no.pem}"), 7, 18, "rules[0].pins.any_of[0].file", "cannot be read"),
    ("an empty pin file", PIN.format("{file: empty.pem}"), 7, 18, "rules[0].pins.any_of[0].file", "no PEM block"),
    (
        "a large pin file",
        PIN.format("{file: large.pem}"),
        7,
        18,
        "rules[0].pins.any_of[0].file",
        "more than 65536 bytes",
    ),
    (
        "an impossible day",
        RULE + f"    pins:\n      any_of: ['{PIN_A}']\n      expires: 2027-02-30\n",
        *(7, 16, "rules[0].pins.expires", "there is no such day as 2027-02-30"),
    ),
    (
        "an impossible day in quotes",
        RULE + f"    pins:\n      any_of: ['{PIN_A}']\n      expires: '2027-02-30'\n",
        *(7, 16, "rules[0].pins.expires", "there is no such day as 2027-02-30"),
    ),
    (
        "a time",
        RULE + f"    pins:\n      any_of: ['{PIN_A}']\n      expires: 2027-02-03 10:00:00\n",
        *(7, 16, "rules[0].pins.expires", "as a time"),
    ),
    (
        "no day",
        RULE + f"    pins:\n      any_of: ['{PIN_A}']\n      expires: tomorrow\n",
        *(7, 16, "rules[0].pins.expires", "YYYY-MM-DD"),
    ),
    (
        "what comes after no end",
        RULE + f"    pins:\n      any_of: ['{PIN_A}']\n      after_expiry: warn\n",
        *(7, 21, "rules[0].pins.after_expiry", "without `expires` the pins have no end"),
    ),
    (
        "an unknown end",
        RULE + f"    pins:\n      any_of: ['{PIN_A}']\n      expires: 2027-02-28\n      after_expiry: ignore\n",
        *(8, 21, "rules[0].pins.after_expiry", "warn"),
    ),
    (
        "an unknown mode of pins",
        RULE + f"    pins:\n      any_of: ['{PIN_A}']\n      mode: watch\n",
        *(7, 13, "rules[0].pins.mode", "observe"),
    ),
    # Fields
    (
        "a bad selector",
        KEYS + "rules:\n  - name: a\n    hosts: [x.example]\n    request: [{encrypt: [card], key: k}]\n",
        *(9, 26, "rules[0].request[0].encrypt[0]", "starts with '$'"),
    ),
    (
        "a filter in a plain selector",
        KEYS + "rules:\n  - name: a\n    hosts: [x.example]\n"
        "    request:\n      - encrypt:\n          - $.a[?@.b]\n        key: k\n",
        *(11, 17, "rules[0].request[0].encrypt[0]", "filters are not supported"),
    ),
    (
        "a filter in a quoted selector",
        KEYS + "rules:\n  - name: a\n    hosts: [x.example]\n    request: [{encrypt: ['$[''é''][?@.b]'], key: k}]\n",
        *(9, 36, "rules[0].request[0].encrypt[0]", "filters are not supported"),
    ),
    (
        "a function in a selector with escapes",
        KEYS + "rules:\n  - name: a\n    hosts: [x.example]\n"
        '    request: [{encrypt: ["$[\\"\\u00e9\\"].length()"], key: k}]\n',
        *(9, 47, "rules[0].request[0].encrypt[0]", "functions are not supported"),
    ),
    (
        "a selector that ends too early",
        KEYS + 'rules:\n  - name: a\n    hosts: [x.example]\n    request: [{encrypt: ["$.a["], key: k}]\n',
        *(9, 31, "rules[0].request[0].encrypt[0]", "expected a quoted name"),
    ),
    (
        "a bad selector in two lines",
        KEYS + 'rules:\n  - name: a\n    hosts: [x.example]\n    request: [{encrypt: ["$.a\n       .b["], key: k}]\n',
        *(9, 26, "rules[0].request[0].encrypt[0]", "expected a quoted name"),
    ),
    (
        "a character in a selector that cannot be seen",
        KEYS + "rules:\n  - name: a\n    hosts: [x.example]\n    request: [{encrypt: [$.a\u00ad], key: k}]\n",
        *(9, 29, "rules[0].request[0].encrypt[0]", "cannot be seen"),
    ),
    (
        "a string that is looked into, and no selector",
        KEYS + "rules:\n  - name: a\n    hosts: [x.example]\n    request: [{encrypt: [$.a], inside: $.b-c, key: k}]\n",
        *(9, 43, "rules[0].request[0].inside", "['card-number']"),
    ),
    (
        "one of several such",
        KEYS
        + "rules:\n  - name: a\n    hosts: [x.example]\n    request: [{encrypt: [$.a], inside: [$.b, $.c(], key: k}]\n",
        *(9, 49, "rules[0].request[0].inside", "entry 2: functions are not supported"),
    ),
    (
        "too many such",
        KEYS + f"rules:\n  - name: a\n    hosts: [x.example]\n"
        f"    request: [{{encrypt: [$.a], inside: [{'$.b, ' * 9}], key: k}}]\n",
        *(9, 40, "rules[0].request[0].inside", "1 to 8 selectors"),
    ),
    (
        "no text as such a selector",
        KEYS
        + "rules:\n  - name: a\n    hosts: [x.example]\n    request: [{encrypt: [$.a], inside: [$.b, 1], key: k}]\n",
        *(9, 40, "rules[0].request[0].inside", "a selector, or a list of selectors"),
    ),
    (
        "an unknown way to compare names",
        KEYS
        + "rules:\n  - name: a\n    hosts: [x.example]\n    request: [{encrypt: [$.a], match: ignorecase, key: k}]\n",
        *(9, 39, "rules[0].request[0].match", "did you mean ignore_case"),
    ),
    (
        "an unknown key set",
        KEYS + "rules:\n  - name: a\n    hosts: [x.example]\n    request: [{encrypt: [$.a], key: kk}]\n",
        *(9, 37, "rules[0].request[0].key", "there is no key set kk; did you mean k? (known: k)"),
    ),
    (
        "no key set at all",
        RULE + "    request: [{encrypt: [$.a], key: k}]\n",
        *(5, 37, "rules[0].request[0].key", "(known: none)"),
    ),
    (
        "a method in lower case",
        KEYS + "rules:\n  - name: a\n    hosts: [x.example]\n"
        "    request: [{encrypt: [$.a], key: k, when: {methods: [post]}}]\n",
        *(9, 57, "rules[0].request[0].when.methods[0]", "write POST"),
    ),
    (
        "no method",
        KEYS + "rules:\n  - name: a\n    hosts: [x.example]\n"
        "    request: [{encrypt: [$.a], key: k, when: {methods: ['A B']}}]\n",
        *(9, 57, "rules[0].request[0].when.methods[0]", "no HTTP method"),
    ),
    (
        "a bad glob",
        KEYS
        + "rules:\n  - name: a\n    hosts: [x.example]\n    request: [{encrypt: [$.a], key: k, when: {paths: [v1]}}]\n",
        *(9, 55, "rules[0].request[0].when.paths[0]", "starts with '/'"),
    ),
    (
        "an unknown rule for what is sealed",
        KEYS + "rules:\n  - name: a\n    hosts: [x.example]\n"
        "    request: [{encrypt: [$.a], key: k, already_sealed: drop}]\n",
        *(9, 56, "rules[0].request[0].already_sealed", "keep, seal or deny"),
    ),
    (
        "an envelope in a form",
        KEYS + "rules:\n  - name: a\n    hosts: [x.example]\n"
        "    request: [{encrypt: [$.a], key: k, envelope: e, form: [b]}]\n",
        *(9, 59, "rules[0].request[0].form", "give forms an entry of their own"),
    ),
    (
        "a pad of nothing",
        KEYS + "rules:\n  - name: a\n    hosts: [x.example]\n    request: [{encrypt: [$.a], key: k, pad: 0}]\n",
        *(9, 45, "rules[0].request[0].pad", "1"),
    ),
    (
        "a pad too long",
        KEYS + "rules:\n  - name: a\n    hosts: [x.example]\n    request: [{encrypt: [$.a], key: k, pad: 4097}]\n",
        *(9, 45, "rules[0].request[0].pad", "4096"),
    ),
    (
        "an envelope without a name",
        KEYS + "rules:\n  - name: a\n    hosts: [x.example]\n    request: [{encrypt: [$], key: k, envelope: ''}]\n",
        *(9, 48, "rules[0].request[0].envelope", "1 to 256 printable"),
    ),
    (
        "a new name with a line feed",
        KEYS + 'rules:\n  - name: a\n    hosts: [x.example]\n    request: [{encrypt: [$.a], key: k, rename: "a\\n"}]\n',
        *(9, 48, "rules[0].request[0].rename", "a line break"),
    ),
    (
        "a new name for an element",
        KEYS + "rules:\n  - name: a\n    hosts: [x.example]\n    request: [{encrypt: ['$.a[0]'], key: k, rename: b}]\n",
        *(9, 53, "rules[0].request[0].rename", "only a member has a name"),
    ),
    (
        "a new name for what may be an element",
        KEYS + "rules:\n  - name: a\n    hosts: [x.example]\n    request: [{encrypt: [$..*], key: k, rename: b}]\n",
        *(9, 49, "rules[0].request[0].rename", "only a member has a name"),
    ),
    (
        "a new name for the body",
        KEYS + "rules:\n  - name: a\n    hosts: [x.example]\n    request: [{encrypt: [$], key: k, rename: b}]\n",
        *(9, 46, "rules[0].request[0].rename", "only a member has a name"),
    ),
    (
        "decryption with a public key",
        PUBLIC + "rules:\n  - name: a\n    hosts: [x.example]\n    response: [{decrypt: [$.a], key: k}]\n",
        *(9, 38, "rules[0].response[0].key", "has public keys only"),
    ),
    (
        "tunnelled encryption",
        KEYS
        + "rules:\n  - name: a\n    hosts: [x.example]\n    https: tunnel\n    request: [{encrypt: [$.a], key: k}]\n",
        *(9, 12, "rules[0].https", "encrypt of this rule must see inside"),
    ),
    (
        "tunnelled decryption",
        KEYS
        + "rules:\n  - name: a\n    hosts: [x.example]\n    https: tunnel\n    response: [{decrypt: [$.a], key: k}]\n",
        *(9, 12, "rules[0].https", "decrypt of this rule must see inside"),
    ),
    (
        "plain encryption",
        KEYS + "rules:\n  - name: a\n    hosts: [x.example]\n    plain_http: allow\n"
        "    request: [{encrypt: [$.a], key: k}]\n",
        *(9, 17, "rules[0].plain_http", "cannot keep the promise of this rule (encrypt)"),
    ),
    # Keys
    (
        "a profile that nobody has",
        KEYS.replace("alg: A256KW", "alg: A256KW\n    profile: amex"),
        *(5, 14, "keys.k.profile", "mastercard"),
    ),
    (
        "a profile for another alg",
        KEYS.replace("alg: A256KW", "alg: A256KW\n    profile: mastercard"),
        *(4, 5, "keys.k", "profile mastercard is for RSA-OAEP-256"),
    ),
    (
        "a profile that binds",
        KEYS.replace("alg: A256KW", "alg: RSA-OAEP-256\n    profile: visa-mle\n    bind: host"),
        *(4, 5, "keys.k", "leave bind out"),
    ),
    (
        "a name with blanks",
        "version: 1\nrules: [{name: The Shop!, hosts: [x.example]}]\n",
        *(2, 16, "rules[0].name", "starts with a letter or digit: write the-shop"),
    ),
    ("a key set's name", KEYS.replace("  k:", "  K:"), 3, 3, "keys.K", "a name is 1 to 63"),
    ("an unknown alg", KEYS.replace("A256KW", "A128KW"), 4, 10, "keys.k.alg", "did you mean A256KW"),
    ("an unknown bind", KEYS + "    bind: body\n", 6, 11, "keys.k.bind", "must be place, host or none"),
    ("an unknown key of a key", KEYS.replace("kid:", "kidd:"), 5, 15, "keys.k.primary.kidd", "did you mean kid?"),
    (
        "no primary",
        "version: 1\nkeys:\n  primary:\n    alg: A256KW\n",
        4,
        5,
        "keys.primary",
        "exactly one of `primary: …`, `set: FILE` and `jwks: URL` says which key encrypts",
    ),
    (
        "primary and set",
        "version: 1\nkeys:\n  k: {alg: A256KW, primary: {file: keys/app.jwk}, set: keys/app.jwks}\n",
        3,
        6,
        "keys.k",
        "exactly one of `primary: …`, `set: FILE` and `jwks: URL` says which key encrypts",
    ),
    (
        "older beside set",
        "version: 1\nkeys:\n  k: {alg: A256KW, older: [{file: keys/app.jwk}], set: keys/app.jwks}\n",
        3,
        6,
        "keys.k",
        "older goes with primary; a JWK Set has all its keys in it",
    ),
    (
        "a set that stands there itself",
        "version: 1\nkeys: {k: {alg: A256KW, set: {keys: x}}}\n",
        2,
        30,
        "keys.k.set",
        "a JWK Set is named by its file, keys/app.jwks, or by {env: NAME}",
    ),
    (
        "a set that is none",
        "version: 1\nkeys: {k: {alg: A256KW, set: keys/app.jwk}}\n",
        2,
        30,
        "keys.k.set",
        "this is no JWK Set",
    ),
    (
        "a set that is not there",
        "version: 1\nkeys: {k: {alg: A256KW, set: keys/no.jwks}}\n",
        2,
        30,
        "keys.k.set",
        "keys/no.jwks",
    ),
    (
        "grace in hours",
        "version: 1\nkeys: {k: {alg: A256KW, grace: 36h, primary: {file: keys/app.jwk}}}\n",
        2,
        32,
        "keys.k.grace",
        "this is counted in whole days, up to 3660: write 30d or 4w",
    ),
    (
        "grace without a unit",
        "version: 1\nkeys: {k: {alg: A256KW, grace: '30', primary: {file: keys/app.jwk}}}\n",
        2,
        32,
        "keys.k.grace",
        "a time is a number and a unit",
    ),
    (
        "grace without an end",
        "version: 1\nkeys: {k: {alg: A256KW, grace: 3661d, primary: {file: keys/app.jwk}}}\n",
        2,
        32,
        "keys.k.grace",
        "up to 3660",
    ),
    (
        "a first day after the last",
        "version: 1\nkeys: {k: {alg: A256KW, primary: {file: keys/app.jwk, not_before: 2027-02-01, "
        "not_after: 2027-01-31}}}\n",
        2,
        41,
        "keys.k.primary.file",
        "last day (2027-01-31) is before its first (2027-02-01)",
    ),
    (
        "a password for what is not encrypted",
        "version: 1\nkeys: {k: {alg: A256KW, primary: {file: keys/app.jwk, password: {file: roots.pem}}}}\n",
        2,
        41,
        "keys.k.primary.file",
        "a JWK is not encrypted with a password: leave password out",
    ),
    (
        "a password that is not there",
        "version: 1\nkeys: {k: {alg: A256KW, primary: {file: keys/app.jwk, password: {env: NO_PASSWORD}}}}\n",
        2,
        71,
        "keys.k.primary.password.env",
        "the environment variable NO_PASSWORD is not set",
    ),
    (
        "a password here",
        "version: 1\nkeys: {k: {alg: A256KW, primary: {file: keys/app.jwk, password: secret}}}\n",
        2,
        65,
        "keys.k.primary.password",
        "{env: NAME} or {file: PATH}",
    ),
    (
        "jwks over http",
        "version: 1\nkeys: {k: {alg: A256KW, jwks: 'http://k.example/'}}\n",
        2,
        31,
        "keys.k.jwks",
        "keys are fetched over https only: write https://HOST/PATH",
    ),
    (
        "jwks with a user",
        "version: 1\nkeys: {k: {alg: A256KW, jwks: 'https://a@k.example/'}}\n",
        2,
        31,
        "keys.k.jwks",
        "without a user and without a fragment",
    ),
    (
        "jwks with a fragment",
        "version: 1\nkeys: {k: {alg: A256KW, jwks: 'https://k.example/#x'}}\n",
        2,
        31,
        "keys.k.jwks",
        "without a user and without a fragment",
    ),
    (
        "jwks with a query and no path",
        "version: 1\nkeys: {k: {alg: A256KW, jwks: 'https://k.example?x'}}\n",
        2,
        31,
        "keys.k.jwks",
        "this is https://HOST[:PORT]/PATH",
    ),
    (
        "jwks with a blank",
        "version: 1\nkeys: {k: {alg: A256KW, jwks: 'https://k.example/a b'}}\n",
        2,
        31,
        "keys.k.jwks",
        "write everything else as %XX",
    ),
    (
        "jwks that is no URL",
        "version: 1\nkeys: {k: {alg: A256KW, jwks: k.example}}\n",
        2,
        31,
        "keys.k.jwks",
        "over https only",
    ),
    (
        "jwks and primary",
        "version: 1\nkeys: {k: {alg: A256KW, jwks: 'https://k.example/', primary: {file: keys/app.jwk}}}\n",
        2,
        11,
        "keys.k",
        "exactly one of `primary: …`, `set: FILE` and `jwks: URL`",
    ),
    (
        "jwks with older keys",
        "version: 1\nkeys: {k: {alg: A256KW, jwks: 'https://k.example/', older: [{file: keys/app.jwk}]}}\n",
        2,
        11,
        "keys.k",
        "older goes with primary",
    ),
    (
        "jwks with grace",
        "version: 1\nkeys: {k: {alg: A256KW, jwks: 'https://k.example/', grace: 1d}}\n",
        2,
        11,
        "keys.k",
        "leave grace and unsafe_key_permissions out",
    ),
    (
        "kid without jwks",
        "version: 1\nkeys: {k: {alg: A256KW, kid: x, primary: {file: keys/app.jwk}}}\n",
        2,
        11,
        "keys.k",
        "kid and max_age are about a `jwks`",
    ),
    (
        "max_age without jwks",
        "version: 1\nkeys: {k: {alg: A256KW, max_age: 1h, primary: {file: keys/app.jwk}}}\n",
        2,
        11,
        "keys.k",
        "kid and max_age are about a `jwks`",
    ),
    (
        "max_age of two months",
        "version: 1\nkeys: {k: {alg: A256KW, jwks: 'https://k.example/', max_age: 60d}}\n",
        2,
        62,
        "keys.k.max_age",
        "fetched again within 30 days",
    ),
    (
        "no source",
        "version: 1\nkeys: {k: {alg: A256KW, primary: {kid: a}}}\n",
        2,
        34,
        "keys.k.primary",
        "exactly one of",
    ),
    (
        "two sources",
        "version: 1\nkeys: {k: {alg: A256KW, primary: {file: keys/app.jwk, key: {env: K}}}}\n",
        *(2, 34, "keys.k.primary", "exactly one of"),
    ),
    (
        "two kinds of source",
        "version: 1\nkeys: {k: {alg: A256KW, primary: {key: {env: K, file: a}}}}\n",
        *(2, 40, "keys.k.primary.key", "{env: NAME} or {file: PATH}"),
    ),
    (
        "the key itself",
        "version: 1\nkeys: {k: {alg: A256KW, primary: {key: c2VjcmV0}}}\n",
        *(2, 40, "keys.k.primary.key", "{env: NAME} or {file: PATH}"),
    ),
    (
        "the key itself as a file",
        "version: 1\nkeys: {k: {alg: A256KW, primary: {file: '-----BEGIN PRIVATE KEY-----'}}}\n",
        *(2, 41, "keys.k.primary.file", "this is a key, not the name of a file"),
    ),
    ("an empty file name", KEYS.replace("keys/app.jwk", "''"), 5, 29, "keys.k.primary.file", "1 to 4096 characters"),
    (
        "a number as a source",
        "version: 1\nkeys: {k: {alg: A256KW, primary: {key: {file: 5}}}}\n",
        *(2, 40, "keys.k.primary.key", "{env: NAME} or {file: PATH}"),
    ),
    (
        "no variable's name",
        "version: 1\nkeys: {k: {alg: A256KW, primary: {key: {env: 'a b'}}}}\n",
        *(2, 40, "keys.k.primary.key", "no name of an environment variable"),
    ),
    (
        "an unset variable",
        "version: 1\nkeys: {k: {alg: A256KW, primary: {key: {env: APP_KEY}}}}\n",
        *(2, 40, "keys.k.primary.key", "APP_KEY is not set"),
    ),
    ("no key file", KEYS.replace("app.jwk", "no.jwk"), 5, 29, "keys.k.primary.file", "no.jwk cannot be read: No such"),
    ("a folder", KEYS.replace("keys/app.jwk", "keys"), 5, 29, "keys.k.primary.file", "not a regular file"),
    ("an open key file", KEYS.replace("app.jwk", "open.jwk"), 5, 29, "keys.k.primary.file", "unsafe_key_permissions"),
    ("no key in the file", KEYS.replace("keys/app.jwk", "empty.pem"), 5, 29, "keys.k.primary.file", ""),
    ("a key for another alg", PUBLIC.replace("ECDH-ES+A256KW", "RSA-OAEP-256"), 5, 29, "keys.k.primary.file", "RSA"),
    ("a number as a kid", KEYS.replace("kid: a", "kid: 7"), 5, 20, "keys.k.primary.kid", 'in quotes, "7"'),
    ("a date as a kid", KEYS.replace("kid: a", "kid: 2026-01-01"), 5, 20, "keys.k.primary.kid", "not a date"),
    ("an empty kid", KEYS.replace("kid: a", "kid: ''"), 5, 20, "keys.k.primary.kid", "1 to 256 printable"),
    (
        "a kid twice",
        KEYS + "    older: [{kid: a, file: keys/old.jwk}]\n",
        *(6, 19, "keys.k.older[0].kid", "the kid 'a' stands twice"),
    ),
    (
        "a key twice without a kid",
        KEYS.replace("kid: a, ", "") + "    older: [{file: keys/app.jwk}]\n",
        *(6, 13, "keys.k.older[0]", "stands twice in key set k"),
    ),
    (
        "text for true",
        KEYS + "    unsafe_key_permissions: 'yes'\n",
        6,
        29,
        "keys.k.unsafe_key_permissions",
        "true or false",
    ),
]


@pytest.mark.parametrize("text", ["clients: true\n", "trust: true\n", "hsts_preload: 10MB\n"])
def test_where_nothing_says_what_is_meant_nothing_is_advised(folder: Path, text: str) -> None:
    """Least of all what would open a listener, or take a certificate that is not right."""
    (error,) = _errors(folder, "version: 1\n" + text)
    assert re.fullmatch("must be (a mapping|true or false), not (true or false|text)", error.message)


@pytest.mark.parametrize(
    ("text", "line", "column", "path", "message"), [case[1:] for case in BAD], ids=[case[0] for case in BAD]
)
def test_a_wrong_policy_is_refused_at_its_place(
    text: str, line: int, column: int, path: str, message: str, folder: Path
) -> None:
    (error,) = _errors(folder, text)
    assert (error.line, error.column, error.path) == (line, column, path)
    assert message in error.message
    assert str(error).startswith(f"{folder / 'policy.yaml'}:{line}:{column}: ")


PASTED = "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2U"


@pytest.mark.parametrize(
    "text",
    [
        "upstream_proxy: {url: 'http://proxy.example:SECRET'}",
        "upstream_proxy: {url: 'http://me:SECRET'}",
        "upstream_proxy: {url: 'http://me:SECRET@proxy.example:80'}",
        "upstream_proxy: {url: 'http://proxy.example:80:SECRET'}",
        "upstream_proxy: {url: 'http://SECRET%:80'}",
        "upstream_proxy: {url: 'http://[::1]SECRET:80'}",
        "upstream_proxy: {url: 'http://proxy.example:80', credentials: {file: 'me:SECRET'}}",
        "upstream_proxy: {url: 'http://proxy.example:80', credentials: {file: SECRET/x}}",
        "upstream_proxy: {url: 'http://proxy.example:80', credentials: {env: 'me:SECRET'}}",
        "upstream_proxy: {url: 'http://proxy.example:80', credentials: 'me:SECRET'}",
        "keys: {k: {alg: A256KW, primary: {kid: a, file: SECRET}}}",
        "keys: {k: {alg: A256KW, primary: {file: a.p12, password: {file: SECRET}}}}",
        "keys: {k: {alg: A256KW, primary: SECRET}}",
        "keys: {k: {alg: A256KW, set: {file: SECRET}}}",
        "keys: {k: {alg: ECDH-ES+A256KW, jwks: 'https://k.example:SECRET/x'}}",
        "keys: {k: {alg: ECDH-ES+A256KW, jwks: 'https://me:SECRET@k.example/x'}}",
        "clients: {users: [{name: me, password_hash: {file: SECRET}}]}",
        "clients: {users: [{name: me, password_hash: SECRET}]}",
        "rules: [{name: a, hosts: [a.example], client_certificate: {cert: server.pem, key: {file: SECRET}}}]",
        "rules: [{name: a, hosts: [a.example], pins: {any_of: [{file: SECRET}]}}]",
        "trust: {roots: SECRET}",
        "listen: ['mirror://127.0.0.1:1?to=http://127.0.0.1:5000&for=a.example&cert=server.pem&key=SECRET']",
    ],
)
def test_no_secret_that_was_pasted_in_another_place_is_repeated(text: str, folder: Path) -> None:
    errors = _errors(folder, f"version: 1\n{text.replace('SECRET', PASTED)}\n")
    assert errors
    assert PASTED not in "".join(map(str, errors))


def test_the_bad_policies_have_names_of_their_own() -> None:
    assert len({case[0] for case in BAD}) == len(BAD)


@pytest.mark.parametrize(
    "text",
    [RULE, HOST.format("'[::1]:8443'"), PIN.format(PIN_A), KEYS, PUBLIC, WHOLE_EXAMPLE, USERS.format(HASH, HASH)],
    ids=range(7),
)
def test_what_the_bad_policies_are_made_of_is_right(text: str, folder: Path) -> None:
    assert isinstance(_load(folder, text), Policy)


def test_all_errors_of_all_kinds_are_reported_in_one_run_in_the_order_of_the_file(folder: Path) -> None:
    text = f"""\
version: 1
mode: strict
mode: enforce
trust: {{min_tls: 1.2, roots: no.pem}}
keys:
  app: {{alg: A256KW, primary: {{kid: a, file: keys/no.jwk}}}}
  web: {{alg: none, primary: {{kid: a, file: keys/app.jwk}}}}
rules:
  - name: a
    hosts: [x.example, "*"]
    pins: {{any_of: ["sha256/AAAA"]}}
    request: [{{encrypt: [$.a], key: apq}}]
  - name: b
    hosts: ["**.y.example"]
    https: tunnel
    pins: {{any_of: ["{PIN_A}"]}}
    color: red
  - name: b
    hosts: [z.y.example]
    request: [{{encrypt: [$.a], key: app}}, {{encrypt: [$.b], key: web}}]
"""
    errors = _errors(folder, text, OVERCOAT_MODE="loose")
    assert [(error.line, error.path) for error in errors] == [
        (2, "mode"),
        (3, "mode"),
        (4, "trust.min_tls"),
        (4, "trust.roots"),
        (6, "keys.app.primary.file"),
        (7, "keys.web.alg"),
        (10, "rules[0].hosts[1]"),
        (11, "rules[0].pins.any_of[0]"),
        (12, "rules[0].request[0].key"),
        (15, "rules[1].https"),
        (17, "rules[1].color"),
        (18, "rules[2].name"),
        (19, "rules[2].hosts"),
        (0, "OVERCOAT_MODE"),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("api.example", HostPattern("exact", "api.example")),
        ("'*.Example:8443'", HostPattern("one_label", "example", 8443)),
        ("'**.example'", HostPattern("any_depth", "example")),
        ("'[::1]'", HostPattern("exact", "::1")),
        ("'::1'", HostPattern("exact", "::1")),
        ("'[2001:DB8::1]:443'", HostPattern("exact", "2001:db8::1", 443)),
        ("192.0.2.1", HostPattern("exact", "192.0.2.1")),
        ("'192.0.2.1:80'", HostPattern("exact", "192.0.2.1", 80)),
        ("Bücher.example", HostPattern("exact", "xn--bcher-kva.example")),
        ("'**.bücher.example:443'", HostPattern("any_depth", "xn--bcher-kva.example", 443)),
    ],
)
def test_a_host_pattern_becomes_canonical(text: str, expected: HostPattern, folder: Path) -> None:
    (rule,) = _load(folder, HOST.format(text)).rules
    assert rule.hosts == (expected,)


@pytest.mark.parametrize(
    ("defaults", "rule", "plain_http", "https"),
    [
        ("", "", PlainHttp.UPGRADE, Https.TUNNEL),
        ("defaults: {plain_http: reject, https: reject}", "", PlainHttp.REJECT, Https.REJECT),
        ("defaults: {https: inspect}", "", PlainHttp.UPGRADE, Https.INSPECT),
        ("defaults: {https: tunnel}", f", pins: {{any_of: ['{PIN_A}']}}", PlainHttp.UPGRADE, Https.INSPECT),
        ("defaults: {https: reject}", f", pins: {{any_of: ['{PIN_A}']}}", PlainHttp.UPGRADE, Https.INSPECT),
        ("", f", pins: {{any_of: ['{PIN_A}']}}, https: reject", PlainHttp.UPGRADE, Https.REJECT),
        ("", ", https: inspect", PlainHttp.UPGRADE, Https.INSPECT),
        ("", ", plain_http: allow", PlainHttp.ALLOW, Https.TUNNEL),
    ],
)
def test_what_a_rule_leaves_out_comes_from_what_it_needs_and_the_defaults(
    defaults: str, rule: str, plain_http: PlainHttp, https: Https, folder: Path
) -> None:
    text = f"version: 1\n{defaults}\nrules: [{{name: a, hosts: [x.example]{rule}}}]\n"
    (found,) = _load(folder, text).rules
    assert (found.plain_http, found.https) == (plain_http, https)


def test_the_other_sections_are_read(folder: Path) -> None:
    policy = _load(
        folder,
        "version: 1\nlisten: ['forward://[::1]:0', forward://localhost:0]\nadmin: null\nmode: observe\n"
        "defaults: {plain_http: allow, https: reject}\ntrust: {roots: roots.pem, min_tls: '1.3'}\n"
        "limits: {held_body: 1024}\n",
    )
    assert policy.listen == (Listener("::1", 0), Listener("localhost", 0))
    assert policy.admin is None
    assert policy.mode is Mode.OBSERVE
    assert policy.defaults == Defaults(PlainHttp.ALLOW, Https.REJECT)
    assert (policy.trust.roots, policy.trust.min_tls) == (folder / "roots.pem", "1.3")
    assert policy.limits == Limits(1024)


@pytest.mark.parametrize(
    ("text", "strict", "of_rule"),
    [
        ("", True, None),
        ("trust: {strict: false}", False, None),
        ("trust: {strict: true}", True, None),
        (", trust: {strict: false}", True, False),
        (", plain_http: reject, https: inspect, trust: {strict: true}", True, True),
        (", plain_http: allow, trust: {strict: false}", True, False),  # HSTS may upgrade it
    ],
)
def test_strictness_is_the_policys_or_a_rules_own(text: str, strict: bool, of_rule: bool | None, folder: Path) -> None:
    of_policy, _, rule = text.partition(",") if text.startswith(",") else (text, "", "")
    policy = _load(
        folder, f"version: 1\n{of_policy}\nrules: [{{name: a, hosts: [x.example]{',' + rule if rule else ''}}}]\n"
    )
    own = policy.rules[0].trust
    assert (policy.trust.strict, None if own is None else own.strict) == (strict, of_rule)


def test_pins_are_made_of_pem_files(folder: Path) -> None:
    text = PIN.format("{file: keys/pay-tls.pem}\n        - {file: roots.pem}\n      expires: '2027-06-30'")
    (rule,) = _load(folder, text).rules
    assert rule.pins is not None
    assert rule.pins.any_of == (pin_of_pem(SERVER_PUBLIC), pin_of_pem(CA_PEM))
    assert rule.pins.expires == date(2027, 6, 30)


@pytest.mark.parametrize("source", ["key: {env: APP_KEY}", "key: {file: keys/app.jwk}", "file: keys/app.jwk"])
def test_a_key_comes_from_a_file_or_a_variable(source: str, folder: Path) -> None:
    policy = _load(folder, f"version: 1\nkeys: {{k: {{alg: A256KW, primary: {{{source}}}}}}}\n", APP_KEY=SECRET_JWK)
    assert policy.keys["k"].keys[0].kid == SECRET.kid
    assert policy.keys["k"].keys[0].can_open


SET = [new_key(Alg.A256KW, kid="new"), new_key(Alg.A256KW, kid="old")]


def _jwks(*keys: Key) -> str:
    return json.dumps({"keys": [to_jwk(key, private=True) for key in keys]})


@pytest.mark.parametrize("source", ["keys/app.jwks", "{file: keys/app.jwks}", "{env: APP_KEYS}"])
def test_a_whole_set_comes_from_a_file_or_a_variable_and_its_first_key_seals(source: str, folder: Path) -> None:
    (folder / "keys/app.jwks").write_text(_jwks(*SET))
    (folder / "keys/app.jwks").chmod(0o600)
    text = f"version: 1\nkeys: {{k: {{alg: A256KW, set: {source}, grace: 4w, bind: host}}}}\n"
    policy = _load(folder, text, APP_KEYS=_jwks(*SET))
    keys = policy.keys["k"]
    assert [key.kid for key in keys.keys] == ["new", "old"]
    assert keys.sealing_key(date(2027, 1, 1)).kid == "new"
    assert (keys.grace, keys.bind) == (28, Bind.HOST)
    assert keys.keys[0].source == ("$APP_KEYS" if "env" in source else str(folder / "keys/app.jwks"))
    assert (folder / "keys/app.jwks" in policy.files) is ("env" not in source)


def test_a_whole_set_in_a_variable_is_refused_without_quoting_it(folder: Path) -> None:
    secret = to_jwk(SET[0], private=True)["k"]
    text = "version: 1\nkeys: {k: {alg: A256KW, set: {env: APP_KEYS}}}\n"
    (error,) = _errors(folder, text, APP_KEYS=_jwks(SET[0], SET[0]))
    assert error.path == "keys.k.set"
    assert "keys[1] of the JWK Set has the kid of an earlier one" in error.message
    assert secret not in str(error)


def test_a_set_that_others_may_read_is_refused_if_it_is_secret(folder: Path) -> None:
    text = "version: 1\nkeys: {k: {alg: A256KW, set: keys/open.jwks}}\n"
    (folder / "keys/open.jwks").write_text(_jwks(*SET))
    (folder / "keys/open.jwks").chmod(0o644)
    (error,) = _errors(folder, text)
    assert "lets others at a secret key" in error.message
    public = {"keys": [to_jwk(RECEIVER, private=False)]}
    (folder / "keys/open.jwks").write_text(json.dumps(public))
    assert not _load(folder, text.replace("A256KW", "ECDH-ES+A256KW")).keys["k"].can_open


@pytest.mark.parametrize(
    ("written", "url", "where"),
    [
        ("https://Keys.Example/a?b=c", "https://keys.example/a?b=c", ("keys.example", 443, "/a?b=c")),
        ("https://keys.example", "https://keys.example/", ("keys.example", 443, "/")),
        ("https://keys.example:8443/", "https://keys.example:8443/", ("keys.example", 8443, "/")),
        ("https://[::1]/", "https://[::1]/", ("::1", 443, "/")),
        ("HTTPS://bücher.example/", "https://xn--bcher-kva.example/", ("xn--bcher-kva.example", 443, "/")),
    ],
)
def test_a_set_is_named_by_its_url(written: str, url: str, where: tuple[str, int, str], folder: Path) -> None:
    text = f"version: 1\nkeys: {{k: {{alg: RSA-OAEP-256, jwks: '{written}', kid: x, max_age: 90s, bind: host}}}}\n"
    keys = _load(folder, text).keys["k"]
    supply = keys.supply
    assert supply is not None
    assert (supply.url, (supply.host, supply.port, supply.path)) == (url, where)
    assert (supply.kid, supply.max_age, keys.keys, keys.bind) == ("x", 90, (), Bind.HOST)
    other = _load(folder, text.replace(", kid: x, max_age: 90s", "")).keys["k"].supply
    assert other is not None
    assert (other.kid, other.max_age) == (None, 3600)


def test_what_is_fetched_opens_nothing(folder: Path) -> None:
    text = (
        "version: 1\nkeys: {k: {alg: RSA-OAEP-256, jwks: 'https://keys.example/'}}\n"
        "rules: [{name: a, hosts: [a.example], response: [{decrypt: [$.a], key: k}]}]\n"
    )
    (error,) = _errors(folder, text)
    assert error.path == "rules[0].response[0].key"
    assert "has public keys only" in error.message


def test_one_key_of_a_set_is_named_by_its_kid(folder: Path) -> None:
    (folder / "keys/two.jwks").write_text(_jwks(*SET))
    (folder / "keys/two.jwks").chmod(0o600)
    text = (
        "version: 1\nkeys: {k: {alg: A256KW, primary: {kid: old, file: keys/two.jwks}, "
        "older: [{kid: new, file: keys/two.jwks, not_before: 2027-02-01}]}}\n"
    )
    keys = _load(folder, text).keys["k"]
    assert [key.kid for key in keys.keys] == ["old", "new"]
    assert keys.keys[1].not_before == date(2027, 2, 1)


@pytest.mark.parametrize("password", ["{env: PASSWORD}", "{file: password}"])
def test_an_encrypted_key_opens_with_its_password(password: str, folder: Path) -> None:
    key = RECEIVER.material
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    (folder / "keys/pay.p12").write_bytes(
        pkcs12.serialize_key_and_certificates(b"x", key, None, None, BestAvailableEncryption(b" hunter 2 "))
    )
    (folder / "keys/pay.p12").chmod(0o600)
    (folder / "password").write_bytes(b" hunter 2 \n")
    text = (
        "version: 1\nkeys: {k: {alg: ECDH-ES+A256KW, primary: {kid: p, file: keys/pay.p12, "
        f"password: {password}}}}}}}\n"
    )
    policy = _load(folder, text, PASSWORD=" hunter 2 ")
    assert policy.keys["k"].can_open
    other = _load(folder, text + "# another\n", PASSWORD=" hunter 2 ")
    assert (policy.content == other.content, policy.secrets == other.secrets) == (False, True)
    (folder / "password").write_bytes(b"hunter2")
    (error,) = _errors(folder, text, PASSWORD="hunter2")
    assert error.path == "keys.k.primary.file"
    assert "the password is wrong" in error.message
    assert "hunter" not in error.message


def test_an_encrypted_key_file_is_not_for_others_either(folder: Path) -> None:
    key = RECEIVER.material
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    (folder / "keys/open.p12").write_bytes(
        pkcs12.serialize_key_and_certificates(b"x", key, None, None, BestAvailableEncryption(b"x"))
    )
    (folder / "keys/open.p12").chmod(0o640)
    text = "version: 1\nkeys: {k: {alg: ECDH-ES+A256KW, primary: {file: keys/open.p12, password: {env: PASSWORD}}}}\n"
    (error,) = _errors(folder, text, PASSWORD="x")
    assert "lets others at a secret key" in error.message


def test_a_key_in_a_variable_that_is_none_is_refused_without_quoting_it(folder: Path) -> None:
    text = "version: 1\nkeys: {k: {alg: A256KW, primary: {key: {env: APP_KEY}}}}\n"
    (error,) = _errors(folder, text, APP_KEY='{"kty":"oct","k":"c2VjcmV0c2VjcmV0"}\udcff')
    assert error.path == "keys.k.primary.key"
    assert "c2VjcmV0" not in str(error)


def test_an_open_secret_key_file_is_read_only_where_the_policy_says_so(folder: Path) -> None:
    policy = _load(folder, KEYS.replace("app.jwk", "open.jwk") + "    unsafe_key_permissions: true\n    bind: host\n")
    assert policy.keys["k"].bind is Bind.HOST


def test_a_rule_may_encrypt_with_a_key_that_has_expired_which_is_denied_at_request_time(folder: Path) -> None:
    text = KEYS.replace("app.jwk}", "app.jwk, not_after: 2020-01-01}")
    text += "rules: [{name: a, hosts: [x.example], request: [{encrypt: [$.a], key: k}]}]\n"
    (rule,) = _load(folder, text).rules
    assert rule.request[0].keys.keys[0].expired(date(2020, 1, 2))


def test_a_broken_key_set_does_not_make_its_name_unknown(folder: Path) -> None:
    text = KEYS.replace("app.jwk", "no.jwk")
    text += "rules: [{name: a, hosts: [x.example], request: [{encrypt: [$.a], key: k}]}]\n"
    assert [error.path for error in _errors(folder, text)] == ["keys.k.primary.file"]


def test_a_host_of_a_wrong_rule_still_shadows_later_rules(folder: Path) -> None:
    text = "version: 1\nrules:\n  - {name: A, hosts: [x.example]}\n  - {name: b, hosts: [x.example]}\n"
    name, hosts = _errors(folder, text)
    assert name.path == "rules[0].name"
    assert (hosts.path, "taken by rules[0] above" in hosts.message) == ("rules[1].hosts", True)


def test_a_byte_that_is_not_utf8_is_refused_at_its_place(folder: Path) -> None:
    (error,) = _errors(folder, b"version: 1\nmode: \xff\n")
    assert (error.line, error.column) == (2, 7)
    assert "not UTF-8" in error.message


def test_a_byte_order_mark_is_passed_over(folder: Path) -> None:
    assert _load(folder, b"\xef\xbb\xbfversion: 1\n").mode is Mode.ENFORCE


def test_a_file_that_is_too_large_is_refused(folder: Path) -> None:
    (error,) = _errors(folder, b"version: 1\n" + b"#" * 1024 * 1024)
    assert "1048576 is the most" in error.message


def test_what_is_under_a_duplicate_key_is_not_taken_for_what_is_under_the_first(folder: Path) -> None:
    (error,) = _errors(folder, "version: 1\nlimits: {held_body: 2048}\nlimits: {held_body: 4096}\n")
    assert (error.line, error.column, error.path) == (3, 1, "limits")


@pytest.mark.parametrize(
    ("env", "overrides", "expected"),
    [
        ({"OVERCOAT_MODE": "observe"}, {}, {"mode": Mode.OBSERVE}),
        ({"OVERCOAT_MODE": "observe"}, {"mode": "enforce"}, {"mode": Mode.ENFORCE}),
        ({"OVERCOAT_ADMIN": "off"}, {}, {"admin": None}),
        ({"OVERCOAT_ADMIN": "off"}, {"admin": "[::1]:1"}, {"admin": Listener("::1", 1)}),
        ({"OVERCOAT_PROBES": "0.0.0.0:1"}, {}, {"probes": Listener("0.0.0.0", 1)}),
        ({"OVERCOAT_PROBES": "0.0.0.0:1"}, {"probes": "off"}, {}),
        (
            {"OVERCOAT_LISTEN": "forward://127.0.0.1:1, forward://[::1]:0"},
            {},
            {"listen": (Listener("127.0.0.1", 1), Listener("::1", 0))},
        ),
        ({}, {"listen": "forward://127.0.0.1:0,forward://127.0.0.1:0"}, {"listen": (Listener("127.0.0.1", 0),) * 2}),
        ({"OVERCOAT_UNKNOWN": "x"}, {}, {}),
    ],
)
def test_variables_override_the_file_and_flags_override_both(
    env: dict[str, str], overrides: dict[str, str], expected: dict[str, Any], folder: Path
) -> None:
    file = folder / "policy.yaml"
    file.write_text("version: 1\nmode: enforce\n")
    assert contents(load_policy(file, env, overrides)) == contents(replace(Policy(source=str(file)), **expected))


@pytest.mark.parametrize(
    ("env", "overrides", "message"),
    [
        ({"OVERCOAT_MODE": ""}, {}, "OVERCOAT_MODE: must be enforce or observe, not ''"),
        ({"OVERCOAT_MODE": "observed"}, {}, "OVERCOAT_MODE: must be enforce or observe, not 'observed'; did you mean"),
        ({}, {"mode": "x"}, "--mode: must be enforce or observe, not 'x'"),
        ({"OVERCOAT_ADMIN": ""}, {}, "OVERCOAT_ADMIN: this is empty"),
        ({"OVERCOAT_ADMIN": "x"}, {}, "OVERCOAT_ADMIN: an address is HOST:PORT"),
        ({"OVERCOAT_ADMIN": "0.0.0.0:1"}, {}, "OVERCOAT_ADMIN: others can reach 0.0.0.0:1"),
        ({"OVERCOAT_PROBES": "9465"}, {}, "OVERCOAT_PROBES: an address is HOST:PORT"),
        ({"OVERCOAT_PROBES": "127.0.0.1:9464"}, {}, "OVERCOAT_PROBES: 127.0.0.1:9464 stands twice"),
        ({"OVERCOAT_LISTEN": ""}, {}, "OVERCOAT_LISTEN: a listener is forward://HOST:PORT"),
        ({"OVERCOAT_LISTEN": "forward://[::1]:1,"}, {}, "OVERCOAT_LISTEN: a listener is forward://HOST:PORT"),
        ({"OVERCOAT_LISTEN": "forward://[::1]:1,forward://[::1]:1"}, {}, "OVERCOAT_LISTEN: [::1]:1 stands twice"),
        ({"OVERCOAT_LISTEN": "forward://127.0.0.1:9464"}, {}, "admin: 127.0.0.1:9464 stands twice"),
        ({"OVERCOAT_ADMIN": "127.0.0.1:8080"}, {}, "OVERCOAT_ADMIN: 127.0.0.1:8080 stands twice"),
    ],
)
def test_a_wrong_override_is_named(env: dict[str, str], overrides: dict[str, str], message: str) -> None:
    with pytest.raises(PolicyErrors) as caught:
        load_policy(None, env, overrides)
    assert str(caught.value).startswith(message)
    assert len(caught.value.errors) == 1


def test_two_listeners_of_a_file_need_an_address_each(folder: Path) -> None:
    (error,) = _errors(folder, "version: 1\nadmin: 127.0.0.1:1\nlisten: [forward://127.0.0.1:1]\n")
    assert (error.line, error.column, error.path) == (2, 8, "admin")
    (error,) = _errors(folder, "version: 1\nlisten: [forward://127.0.0.1:1, forward://127.0.0.1:1]\n")
    assert (error.line, error.column, error.path) == (2, 33, "listen[1]")
    assert "127.0.0.1:1 stands twice" in error.message


def test_a_policy_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PolicyErrors) as caught:
        load_policy(tmp_path / "no.yaml", {})
    told = f"{tmp_path / 'no.yaml'}: the policy cannot be read: No such file or directory"
    assert str(caught.value) == f"{told}; in {tmp_path} there is nothing at all"


def test_the_policy_file_is_the_option_else_the_variable_else_the_one_here_else_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_policy(None, {}) is None
    (tmp_path / "overcoat.yaml").touch()
    assert find_policy(None, {}) == Path("overcoat.yaml")
    assert find_policy(None, {"OVERCOAT_POLICY": "b.yaml"}) == Path("b.yaml")
    assert find_policy("a.yaml", {"OVERCOAT_POLICY": "b.yaml"}) == Path("a.yaml")


@pytest.mark.parametrize(("option", "env"), [("", {}), (None, {"OVERCOAT_POLICY": ""})])
def test_an_empty_name_of_a_policy_file_is_an_error(option: str | None, env: dict[str, str]) -> None:
    with pytest.raises(PolicyErrors, match="the name of the policy file is empty"):
        find_policy(option, env)


def test_many_rules_are_checked_quickly(folder: Path) -> None:
    rules = "".join(
        f"  - {{name: r{number}, hosts: [h{number}.example, '*.s{number}.example']}}\n" for number in range(1000)
    )
    policy = _load(folder, "version: 1\nrules:\n" + rules)
    assert policy.rule_for(Destination("a.s999.example", 443)) is policy.rules[999]


_some = settings(max_examples=150, deadline=None)


def _loads_or_is_refused(folder: Path, text: bytes) -> None:
    try:
        _load(folder, text)
    except PolicyErrors as error:
        errors = error.errors
    else:
        return
    assert errors
    for each in errors:
        assert str(each).isprintable()
        assert each.line >= 1
        assert each.column >= 1


@_some
@given(st.binary(max_size=200))
def test_no_bytes_make_the_reader_raise(folder: Path, text: bytes) -> None:
    _loads_or_is_refused(folder, text)


@_some
@given(st.text(alphabet=st.sampled_from("ab:1 -\n\t[]{}&*!|>'\"%@`#,?<=~\\x\u2028é😀"), max_size=80))
def test_no_yaml_like_text_makes_the_reader_raise(folder: Path, text: str) -> None:
    _loads_or_is_refused(folder, b"version: 1\n" + text.encode())


_WORDS = sorted(
    {"", "*", "k", "a", "x.example", "sha256/AAAA", "127.0.0.1:1", "1.2", "tunnel", "-1", "post", "$.a", "/v1", "\x00"}
)
_KEYS = sorted(
    {
        *(
            "version",
            "listen",
            "admin",
            "mode",
            "defaults",
            "trust",
            "limits",
            "keys",
            "rules",
            "name",
            "hosts",
            "pins",
        ),
        *("request", "response", "encrypt", "decrypt", "when", "any_of", "file", "env", "key", "alg", "primary", "<<"),
    }
)
_leaves = (
    st.none()
    | st.booleans()
    | st.integers(-5, 10**25)
    | st.floats()
    | st.dates()
    | st.datetimes()
    | st.sampled_from(_WORDS)
    | st.binary(max_size=4)
)
_keys = st.sampled_from(_KEYS) | st.integers(0, 3) | st.booleans()
_trees = st.recursive(
    _leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_keys, inner, max_size=4), max_leaves=12
)


@_some
@given(st.dictionaries(st.sampled_from(_KEYS), _trees, max_size=6))
def test_no_structure_makes_the_reader_raise(folder: Path, tree: dict[Any, Any]) -> None:
    _loads_or_is_refused(folder, yaml.safe_dump({"version": 1, **tree}, allow_unicode=True).encode())


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Every container of a tree with a key or an index in it."""
    places = []
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(items):
        places += [(tree, key), *_places(value)]
    return places


@_some
@given(st.data())
def test_no_mutation_of_a_right_policy_makes_the_reader_raise(folder: Path, data: st.DataObject) -> None:
    tree = yaml.safe_load(WHOLE_EXAMPLE)
    for _ in range(data.draw(st.integers(1, 3))):
        container, key = data.draw(st.sampled_from(_places(tree)))
        if data.draw(st.booleans()):
            container[key] = data.draw(_trees)
        elif isinstance(container, dict):
            container[data.draw(_keys)] = container.pop(key)
        else:
            container.append(container[key])
    _loads_or_is_refused(folder, yaml.safe_dump(tree, allow_unicode=True).encode())


class TestAllThatIsWrongAtOnce:
    """What is wrong in one place hides nothing that is wrong in another, and leads to no second error."""

    @pytest.mark.parametrize(
        ("text", "paths"),
        [
            pytest.param(
                "rules: [{name: a, hosts: [a.example], plain_http: allow, request: [{encrypt: [x], key: b}]}]",
                ["rules[0].plain_http", "rules[0].request[0].encrypt[0]", "rules[0].request[0].key"],
                id="all selectors, a key and a combination",
            ),
            pytest.param(
                "rules: [{name: a, hosts: [a.example], pins: {any_of: [sha1/abc, {file: nope}, x, {file: not}]}}]",
                [f"rules[0].pins.any_of[{place}" for place in ("0]", "1].file", "2]", "3].file")],
                id="pins, and files of pins between them",
            ),
            pytest.param(
                "clients: {users: [{name: a, password_hash: {file: nope}}], alow: [private]}",
                ["clients.users[0].password_hash.file", "clients.alow"],
                id="an unknown key beside a file that is not there",
            ),
            pytest.param(
                'upstream_proxy: {url: "https://p.example:1", credentials: {env: NOPE}, direct: ["http://x"]}',
                ["upstream_proxy.credentials.env", "upstream_proxy.direct[0]"],
                id="an upstream proxy's",
            ),
            pytest.param(
                "upstream_proxy: {url: 1, credentials: {env: NOPE}}",
                ["upstream_proxy.url", "upstream_proxy.credentials.env"],
                id="what is needed is wrong, and something beside it",
            ),
            pytest.param(
                "rules: [{hosts: [a.example], https: tunnel, pins: {any_of: [x]}}, {name: 1, hosts: [2]}]",
                ["rules[0].name", "rules[0].https", "rules[0].pins.any_of[0]", "rules[1].name", "rules[1].hosts[0]"],
                id="rules without a name",
            ),
            pytest.param(
                "rules: [{name: a, hosts: [1, b.example, b.example]}, {name: c, hosts: [2, b.example]}, 3]",
                ["rules[0].hosts[0]", "rules[0].hosts[2]", "rules[1].hosts[0]", "rules[1].hosts[1]", "rules[2]"],
                id="places in lists stay those of the file",
            ),
            pytest.param(
                "keys: {k: {alg: A256KW, primary: {kid: a, file: nope}, older: [{}, {kid: a, file: not}]}}\n"
                "rules: [{name: a, hosts: [a.example], response: [{decrypt: [$.a], key: k}]}]",
                ["keys.k.primary.file", "keys.k.older[0]", "keys.k.older[1].file"],
                id="a key set that is named, and wrong",
            ),
            pytest.param(
                "defaults: {plain_http: allow}\n"
                "rules: [{name: a, hosts: [a.example], plain_http: up, pins: {any_of: [x]}, https_port: 444}]",
                ["rules[0].plain_http", "rules[0].pins.any_of[0]"],
                id="no second error of a default that stands in",
            ),
            pytest.param(
                "rules: [{name: a, hosts: [1], raw_tcp: allow}, {name: b, hosts: [2], raw_tcp: allow}]",
                ["rules[0].hosts[0]", "rules[1].hosts[0]"],
                id="no second error of what stands in",
            ),
            pytest.param("rules: []\nkeys: 1\nclients: null\nx: 1", ["rules", "keys", "clients", "x"], id="shapes"),
        ],
    )
    def test_is_found_in_one_run(self, folder: Path, text: str, paths: list[str]) -> None:
        found = [error.path for error in _errors(folder, f"version: 1\n{text}\n")]
        assert sorted(found) == sorted(paths)

    def test_a_file_that_is_no_mapping_is_one_error(self, folder: Path) -> None:
        assert len(_errors(folder, "[1, 2]\n")) == 1


def test_an_upstreams_time_is_the_rules_else_the_policys_and_null_is_none(folder: Path) -> None:
    text = """
        version: 1
        limits: {response_seconds: 7, idle_seconds: 7}
        rules:
          - {name: own, hosts: [a.example], limits: {response_seconds: 5}}
          - {name: endless, hosts: [b.example], limits: {response_seconds: null}}
          - {name: silent, hosts: [c.example]}
    """
    policy = _load(folder, text)
    assert [policy.response_seconds(rule) for rule in policy.rules] == [5, None, 7]
    assert _load(folder, "version: 1\nlimits: {response_seconds: null}\n").limits.response_seconds is None
    assert _load(folder, "version: 1\nlimits: {idle_seconds: 1}\n").limits.response_seconds == 60
