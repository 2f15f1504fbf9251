"""The model of the policy file: its keys, their types and defaults, and what they mean. The policy file's reader
validates files with it; the JSON Schema and the reference table in docs/policy.md are generated from it.

It is longer than 500 lines, because all keys of the policy file are found in one place.

Rules of this module:

- It is strict: an unknown key, a wrong type and an unknown value are errors; nothing is converted silently.
- Every key has an effect. A key that would do nothing is refused.
- A check of one value is here or in `proxy.policyfile.values`; a check of several is in `proxy.policyfile.build`.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from proxy.core.fields.entries import AlreadySealed, Digests, Match, OnFailure, OtherBodies, Signed
from proxy.core.jose.keys import Alg, Bind, Enc
from proxy.core.jose.profiles import Profile
from proxy.core.pins import AfterExpiry
from proxy.core.rules.policy import Egress, Https, Limits, Mode, OpenConnections, PlainHttp, Policy
from proxy.core.rules.trust import CrlUse, KeyExchange
from proxy.policyfile.selectortext import InsideText, SelectorText
from proxy.policyfile.values import (
    AddressesText,
    AdminText,
    Day,
    Days,
    FieldNameText,
    FileName,
    FormName,
    GraphqlName,
    HostName,
    HostText,
    JwksUrlText,
    KeySourceEntry,
    Kid,
    ListenerText,
    MaxAge,
    MemberName,
    MethodText,
    Name,
    PasswordEntry,
    PathText,
    PinEntry,
    ProxyUrl,
    ResponseSeconds,
    SetSource,
    UserName,
    Version,
    ViaName,
    WorkerCount,
)

_BUILT_IN = Policy()

SYSTEM_ROOTS = "system"
MARKERS = frozenset(("[key]", "[encrypt]", "[decrypt]"))  # steps that pydantic puts into positions


def _choice(default: object, description: str) -> Any:
    """Return a field for an enum, given by its value as text."""
    return Field(default=default, strict=False, description=description)


class Section(BaseModel):
    """One mapping of the policy file."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, arbitrary_types_allowed=True)


class DefaultsSection(Section):
    """What holds for hosts that no rule names."""

    plain_http: PlainHttp = _choice(
        _BUILT_IN.defaults.plain_http,
        "What happens to plain http: `upgrade` sends it as https, `reject` denies it, `allow` passes it on as it came.",
    )
    https: Https = _choice(
        _BUILT_IN.defaults.https,
        "What happens to https: `tunnel` carries it end to end, untouched; `inspect` opens it, checks it and sends it "
        "on as https; `reject` denies it.",
    )


class CrlsSection(Section):
    """Certificate revocation lists."""

    files: Annotated[list[FileName], Field(min_length=1)] = Field(
        description="Files with lists, PEM or DER; in the last part of a path `*` stands for any characters. One that "
        "is not there, or cannot be read, is an error. They are read again when they change."
    )
    when: CrlUse = _choice(
        CrlUse.IF_PRESENT,
        "`require`: a certificate of the chain whose CA has no list that is valid now is refused; `if_present`: it "
        "counts as not revoked.",
    )


class TrustSection(Section):
    """Whom upstream certificates must come from."""

    roots: FileName = Field(
        default=SYSTEM_ROOTS,
        description="The trusted roots: `system` for the system's store, or a PEM file, which then counts alone.",
    )
    min_tls: Literal["1.2", "1.3"] = Field(
        default=_BUILT_IN.trust.min_tls, description="The lowest TLS version accepted from upstreams, in quotes."
    )
    strict: bool = Field(
        default=_BUILT_IN.trust.strict,
        description="Whether certificates must have the form that RFC 5280 prescribes (OpenSSL's X509_STRICT), as in "
        "Python 3.13 and newer. Private CAs often fail it.",
    )
    key_exchange: KeyExchange = _choice(
        _BUILT_IN.trust.key_exchange,
        "`hybrid` accepts X25519MLKEM768 only, which also holds against quantum computers of the future, and with it "
        "TLS 1.3 only; `any` prefers it, and takes what the upstream can.",
    )
    crls: CrlsSection | None = Field(
        default=None, description="Certificate revocation lists (RFC 5280). Left out: none are looked at."
    )


