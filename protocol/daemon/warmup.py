"""Runs every cryptographic primitive once, with throw-away keys, before anything is urgent.

The first use of each pays for imports, for OpenSSL's set-up of the algorithm and for page faults;
that belongs into the parked time, not into the first join.
"""

from __future__ import annotations

import hashlib
import hmac
from contextlib import suppress

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

_BYTES_32 = bytes(range(32))
_MESSAGE = bytes(300)


def warm_up() -> None:
    """Sign, verify, refuse, agree, derive, authenticate: once each."""
    signer = Ed25519PrivateKey.from_private_bytes(_BYTES_32)
    signature = signer.sign(_MESSAGE)
    signer.public_key().verify(signature, _MESSAGE)
    with suppress(InvalidSignature):
        signer.public_key().verify(signature, _MESSAGE + b"\0")
    share = X25519PrivateKey.from_private_bytes(_BYTES_32)
    secret = share.exchange(share.public_key())
    HKDF(algorithm=SHA256(), length=32, salt=None, info=b"warm-up").derive(secret)
    HKDFExpand(algorithm=SHA256(), length=32, info=b"warm-up").derive(secret)
    hmac.digest(secret, _MESSAGE, "sha256")
    hashlib.sha256(_MESSAGE).digest()
