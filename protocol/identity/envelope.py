"""The signed envelope around every black-side message: pure bytes to dataclass and back.

Layout, all integers big-endian (normative: docs/identity.md)::

    offset size  field
    0      1     version             1
    1      1     protocol            1 IDP, 2 MIKE
    2      1     kind                the protocol's message type
    3      1     marks               how many, at most 64
    4      16    sender              black address
    20     16    fingerprint         SHA-256 of the DER certificate, first 16 bytes
    36     8     startup_wall_ns     start-up time-stamp of the sender's instance
    44     8     sequence            counts from 0 in an instance
    52     8     sent_wall_ns        when it was sealed
    60     2     body_length
    62     n     body
    62+n   64    signature           Ed25519 over LABEL and every byte before
    126+n  6k    marks               for receivers (`protocol.identity.marks`)

This module neither signs nor verifies; `protocol.identity.identity` does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv6Address
from struct import Struct

from protocol.core.errors import DecodeError
from protocol.core.wire import Reader, Writer

VERSION = 1
PROTOCOL_IDP = 1
PROTOCOL_MIKE = 2

LABEL = b"idpmike signed envelope v1\x00"
"""Domain separation: the same key never signs anything else that starts like this."""

FINGERPRINT_LENGTH = 16
SIGNATURE_LENGTH = 64
HEADER_LENGTH = 62
KIND_OFFSET = 2
"""Where the kind stands in a datagram, for filters that look at nothing else."""

COUNT_OFFSET = 3
"""Where the number of marks stands, likewise."""

FINGERPRINT = slice(20, 36)
"""Where the fingerprint stands in a datagram, likewise."""

OVERHEAD = HEADER_LENGTH + SIGNATURE_LENGTH
"""Without marks, which are only where there is room for them."""

MARK_LENGTH = 6
MARKS_MAX = 64
"""Marks that a message may have."""

DATAGRAM_MAX = 8192
"""Largest datagram we read. Above the path's MTU it travels as IPv6 fragments."""

BODY_MAX = DATAGRAM_MAX - OVERHEAD

BODY_RECOMMENDED = 1280 - 40 - 8 - OVERHEAD
"""Largest body that needs no fragment on any IPv6 link: the minimum MTU (RFC 8200 section 5)
without the IPv6 and UDP headers and our own overhead."""

RULE_SYNTAX = "AUTH-1"

_KIND = Struct(">BBBB")
_INSTANCE = Struct(">QQQ")


@dataclass(frozen=True, slots=True)
class Envelope:
    """One decoded envelope, not authenticated.

    Attributes:
        protocol: protocol number.
        kind: message type of that protocol.
        sender: the black address the sender claims.
        fingerprint: of the certificate the sender claims.
        startup_wall_ns: start-up time-stamp of the sender's instance.
        sequence: number of the message in that instance.
        sent_wall_ns: the sender's UTC when it sealed the message.
        body: the protocol's message.
        signature: over `signed_part`.
        marks: for its receivers.
        mark_count: how many marks there are; what is signed says so before they can be made.
    """

    protocol: int
    kind: int
    sender: IPv6Address
    fingerprint: bytes
    startup_wall_ns: int
    sequence: int
    sent_wall_ns: int
    body: bytes = field(repr=False)
    signature: bytes = field(default=bytes(SIGNATURE_LENGTH), repr=False)
    marks: bytes = field(default=b"", repr=False)
    mark_count: int = 0

    def encode_unsigned(self) -> bytes:
        """Return every byte before the signature."""
        writer = Writer()
        writer.push_fields(_KIND, "kind", VERSION, self.protocol, self.kind, self.mark_count)
        writer.push_address(self.sender)
        writer.push_bytes(self.fingerprint, FINGERPRINT_LENGTH, "fingerprint")
        times = self.startup_wall_ns, self.sequence, self.sent_wall_ns
        writer.push_fields(_INSTANCE, "instance", *times)
        writer.push_vector(self.body, BODY_MAX, "body")
        return writer.finish()

    def encode(self) -> bytes:
        """Return the datagram."""
        writer = Writer()
        writer.push_bytes(self.encode_unsigned())
        writer.push_bytes(self.signature, SIGNATURE_LENGTH, "signature")
        writer.push_bytes(self.marks, self.mark_count * MARK_LENGTH, "marks")
        return writer.finish()


def kind_of(datagram: bytes) -> int | None:
    """Return the message type that a datagram claims, for sorting before it is decoded."""
    return datagram[2] if len(datagram) > 2 else None


def to_sign(unsigned: bytes) -> bytes:
    """Return what the signature covers, given every byte before the signature."""
    return LABEL + unsigned


def signed_part(datagram: bytes) -> bytes:
    """Return what the signature of a decoded datagram covers."""
    return LABEL + datagram[: marks_offset(datagram) - SIGNATURE_LENGTH]


def marks_offset(datagram: bytes) -> int:
    """Return where a datagram says that its signature ends; beyond its end if it lies."""
    return OVERHEAD + int.from_bytes(datagram[HEADER_LENGTH - 2 : HEADER_LENGTH], "big")


def may_decode(datagram: bytes) -> bool:
    """Say whether `decode` takes a datagram; a few comparisons, and no reason given."""
    return (
        OVERHEAD <= len(datagram) <= DATAGRAM_MAX
        and datagram[0] == VERSION
        and datagram[COUNT_OFFSET] <= MARKS_MAX
        and len(datagram) == marks_offset(datagram) + datagram[COUNT_OFFSET] * MARK_LENGTH
    )


def decode(datagram: bytes) -> Envelope:
    """Decode one datagram; syntax only.

    Raises:
        DecodeError: it is not an envelope (rule AUTH-1).
    """
    if len(datagram) > DATAGRAM_MAX:
        raise DecodeError("datagram", 0, f"longer than {DATAGRAM_MAX} bytes", RULE_SYNTAX)
    reader = Reader(datagram, RULE_SYNTAX)
    version = reader.pull_u8("version")
    if version != VERSION:
        reader.fail("version", f"unknown version {version}")
    protocol = reader.pull_u8("protocol")
    kind = reader.pull_u8("kind")
    mark_count = reader.pull_u8("marks")
    if mark_count > MARKS_MAX:
        reader.fail("marks", f"{mark_count} of them, more than {MARKS_MAX}")
    envelope = Envelope(
        protocol=protocol,
        kind=kind,
        sender=reader.pull_address("sender"),
        fingerprint=reader.pull_bytes(FINGERPRINT_LENGTH, "fingerprint"),
        startup_wall_ns=reader.pull_u64("startup_wall_ns"),
        sequence=reader.pull_u64("sequence"),
        sent_wall_ns=reader.pull_u64("sent_wall_ns"),
        body=reader.pull_vector(BODY_MAX, "body"),
        signature=reader.pull_bytes(SIGNATURE_LENGTH, "signature"),
        marks=reader.pull_bytes(mark_count * MARK_LENGTH, "marks"),
        mark_count=mark_count,
    )
    reader.finish()
    return envelope