class RuleTrustSection(Section):
    """What holds for a rule's hosts in place of the same key of the policy's `trust`."""

    roots: FileName | None = Field(
        default=None, description="As `trust.roots`, for this rule's hosts: a private CA for these only, say."
    )
    min_tls: Literal["1.2", "1.3"] | None = Field(default=None, description="As `trust.min_tls`.")
    strict: bool | None = Field(default=None, description="As `trust.strict`.")
    key_exchange: KeyExchange | None = _choice(None, "As `trust.key_exchange`.")
    crls: CrlsSection | None = Field(default=None, description="As `trust.crls`.")


class ClientCertificateSection(Section):
    """What is shown to upstreams that ask for a client certificate."""

    cert: FileName = Field(
        description="A PEM file with the certificate, and behind it those of its issuers up to the root, without that."
    )
    key: KeySourceEntry = Field(
        description="Where its private key comes from, PEM without a password: `{file: PATH}` or `{env: NAME}`."
    )
    unsafe_key_permissions: bool = Field(
        default=False, description="Whether others may read the key's file, as mounted container secrets often are."
    )


class LimitsSection(Section):
    """How much one request, one app and all apps together may take."""

    held_body: int = Field(
        default=Limits().held_body,
        ge=1024,
        le=1024 * 1024 * 1024,
        description="Bytes of a body, decoded, that is held in memory to protect its fields. A larger one is denied.",
    )
    header_bytes: int = Field(
        default=Limits().header_bytes,
        ge=1024,
        le=1024 * 1024,
        description="Bytes of a request line and its header fields together.",
    )
    header_count: int = Field(default=Limits().header_count, ge=8, le=10_000, description="Header fields of a request.")
    connections: int = Field(
        default=Limits().connections, ge=1, le=1_000_000, description="Client connections at once, in each worker."
    )
    client_connections: int = Field(
        default=Limits().client_connections,
        ge=1,
        le=1_000_000,
        description="… of these from one address (of IPv6, 64 bits).",
    )
    idle_seconds: int = Field(
        default=Limits().idle_seconds,
        ge=1,
        le=86_400,
        description="Seconds for which a client connection may lie idle, tunnels included.",
    )
    request_seconds: int = Field(
        default=Limits().request_seconds,
        ge=1,
        le=86_400,
        description="Seconds in which an app must have sent a whole head, what it starts with inside CONNECT, and a "
        "body that is held.",
    )
    connect_seconds: int = Field(
        default=Limits().connect_seconds,
        ge=1,
        le=600,
        description="Seconds in which an upstream's name must be resolved and its TCP connection be open.",
    )
    response_seconds: ResponseSeconds = Field(
        default=Limits().response_seconds,
        description="Seconds in which an upstream must begin its response once the request is sent, or `null` for as "
        "long as it takes, within `idle_seconds`.",
    )


class RuleLimitsSection(Section):
    """Limits that hold for a rule's hosts in place of the policy's."""

    response_seconds: ResponseSeconds = Field(description="As `limits.response_seconds`, for this rule's hosts.")


class DestinationsSection(Section):
    """Where requests may go."""

    allow: Annotated[list[AddressesText], Field(min_length=1)] | None = Field(
        default=None,
        description="Addresses that may be reached though they are not public: `loopback`, `private`, `cgnat`, "
        "`link_local`, `metadata` (where clouds give out credentials), `multicast`, `reserved`, or a network such as "
        "`10.1.0.0/16`. Judged is the address that is really connected to. Left out: none.",
    )
    egress: Egress = _choice(
        _BUILT_IN.egress, "`any`: hosts that no rule names follow `defaults`; `listed`: they are denied."
    )


class RuleDestinationsSection(Section):
    """Where requests of one rule may go."""

    allow: Annotated[list[AddressesText], Field(min_length=1)] = Field(
        description="Addresses that the rule's hosts may be at though they are not public, as in `destinations.allow` "
        "above, which then does not count for them."
    )


class UserSection(Section):
    """A user with a password."""

    name: UserName = Field(description="The name, as the app sends it.")
    password_hash: PasswordEntry = Field(
        description="What `overcoat password` prints (scrypt), or where it comes from: `{env: NAME}` or `{file: PATH}`."
    )


