"""Marks: what a receiver can check for a hundredth of the cost of a signature (AUTH-19).

A mark proves nothing that the signature does not prove, and replaces no check. It tells a message
of a known device from one that was forged in its name before the signature is looked at, so that
forgeries cannot use up the time in which the device's own messages would be read.

The key of a mark is known to two devices: it follows from the static secrets behind their
certificates, by X25519 between the Ed25519 keys on the equivalent Montgomery curve (RFC 7748
section 4.1; private keys as RFC 8032 section 5.1.5 expands them). Nothing else is ever derived from
that exchange.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterable
from hashlib import blake2b
from itertools import islice
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from protocol.identity.envelope import MARK_LENGTH, MARKS_MAX, OVERHEAD, marks_offset
from protocol.identity.known import KnownDevice, SigningKey, VerifyKey

HINT_LENGTH: Final = 2
"""Of a mark: the beginning of its receiver's fingerprint, by which it finds its own."""

MARKED_MAX: Final = 1232
"""Marks never make a datagram longer than what every IPv6 link carries whole (RFC 8200 section 5):
what does not fit is left out."""

HITS_MAX: Final = 4
"""Places at which a receiver looks for its mark: two hints may be alike, and bytes by chance."""

KEY_LABEL: Final = b"idpmike v1 envelope mark key"
LABEL: Final = b"idpmike v1 envelope mark\x00"

_P: Final = (1 << 255) - 19
_KEY_LENGTH: Final = 32
_LENGTH: Final = MARK_LENGTH - HINT_LENGTH
_LABELLED: Final = blake2b(LABEL, digest_size=_KEY_LENGTH)

Agree = Callable[[SigningKey, VerifyKey], bytes | None]
"""Returns the secret that two devices share; None if their keys are of no kind that can."""


def static_secret(own: SigningKey, other: VerifyKey) -> bytes | None:
    """Return the X25519 secret between two Ed25519 keys; None for other keys and for a weak one."""
    if not isinstance(own, Ed25519PrivateKey) or not isinstance(other, Ed25519PublicKey):
        return None
    y = int.from_bytes(other.public_bytes_raw(), "little") & ((1 << 255) - 1)
    if y % _P == 1:
        return None
    u = (1 + y) * pow(1 - y, -1, _P) % _P
    scalar = hashlib.sha512(own.private_bytes_raw()).digest()[:_KEY_LENGTH]
    montgomery = X25519PublicKey.from_public_bytes(u.to_bytes(_KEY_LENGTH, "little"))
    try:
        return X25519PrivateKey.from_private_bytes(scalar).exchange(montgomery)
    except ValueError:  # of low order
        return None


class Marks:
    """Makes and checks the marks of one device.

    Args:
        own: its certificate.
        signing_key: its key.
        agree: how two devices come to a secret.
    """

    def __init__(self, own: KnownDevice, signing_key: SigningKey, agree: Agree) -> None:
        self._own = own.peer.fingerprint
        self._hint = self._own[:HINT_LENGTH]
        self._signing_key = signing_key
        self._agree = agree
        self._begun: dict[bytes, blake2b | None] = {}

    def keep(self, known: Iterable[bytes]) -> None:
        """Forget the keys of all devices but these."""
        kept = set(known)
        self._begun = {print_: begun for print_, begun in self._begun.items() if print_ in kept}

    def key(self, device: KnownDevice) -> bytes | None:
        """Agree with a device on the key that we share; None if we cannot."""
        secret = self._agree(self._signing_key, device.verify_key)
        low, high = sorted((self._own, device.peer.fingerprint))
        return None if secret is None else _derived(secret, KEY_LABEL + low + high)

    def begun(self, device: KnownDevice) -> blake2b | None:
        """Return the hash of marks between us and a device, keyed; made at first use.

        It is copied for each mark: that is cheaper than to begin anew.
        """
        theirs = device.peer.fingerprint
        if theirs not in self._begun:
            key = self.key(device)
            self._begun[theirs] = None if key is None else blake2b(key=key, digest_size=_LENGTH)
        return self._begun[theirs]

    def room(self, body: bytes, receivers: Iterable[KnownDevice]) -> list[KnownDevice]:
        """Return for whom a message with this body is marked: for as many as fit."""
        room = min((MARKED_MAX - OVERHEAD - len(body)) // MARK_LENGTH, MARKS_MAX)
        able = (device for device in receivers if self.begun(device) is not None)
        return list(islice(able, max(room, 0)))

    def made(self, signed: bytes, receivers: Iterable[KnownDevice]) -> bytes:
        """Return marks of a signed message for receivers that `room` has given."""
        content = _completed(_LABELLED, signed)
        found = []
        for device in receivers:
            begun = self.begun(device)
            assert begun is not None
            found.append(device.peer.fingerprint[:HINT_LENGTH] + _completed(begun, content))
        return b"".join(found)

    def is_marked(self, datagram: bytes, sender: KnownDevice) -> bool:
        """Say whether a datagram has the sender's mark for us; it need not be well-formed.

        Every forgery comes this way, so there is no call in it that is not needed.
        """
        end, hint = marks_offset(datagram), self._hint
        place = datagram.find(hint, end)
        if place < 0:
            return False
        begun = self.begun(sender)
        if begun is None:
            return False
        wanted = _completed(begun, _completed(_LABELLED, datagram[:end]))
        for _ in range(HITS_MAX):
            if (place - end) % MARK_LENGTH == 0:
                given = datagram[place + HINT_LENGTH : place + MARK_LENGTH]
                if hmac.compare_digest(given, wanted):
                    return True
            place = datagram.find(hint, place + 1)
            if place < 0:
                break
        return False


def _completed(begun: blake2b, rest: bytes) -> bytes:
    """Return a hash that was begun, with the rest; it can be completed with another one again."""
    whole = begun.copy()
    whole.update(rest)
    return whole.digest()


def _derived(secret: bytes, label: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=_KEY_LENGTH, salt=None, info=label).derive(secret)
