"""The keys and SPIs of the two SAs between a pair of devices (docs/decisions/0007-unicast-keys.md).

Mode ``group``: HKDF (RFC 5869) over the pair's X25519 secret, salted with a subkey of the epoch's
group key. An outsider lacks both, another member the secret, a former member the salt. Mode
``psk``: HKDF over the pre-shared key and the pair's secret, bound to time-stamps and pair keys.

Both ends compute the same two SAs without a message. The SPI that a receiver sees carries the
sender's place in the epoch and the epoch's low bits, so that within four successive epochs no two
peers' SPIs meet at one receiver; in mode ``psk`` there is no place, and a receiver refuses the
second of two that meet.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv6Address

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC

from protocol.core.errors import LocalError
from protocol.ipsec.model import (
    SaDirection,
    SecurityAssociation,
    Suite,
)
from protocol.ipsec.schedule import (
    EPOCH_BITS,
    REPLAY_WINDOW,
    check_group_key,
    draw_spi,
    encoded,
    expander,
    suite_key,
)

LABEL_PAIR_ROOT = b"idpmike v1 pair root"
LABEL_PAIR_KEY = b"idpmike v1 pair sa key"
LABEL_PAIR_SPI = b"idpmike v1 pair sa spi"
LABEL_PSK = b"idpmike v1 pair psk"
LABEL_ANNOUNCEMENT = b"idpmike v1 pair announcement"

PLACE_BITS = 13
"""Bits of the SPI for the sender's place among the members."""


@dataclass(frozen=True, slots=True)
class PairEnd:
    """One end of a pair, as both know it.

    Attributes:
        address: black address.
        instance: what the keys are bound to besides: the pair key, in mode ``psk`` after the
            start-up time-stamp.
        place: position among the epoch's members; 0 where there is no epoch.
    """

    address: IPv6Address
    instance: bytes
    place: int = 0


@dataclass(frozen=True, slots=True)
class PairContext:
    """What all pairs of one epoch have in common.

    Attributes:
        salt: HKDF's salt.
        epoch: epoch number and tag, for the key's context; empty in mode ``psk``.
        low_bits: how many bits of the SPI are given, and not drawn.
        epoch_number: for the lowest of them.
        taken: SPIs of the group's SAs in this epoch.
    """

    salt: bytes
    epoch: bytes = b""
    low_bits: int = 0
    epoch_number: int = 0
    taken: frozenset[int] = frozenset()


def epoch_context(
    group_key: bytes, epoch_number: int, epoch_tag: bytes, taken: frozenset[int]
) -> PairContext:
    """Return the context of the pairs' SAs in one epoch.

    Raises:
        LocalError: the group key has another length.
    """
    check_group_key(group_key, epoch_number)
    epoch = encoded(epoch_number.to_bytes(8, "big"), epoch_tag)
    salt = expander(group_key)(encoded(LABEL_PAIR_ROOT) + epoch, 32)
    return PairContext(salt, epoch, PLACE_BITS + EPOCH_BITS, epoch_number, taken)


def psk_context() -> PairContext:
    """Return the context of the pairs' SAs where a pre-shared key takes the group key's place."""
    return PairContext(LABEL_PSK)


def pair_sas(
    secret: bytes,
    context: PairContext,
    own: PairEnd,
    peer: PairEnd,
    *,
    suite: Suite,
    reqid: int,
    if_id: int,
    directions: bool = True,
) -> tuple[SecurityAssociation, SecurityAssociation]:
    """Return the SA that we send with and the one that we receive with.

    Args:
        secret: X25519 secret of the pair, after the pre-shared key if there is one.
        context: of the epoch.
        own: we.
        peer: the other device.
        suite: algorithms.
        reqid: ties the SAs to the pair's policies.
        if_id: xfrm interface.
        directions: let the kernel enforce the direction (Linux 6.10 and newer).

    Raises:
        LocalError: a place that does not fit into an SPI.
    """
    if max(own.place, peer.place) >> PLACE_BITS:
        raise LocalError(f"no more than {1 << PLACE_BITS} members fit into an SPI")
    keyed = HMAC(context.salt, SHA256())
    keyed.update(secret)
    expand = expander(keyed.finalize())
    sas = []
    for sender, receiver in ((own, peer), (peer, own)):
        about = encoded(
            suite.value.encode(),
            sender.address.packed,
            receiver.address.packed,
            sender.instance,
            receiver.instance,
        )
        outbound = sender is own
        direction = SaDirection.OUT if outbound else SaDirection.IN
        material = encoded(LABEL_PAIR_KEY) + context.epoch + about
        place = encoded(LABEL_PAIR_SPI) + context.epoch + about
        low = sender.place << EPOCH_BITS | context.epoch_number & ((1 << EPOCH_BITS) - 1)
        sas.append(
            SecurityAssociation(
                source=sender.address,
                destination=receiver.address,
                spi=draw_spi(expand, place, low, context.low_bits, context.taken),
                suite=suite,
                key=suite_key(expand, material, suite),
                reqid=reqid,
                if_id=if_id,
                direction=direction if directions else None,
                replay_window=0 if outbound else REPLAY_WINDOW,
            )
        )
    return sas[0], sas[1]


def announcement_key(secret: bytes, one: PairEnd, other: PairEnd) -> bytes:
    """Return the key of the announcements between two instances, whatever the epoch; 32 bytes.

    Args:
        secret: X25519 secret of the pair, after the pre-shared key if there is one.
        one: one end; both get the same key.
        other: the other end.
    """
    keyed = HMAC(LABEL_ANNOUNCEMENT, SHA256())
    keyed.update(secret)
    ends = sorted((end.address.packed, end.instance) for end in (one, other))
    about = encoded(LABEL_ANNOUNCEMENT, *(part for end in ends for part in end))
    return expander(keyed.finalize())(about, 32)
