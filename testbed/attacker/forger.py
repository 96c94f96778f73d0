"""Who an attacker is, or says that it is: with a certificate or without one.

A forger seals messages as `protocol.identity.identity.Identity` does, but says of the sender, the
instance and the time whatever it likes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import IPv6Address
from pathlib import Path
from random import Random
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from protocol.identity import envelope
from protocol.identity.envelope import (
    FINGERPRINT_LENGTH,
    MARK_LENGTH,
    SIGNATURE_LENGTH,
    Envelope,
)
from protocol.identity.marks import HINT_LENGTH
from protocol.identity.pki import Authority, DeviceSpec
from protocol.identity.profile import fingerprint
from testbed.attacker.scene import Scene

FOREIGN_NATION: Final = "elsewhere"
AHEAD: Final = 8
"""A copy of a device that is still there numbers its messages so far ahead of it."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What shall be said, and in whose name.

    Attributes:
        protocol: IDP or MIKE.
        kind: of the message.
        body: of the message.
        sender: claimed.
        now_ns: UTC; the message is fresh.
        newer: claim a later instance, as after a restart.
    """

    protocol: int
    kind: int
    body: bytes
    sender: IPv6Address
    now_ns: int
    newer: bool = False


class Forger:
    """Nobody: claims to be a device; signature and marks are out of thin air."""

    def __init__(self, draws: Random) -> None:
        self.draws = draws
        self._sequence = 0

    def addresses(self, scene: Scene) -> list[IPv6Address]:
        """Return as whom it speaks: as each device that there is."""
        return list(scene.known)

    def seal(self, scene: Scene, wanted: Wanted) -> bytes:
        """Return a datagram that claims to be a fresh message of the sender."""
        return self._sealed(self._claims(scene, wanted), scene)

    def _claims(self, scene: Scene, wanted: Wanted) -> Envelope:
        """Return what it says before it is signed; ours of another instance than the sender's."""
        self._sequence += 1
        last = None if wanted.newer else scene.signed.get((wanted.protocol, wanted.sender))
        return Envelope(
            protocol=wanted.protocol,
            kind=wanted.kind,
            sender=wanted.sender,
            fingerprint=self._fingerprint(scene, wanted.sender),
            startup_wall_ns=wanted.now_ns - 1_000_000 if last is None else last.startup_wall_ns,
            sequence=self._sequence + (0 if last is None else last.sequence + AHEAD),
            sent_wall_ns=wanted.now_ns,
            body=wanted.body,
        )

    def _fingerprint(self, scene: Scene, sender: IPv6Address) -> bytes:
        for (_, who), message in scene.signed.items():
            if who == sender:
                return message.fingerprint
        return self.draws.randbytes(FINGERPRINT_LENGTH)

    def _sealed(self, message: Envelope, scene: Scene) -> bytes:
        signature = self.draws.randbytes(SIGNATURE_LENGTH)
        marks = self._marks(scene)
        message = replace(message, marks=marks, mark_count=len(marks) // MARK_LENGTH)
        return replace(message, signature=signature).encode()

    def _marks(self, scene: Scene) -> bytes:
        """Return a mark for every device, as good as one can be without its key."""
        known = {message.fingerprint: None for message in scene.signed.values()}
        length = MARK_LENGTH - HINT_LENGTH
        return b"".join(each[:HINT_LENGTH] + self.draws.randbytes(length) for each in known)


class Holder(Forger):
    """Holds a certificate and its key: of a foreign CA, of an ex-member, or copied from a member.

    Args:
        draws: chance.
        key: private.
        certificate: for this address.
        address: black address of the certificate.
        copied: the device is still there, and this is a copy of it: it goes on in its instance.
    """

    def __init__(
        self,
        draws: Random,
        key: Ed25519PrivateKey,
        certificate: x509.Certificate,
        address: IPv6Address,
        *,
        copied: bool = False,
    ) -> None:
        super().__init__(draws)
        self._key = key
        self._own = address
        self._copied = copied
        self._startup_ns = 0
        self._print = fingerprint(certificate)

    @classmethod
    def foreign(cls, draws: Random, address: IPv6Address) -> Holder:
        """Make one whom a CA certified that no device trusts."""
        key = Ed25519PrivateKey.generate()
        spec = DeviceSpec(f"x{int(address) & 0xFFFF:x}", FOREIGN_NATION, address)
        authority = Authority.create(FOREIGN_NATION)
        return cls(draws, key, authority.issue(spec, key.public_key()), address)

    @classmethod
    def of(cls, draws: Random, folder: Path, address: IPv6Address, *, copied: bool) -> Holder:
        """Take a device's certificate and key from a copy of its files."""
        key = load_pem_private_key((folder / "device.key").read_bytes(), password=None)
        assert isinstance(key, Ed25519PrivateKey)
        certificate = x509.load_pem_x509_certificate((folder / "device.pem").read_bytes())
        return cls(draws, key, certificate, address, copied=copied)

    def addresses(self, scene: Scene) -> list[IPv6Address]:
        """Return as whom it speaks: as the one whose certificate it holds."""
        del scene
        return [self._own]

    def _claims(self, scene: Scene, wanted: Wanted) -> Envelope:
        """Speak as the copied instance, or as one of our own that goes on for ever."""
        message = super()._claims(scene, wanted)
        if self._copied and not wanted.newer:
            return message
        self._startup_ns = self._startup_ns or wanted.now_ns
        return replace(message, startup_wall_ns=self._startup_ns, sequence=self._sequence)

    def _fingerprint(self, scene: Scene, sender: IPv6Address) -> bytes:
        del scene, sender
        return self._print

    def _sealed(self, message: Envelope, scene: Scene) -> bytes:
        marks = self._marks(scene)
        unsigned = replace(message, mark_count=len(marks) // MARK_LENGTH).encode_unsigned()
        return unsigned + self._key.sign(envelope.to_sign(unsigned)) + marks
