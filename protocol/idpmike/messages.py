"""Messages of the local interface, and their authenticated encoding (docs/local-interface.md)."""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass, field
from enum import IntEnum
from ipaddress import IPv6Address
from struct import Struct

from protocol.core.errors import DecodeError, LocalError, PeerError
from protocol.core.wire import Reader, Writer

VERSION = 1

SECRET_LENGTH = 32
MAC_LENGTH = 32
TAG_LENGTH = 8

MEMBERS_MAX = 1024
"""Members in one status: 16 KiB, far below what a datagram on ::1 can carry."""

DER_MAX = 24 * 1024
"""Bytes of a certificate or revocation list."""

REASON_MAX = 255
"""Bytes of the reason why a device's messages are not acted upon."""

POINTER_MAX = 255
"""Bytes of a key pointer: the longest file name of Linux file systems (NAME_MAX)."""

HEADER_LENGTH = 52
DATAGRAM_MAX = 32 * 1024

INSTANCE_MAX = 1 << 63
"""Instances are UTC nanoseconds; the limit leaves room to move one above another."""

RULE_SYNTAX = "LOCAL-1"
RULE_MAC = "LOCAL-3"

_EPOCH_TEXT = re.compile(r"([0-9]{1,20})-([0-9a-f]{16})")


class Side(IntEnum):
    """Which daemon a link end belongs to."""

    IDP = 1
    MIKE = 2


class SignalKind(IntEnum):
    """What IDP tells MIKE about a device."""

    JOIN = 1
    LEAVE = 2
    RESTORE = 3


class MessageKind(IntEnum):
    """Message type on the wire."""

    OPENED = 1
    SIGNAL = 2
    SIGNAL_ACK = 3
    GROUP_STATUS = 4
    STATUS_ACK = 5
    RESYNC = 6
    CREDENTIAL = 7
    STANDING = 8


class CredentialKind(IntEnum):
    """What a `Credential` holds."""

    CERTIFICATE = 1
    REVOCATIONS = 2


@dataclass(frozen=True, slots=True, order=True)
class EpochId:
    """Names an epoch of the group key; printed ``number-taghex``.

    Attributes:
        number: counts epochs.
        tag: truncated hash of the TM's announcement: tells apart epochs of one number that two
            partitions made.
    """

    number: int
    tag: bytes

    def __post_init__(self) -> None:
        if not 0 <= self.number < 1 << 64:
            raise LocalError(f"epoch number {self.number} does not fit in 64 bits")
        if len(self.tag) != TAG_LENGTH:
            raise LocalError(f"epoch tag has {len(self.tag)} bytes, not {TAG_LENGTH}")

    def __str__(self) -> str:
        return f"{self.number}-{self.tag.hex()}"

    @classmethod
    def parse(cls, text: str) -> EpochId:
        """Read what ``str`` printed.

        Raises:
            LocalError: it is not an epoch.
        """
        match = _EPOCH_TEXT.fullmatch(text)
        if match is None:
            raise LocalError(f"{text!r} is not an epoch (number-taghex)")
        return cls(int(match[1]), bytes.fromhex(match[2]))


@dataclass(frozen=True, slots=True)
class LinkOpened:
    """The other daemon started a new instance; always the first message of one.

    Whoever receives it repeats what the new instance must know: IDP a JOIN per connected device,
    MIKE its present status.
    """

    serial: int = 0


@dataclass(frozen=True, slots=True)
class Signal:
    """IDP to MIKE: a device joined, left or was restored.

    Attributes:
        kind: JOIN, LEAVE or RESTORE.
        peer: the device's black address; our own for our own start.
        startup_wall_ns: that device's start-up time-stamp, 0 if unknown.
        serial: 0 when given to `LocalLink.send`, which numbers it.
        sent_wall_ns: likewise; when the first copy was sent.
    """

    kind: SignalKind
    peer: IPv6Address
    startup_wall_ns: int
    serial: int = 0
    sent_wall_ns: int = 0


@dataclass(frozen=True, slots=True)
class Credential:
    """IDP to MIKE: a certificate or revocation list that IDP learned.

    MIKE judges it by its own anchors; the same holds here as there.

    Attributes:
        kind: which of the two.
        der: the certificate or the list.
        serial: 0 when given to `LocalLink.send`, which numbers it.
    """

    kind: CredentialKind
    der: bytes = field(repr=False)
    serial: int = 0


@dataclass(frozen=True, slots=True)
class Standing:
    """IDP to MIKE: whether messages of a device may be acted upon.

    Attributes:
        peer: the device's black address.
        reason: why not, empty if they may.
        serial: 0 when given to `LocalLink.send`, which numbers it.
    """

    peer: IPv6Address
    reason: str
    serial: int = 0


@dataclass(frozen=True, slots=True)
class SignalAck:
    """MIKE to IDP: every message up to this serial was handled."""

    serial: int


