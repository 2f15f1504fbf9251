"""The key sets, and the keys in them: `keys`."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from proxy.core.jose.keys import Alg, Bind, Enc
from proxy.core.jose.profiles import Profile
from proxy.policyfile.model.section import Section, choice
from proxy.policyfile.model.values import Day, Days, FileName, JwksUrlText, KeySourceEntry, Kid, MaxAge, SetSource


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
    enc: Enc | None = choice(
        None,
        "How values are encrypted (RFC 7518, section 5): `A256GCM`, or `A128GCM` for receivers that need it. A token "
        "with another one is not opened. Left out: `A256GCM`, with `visa-mle` `A128GCM`.",
    )
    profile: Profile | None = choice(
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
    bind: Bind = choice(
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
