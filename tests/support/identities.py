"""In-memory identities that know each other: no files, no X.509, the same keys every time."""

from __future__ import annotations

import hashlib
from ipaddress import IPv4Network, IPv6Address, IPv6Network

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.identity import Identity, KnownDevice, Peer, envelope
from protocol.ipsec.model import Prefix

NATIONS = ("alpha", "beta", "gamma")


def address(index: int) -> IPv6Address:
    """Black address of the device with this index (0 is the first)."""
    return IPv6Address("2001:db8:b::") + index + 1


def red_blocks(index: int) -> tuple[Prefix, ...]:
    """Return what the device's certificate lets it announce: 10.1.0.0/16, fd00:1::/32 for d1."""
    return IPv4Network(f"10.{index + 1}.0.0/16"), IPv6Network(f"fd00:{index + 1:x}::/32")


def signing_key(index: int) -> Ed25519PrivateKey:
    """Return the device's key, derived from its index."""
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"device %d" % index).digest())


def known_device(index: int) -> KnownDevice:
    """Return what everybody knows of a device: ``d1`` for index 0, nations in turn."""
    name = f"d{index + 1}"
    peer = Peer(
        address=address(index),
        name=name,
        nation=NATIONS[index % len(NATIONS)],
        fingerprint=hashlib.sha256(b"certificate of " + name.encode()).digest()[:16],
        prefixes=red_blocks(index),
    )
    return KnownDevice(peer, signing_key(index).public_key())


def make_identities(n: int, *, freshness_ms: int = 30_000) -> list[Identity]:
    """Return n identities that trust each other; each belongs to one daemon of one device.

    Call twice for the two daemons of every device: an Identity numbers the messages of one
    instance of one daemon. ``begin`` is the engine's to call.
    """
    devices = [known_device(index) for index in range(n)]
    return [
        Identity(devices[index], signing_key(index), devices, freshness_ms=freshness_ms)
        for index in range(n)
    ]


def missigned(datagram: bytes) -> bytes:
    """Return a sealed message with a bit of its signature flipped."""
    place = envelope.marks_offset(datagram) - 1
    return datagram[:place] + bytes([datagram[place] ^ 1]) + datagram[place + 1 :]
