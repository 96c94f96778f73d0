"""What a device believes about certificates: anchors, device certificates, revocation lists.

Pure state. Filled from files at the start (`protocol.identity.certificates`), then with what other
devices send: a certificate or list is believed because a trust anchor signed it, never because of
who sent it. Every bound here holds whatever is sent; every refusal is a `PeerError` whose rule is a
row of docs/identity.md.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Container, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from ipaddress import IPv6Address

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from protocol.core.errors import PeerError
from protocol.identity.envelope import SIGNATURE_LENGTH
from protocol.identity.identity import RULE_ADDRESS, RULE_REVOKED
from protocol.identity.known import CrlEntry, KnownDevice, describe_time
from protocol.identity.profile import (
    MALFORMED,
    NS_PER_S,
    UNUSABLE,
    Anchor,
    DeviceCertificate,
    RevocationList,
    find_anchor,
    fingerprint_of,
    inspect_device,
    inspect_revocations,
)

CHAIN_MAX = 2
"""Certificates in a chain: the device's, and its nation's CA's."""

CERTIFICATE_BYTES_MAX = 2048
"""A certificate of our profile has about 500 bytes."""

REVOCATIONS_BYTES_MAX = 24 * 1024
"""A revocation list that devices hand on: about 550 revoked certificates."""

LEARNED_MAX = 256
"""Certificates learned from others; the oldest that is not in use gives way."""

EARLY_NS = 300 * NS_PER_S
"""How far in our future a revocation list may have been issued (clocks differ)."""

DIGEST_LENGTH = 8
NO_DIGEST = bytes(DIGEST_LENGTH)

RULE_CHAIN_SIZE = "AUTH-12"
RULE_OFFERED = "AUTH-13"
RULE_TAKEN = "AUTH-14"
RULE_ROOM = "AUTH-15"
RULE_CRL = "AUTH-16"
RULE_CRL_OLD = "AUTH-17"