@dataclass(frozen=True, slots=True)
class GroupStatus:
    """MIKE to IDP: the group has this key now.

    Attributes:
        serial: 0 when given to `LocalLink.send`, which numbers it.
        epoch: which epoch.
        pointer: names the key, never the key itself.
        members: black addresses in position order.
        tm: the transaction manager.
        sent_wall_ns: 0 when given to `LocalLink.send`; when the first copy was sent.
    """

    serial: int
    epoch: EpochId
    pointer: str
    members: tuple[IPv6Address, ...]
    tm: IPv6Address
    sent_wall_ns: int = 0


@dataclass(frozen=True, slots=True)
class StatusAck:
    """IDP to MIKE: every message up to this serial was handled."""

    serial: int


@dataclass(frozen=True, slots=True)
class Resync:
    """Answer to an authentic datagram of an instance we cannot accept.

    Attributes:
        floor: the newest instance of the receiver of this message that we know, 0 if none.
    """

    floor: int


Message = LinkOpened | Signal | Credential | Standing | SignalAck | GroupStatus | StatusAck | Resync
"""Everything that travels on the local interface."""

FromIdp = Signal | Credential | Standing
"""What IDP sends reliably, besides `LinkOpened`."""

Reliable = LinkOpened | FromIdp | GroupStatus
"""What is repeated until acknowledged; all that `LocalLink.handle` hands out."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One datagram without its MAC.

    Attributes:
        instance: the sender's instance; orders the instances of a daemon.
        origin: the instance it had when it began; names its numbering of serials, which stays when
            the instance is moved above a later one (its clock was set back).
        echo: the newest instance of the receiver that the sender knows, 0 if none.
        oldest: the sender's oldest serial that still waits for an acknowledgement, else the next
            serial: what lies below will never come again.
        sent_wall_ns: when this copy was sent.
        message: the message.
    """

    instance: int
    origin: int
    echo: int
    oldest: int
    sent_wall_ns: int
    message: Message


_NUMBERS = Struct(">QQQQQQ")
_HEADER = Struct(">BBHQQQQQQ")
"""Version, kind, reserved; instance, origin, echo, oldest, time of sending, serial."""

_LABELS = {
    Side.IDP: b"idpmike local interface v1: idp to mike",
    Side.MIKE: b"idpmike local interface v1: mike to idp",
}

_KINDS: dict[Side, tuple[MessageKind, ...]] = {
    Side.IDP: (
        MessageKind.OPENED,
        MessageKind.SIGNAL,
        MessageKind.CREDENTIAL,
        MessageKind.STANDING,
        MessageKind.STATUS_ACK,
        MessageKind.RESYNC,
    ),
    Side.MIKE: (
        MessageKind.OPENED,
        MessageKind.GROUP_STATUS,
        MessageKind.SIGNAL_ACK,
        MessageKind.RESYNC,
    ),
}
"""What each daemon may send."""


def direction_key(secret: bytes, sender: Side) -> bytes:
    """Derive the MAC key of what ``sender`` sends: HKDF-Expand (RFC 5869) of one block.

    The secret is 32 uniformly random bytes, so the extract step is not needed
    (RFC 5869 section 3.3).
    """
    if len(secret) != SECRET_LENGTH:
        raise LocalError(f"the local secret has {len(secret)} bytes, not {SECRET_LENGTH}")
    return hmac.digest(secret, _LABELS[sender] + b"\x01", "sha256")


def encode(frame: Frame, key: bytes) -> bytes:
    """Return the datagram."""
    message = frame.message
    body = Writer()
    serial = 0
    match message:
        case LinkOpened():
            kind, serial = MessageKind.OPENED, message.serial
        case Signal():
            kind, serial = MessageKind.SIGNAL, message.serial
            body.push_u8(message.kind)
            body.push_address(message.peer)
            body.push_u64(message.startup_wall_ns, "startup_wall_ns")
            body.push_u64(message.sent_wall_ns, "sent_wall_ns")
        case Credential():
            kind, serial = MessageKind.CREDENTIAL, message.serial
            body.push_u8(message.kind)
            body.push_vector(message.der, DER_MAX, "der")
        case Standing():
            kind, serial = MessageKind.STANDING, message.serial
            body.push_address(message.peer)
            body.push_vector(message.reason.encode(), REASON_MAX, "reason")
        case SignalAck():
            kind, serial = MessageKind.SIGNAL_ACK, message.serial
        case GroupStatus():
            kind, serial = MessageKind.GROUP_STATUS, message.serial
            _encode_status(message, body)
        case StatusAck():
            kind, serial = MessageKind.STATUS_ACK, message.serial
        case Resync():
            kind = MessageKind.RESYNC
            body.push_u64(message.floor, "floor")
    writer = Writer()
    instances = frame.instance, frame.origin, frame.echo
    numbers = frame.oldest, frame.sent_wall_ns, serial
    writer.push_fields(_HEADER, "header", VERSION, kind, 0, *instances, *numbers)
    writer.push_bytes(body.finish())
    protected = writer.finish()
    return protected + hmac.digest(key, protected, "sha256")