class ClientsSection(Section):
    """Who may use the proxy."""

    allow: Annotated[list[AddressesText], Field(min_length=1)] | None = Field(
        default=None,
        description="Where apps may connect from: kinds and networks as in `destinations.allow`. Left out: anywhere if "
        "there are `users`, else `loopback`.",
    )
    users: Annotated[list[UserSection], Field(min_length=1)] | None = Field(
        default=None,
        description="Who must show a name and a password (`Proxy-Authorization`, RFC 7617). Left out: nobody must.",
    )
    admin: Annotated[list[AddressesText], Field(min_length=1)] | None = Field(
        default=None,
        description="Where the admin listener may be asked from, beside this machine: kinds and networks as in "
        "`allow`. Left out: nowhere.",
    )
    unsafe_open_listener: bool = Field(
        default=False,
        description="Whether a listener that others can reach may serve everybody: without `allow` and `users` it "
        "would refuse to start.",
    )


class KeyEntry(Section):
    """One key of a set: where it is, its name, its first and last day."""

    kid: Kid | None = Field(
        default=None,
        description="The key's name, which encrypted values carry; of a JWK Set, which of its keys is meant. Left out: "
        "the JWK's own `kid`, else its RFC 7638 thumbprint.",
    )
    file: FileName | None = Field(
        default=None,
        description="The file that holds the key (PEM, PKCS#12, JWK, JWK Set, or for A256KW the base64 of 32 bytes), "
        "relative to the policy file. Exactly one of `file` and `key` is given.",
    )
    key: KeySourceEntry | None = Field(
        default=None,
        description="Where the key comes from: `{env: NAME}`, a variable with the text of such a file, or "
        "`{file: PATH}`.",
    )
    password: KeySourceEntry | None = Field(
        default=None,
        description="Where the password comes from that opens PKCS#12 or an encrypted PEM: `{env: NAME}` or "
        "`{file: PATH}`. Left out: it is not encrypted.",
    )
    not_before: Day | None = Field(
        default=None,
        description="The first day (UTC) on which the key encrypts; it decrypts before, too, since clocks differ. Left "
        "out: from the start.",
    )
    not_after: Day | None = Field(
        default=None,
        description="The last day (UTC) on which the key encrypts, and decrypts, if its set has no `grace`. Left out: "
        "it has no end.",
    )

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        if (self.file is None) == (self.key is None):
            raise ValueError("exactly one of `file: PATH` and `key: {env: NAME}` says where the key comes from")
        return self


class KeySetSection(Section):
    """A key set: one key that encrypts and decrypts, and older ones that still decrypt."""

    alg: Alg = Field(strict=False, description="The algorithm (RFC 7518, section 4) of all keys of the set.")
    enc: Enc | None = _choice(
        None,
        "How values are encrypted (RFC 7518, section 5): `A256GCM`, or `A128GCM` for receivers that need it. A token "
        "with another one is not opened. Left out: `A256GCM`, with `visa-mle` `A128GCM`.",
    )
    profile: Profile | None = _choice(
        None,
        "Whose use of JWE it follows, in header, `kid`, envelope and what is accepted: `mastercard` (client encryption "
        "in JWE mode) or `visa-mle` (message level encryption). Both are RSA-OAEP-256 and bind to no place. Left out: "
        "Overcoat's own.",
    )
    primary: KeyEntry | None = Field(
        default=None,
        description="The key that encrypts, and decrypts if its private half is here. Exactly one of `primary`, "
        "`set` and `jwks` is given.",
    )
    older: Annotated[list[KeyEntry], Field(min_length=1)] | None = Field(
        default=None, description="Keys that still decrypt, or are to follow, beside `primary`. Left out: none."
    )
    set: SetSource | None = Field(
        default=None,
        description="A JWK Set with all the keys, the first of which is the primary one: a file, relative to the "
        "policy file, or `{env: NAME}`. `overcoat keys rotate` writes it. Its members `nbf` and `exp` are what "
        "`not_before` and `not_after` are here, in seconds since 1970.",
    )
    jwks: JwksUrlText | None = Field(
        default=None,
        description="The https URL of a JWK Set that somebody else publishes. It is fetched as any request to that "
        "host: with the trust and the pins of the rule that names it. Its keys only encrypt.",
    )
    kid: Kid | None = Field(
        default=None,
        description="Which key of the `jwks` encrypts. Left out: the first that fits `alg`, and is good today.",
    )
    max_age: MaxAge | None = Field(
        default=None,
        description="For how long the keys of a `jwks` are used before they are fetched again: `30s`, `15m`, `1h`, "
        "`1d`. Left out: `1h`.",
    )
    grace: Days = Field(
        default=0,
        json_schema_extra={"default": "0d"},
        description="For how long a key still decrypts after its last day: whole days, `30d` or `4w`. Left out: not at "
        "all.",
    )
    bind: Bind = _choice(
        Bind.PLACE,
        "How strictly an encrypted value is bound to where it stood: `place` (same host, same path in the body), "
        "`host`, or `none`.",
    )
    unsafe_key_permissions: bool = Field(
        default=False,
        description="Whether secret key files of this set may be readable by others, as mounted container secrets "
        "often are.",
    )

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        if [self.primary, self.set, self.jwks].count(None) != 2:
            raise ValueError("exactly one of `primary: …`, `set: FILE` and `jwks: URL` says which key encrypts")
        if self.profile is not None and self.alg is not Alg.RSA_OAEP_256:
            raise ValueError(f"profile {self.profile} is for {Alg.RSA_OAEP_256}")
        if self.profile is not None and "bind" in self.model_fields_set:
            raise ValueError(f"tokens of profile {self.profile} say no place: leave bind out")
        if self.primary is None and self.older is not None:
            raise ValueError("older goes with primary; a JWK Set has all its keys in it")
        if self.jwks is None and (self.kid or self.max_age):
            raise ValueError("kid and max_age are about a `jwks`; elsewhere a kid stands beside the file of its key")
        if self.jwks is not None and {"grace", "unsafe_key_permissions"} & self.model_fields_set:
            raise ValueError(
                "the keys of a `jwks` are public, and open nothing: leave grace and unsafe_key_permissions out"
            )
        return self


