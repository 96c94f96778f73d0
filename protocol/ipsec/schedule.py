"""From a group key to SAs: which key and which SPI each sender uses in one epoch.

The group key (32 bytes, itself exported from MIKE's group secret) is never a cipher key.
HKDF-Expand (RFC 5869 section 2.3, SHA-256) gives every sender an SA of its own, which keeps
AES-GCM nonces unique although there are many senders (RFC 6054 section 2), gives anti-replay
back, which multi-sender SAs lack (RFC 4303 section 2.2), and gives every sender a distinct SPI,
which Linux needs because it finds an inbound SA by destination, SPI and protocol, never by
source.

Everything here is a pure function of values that all members share, so every device computes the
same SAD without a message. Each input is length-prefixed, so no two contexts run together.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from ipaddress import IPv6Address

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC

from protocol.core.errors import LocalError
from protocol.ipsec.model import (
    SPI_MIN,
    SUITES,
    KeyMaterial,
    Mode,
    SaDirection,
    SecurityAssociation,
    Suite,
)

GROUP_KEY_LENGTH = 32
"""Bytes of the group key: the output length of SHA-256, as HKDF-Expand wants its PRK."""

REPLAY_WINDOW = 64
"""Anti-replay window of inbound SAs in packets: the default of RFC 4303 section 3.4.3."""

LABEL_SENDER_KEY = b"idpmike v1 sender sa key"
LABEL_SENDER_SPI = b"idpmike v1 sender sa spi"
LABEL_SHARED_KEY = b"idpmike v1 shared sa key"
LABEL_SHARED_SPI = b"idpmike v1 shared sa spi"

EPOCH_BITS = 2
"""Low SPI bits that carry the epoch number, so that the SAs of four successive epochs, which make
before break keeps side by side, never meet on one SPI."""

_SHARED_SUITES = (Suite.AES_CBC_SHA256, Suite.TDES_SHA1)


_COUNTER_LENGTH = (4).to_bytes(2, "big")

_Expand = Callable[[bytes, int], bytes]
"""HKDF-Expand under one group key: from the encoded context and a length in bytes."""


def expander(group_key: bytes) -> _Expand:
    """Return HKDF-Expand (RFC 5869 section 2.3, SHA-256) under one key.

    ``cryptography`` has it too, but keys the MAC anew for every output; an epoch of fifty senders
    needs a hundred. The hash is the same library's. Tests compare the two.
    """
    keyed = HMAC(group_key, SHA256())

    def expand(info: bytes, length: int) -> bytes:
        output = block = b""
        for counter in range(1, 256):
            mac = keyed.copy()
            mac.update(block + info + counter.to_bytes())
            block = mac.finalize()
            output += block
            if len(output) >= length:
                return output[:length]
        raise LocalError(f"HKDF gives no {length} bytes")

    return expand


def encoded(*parts: bytes) -> bytes:
    """Return the parts, each after its length."""
    return b"".join([len(part).to_bytes(2, "big") + part for part in parts])


def _context(
    label: bytes, epoch_number: int, epoch_tag: bytes, group: IPv6Address, suite: Suite
) -> bytes:
    """Return what one label is about in one epoch."""
    number = epoch_number.to_bytes(8, "big")
    return encoded(label, suite.value.encode(), number, epoch_tag, group.packed)


def check_group_key(group_key: bytes, epoch_number: int) -> None:
    """Refuse a caller's mistake before any key is made of it."""
    if len(group_key) != GROUP_KEY_LENGTH:
        raise LocalError(f"group key has {len(group_key)} bytes, not {GROUP_KEY_LENGTH}")
    if not 0 <= epoch_number < 1 << 64:
        raise LocalError(f"epoch number {epoch_number} does not fit in 64 bits")


def draw_spi(
    expand: _Expand, context: bytes, low: int, low_bits: int, taken: Container[int]
) -> int:
    """Return the first candidate that is neither reserved nor taken.

    Args:
        expand: HKDF-Expand under the key that decides.
        context: what the SPI is for.
        low: the low bits of every candidate.
        low_bits: how many those are.
        taken: by an earlier member.
    """
    mask = (1 << low_bits) - 1
    for counter in range(1 << 32):
        raw = expand(context + _COUNTER_LENGTH + counter.to_bytes(4, "big"), 4)
        spi = int.from_bytes(raw, "big") & ~mask | low & mask
        if spi >= SPI_MIN and spi not in taken:
            return spi
    raise LocalError("every SPI is taken")


