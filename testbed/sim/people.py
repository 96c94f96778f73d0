"""Devices that know each other: names, addresses and identities without files and X.509.

The keys follow from the device's index, so they are the same in every run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from protocol.core.addresses import address_of
from protocol.identity import Identity, KnownDevice, Peer
from protocol.identity.identity import RULE_REVOKED
from protocol.identity.known import SigningKey, VerifyKey
from protocol.identity.marks import static_secret
from protocol.ipsec.model import Prefix
from protocol.mike.schedule import NodeSecret
from testbed.sim.modelled import ModelledSecret, ModelledSigner

NATIONS = ("alpha", "beta", "gamma")
FRESHNESS_MS = 30_000

_BLACK = int(IPv6Address("2001:db8:b::"))
_RED, _SPARE, _COMMON = (int(IPv6Address(text)) for text in ("fd00::", "fd01::", "fd02::"))
_RED4 = int(IPv4Address("10.0.0.0"))

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
    """Verifies each signature once, however many devices receive it: the answer is the same.

    Attributes:
        key: which verifies.
    """

    def __init__(self, key: Ed25519PublicKey) -> None:
        self.key = key
        self._good: dict[tuple[bytes, bytes], None] = {}

    def verify(self, signature: bytes, data: bytes, /) -> None:
        """Raise InvalidSignature unless this key signed exactly these bytes."""
        said = (signature, data)
        if said in self._good:
            return
        self.key.verify(signature, data)
        self._good[said] = None
        if len(self._good) > VERIFIED_MAX:
            del self._good[next(iter(self._good))]


def agree(own: SigningKey, other: VerifyKey) -> bytes | None:
    """Return the secret that two devices share, whichever cryptography they use."""
    if isinstance(own, ModelledSigner) and isinstance(other, ModelledSigner):
        return own.agree(other)
    return static_secret(own, other.key if isinstance(other, SharedVerifier) else other)


@cache
def address(index: int, partition: int = 0) -> IPv6Address:
    """Return the black address of the device with this index (0 is the first) in a partition."""
    return address_of((_BLACK + (partition << 64) + index + 1).to_bytes(16, "big"))


@cache
def red_prefix(index: int, partition: int = 0) -> IPv6Network:
    """Return the red network behind the device with this index."""
    return IPv6Network((_RED + (partition << 80) + (index + 1 << 64), 64))


@cache
def spare_prefixes(index: int, partition: int = 0) -> tuple[Prefix, ...]:
    """Return further red networks that the device may announce, and nobody else."""
    block = _spare_block(index, partition)
    return (
        IPv6Network((int(block.network_address), 64)),
        IPv4Network((_RED4 + (partition << 16) + (index + 1 << 10), 24)),
        IPv6Network((int(block.network_address) + (4 << 64), 62)),
    )


@cache
def common_prefixes(partition: int = 0) -> tuple[Prefix, ...]:
    """Return red networks that every device may announce; each overlaps the next one."""
    first = _COMMON + (partition << 80)
    return IPv6Network((first + (1 << 64), 64)), IPv6Network((first, 62))


def _spare_block(index: int, partition: int) -> IPv6Network:
    return IPv6Network((_SPARE + (partition << 80) + (index + 1 << 68), 60))


@dataclass(frozen=True, slots=True)
class People:
    """Devices of one partition that all know each other.

    Attributes:
        size: how many, with the legs of gateways, which come last.
        partition: number of the partition, which its addresses follow from.
        name: of the partition; before the names of its devices.
        beyond: for each leg, the numbers of the partitions that its certificate speaks for.
    """

    size: int
    partition: int = 0
    name: str = ""
    beyond: tuple[tuple[int, ...], ...] = ()

    @property
    def devices(self) -> range:
        """Return the indices of all that are no legs."""
        return range(self.size - len(self.beyond))

    def address(self, index: int) -> IPv6Address:
        """Return a black address."""
        return address(index, self.partition)

    def prefixes(self, index: int) -> tuple[Prefix, ...]:
        """Return what a device announces without being told to."""
        return (red_prefix(index, self.partition),) if index in self.devices else ()

    def own(self, index: int) -> tuple[Prefix, ...]:
        """Return every prefix that only this device ever announces; of a leg, none."""
        spare = spare_prefixes(index, self.partition) if index in self.devices else ()
        return (*self.prefixes(index), *spare)

    def authorised(self, index: int) -> tuple[Prefix, ...]:
        """Return what its certificate says it may announce."""
        if index not in self.devices:
            return tuple(
                net
                for number in self.beyond[index - len(self.devices)]
                for net in partition_networks(number)
            )
        spare = _spare_block(index, self.partition)
        four = IPv4Network((_RED4 + (self.partition << 16) + (index + 1 << 10), 22))
        common = common_prefixes(self.partition)[-1]
        return (red_prefix(index, self.partition), spare, four, common)

    def signing_key(self, index: int, crypto: Crypto) -> SigningKey:
        """Return what a device signs with."""
        return _person(self, index, crypto).signing_key

    def identity(
        self,
        index: int,
        crypto: Crypto = Crypto.REAL,
        *,
        freshness_ms: int = FRESHNESS_MS,
        revoked: Collection[int] = (),
    ) -> Identity:
        """Return the identity of one daemon of a device; it trusts all others but the revoked."""
        own = _person(self, index, crypto)
        others = self.known(crypto, revoked)
        return Identity(own.known, own.signing_key, others, freshness_ms=freshness_ms, agree=agree)

    def known(self, crypto: Crypto, revoked: Collection[int] = ()) -> list[KnownDevice]:
        """Return every device as its certificate and a revocation list say."""
        persons = [_person(self, index, crypto).known for index in range(self.size)]
        for index in revoked:
            persons[index] = replace(persons[index], refusal=(RULE_REVOKED, "revoked"))
        return persons


def partition_networks(partition: int) -> tuple[Prefix, ...]:
    """Return blocks that hold every red network of a partition, and no other's."""
    six = [IPv6Network((first + (partition << 80), 48)) for first in (_RED, _SPARE, _COMMON)]
    return (*six, IPv4Network((_RED4 + (partition << 16), 16)))


@cache
def _person(people: People, index: int, crypto: Crypto) -> Person:
    """Return a device: ``d1`` for index 0, nations in turn."""
    name = f"{people.name}d{index + 1}"
    peer = Peer(
        address=people.address(index),
        name=name,
        nation=NATIONS[index % len(NATIONS)],
        fingerprint=hashlib.sha256(b"certificate of " + name.encode()).digest()[:16],
        gateway=index not in people.devices,
        prefixes=people.authorised(index),
    )
    seed = hashlib.sha256(f"{people.name}device {index}".encode()).digest()
    if crypto is Crypto.MODELLED:
        signer = ModelledSigner(seed)
        return Person(KnownDevice(peer, signer), signer)
    key = Ed25519PrivateKey.from_private_bytes(seed)
    return Person(KnownDevice(peer, SharedVerifier(key.public_key())), key)


def local_secret(index: int) -> bytes:
    """Return the secret of the interface between a device's two daemons."""
    return hashlib.sha256(b"local secret %d" % index).digest()


def secret_type(crypto: Crypto) -> type[NodeSecret]:
    """Return what MIKE makes its node secrets of."""
    return ModelledSecret if crypto is Crypto.MODELLED else NodeSecret
