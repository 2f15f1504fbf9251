"""The marked fields: the entries of a rule's `request` and `response`, and their `when`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Discriminator, Field, Tag

from proxy.core.fields.entries import AlreadySealed, Digests, Match, OnFailure, OtherBodies, Signed
from proxy.policyfile.model.section import Section, choice
from proxy.policyfile.model.selectortext import InsideText, SelectorText
from proxy.policyfile.model.values import FieldNameText, FormName, GraphqlName, MemberName, MethodText, Name, PathText


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
    match: Match = choice(Match.EXACT, _MATCH)
    inside: InsideText | None = Field(default=None, description=_INSIDE)
    digests: Digests = choice(
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
    signed: Signed = choice(
        Signed.DENY,
        "What happens to a request whose body is signed, where a field must be encrypted: `deny` it, or let it `pass`, "
        "where the server does not look at that, or what signs comes behind Overcoat.",
    )
    already_sealed: AlreadySealed = choice(
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
    other_bodies: OtherBodies = choice(
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
    match: Match = choice(Match.EXACT, _MATCH)
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
    on_failure: OnFailure = choice(
        OnFailure.DENY,
        "What happens to what should be decrypted and cannot be: `deny` it (a stream that has begun is cut off), or "
        "let it `pass` as it came, be it a value or a body that cannot be read, and say so in line and metrics. A body "
        "passes only if all entries that are about it say so.",
    )
    form: Annotated[list[FormName], Field(min_length=1)] | None = Field(
        default=None,
        description="Of requests to a mirror: fields of forms and multipart forms to decrypt, as `form` of the app's "
        "side seals them. Left out: none, and forms pass as they are; multipart ones if they "
        "can be read, as JSON in them is opened.",
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