def _encode_status(message: GroupStatus, body: Writer) -> None:
    """Append the body of a GroupStatus."""
    body.push_u64(message.epoch.number, "epoch number")
    body.push_bytes(message.epoch.tag, TAG_LENGTH, "epoch tag")
    body.push_vector(message.pointer.encode(), POINTER_MAX, "pointer")
    body.push_count(len(message.members), MEMBERS_MAX, "members")
    for member in message.members:
        body.push_address(member)
    body.push_address(message.tm)
    body.push_u64(message.sent_wall_ns, "sent_wall_ns")


def decode(datagram: bytes, key: bytes, sender: Side) -> Frame:
    """Check the MAC, then the syntax.

    Args:
        datagram: untrusted bytes.
        key: `direction_key` of the sender.
        sender: which daemon must have sent it; decides the kinds allowed.

    Raises:
        DecodeError: it is not a message of that daemon (LOCAL-1).
        PeerError: the MAC does not verify (LOCAL-3).
    """
    if not HEADER_LENGTH + MAC_LENGTH <= len(datagram) <= DATAGRAM_MAX:
        raise DecodeError("datagram", 0, f"{len(datagram)} bytes", RULE_SYNTAX)
    protected = datagram[:-MAC_LENGTH]
    mac = datagram[-MAC_LENGTH:]
    if not hmac.compare_digest(hmac.digest(key, protected, "sha256"), mac):
        raise PeerError(RULE_MAC, "the MAC does not verify")
    reader = Reader(protected, RULE_SYNTAX)
    version = reader.pull_u8("version")
    if version != VERSION:
        reader.fail("version", f"unknown version {version}")
    kind = reader.pull_enum(MessageKind, "kind")
    if kind not in _KINDS[sender]:
        reader.fail("kind", f"{kind.name} is not for {sender.name} to send")
    reader.pull_zero(2, "reserved")
    numbers = reader.pull_fields(_NUMBERS, "numbers")
    instance, origin, echo, oldest, sent_wall_ns, serial = numbers
    message = _decode_body(reader, kind, serial)
    reader.finish()
    if instance > INSTANCE_MAX or (isinstance(message, Resync) and message.floor > INSTANCE_MAX):
        reader.fail("instance", "above the maximum")
    if not 1 <= origin <= instance:
        reader.fail("origin", f"{origin} is not between 1 and the instance {instance}")
    if isinstance(message, Reliable) and not 1 <= oldest <= serial:
        reader.fail("oldest", f"{oldest} is not between 1 and the serial {serial}")
    return Frame(instance, origin, echo, oldest, sent_wall_ns, message)


def _decode_body(reader: Reader, kind: MessageKind, serial: int) -> Message:
    """Read what follows the header."""
    match kind:
        case MessageKind.OPENED:
            return LinkOpened(serial)
        case MessageKind.SIGNAL:
            return Signal(
                kind=reader.pull_enum(SignalKind, "signal kind"),
                peer=reader.pull_address("peer"),
                startup_wall_ns=reader.pull_u64("startup_wall_ns"),
                serial=serial,
                sent_wall_ns=reader.pull_u64("sent_wall_ns"),
            )
        case MessageKind.CREDENTIAL:
            return Credential(
                kind=reader.pull_enum(CredentialKind, "credential kind"),
                der=reader.pull_vector(DER_MAX, "der"),
                serial=serial,
            )
        case MessageKind.STANDING:
            peer = reader.pull_address("peer")
            return Standing(peer, _pull_text(reader, REASON_MAX, "reason"), serial)
        case MessageKind.SIGNAL_ACK:
            return SignalAck(serial)
        case MessageKind.STATUS_ACK:
            return StatusAck(serial)
        case MessageKind.RESYNC:
            if serial:
                reader.fail("serial", "a Resync has none")
            return Resync(reader.pull_u64("floor"))
        case MessageKind.GROUP_STATUS:
            return _decode_status(reader, serial)


def _decode_status(reader: Reader, serial: int) -> GroupStatus:
    """Read the body of a GroupStatus."""
    epoch = EpochId(reader.pull_u64("epoch number"), reader.pull_bytes(TAG_LENGTH, "epoch tag"))
    pointer = _pull_text(reader, POINTER_MAX, "pointer")
    count = reader.pull_count(MEMBERS_MAX, "members")
    members = tuple(reader.pull_address("member") for _ in range(count))
    if len(set(members)) != count:
        reader.fail("members", "a member is listed twice")
    return GroupStatus(
        serial=serial,
        epoch=epoch,
        pointer=pointer,
        members=members,
        tm=reader.pull_address("tm"),
        sent_wall_ns=reader.pull_u64("sent_wall_ns"),
    )


def _pull_text(reader: Reader, maximum: int, name: str) -> str:
    """Read a printable text of at most ``maximum`` bytes of UTF-8."""
    raw = reader.pull_vector(maximum, name)
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        reader.fail(name, "not UTF-8")
    if not text.isprintable():
        reader.fail(name, "not printable")
    return text