class PinsSection(Section):
    """Which keys the upstream's verified certificate chain must contain one of."""

    any_of: Annotated[list[PinEntry], Field(min_length=1)] = Field(
        description="The pins: `sha256/…` of a public key (RFC 7469), `cert-sha256/…` of a certificate, or "
        "`{file: NAME.pem}`. One of them must be in the verified chain; have a second one as a backup."
    )
    expires: Day | None = Field(
        default=None,
        description="The last day (UTC) on which the pins count; `after_expiry` says what comes then. Left out: no "
        "end.",
    )
    after_expiry: AfterExpiry = _choice(
        AfterExpiry.ENFORCE,
        "After the last day: `enforce` denies the host; `warn` lets any valid certificate pass, and says so.",
    )
    mode: Mode = _choice(
        Mode.ENFORCE,
        "`observe` refuses nothing for these pins: what they would have refused is told by decision line and metric. "
        "All else of a certificate is checked as ever.",
    )


class WhenSection(Section):
    """Which requests a field entry applies to."""

    methods: Annotated[list[MethodText], Field(min_length=1)] | None = Field(
        default=None,
        description="The methods, upper-case; those that the request asks for in other ways count, too. Left out: all.",
    )
    paths: Annotated[list[PathText], Field(min_length=1)] | None = Field(
        default=None,
        description="Globs over the path without its query: `*` within a segment, `**` across; a final `/**` also "
        "matches without it. Every spelling that a server may read counts. Left out: all paths.",
    )


_MATCH = (
    "How the names of members are compared with those of the selectors: `exact`, as RFC 9535 says, or `ignore_case`, "
    "where servers take `SSN` and `ｓｓｎ` for `ssn`, as those in Go and .NET may (Unicode's case folding and NFKC)."
)
_INSIDE = (
    "Where the fields stand in JSON text inside a JSON string: the selector of that string (`$.Message`), or a list of "
    "selectors, each for a string in the text inside the one before. What is selected there must hold JSON text, or "
    "be null."
)