class TrustStore:
    """Anchors, certificates and revocation lists of one daemon.

    Attributes:
        anchors: the nations' CAs.
        own: our certificate.
        operations: how often the expensive things were done, by name.
    """

    def __init__(self, anchors: Sequence[Anchor], own: DeviceCertificate) -> None:
        self.anchors = tuple(anchors)
        self.own = own
        self.operations: Counter[str] = Counter()
        self._deployed: dict[bytes, DeviceCertificate] = {}
        self._learned: dict[bytes, DeviceCertificate] = {}
        self._revocations: dict[bytes, RevocationList] = {}

    # From files.

    def deploy(self, devices: Iterable[DeviceCertificate]) -> None:
        """Replace the pre-deployed certificates."""
        self._deployed = {device.known.peer.fingerprint: device for device in devices}

    def add_revocations(self, revocations: RevocationList) -> bool:
        """Keep a checked list if it is the newest of its issuer; return whether it is."""
        present = self._revocations.get(revocations.issuer_id)
        if present is not None and present.version >= revocations.version:
            return False
        self._revocations[revocations.issuer_id] = revocations
        return True

    def take_over(self, fresh: TrustStore, wall_ns: int | None) -> None:
        """Become what was read anew from files; keep what was learned and is still acceptable."""
        learned = [device.der for device in self._learned.values()]
        lists = [item.der for item in self._revocations.values()]
        self.anchors, self.own = fresh.anchors, fresh.own
        self._deployed, self._learned = fresh._deployed, fresh._learned
        self._revocations = fresh._revocations
        for der in lists:
            self._retain(self.learn_revocations, der, wall_ns)
        for der in learned:
            if fingerprint_of(der) not in self._learned:
                self._retain(self.remember, der, wall_ns)

    @staticmethod
    def _retain(learn: Callable[..., object], *arguments: object) -> None:
        """Learn once more; what the new anchors or lists refuse is forgotten."""
        with suppress(PeerError):
            learn(*arguments)

    # What it comes to.

    def devices(self) -> list[KnownDevice]:
        """Return every device with its revocation, for `Identity.trust`; we are among them."""
        everybody = {self.own.known.peer.fingerprint: self.own, **self._learned, **self._deployed}
        return [self._judged(device) for device in everybody.values()]

    def _judged(self, device: DeviceCertificate) -> KnownDevice:
        """Return what we know of a device, refused if it is revoked."""
        if device.known.refusal is not None:
            return device.known
        certificate = device.certificate
        for item in self._revocations.values():
            revoked_ns = item.revoked.get(certificate.serial_number)
            if revoked_ns is not None and item.issuer == certificate.issuer:
                text = f"revoked by '{item.issuer_name}' on {describe_time(revoked_ns)}"
                return replace(device.known, refusal=(RULE_REVOKED, text))
        return device.known

    @property
    def learned(self) -> dict[bytes, bytes]:
        """Return the learned certificates (DER) by fingerprint, in the order of their coming."""
        return {fingerprint: device.der for fingerprint, device in self._learned.items()}

    @property
    def deployed(self) -> dict[bytes, bytes]:
        """Return the pre-deployed certificates (DER) by fingerprint."""
        return {fingerprint: device.der for fingerprint, device in self._deployed.items()}

    @property
    def revocations(self) -> list[RevocationList]:
        """Return the newest list of each issuer, by issuer."""
        return [self._revocations[key] for key in sorted(self._revocations)]

    def entries(self) -> tuple[CrlEntry, ...]:
        """Return which lists we have, for the wire."""
        return tuple(CrlEntry(item.issuer_id, *item.version) for item in self.revocations)

    def digest(self) -> bytes:
        """Return what tells two sets of revocation lists apart; zeros if there is none."""
        if not self._revocations:
            return NO_DIGEST
        hashed = hashlib.sha256(b"idpmike revocation lists v1\x00")
        for entry in self.entries():
            hashed.update(entry.issuer)
            hashed.update(entry.number.to_bytes(8, "big") + entry.issued_s.to_bytes(8, "big"))
        return hashed.digest()[:DIGEST_LENGTH]

    def own_chain(self) -> tuple[bytes, ...]:
        """Return our certificate and our CA's (DER), as other devices need them."""
        anchor, _ = find_anchor(self.own.certificate, self.anchors)
        if anchor is None:
            return (self.own.der,)
        return (self.own.der, anchor.certificate.public_bytes(Encoding.DER))

    # From other devices.

    def remember(self, der: bytes, wall_ns: int | None) -> None:
        """Learn again what was learned before; a certificate revoked since then stays known.

        Raises:
            PeerError: as `learn`.
        """
        self.learn((der,), wall_ns, revoked_too=True)

    def learn(
        self,
        chain: Sequence[bytes],
        wall_ns: int | None,
        *,
        source: IPv6Address | None = None,
        claimed: bytes | None = None,
        in_use: Container[IPv6Address] = (),
        revoked_too: bool = False,
    ) -> KnownDevice:
        """Take in a device's certificate if a trust anchor vouches for it.

        Args:
            chain: DER, the device's first.
            wall_ns: UTC now.
            source: where it came from, which must be the address in it; None: from our own cache.
            claimed: the fingerprint that was asked for.
            in_use: addresses whose learned certificates do not give way to a new one.
            revoked_too: it was learned before: better refused by name than asked for again.

        Raises:
            PeerError: what is wrong with it; nothing but `operations` changed.
        """
        check_chain(chain)
        der = chain[0]
        if claimed is not None and fingerprint_of(der) != claimed:
            raise PeerError(RULE_OFFERED, "not the certificate that was asked for")
        anchors = {a.certificate.public_bytes(Encoding.DER) for a in self.anchors}
        if any(further not in anchors for further in chain[1:]):
            raise PeerError(RULE_OFFERED, "its chain ends at none of our trust anchors")
        device = self._inspected(der)
        peer = device.known.peer
        known = self._judged(device)
        problem = known.refusal if wall_ns is None else known.problem(wall_ns)
        if problem is not None and not (revoked_too and problem[0] == RULE_REVOKED):
            raise PeerError(*problem)
        if source is not None and peer.address != source:
            reason = f"certificate for {peer.address} sent from {source}"
            raise PeerError(RULE_ADDRESS, reason)
        if peer.fingerprint in self._deployed or peer.fingerprint in self._learned:
            return known
        older = self._check_place(device, wall_ns)
        self._make_room(in_use)
        if older is not None:
            self._learned.pop(older, None)
        self._learned[peer.fingerprint] = device
        return known

    def _inspected(self, der: bytes) -> DeviceCertificate:
        """Parse a certificate and verify its chain; both are counted."""
        # The byte before the signature tells how many of its bits do not count. No signature covers
        # it: other values would give the same certificate another fingerprint.
        if len(der) <= SIGNATURE_LENGTH or der[-SIGNATURE_LENGTH - 1] != 0:
            raise PeerError(RULE_OFFERED, "not a well-formed certificate")
        self.operations["certificate_parsed"] += 1
        try:
            certificate = x509.load_der_x509_certificate(der)
            named = sum(a.certificate.subject == certificate.issuer for a in self.anchors)
            self.operations["signature_checked"] += named
            return inspect_device(certificate, self.anchors)
        except MALFORMED:
            raise PeerError(RULE_OFFERED, "not a well-formed certificate") from None
        except UNUSABLE as error:
            raise PeerError(RULE_OFFERED, f"certificate {error}") from None

    def _check_place(self, device: DeviceCertificate, wall_ns: int | None) -> bytes | None:
        """Refuse a certificate for an address that another acceptable one is for.

        A learned certificate is renewed by one of the same device that begins later.

        Returns:
            The fingerprint of the certificate that is renewed.
        """
        peer = device.known.peer
        if peer.address == self.own.known.peer.address:
            raise PeerError(RULE_TAKEN, "certificate for our own address")
        for fingerprint, other in (*self._deployed.items(), *self._learned.items()):
            if other.known.peer.address != peer.address:
                continue
            known = self._judged(other)
            if (known.refusal if wall_ns is None else known.problem(wall_ns)) is not None:
                continue
            same = (known.peer.name, known.peer.nation) == (peer.name, peer.nation)
            later = (
                device.certificate.not_valid_before_utc >= other.certificate.not_valid_before_utc
            )
            if fingerprint in self._learned and same and later:
                return fingerprint
            reason = f"{peer.address} belongs to another certificate, of {known.peer.name}"
            raise PeerError(RULE_TAKEN, reason)
        return None

    def _make_room(self, in_use: Container[IPv6Address]) -> None:
        """Forget the oldest learned certificate that is not in use, if there are too many."""
        if len(self._learned) < LEARNED_MAX:
            return
        for fingerprint, device in self._learned.items():
            if device.known.peer.address not in in_use:
                del self._learned[fingerprint]
                return
        raise PeerError(RULE_ROOM, f"{LEARNED_MAX} learned certificates are in use")

    def learn_revocations(self, der: bytes, wall_ns: int | None) -> RevocationList | None:
        """Take in a revocation list if a trust anchor signed it.

        Returns:
            The list if it is news, None if we have it.

        Raises:
            PeerError: too long, malformed, of another issuer, of the future, or older than ours.
        """
        if len(der) > REVOCATIONS_BYTES_MAX:
            raise PeerError(RULE_CRL, f"revocation list of {len(der)} bytes")
        if any(item.der == der for item in self._revocations.values()):
            return None
        self.operations["revocations_parsed"] += 1
        try:
            crl = x509.load_der_x509_crl(der)
            self.operations["signature_checked"] += sum(
                anchor.certificate.subject == crl.issuer for anchor in self.anchors
            )
            item = inspect_revocations(crl, self.anchors)
        except MALFORMED:
            raise PeerError(RULE_CRL, "not a well-formed revocation list") from None
        except UNUSABLE as error:
            raise PeerError(RULE_CRL, str(error)) from None
        if wall_ns is not None and item.version[1] * NS_PER_S > wall_ns + EARLY_NS:
            raise PeerError(RULE_CRL, "revocation list of the future")
        if not self.add_revocations(item):
            present = self._revocations[item.issuer_id].version
            reason = f"revocation list {item.version[0]} of '{item.issuer_name}'"
            raise PeerError(RULE_CRL_OLD, f"{reason} is older than ours, {present[0]}")
        return item


def check_chain(chain: Sequence[bytes]) -> None:
    """AUTH-12: refuse absurd chains before anything is parsed."""
    if not 1 <= len(chain) <= CHAIN_MAX:
        raise PeerError(RULE_CHAIN_SIZE, f"chain of {len(chain)} certificates")
    for der in chain:
        if not 1 <= len(der) <= CERTIFICATE_BYTES_MAX:
            raise PeerError(RULE_CHAIN_SIZE, f"certificate of {len(der)} bytes")
