"""Devices that know each other: names, addresses and identities without files and X.509.

The keys follow from the device's index, so they are the same in every run.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from ipaddress import IPv6Address, IPv6Network

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from protocol.identity import Identity, KnownDevice, Peer
from protocol.identity.known import SigningKey
from protocol.mike.schedule import NodeSecret
from testbed.sim.modelled import ModelledSecret, ModelledSigner

NATIONS = ("alpha", "beta", "gamma")
FRESHNESS_MS = 30_000

VERIFIED_MAX = 256
"""Signatures of one device that are remembered as good."""


class Crypto(StrEnum):
    """Which cryptography a simulation uses."""

    REAL = "real"
    MODELLED = "modelled"


@dataclass(frozen=True, slots=True)
class Person:
    """What a device knows of itself, and what others know of it."""

    known: KnownDevice
    signing_key: SigningKey


class SharedVerifier:
    """Verifies each signature once, however many devices receive it: the answer is the same."""

    def __init__(self, key: Ed25519PublicKey) -> None:
        self._key = key
        self._good: dict[tuple[bytes, bytes], None] = {}

    def verify(self, signature: bytes, data: bytes, /) -> None:
        """Raise InvalidSignature unless this key signed exactly these bytes."""
        said = (signature, data)
        if said in self._good:
            return
        self._key.verify(signature, data)
        self._good[said] = None
        if len(self._good) > VERIFIED_MAX:
            del self._good[next(iter(self._good))]


@cache
def address(index: int) -> IPv6Address:
    """Return the black address of the device with this index (0 is the first)."""
    return IPv6Address("2001:db8:b::") + index + 1


@cache
def red_prefix(index: int) -> IPv6Network:
    """Return the red network behind the device with this index."""
    return IPv6Network((int(IPv6Address("fd00::")) + (index + 1 << 64), 64))


@cache
def person(index: int, crypto: Crypto = Crypto.REAL) -> Person:
    """Return a device: ``d1`` for index 0, nations in turn."""
    name = f"d{index + 1}"
    peer = Peer(
        address=address(index),
        name=name,
        nation=NATIONS[index % len(NATIONS)],
        fingerprint=hashlib.sha256(b"certificate of " + name.encode()).digest()[:16],
        prefixes=(red_prefix(index),),
    )
    seed = hashlib.sha256(b"device %d" % index).digest()
    if crypto is Crypto.MODELLED:
        signer = ModelledSigner(seed)
        return Person(KnownDevice(peer, signer), signer)
    key = Ed25519PrivateKey.from_private_bytes(seed)
    return Person(KnownDevice(peer, SharedVerifier(key.public_key())), key)


def identity(
    index: int, size: int, crypto: Crypto = Crypto.REAL, *, freshness_ms: int = FRESHNESS_MS
) -> Identity:
    """Return the identity of one daemon of a device that trusts all ``size`` devices."""
    own = person(index, crypto)
    others = [person(other, crypto).known for other in range(size)]
    return Identity(own.known, own.signing_key, others, freshness_ms=freshness_ms)


def local_secret(index: int) -> bytes:
    """Return the secret of the interface between a device's two daemons."""
    return hashlib.sha256(b"local secret %d" % index).digest()


def secret_type(crypto: Crypto) -> type[NodeSecret]:
    """Return what MIKE makes its node secrets of."""
    return ModelledSecret if crypto is Crypto.MODELLED else NodeSecret