class EncryptEntry(Section):
    """Fields to encrypt: of request bodies and, where a mirror listener stands for the host, of response bodies."""

    encrypt: Annotated[list[SelectorText], Field(min_length=1)] = Field(
        description="The fields: RFC 9535 JSONPath made of names, indexes, slices, `*` and `..`."
    )
    key: Name = Field(description="The key set, by its name under `keys`; its primary key encrypts.")
    match: Match = _choice(Match.EXACT, _MATCH)
    inside: InsideText | None = Field(default=None, description=_INSIDE)
    digests: Digests = _choice(
        Digests.DENY,
        "What happens to a request with a digest of its body that nothing signs (`Content-Digest`, `Repr-Digest`, "
        "`Digest`, `Content-MD5`, and those of object stores), where a field must be encrypted: `deny` it, `drop` the "
        "digest, or `recompute` it over the body that leaves.",
    )
    signed_headers: Annotated[list[FieldNameText], Field(min_length=1)] | None = Field(
        default=None,
        description="Further header fields that sign the body, beside those that are known to; see `signed`. Left out: "
        "none.",
    )
    signed: Signed = _choice(
        Signed.DENY,
        "What happens to a request whose body is signed, where a field must be encrypted: `deny` it, or let it `pass`, "
        "where the server does not look at that, or what signs comes behind Overcoat.",
    )
    already_sealed: AlreadySealed = _choice(
        AlreadySealed.KEEP,
        "What happens to a value that was sealed before, with the same key set for the same place, as in a retry "
        "through two sidecars: `keep` it, `seal` it again, or `deny` the request. Where the key is here that opens it, "
        "it must open; what only looks like it is sealed.",
    )
    pad: int = Field(
        default=1,
        ge=1,
        le=4096,
        description="What is sealed is made longer with blanks, up to a multiple of so many bytes, so that its length "
        "tells less. A receiver that reads it as JSON passes over them.",
    )
    envelope: MemberName | None = Field(
        default=None,
        description='Seals the value, which may be the whole body (`$`), as `{"NAME": "<JWE>"}`. Left out: the JWE '
        "stands there alone.",
    )
    rename: MemberName | None = Field(
        default=None,
        description="The name that the member gets whose value was sealed. All fields must be named, not chosen by `*` "
        "or an index. Left out: its name stays.",
    )
    form: Annotated[list[FormName], Field(min_length=1)] | None = Field(
        default=None,
        description="Fields of forms and multipart forms to encrypt, by their names as they are when decoded; each is "
        "sealed as a JSON string, as if the form were an object. Left out: none, and forms are other bodies.",
    )
    graphql_arguments: Annotated[list[GraphqlName], Field(min_length=1)] | None = Field(
        default=None,
        description="Arguments, and fields of input objects, that no GraphQL query may give a literal: only variables "
        "are sealed, if `encrypt` selects them (`$.variables.ssn`). Left out: no query is looked into.",
    )
    other_bodies: OtherBodies = _choice(
        OtherBodies.DENY,
        "What happens to a body of a kind in which this entry marks nothing, such as a form without `form`: `deny` it, "
        "or let it `pass` as it came, without being held. What begins like JSON is JSON.",
    )
    required: bool = Field(
        default=False, description="Whether a request that this entry is about is denied if nothing of it is found."
    )
    when: WhenSection | None = Field(default=None, description="Which requests are meant. Left out: all of the rule.")


class DecryptEntry(Section):
    """Fields to decrypt: of response bodies and, where a mirror listener stands for the host, of request bodies."""

    decrypt: Annotated[list[SelectorText], Field(min_length=1)] = Field(
        description="The fields: RFC 9535 JSONPath made of names, indexes, slices, `*` and `..`."
    )
    key: Name = Field(description="The key set, by its name under `keys`; one of its keys must be able to decrypt.")
    match: Match = _choice(Match.EXACT, _MATCH)
    inside: InsideText | None = Field(default=None, description=_INSIDE)
    envelope: MemberName | None = Field(
        default=None,
        description='The JWE stands in `{"NAME": "<JWE>"}`, which may be the whole body (`$`); what it holds takes the '
        "place of all that. Left out: it stands there alone.",
    )
    rename: MemberName | None = Field(
        default=None,
        description="The name that the member gets whose value was opened, which is also the one that it is bound to. "
        "Left out: its name stays.",
    )
    on_failure: OnFailure = _choice(
        OnFailure.DENY,
        "What happens to what should be decrypted and cannot be: `deny` it (a stream that has begun is cut off), or "
        "let it `pass` as it came, be it a value or a body that cannot be read, and say so in line and metrics. A body "
        "passes only if all entries that are about it say so.",
    )
    form: Annotated[list[FormName], Field(min_length=1)] | None = Field(
        default=None,
        description="Of requests to a mirror: fields of forms and multipart forms to decrypt, as `form` of the app's "
        "side seals them. Left out: none, and forms pass as they are.",
    )
    when: WhenSection | None = Field(
        default=None, description="Which requests' responses are meant. Left out: all of the rule."
    )


