"""Stand-ins for Ed25519 and X25519: the same interface, the same failures, a hundredth of the cost.

No security whatever: whoever knows a public value here knows the secret. They model the algebra
the protocols rely on, nothing else: a signature verifies only over the bytes that were signed and
with the signer's key; both ends of an exchange compute the same secret; a key of low order is
refused. Only the simulator imports this module (a test keeps it so).
"""

from __future__ import annotations

import hashlib

from cryptography.exceptions import InvalidSignature

from protocol.mike.schedule import NodeSecret

KEY_LENGTH = 32
_MASK = int.from_bytes(hashlib.sha256(b"idpmike modelled blinding").digest(), "big")


class ModelledSigner:
    """Signs with a keyed hash, and verifies by computing it again: one object is both keys."""

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        self._key = key

    def sign(self, data: bytes, /) -> bytes:
        """Return 64 bytes."""
        return hashlib.blake2b(data, key=self._key).digest()

    def verify(self, signature: bytes, data: bytes, /) -> None:
        """Raise InvalidSignature unless this key signed exactly these bytes."""
        if signature != hashlib.blake2b(data, key=self._key).digest():
            raise InvalidSignature

    def agree(self, other: ModelledSigner) -> bytes:
        """Return the same on both sides."""
        low, high = sorted((self._key, other._key))
        return hashlib.sha256(b"idpmike modelled agreement" + low + high).digest()


class ModelledSecret(NodeSecret):
    """A node secret whose blinded key is the secret, disguised: exchanging is a hash of both."""

    __slots__ = ()

    def shared_with(self, sibling_key: bytes) -> bytes:
        """Return the same on both sides; ValueError for the neutral key, as X25519 refuses it."""
        if len(sibling_key) != KEY_LENGTH:
            raise ValueError("a key has 32 bytes")
        if not any(sibling_key):
            raise ValueError("a key of low order")
        ours, theirs = self.reveal(), _disguised(sibling_key)
        low, high = (ours, theirs) if ours < theirs else (theirs, ours)
        return hashlib.sha256(b"idpmike modelled exchange" + low + high).digest()

    def _blind(self) -> bytes:
        return _disguised(self.reveal())


def _disguised(value: bytes) -> bytes:
    """Return a value that differs from this one, and this one if called twice."""
    return (int.from_bytes(value, "big") ^ _MASK).to_bytes(KEY_LENGTH, "big")