def suite_key(expand: _Expand, context: bytes, suite: Suite) -> KeyMaterial:
    """Expand the keys of a suite: cipher key (with the AEAD's salt) first, then the MAC key."""
    sizes = SUITES[suite]
    length = sizes.encryption_key_length + sizes.authentication_key_length
    material = expand(context, length)
    cut = sizes.encryption_key_length
    return KeyMaterial(material[:cut], material[cut:])


def sender_sas(
    group_key: bytes,
    *,
    epoch_number: int,
    epoch_tag: bytes,
    members: Sequence[IPv6Address],
    group: IPv6Address,
    suite: Suite,
    own: IPv6Address,
    reqid: int,
    if_id: int | None = None,
    mode: Mode = Mode.TUNNEL,
    directions: bool = True,
) -> list[SecurityAssociation]:
    """Return one SA per sender, in position order: the SAD of one epoch (SA mode ``per-sender``).

    Args:
        group_key: the exported group key of the epoch.
        epoch_number: number of the epoch, 64 bits.
        epoch_tag: what tells two epochs of one number apart (another TM, another partition).
        members: black addresses in position order; the order decides who moves on when two
            members' first SPI candidates are equal.
        group: black multicast group, the outer destination.
        suite: algorithms.
        own: our black address: its SA is outbound, all others are inbound.
        reqid: ties the SAs to the group's policies.
        if_id: xfrm interface.
        mode: tunnel or transport.
        directions: let the kernel enforce the direction (Linux 6.10 and newer), so that our own
            looped-back packets are not taken for a peer's.

    Raises:
        LocalError: wrong key length, a member named twice, or ``own`` not among the members.
    """
    check_group_key(group_key, epoch_number)
    if len(set(members)) != len(members):
        raise LocalError("a member is named twice in the epoch")
    if own not in members:
        raise LocalError(f"own address {own} is not among the {len(members)} members of the epoch")
    expand = expander(group_key)
    about_spi, about_key = (
        _context(label, epoch_number, epoch_tag, group, suite)
        for label in (LABEL_SENDER_SPI, LABEL_SENDER_KEY)
    )
    taken: set[int] = set()
    sas = []
    for sender in members:
        whose = encoded(sender.packed)
        spi = draw_spi(expand, about_spi + whose, epoch_number, EPOCH_BITS, taken)
        taken.add(spi)
        outbound = sender == own
        direction = SaDirection.OUT if outbound else SaDirection.IN
        sas.append(
            SecurityAssociation(
                source=sender,
                destination=group,
                spi=spi,
                suite=suite,
                key=suite_key(expand, about_key + whose, suite),
                mode=mode,
                reqid=reqid,
                if_id=if_id,
                direction=direction if directions else None,
                replay_window=0 if outbound else REPLAY_WINDOW,
            )
        )
    return sas


def shared_sa(
    group_key: bytes,
    *,
    epoch_number: int,
    epoch_tag: bytes,
    group: IPv6Address,
    suite: Suite,
    own: IPv6Address,
    reqid: int,
    if_id: int | None = None,
    mode: Mode = Mode.TUNNEL,
) -> SecurityAssociation:
    """Return the one SA that all members share (SA mode ``paper``).

    The same key and SPI serve every sender and both directions, so there is no anti-replay
    (RFC 4303 section 2.2) and no direction; the source is our own address, because Linux picks an
    outbound SA by source and ignores it inbound.

    Raises:
        LocalError: wrong key length, or an AEAD suite, whose nonces would repeat among senders.
    """
    check_group_key(group_key, epoch_number)
    if suite not in _SHARED_SUITES:
        allowed = " or ".join(_SHARED_SUITES)
        raise LocalError(
            f"{suite} with a key that senders share repeats nonces (RFC 6054): "
            f"use {allowed}, or SA mode per-sender"
        )
    expand = expander(group_key)
    about_spi, about_key = (
        _context(label, epoch_number, epoch_tag, group, suite)
        for label in (LABEL_SHARED_SPI, LABEL_SHARED_KEY)
    )
    return SecurityAssociation(
        source=own,
        destination=group,
        spi=draw_spi(expand, about_spi, epoch_number, EPOCH_BITS, ()),
        suite=suite,
        key=suite_key(expand, about_key, suite),
        mode=mode,
        reqid=reqid,
        if_id=if_id,
    )