def _tag_of(value: object, usual: str) -> str:
    other = {"encrypt": "decrypt", "decrypt": "encrypt"}[usual]
    is_other = isinstance(value, dict) and other in value and usual not in value
    return f"[{other if is_other else usual}]"


_Encrypt = Annotated[EncryptEntry, Tag("[encrypt]")]
_Decrypt = Annotated[DecryptEntry, Tag("[decrypt]")]
RequestEntry = Annotated[_Encrypt | _Decrypt, Discriminator(lambda value: _tag_of(value, "encrypt"))]
ResponseEntry = Annotated[_Decrypt | _Encrypt, Discriminator(lambda value: _tag_of(value, "decrypt"))]


class RuleSection(Section):
    """What holds for some hosts. The first rule that names a host is the one that counts."""

    name: Name = Field(description="The rule's name in denials, decision lines and metrics.")
    hosts: Annotated[list[HostText], Field(min_length=1)] = Field(
        description="`name`, `*.name` (exactly one label more), `**.name` (the name itself and everything below it), "
        "or an IP address; each with or without `:port`."
    )
    mode: Mode | None = _choice(
        None,
        "`observe` decides, counts and logs for these hosts, but changes nothing; `enforce` carries it out. Left out: "
        "the policy's `mode`.",
    )
    plain_http: PlainHttp | None = _choice(
        None, "`upgrade`, `reject` or `allow`. Left out: `defaults.plain_http`. Never `allow` with pins or `encrypt`."
    )
    https: Https | None = _choice(
        None,
        "`tunnel`, `inspect` or `reject`. Left out: `inspect` if the rule has pins, `encrypt` or `decrypt`, else "
        "`defaults.https`.",
    )
    https_port: int | None = Field(
        default=None,
        ge=1,
        le=65535,
        description="The port that upgraded requests go to. Left out: 443 for port 80, and any other port stays.",
    )
    raw_tcp: Literal["allow"] | None = Field(
        default=None,
        description="`allow` lets anything pass through CONNECT to the rule's hosts, which must each name a port: "
        "protocols other than HTTP and TLS. Nothing of it is looked at. Left out: only HTTP and TLS pass.",
    )
    trust: RuleTrustSection | None = Field(
        default=None, description="What is trusted of this rule's hosts, if not what the policy's `trust` says."
    )
    client_certificate: ClientCertificateSection | None = Field(
        default=None, description="What the rule's hosts are shown if they ask for a certificate. Left out: none."
    )
    destinations: RuleDestinationsSection | None = Field(
        default=None,
        description="Which addresses that are not public the rule's hosts may be at. Left out: the policy's "
        "`destinations.allow`.",
    )
    limits: RuleLimitsSection | None = Field(
        default=None, description="Limits for this rule's hosts, if not the policy's `limits`."
    )
    pins: PinsSection | None = Field(default=None, description="The upstream's pins. Left out: any valid certificate.")
    request: Annotated[list[RequestEntry], Field(min_length=1)] | None = Field(
        default=None,
        description="What is encrypted in request bodies; or decrypted, where a mirror listener stands for the hosts. "
        "Left out: nothing.",
    )
    response: Annotated[list[ResponseEntry], Field(min_length=1)] | None = Field(
        default=None,
        description="What is decrypted in response bodies; or encrypted, where a mirror listener stands for the hosts. "
        "Left out: nothing.",
    )


class UpstreamProxySection(Section):
    """A proxy through which everything leaves, by CONNECT."""

    url: ProxyUrl = Field(description="Where it is: `http://HOST:PORT`, or `https://HOST:PORT` for TLS to the proxy.")
    credentials: KeySourceEntry | None = Field(
        default=None,
        description="Where its `NAME:PASSWORD` comes from: `{env: NAME}` or `{file: PATH}`. Left out: it wants none.",
    )
    pins: PinsSection | None = Field(
        default=None, description="The pins of an https proxy, which hold in observe mode, too. Left out: none."
    )
    direct: Annotated[list[HostText], Field(min_length=1)] | None = Field(
        default=None, description="Hosts that are reached straight, as in a rule's `hosts`. Left out: none."
    )


