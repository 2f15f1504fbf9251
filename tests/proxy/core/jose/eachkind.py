"""A key of each kind, for tests of what is done with keys alike."""

from __future__ import annotations

from proxy.core.jose.keys import Alg, new_key

ECDH, RSA, AES = Alg.ECDH_ES_A256KW, Alg.RSA_OAEP_256, Alg.A256KW

KEYS = {
    "P-256": new_key(ECDH, kid="p"),
    "X25519": new_key(ECDH, curve="X25519", kid="x"),
    "RSA": new_key(RSA, kid="r"),
    "oct": new_key(AES, kid="a"),
}
PAIRS = [KEYS["P-256"], KEYS["X25519"], KEYS["RSA"]]
ALL = list(KEYS.values())
