"""The padding of RSA-OAEP-256 (RFC 7518, section 4.3): OAEP with SHA-256 in both places, and no label."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP
from cryptography.hazmat.primitives.hashes import SHA256

RSA_OAEP_256 = OAEP(mgf=MGF1(SHA256()), algorithm=SHA256(), label=None)