class PolicyFile(Section):
    """Overcoat's policy file."""

    version: Version = Field(description="The version of the file's format.")
    listen: Annotated[list[ListenerText], Field(min_length=1)] = Field(
        default_factory=lambda: list(_BUILT_IN.listen),
        json_schema_extra={"default": [str(listener) for listener in _BUILT_IN.listen]},
        description="Where apps reach the proxy: `forward://HOST:PORT`, `socks5://HOST:PORT`, "
        "`reverse://HOST:PORT?to=https://HOST` for apps that can only be given a base URL, "
        "`transparent://HOST:PORT` for those that the kernel redirects (Linux), and beside a server "
        "`mirror://HOST:PORT?to=URL&for=HOST&cert=FILE&key=FILE`, which opens requests and seals responses. Port 0 "
        "lets the system choose.",
    )
    admin: AdminText = Field(
        default_factory=lambda: _BUILT_IN.admin,
        json_schema_extra={"default": str(_BUILT_IN.admin).removeprefix("forward://")},
        description="Where the status page, `/metrics`, `/live` and `/ready` are served: `HOST:PORT`, or `null` for "
        "nowhere. Where others can reach it, `clients.admin` says who may ask.",
    )
    probes: AdminText = Field(
        default=None,
        json_schema_extra={"default": None},
        description="Where `/live` and `/ready` are served and nothing else: `HOST:PORT`, such as `0.0.0.0:9465`. They "
        "tell nothing that is secret, and anybody who reaches it is answered.",
    )
    mode: Mode = _choice(
        _BUILT_IN.mode, "`enforce` carries decisions out; `observe` decides, counts and logs, but changes nothing."
    )
    defaults: DefaultsSection = Field(
        default_factory=DefaultsSection, description="What holds for hosts that no rule names."
    )
    trust: TrustSection = Field(default_factory=TrustSection, description="Whom upstream certificates must come from.")
    limits: LimitsSection = Field(default_factory=LimitsSection, description="How much requests and apps may take.")
    destinations: DestinationsSection = Field(
        default_factory=DestinationsSection, description="Which addresses and hosts may be reached."
    )
    clients: ClientsSection = Field(default_factory=ClientsSection, description="Who may use the proxy.")
    names: Annotated[list[HostName], Field(min_length=1)] | None = Field(
        default=None,
        description="Names by which the admin listener and reverse listeners are called, beside addresses and names "
        "without a public domain (`localhost`, `overcoat`, `….svc.cluster.local`): others may be those of an attack by "
        "DNS rebinding. Left out: none.",
    )
    via: ViaName | None = Field(
        default=None,
        description="What `Via` calls this proxy (RFC 9110, section 7.6.3), in requests and responses; a request that "
        "has it already is a loop. Left out: no `Via` is added.",
    )
    hsts_preload: bool = Field(
        default=False,
        description="Whether hosts on the browsers' HSTS preload list are upgraded where `plain_http` is `allow`, as "
        "those are whose Strict-Transport-Security was seen.",
    )
    upstream_proxy: UpstreamProxySection | None = Field(
        default=None,
        description="A proxy through which everything leaves. If it fails, nothing goes past it. Left out: none.",
    )
    workers: WorkerCount = Field(
        default=_BUILT_IN.workers,
        description="How many processes share the listeners, 1 to 64, or `auto`: one a processor.",
    )
    open_connections: OpenConnections = _choice(
        _BUILT_IN.open_connections,
        "What a reload does to tunnels, WebSockets and long responses whose host has other pins, trust or another rule "
        "now: `close` ends them within ten seconds, `keep` leaves them alone.",
    )
    drain_wait: int = Field(
        default=_BUILT_IN.drain_wait,
        ge=0,
        le=3600,
        description="Seconds for which the sidecar, told to end, goes on taking connections while `/ready` says 503: "
        "until those who send to it have noticed. Each response of HTTP/1 is then the last on its connection.",
    )
    drain_timeout: int = Field(
        default=_BUILT_IN.drain_timeout,
        ge=0,
        le=3600,
        description="Seconds that what is under way then has to come to its own end. What is left is cut off, and the "
        "exit status is 1. Whoever stops the sidecar must wait longer: `drain_wait` + `drain_timeout` + 2.",
    )
    keys: dict[Name, KeySetSection] = Field(
        default_factory=dict, json_schema_extra={"additionalProperties": False}, description="The key sets, by name."
    )
    rules: Annotated[list[RuleSection], Field(min_length=1)] | None = Field(
        default=None, description="The rules; the first whose hosts match counts. Left out: none."
    )


