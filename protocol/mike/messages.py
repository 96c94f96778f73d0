"""MIKE's messages: dataclass to body bytes and back; syntax only.

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
from protocol.identity.envelope import DATAGRAM_MAX, OVERHEAD
from protocol.idpmike import EpochId
from protocol.mike.change import Change
from protocol.mike.fields import (
    GROUP_MAX,
    MEMBERS_MAX,
    MESSAGE_MAX,
    NONCE_LENGTH,
    PARTS_MAX,
    RULE_SYNTAX,
    SUITE_LENGTH,
    TREE_MAX,
    TREE_PARTS_MAX,
    pull_announcement,
    pull_confirmation,
    pull_epoch,
    pull_head,
    pull_keys,
    pull_nonces,
    pull_number,
    pull_order,
    push_announcement,
    push_confirmation,
    push_epoch,
    push_head,
    push_keys,
    push_position,
)
from protocol.mike.keytree import KeyTree
from protocol.mike.rekeying import Page, Rekey
from protocol.mike.schedule import (
    BLINDED_LENGTH,
    CONFIRMATION_LENGTH,
    EPOCH_TAG_LENGTH,
    announcement_digest,
)
from protocol.mike.treemath import ROOT, NodeName, inner_nodes, leaves_from_levels, level

MESSAGE_ID_LENGTH = 8
FRAGMENT_OVERHEAD = OVERHEAD + MESSAGE_ID_LENGTH + 1 + 1 + 1 + 2
"""Bytes of a fragment's datagram beside the part that it carries."""

PART_MAX = DATAGRAM_MAX - FRAGMENT_OVERHEAD

OPEN_FLAG = 0x80
LEAVING_FLAG = 0x01
NO_EPOCH = EpochId(0, bytes(EPOCH_TAG_LENGTH))
"""Stands for "none": real epochs count from 1."""

NO_MESSAGE = bytes(MESSAGE_ID_LENGTH)
"""Stands for "none" where a message is named."""


class Kind(IntEnum):
    """Message type in the envelope."""

    JOIN = 1
    TREE = 2
    PATH = 3
    STATUS = 4
    REPAIR = 5
    HANDOVER = 6
    FRAGMENT = 7
    REKEY = 8
    PAGE = 9
    CHANGE = 10


FRAGMENTED = frozenset({Kind.TREE, Kind.REKEY, Kind.PAGE, Kind.CHANGE})
"""Kinds that may come in fragments: all others are small whatever the group."""


