"""Profiles: how others use JWE, where that differs from what Overcoat does by itself. A key set of a policy may follow
one; `proxy.core.jose` seals and opens by it, and `proxy.core.fields` takes its envelope.

- `mastercard`: Mastercard's client encryption libraries, in their JWE mode. The header is `alg enc kid cty`: the `kid`
  is the SHA-256 of the public key (DER SubjectPublicKeyInfo) in hex, `cty` is `application/json`. Their IVs have 16
  bytes, and the base64url of the one for Node has `/` where `_` should be. Their older form, hexadecimal AES-CBC, is
  left out on purpose: nothing in it is authenticated.
- `visa-mle`: Visa's Message Level Encryption. The body is `{"encData": "<JWE>"}`, the header `alg enc kid iat` with
  milliseconds since 1970, and the request says the kid once more in the header field `keyId`.

Rules of this module:

- Neither has a member for the place of a value: such tokens are bound to nothing.
- Both are RSA-OAEP-256 only. What is authenticated stays exactly what RFC 7516 says.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from proxy.core.jose.keymaterial import Enc, Material, public_material

_GCM_IV = 12  # RFC 7518, section 5.3


class Profile(StrEnum):
    """Whose use of JWE a key set follows."""

    MASTERCARD = "mastercard"
    VISA_MLE = "visa-mle"

    @property
    def form(self) -> Form:
        """What it prescribes."""
        return _FORMS[self]


@dataclass(frozen=True, slots=True)
class Form:
    """What a token and what is round it look like.

    Attributes:
        enc: the content encryption where the policy names none.
        envelope: the name of the envelope where the policy names none.
        cty: the header member `cty`; None for the place of the value.
        has_time: whether the header has `iat`, in milliseconds since 1970, and no `cty`.
        iv_bytes: the lengths of IVs that are opened.
        has_slashes: whether `/` stands for `_` in what is opened, behind the header.
        kid_field: the field of a request's head that says the kid, or None.
    """

    enc: Enc = Enc.A256GCM
    envelope: str | None = None
    cty: str | None = None
    has_time: bool = False
    iv_bytes: frozenset[int] = frozenset({_GCM_IV})
    has_slashes: bool = False
    kid_field: str | None = None


OWN = Form()
_FORMS = {
    Profile.MASTERCARD: Form(
        envelope="encryptedData", cty="application/json", iv_bytes=frozenset({_GCM_IV, 16}), has_slashes=True
    ),
    Profile.VISA_MLE: Form(enc=Enc.A128GCM, envelope="encData", has_time=True, kid_field="keyId"),
}


def form_of(profile: Profile | None) -> Form:
    """Return what a profile prescribes; without one, what Overcoat does by itself."""
    return OWN if profile is None else profile.form


def fingerprint(material: Material) -> str:
    """Return the SHA-256 of a public key in hex, over its DER SubjectPublicKeyInfo.

    Raises:
        BadKey: the key is symmetric.
    """
    der = public_material(material).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()