class _SchemaWithoutNull(GenerateJsonSchema):
    """A field that may be left out is not one that may be null: an empty `pins:` must not mean "no pins"."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        if "default" in schema and schema["default"] is None:
            return self.generate_inner(schema["schema"])
        return super().default_schema(schema)

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def policy_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of the policy file."""
    schema = PolicyFile.model_json_schema(schema_generator=_SchemaWithoutNull)
    for definition in schema["$defs"].values():
        del definition["title"]  # it is the name of a Python class
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "Overcoat policy"}


def schema_text() -> str:
    """Return the JSON Schema as text, as it is printed and committed."""
    return json.dumps(policy_schema(), indent=2, ensure_ascii=False) + "\n"


def policy_table() -> str:
    """Return the reference table of all keys of the policy file, in Markdown."""
    schema = policy_schema()
    lines = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    for path, node, required in _rows(schema, schema["$defs"], ""):
        default = "required" if required else f"`{json.dumps(node['default'])}`" if "default" in node else "–"
        description = node.get("description", "").replace("|", "\\|")
        lines.append(f"| `{path}` | {_type_text(node, schema['$defs'])} | {default} | {description} |")
    return "\n".join(lines) + "\n"


def _resolved(node: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in node:
        return node
    return {**definitions[node["$ref"].rpartition("/")[2]], **node}


def _rows(node: dict[str, Any], definitions: dict[str, Any], prefix: str) -> list[tuple[str, dict[str, Any], bool]]:
    rows = []
    for name, unresolved in node["properties"].items():
        field = _resolved(unresolved, definitions)
        path = f"{prefix}{name}"
        rows.append((path, field, name in node.get("required", ())))
        item, below = field, path
        if field.get("type") == "array":
            item, below = _resolved(field["items"], definitions), f"{path}[]"
        elif "patternProperties" in field:
            (value,) = field["patternProperties"].values()
            item, below = _resolved(value, definitions), f"{path}.NAME"
        if "properties" in item and "description" in item:  # one of two short forms has no description
            rows += _rows(item, definitions, f"{below}.")
        elif "oneOf" in item:
            rows += _rows_of_any([_resolved(each, definitions) for each in item["oneOf"]], definitions, f"{below}.")
    return rows


def _rows_of_any(
    forms: list[dict[str, Any]], definitions: dict[str, Any], prefix: str
) -> list[tuple[str, dict[str, Any], bool]]:
    """Return the rows of a mapping with several forms: the keys of the first one, and of each other one the key that
    tells it.
    """
    usual, *others = forms
    is_needed = set(usual["required"]).intersection(*(form["required"] for form in others))
    rows = [(path, node, path.removeprefix(prefix) in is_needed) for path, node, _ in _rows(usual, definitions, prefix)]
    told = next(iter(usual["properties"]))
    for form in others:
        name, node = next(iter(form["properties"].items()))
        where = f"In place of `{told}`, where a mirror listener stands for the hosts; see `{name}` of the other list."
        rows.append((f"{prefix}{name}", {**node, "description": where}, False))
    return rows


def _type_text(node: dict[str, Any], definitions: dict[str, Any]) -> str:
    node = _resolved(node, definitions)
    if "enum" in node:
        return " \\| ".join(f"`{value}`" for value in node["enum"])
    if "const" in node:
        return f"`{node['const']}`"
    if "oneOf" in node:
        return "mapping"
    if "anyOf" in node:
        return " or ".join(_type_text(choice, definitions) for choice in node["anyOf"])
    if node["type"] == "array":
        return f"list of {_type_text(node['items'], definitions)}"
    if node["type"] == "string":
        return "date" if node.get("format") == "date" else "text"
    return {"integer": "number", "boolean": "`true` \\| `false`", "object": "mapping", "null": "`null`"}[node["type"]]