def limits(kind: Kind) -> tuple[int, int]:
    """Return the most bytes, and the most fragments, of a message of this kind."""
    return (TREE_MAX, TREE_PARTS_MAX) if kind is Kind.TREE else (MESSAGE_MAX, PARTS_MAX)


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
        writer.push_zero(SUITE_LENGTH)
        writer.push_bytes(self.nonce, NONCE_LENGTH, "nonce")
        writer.push_bytes(self.key, BLINDED_LENGTH, "key")
        writer.push_u64(self.highest, "highest")
        return writer.finish()

    @classmethod
    def decode(cls, body: bytes) -> Join:
        """Read a body."""
        reader = Reader(body, RULE_SYNTAX)
        reader.pull_zero(SUITE_LENGTH, "suite")
        message = cls(
            reader.pull_bytes(NONCE_LENGTH, "nonce"),
            reader.pull_bytes(BLINDED_LENGTH, "key"),
            pull_number(reader, "highest"),
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
        sponsors: who must publish; a node is published by the last one listed that is below it.
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
        push_head(writer, self.number, self.previous, self.tm)
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
            push_position(writer, position[sponsor], len(tree), "sponsor")
        writer.push_count(len(self.nonces), MEMBERS_MAX, "nonces")
        for member, nonce in self.nonces:
            push_position(writer, position[member], len(tree), "nonce position")
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
        number, previous, tm = pull_head(reader)
        tree = _decode_tree(reader)
        addresses = tree.addresses
        if tm not in addresses:
            reader.fail("tm", "is not a member")
        sponsors = pull_order(reader, len(tree), "sponsors")
        nonces = tuple((addresses[place], nonce) for place, nonce in pull_nonces(reader, len(tree)))
        reader.finish()
        made = cls(
            number, previous, tm, tree, tuple(addresses[place] for place in sponsors), nonces
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
        push_announcement(writer, self.announcement.encoded)
        writer.push_u32(self.term, "term")
        push_keys(writer, self.keys)
        push_confirmation(writer, self.confirmation)
        return writer.finish()

    @classmethod
    def decode(cls, body: bytes) -> Tree:
        """Read a body."""
        reader = Reader(body, RULE_SYNTAX)
        announcement = Announcement.decode(pull_announcement(reader))
        term = reader.pull_u32("term")
        keys = pull_keys(reader)
        confirmation = pull_confirmation(reader)
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
        push_epoch(writer, self.epoch)
        push_keys(writer, self.keys)
        push_confirmation(writer, self.confirmation)
        return writer.finish()

    @classmethod
    def decode(cls, body: bytes) -> Path:
        """Read a body."""
        reader = Reader(body, RULE_SYNTAX)
        message = cls(pull_epoch(reader, "epoch"), pull_keys(reader), pull_confirmation(reader))
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
        push_epoch(writer, self.epoch)
        writer.push_u32(self.term, "term")
        writer.push_u16(self.members, "members")
        writer.push_bytes(self.confirmation, CONFIRMATION_LENGTH, "confirmation")
        return writer.finish()

    @classmethod
    def decode(cls, body: bytes) -> Status:
        """Read a body."""
        reader = Reader(body, RULE_SYNTAX)
        message = cls(
            pull_epoch(reader, "epoch"),
            reader.pull_u32("term"),
            reader.pull_count(GROUP_MAX, "members", minimum=1),
            reader.pull_bytes(CONFIRMATION_LENGTH, "confirmation"),
        )
        reader.finish()
        return message


@dataclass(frozen=True, slots=True)
class Repair:
    """A device lacks an epoch it heard of, or fragments of a message.

    Attributes:
        wanted: the epoch it lacks; `NO_EPOCH`: it lacks fragments.
        held: the epoch it has established, or `NO_EPOCH`.
        message: the incomplete message, all zero where ``wanted`` says an epoch.
        missing: bit k set: a fragment whose index is k, or k more than a multiple of 32, is
            missing; 0 where ``wanted`` says an epoch.
    """

    wanted: EpochId
    held: EpochId
    message: bytes = NO_MESSAGE
    missing: int = 0

    def encode(self) -> bytes:
        """Return the body."""
        writer = Writer()
        push_epoch(writer, self.wanted)
        push_epoch(writer, self.held)
        writer.push_bytes(self.message, MESSAGE_ID_LENGTH, "message")
        writer.push_u32(self.missing, "missing")
        return writer.finish()

    @classmethod
    def decode(cls, body: bytes) -> Repair:
        """Read a body."""
        reader = Reader(body, RULE_SYNTAX)
        message = cls(
            pull_epoch(reader, "wanted"),
            pull_epoch(reader, "held"),
            reader.pull_bytes(MESSAGE_ID_LENGTH, "message"),
            reader.pull_u32("missing"),
        )
        reader.finish()
        parts, epoch = bool(message.missing), message.wanted != NO_EPOCH
        if parts in (epoch, message.message == NO_MESSAGE):
            reader.fail("missing", "neither an epoch nor fragments of a message")
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
        push_epoch(writer, self.epoch)
        writer.push_address(self.successor)
        writer.push_u32(self.term, "term")
        writer.push_u64(self.highest, "highest")
        writer.push_u8(LEAVING_FLAG if self.leaving else 0)
        return writer.finish()

    @classmethod
    def decode(cls, body: bytes) -> Handover:
        """Read a body."""
        reader = Reader(body, RULE_SYNTAX)
        epoch = pull_epoch(reader, "epoch")
        successor = reader.pull_address("successor")
        term = reader.pull_u32("term")
        highest = pull_number(reader, "highest")
        flags = reader.pull_u8("flags")
        if flags & ~LEAVING_FLAG:
            reader.fail("flags", "unknown flags")
        reader.finish()
        return cls(epoch, successor, term, highest, bool(flags & LEAVING_FLAG))


@dataclass(frozen=True, slots=True)
class Fragment:
    """A part of a message that does not fit into one datagram; signed like any message.

    Attributes:
        message: `protocol.mike.fragments.message_id` of the whole.
        kind: of the whole.
        index: which part, from 0.
        count: how many parts there are, from 2 to the most of its kind (`limits`).
        part: the bytes, of the same length in all parts but the last.
    """

    message: bytes
    kind: Kind
    index: int
    count: int
    part: bytes = field(repr=False)

    def encode(self) -> bytes:
        """Return the body."""
        writer = Writer()
        writer.push_bytes(self.message, MESSAGE_ID_LENGTH, "message")
        writer.push_u8(self.kind)
        writer.push_u8(self.index)
        writer.push_u8(self.count)
        writer.push_vector(self.part, PART_MAX, "part")
        return writer.finish()

    @classmethod
    def decode(cls, body: bytes) -> Fragment:
        """Read a body."""
        reader = Reader(body, RULE_SYNTAX)
        message = reader.pull_bytes(MESSAGE_ID_LENGTH, "message")
        kind = reader.pull_u8("kind")
        index = reader.pull_u8("index")
        count = reader.pull_u8("count")
        part = reader.pull_vector(PART_MAX, "part")
        reader.finish()
        if message == NO_MESSAGE:
            reader.fail("message", "no message has this name")
        if kind not in FRAGMENTED:
            reader.fail("kind", f"no message of kind {kind} comes in fragments")
        if not 2 <= count <= limits(Kind(kind))[1] or index >= count or not part:
            reader.fail("index", f"no part {index} of {count}")
        return cls(message, Kind(kind), index, count, part)


Message = Join | Tree | Path | Status | Repair | Handover | Fragment | Rekey | Page | Change

DECODERS: dict[Kind, Callable[[bytes], Message]] = {
    Kind.JOIN: Join.decode,
    Kind.TREE: Tree.decode,
    Kind.PATH: Path.decode,
    Kind.STATUS: Status.decode,
    Kind.REPAIR: Repair.decode,
    Kind.HANDOVER: Handover.decode,
    Kind.FRAGMENT: Fragment.decode,
    Kind.REKEY: Rekey.decode,
    Kind.PAGE: Page.decode,
    Kind.CHANGE: Change.decode,
}
