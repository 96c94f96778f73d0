"""MIKE's six messages: dataclass to body bytes and back; syntax only.

The body travels in the signed envelope of `protocol.identity`, which names the sender, its instance
and the message's kind. Field tables: docs/mike.md section 3. A decoder raises `DecodeError` under
rule MIKE-1 and nothing else; there is one encoding of every message, and another one is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from ipaddress import IPv6Address

from protocol.core.wire import Reader, Writer
from protocol.identity import BODY_MAX
from protocol.idpmike import EpochId
from protocol.mike.keytree import KeyTree
from protocol.mike.schedule import (
    BLINDED_LENGTH,
    CONFIRMATION_LENGTH,
    EPOCH_TAG_LENGTH,
    announcement_digest,
)
from protocol.mike.treemath import ROOT, NodeName, inner_nodes, leaves_from_levels, level

RULE_SYNTAX = "MIKE-1"

NONCE_LENGTH = 16
MEMBERS_MAX = 255
"""Positions are one byte; the 8 KiB of a datagram end earlier."""

NODES_MAX = 2 * MEMBERS_MAX
NUMBER_MAX = 1 << 62
"""Largest epoch number on the wire. Never reached: see rule MIKE-4."""

OPEN_FLAG = 0x80
LEAVING_FLAG = 0x01
NO_EPOCH = EpochId(0, bytes(EPOCH_TAG_LENGTH))
"""Stands for "none": real epochs count from 1."""


class Kind(IntEnum):
    """Message type in the envelope."""

    JOIN = 1
    TREE = 2
    PATH = 3
    STATUS = 4
    REPAIR = 5
    HANDOVER = 6


@dataclass(frozen=True, slots=True)
class Join:
    """A device asks the TM to be put (again) into the group.

    Attributes:
        nonce: names this request; echoed by the TREE that grants it.
        key: the joiner's fresh blinded leaf key.
        highest: largest epoch number the joiner has seen; the new epoch's will be larger.
    """

    nonce: bytes
    key: bytes
    highest: int

    def encode(self) -> bytes:
        """Return the body."""
        writer = Writer()
        writer.push_bytes(self.nonce, NONCE_LENGTH, "nonce")
        writer.push_bytes(self.key, BLINDED_LENGTH, "key")
        writer.push_u64(self.highest, "highest")
        return writer.finish()

    @classmethod
    def decode(cls, body: bytes) -> Join:
        """Read a body."""
        reader = Reader(body, RULE_SYNTAX)
        message = cls(
            reader.pull_bytes(NONCE_LENGTH, "nonce"),
            reader.pull_bytes(BLINDED_LENGTH, "key"),
            _pull_number(reader, "highest"),
        )
        reader.finish()
        return message


@dataclass(frozen=True)
class Announcement:
    """What a TM decides about one epoch; hashed, so it never changes afterwards.

    Attributes:
        number: of the epoch.
        previous: the epoch it follows, `NO_EPOCH` for a founder's first.
        tm: who announced it.
        tree: members, and the blinded keys that are valid in it; what the sponsors must publish
            is open.
        sponsors: who must publish, in position order.
        nonces: (member, nonce) of the JOINs granted, in position order.
    """

    number: int
    previous: EpochId
    tm: IPv6Address
    tree: KeyTree
    sponsors: tuple[IPv6Address, ...] = ()
    nonces: tuple[tuple[IPv6Address, bytes], ...] = ()

    @cached_property
    def encoded(self) -> bytes:
        """The canonical bytes."""
        tree = self.tree
        position = {address: place for place, address in enumerate(tree.addresses)}
        writer = Writer()
        writer.push_u64(self.number, "number")
        _push_epoch(writer, self.previous)
        writer.push_address(self.tm)
        writer.push_count(len(tree), MEMBERS_MAX, "members")
        for leaf, address in tree.members.items():
            key = tree.blinded.get(leaf)
            writer.push_address(address)
            writer.push_u8(level(leaf) | (OPEN_FLAG if key is None else 0), "level")
            if key is not None:
                writer.push_bytes(key, BLINDED_LENGTH, "leaf key")
        inner = inner_nodes(tree.members)
        bits = 0
        for place, name in enumerate(inner):
            if name in tree.blinded:
                bits |= 1 << place
        writer.push_bytes(bits.to_bytes((len(inner) + 7) // 8, "little"))
        for name in inner:
            if name in tree.blinded:
                writer.push_bytes(tree.blinded[name], BLINDED_LENGTH, "node key")
        writer.push_count(len(self.sponsors), MEMBERS_MAX, "sponsors")
        for sponsor in self.sponsors:
            writer.push_u8(position[sponsor], "sponsor")
        writer.push_count(len(self.nonces), MEMBERS_MAX, "nonces")
        for member, nonce in self.nonces:
            writer.push_u8(position[member], "nonce position")
            writer.push_bytes(nonce, NONCE_LENGTH, "nonce")
        return writer.finish()

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the canonical bytes, labelled."""
        return announcement_digest(self.encoded)

    @cached_property
    def epoch(self) -> EpochId:
        """The epoch's id: the number, and what tells two TMs' epochs of one number apart."""
        return EpochId(self.number, self.digest[:EPOCH_TAG_LENGTH])

    @classmethod
    def decode(cls, encoded: bytes) -> Announcement:
        """Read the canonical bytes."""
        reader = Reader(encoded, RULE_SYNTAX)
        number = _pull_number(reader, "number")
        if number == 0:
            reader.fail("number", "is zero")
        previous = _pull_epoch(reader, "previous")
        if previous.number >= number:
            reader.fail("previous", f"epoch {previous.number} before epoch {number}")
        tm = reader.pull_address("tm")
        tree = _decode_tree(reader)
        addresses = tree.addresses
        if tm not in addresses:
            reader.fail("tm", "is not a member")
        sponsors = _pull_positions(reader, len(tree), "sponsors")
        count = reader.pull_count(len(tree), "nonces")
        nonces = []
        last = -1
        for _ in range(count):
            last = _pull_position(reader, last, len(tree), "nonce position")
            nonces.append((addresses[last], reader.pull_bytes(NONCE_LENGTH, "nonce")))
        reader.finish()
        made = cls(
            number, previous, tm, tree, tuple(addresses[place] for place in sponsors), tuple(nonces)
        )
        # The encoding is canonical, so the bytes read are the bytes to hash.
        made.__dict__["encoded"] = encoded
        return made


def _decode_tree(reader: Reader) -> KeyTree:
    """Read members and blinded keys."""
    count = reader.pull_count(MEMBERS_MAX, "members", minimum=1)
    addresses = []
    levels = []
    leaf_keys = []
    for _ in range(count):
        addresses.append(reader.pull_address("member"))
        flags = reader.pull_u8("level")
        levels.append(flags & ~OPEN_FLAG)
        is_open = flags & OPEN_FLAG
        leaf_keys.append(None if is_open else reader.pull_bytes(BLINDED_LENGTH, "leaf key"))
    leaves = leaves_from_levels(levels)
    if leaves is None:
        reader.fail("level", "these leaves make no tree")
    if len(set(addresses)) != count:
        reader.fail("member", "a member is named twice")
    blinded = {leaf: key for leaf, key in zip(leaves, leaf_keys, strict=True) if key is not None}
    if ROOT in blinded:
        reader.fail("leaf key", "the root has no blinded key")
    inner = inner_nodes(leaves)
    bits = int.from_bytes(reader.pull_bytes((len(inner) + 7) // 8, "known nodes"), "little")
    if bits >> len(inner):
        reader.fail("known nodes", "a bit without a node")
    for place, name in enumerate(inner):
        if bits >> place & 1:
            blinded[name] = reader.pull_bytes(BLINDED_LENGTH, "node key")
    return KeyTree(dict(zip(leaves, addresses, strict=True)), blinded)


@dataclass(frozen=True, slots=True)
class Tree:
    """The TM's word about an epoch: the announcement, and what was learnt since.

    Attributes:
        announcement: what was decided.
        term: number of hand-overs since the announcement; the sender is the announcing TM at 0.
        keys: blinded keys of nodes that are open in the announcement, published meanwhile.
        confirmation: the sender's tag if it computed the root, else None.
    """

    announcement: Announcement
    term: int = 0
    keys: dict[NodeName, bytes] = field(default_factory=dict)
    confirmation: bytes | None = None

    def encode(self) -> bytes:
        """Return the body."""
        writer = Writer()
        writer.push_vector(self.announcement.encoded, BODY_MAX, "announcement")
        writer.push_u32(self.term, "term")
        _push_keys(writer, self.keys)
        _push_confirmation(writer, self.confirmation)
        return writer.finish()

    @classmethod
    def decode(cls, body: bytes) -> Tree:
        """Read a body."""
        reader = Reader(body, RULE_SYNTAX)
        announcement = Announcement.decode(reader.pull_vector(BODY_MAX, "announcement"))
        term = reader.pull_u32("term")
        keys = _pull_keys(reader)
        confirmation = _pull_confirmation(reader)
        reader.finish()
        if keys and not keys.keys() <= set(announcement.tree.open_nodes()):
            reader.fail("keys", "a key of a node that is not open")
        return cls(announcement, term, keys, confirmation)


@dataclass(frozen=True, slots=True)
class Path:
    """A sponsor publishes the blinded keys it is responsible for.

    Attributes:
        epoch: which epoch.
        keys: blinded keys by node, its own refreshed leaf key among them (after a leave).
        confirmation: the sender's tag if it computed the root, else None.
    """

    epoch: EpochId
    keys: dict[NodeName, bytes]
    confirmation: bytes | None = None

    def encode(self) -> bytes:
        """Return the body."""
        writer = Writer()
        _push_epoch(writer, self.epoch)
        _push_keys(writer, self.keys)
        _push_confirmation(writer, self.confirmation)
        return writer.finish()

    @classmethod
    def decode(cls, body: bytes) -> Path:
        """Read a body."""
        reader = Reader(body, RULE_SYNTAX)
        message = cls(_pull_epoch(reader, "epoch"), _pull_keys(reader), _pull_confirmation(reader))
        reader.finish()
        return message


@dataclass(frozen=True, slots=True)
class Status:
    """The TM's beacon.

    Attributes:
        epoch: the established epoch.
        term: number of hand-overs in it.
        members: group size.
        confirmation: the TM's tag of the epoch.
    """

    epoch: EpochId
    term: int
    members: int
    confirmation: bytes

    def encode(self) -> bytes:
        """Return the body."""
        writer = Writer()
        _push_epoch(writer, self.epoch)
        writer.push_u32(self.term, "term")
        writer.push_u16(self.members, "members")
        writer.push_bytes(self.confirmation, CONFIRMATION_LENGTH, "confirmation")
        return writer.finish()

    @classmethod
    def decode(cls, body: bytes) -> Status:
        """Read a body."""
        reader = Reader(body, RULE_SYNTAX)
        message = cls(
            _pull_epoch(reader, "epoch"),
            reader.pull_u32("term"),
            reader.pull_count(MEMBERS_MAX, "members", minimum=1),
            reader.pull_bytes(CONFIRMATION_LENGTH, "confirmation"),
        )
        reader.finish()
        return message


@dataclass(frozen=True, slots=True)
class Repair:
    """A device lacks an epoch it heard of.

    Attributes:
        wanted: the epoch it lacks.
        held: the epoch it has established, or `NO_EPOCH`.
    """

    wanted: EpochId
    held: EpochId

    def encode(self) -> bytes:
        """Return the body."""
        writer = Writer()
        _push_epoch(writer, self.wanted)
        _push_epoch(writer, self.held)
        return writer.finish()

    @classmethod
    def decode(cls, body: bytes) -> Repair:
        """Read a body."""
        reader = Reader(body, RULE_SYNTAX)
        message = cls(_pull_epoch(reader, "wanted"), _pull_epoch(reader, "held"))
        reader.finish()
        return message


@dataclass(frozen=True, slots=True)
class Handover:
    """The TM gives its role to another member.

    Attributes:
        epoch: the established epoch, in which the role changes.
        successor: the new TM.
        term: number of hand-overs in this epoch, this one included.
        highest: largest epoch number the old TM has used or seen.
        leaving: the old TM leaves the group; the new TM excludes it at once.
    """

    epoch: EpochId
    successor: IPv6Address
    term: int
    highest: int
    leaving: bool

    def encode(self) -> bytes:
        """Return the body."""
        writer = Writer()
        _push_epoch(writer, self.epoch)
        writer.push_address(self.successor)
        writer.push_u32(self.term, "term")
        writer.push_u64(self.highest, "highest")
        writer.push_u8(LEAVING_FLAG if self.leaving else 0)
        return writer.finish()

    @classmethod
    def decode(cls, body: bytes) -> Handover:
        """Read a body."""
        reader = Reader(body, RULE_SYNTAX)
        epoch = _pull_epoch(reader, "epoch")
        successor = reader.pull_address("successor")
        term = reader.pull_u32("term")
        highest = _pull_number(reader, "highest")
        flags = reader.pull_u8("flags")
        if flags & ~LEAVING_FLAG:
            reader.fail("flags", "unknown flags")
        reader.finish()
        return cls(epoch, successor, term, highest, bool(flags & LEAVING_FLAG))


Message = Join | Tree | Path | Status | Repair | Handover

DECODERS: dict[Kind, Callable[[bytes], Message]] = {
    Kind.JOIN: Join.decode,
    Kind.TREE: Tree.decode,
    Kind.PATH: Path.decode,
    Kind.STATUS: Status.decode,
    Kind.REPAIR: Repair.decode,
    Kind.HANDOVER: Handover.decode,
}


def _pull_number(reader: Reader, name: str) -> int:
    """Read an epoch number."""
    number = reader.pull_u64(name)
    if number > NUMBER_MAX:
        reader.fail(name, "no epoch has so large a number")
    return number


def _push_epoch(writer: Writer, epoch: EpochId) -> None:
    """Append an epoch id."""
    writer.push_u64(epoch.number, "epoch number")
    writer.push_bytes(epoch.tag, EPOCH_TAG_LENGTH, "epoch tag")


def _pull_epoch(reader: Reader, name: str) -> EpochId:
    """Read an epoch id."""
    return EpochId(_pull_number(reader, name), reader.pull_bytes(EPOCH_TAG_LENGTH, name))


def _push_keys(writer: Writer, keys: dict[NodeName, bytes]) -> None:
    """Append blinded keys by node, in ascending order."""
    writer.push_count(len(keys), NODES_MAX, "keys")
    for name in sorted(keys):
        writer.push_u32(name, "node")
        writer.push_bytes(keys[name], BLINDED_LENGTH, "key")


def _pull_keys(reader: Reader) -> dict[NodeName, bytes]:
    """Read blinded keys by node."""
    keys: dict[NodeName, bytes] = {}
    last = int(ROOT)
    for _ in range(reader.pull_count(NODES_MAX, "keys")):
        name = reader.pull_u32("node")
        if name <= last:
            reader.fail("node", "the root, or not in ascending order")
        keys[NodeName(name)] = reader.pull_bytes(BLINDED_LENGTH, "key")
        last = name
    return keys


def _push_confirmation(writer: Writer, tag: bytes | None) -> None:
    """Append an optional tag."""
    writer.push_u8(0 if tag is None else 1)
    if tag is not None:
        writer.push_bytes(tag, CONFIRMATION_LENGTH, "confirmation")


def _pull_confirmation(reader: Reader) -> bytes | None:
    """Read an optional tag."""
    present = reader.pull_u8("has confirmation")
    if present > 1:
        reader.fail("has confirmation", f"unknown value {present}")
    return reader.pull_bytes(CONFIRMATION_LENGTH, "confirmation") if present else None


def _pull_position(reader: Reader, last: int, size: int, name: str) -> int:
    """Read a position above the last one."""
    place = reader.pull_u8(name)
    if not last < place < size:
        reader.fail(name, f"position {place} of {size}, or not in ascending order")
    return place


def _pull_positions(reader: Reader, size: int, name: str) -> list[int]:
    """Read positions in ascending order."""
    places: list[int] = []
    for _ in range(reader.pull_count(size, name)):
        places.append(_pull_position(reader, places[-1] if places else -1, size, name))
    return places
