"""Fields that several of MIKE's messages share: written and read in one place."""

from __future__ import annotations

from ipaddress import IPv6Address

from protocol.core.wire import Reader, Writer
from protocol.idpmike import EpochId
from protocol.mike.schedule import BLINDED_LENGTH, CONFIRMATION_LENGTH, EPOCH_TAG_LENGTH
from protocol.mike.treemath import ROOT, NodeName

RULE_SYNTAX = "MIKE-1"

NONCE_LENGTH = 16

SUITE_LENGTH = 1
"""Of the byte that says what blinded keys are; zero: X25519. Others are reserved for a hybrid."""

MESSAGE_MAX = 32 * 1024
"""Largest body of any message but TREE."""

TREE_MAX = 128 * 1024
"""Largest body of a TREE: one of 1024 members has at most 112.8 kB."""

PARTS_MAX = 32
"""Most fragments of any message but TREE: a bitmap of them is 4 bytes."""

TREE_PARTS_MAX = 4 * PARTS_MAX
"""Most fragments of a TREE: a bit of the bitmap stands for four of them."""

MEMBERS_MAX = 1024
"""Members in a TREE: as many as a status on the local interface lists."""

SHORT_POSITIONS_MAX = 256
"""Members up to which a position is one byte; above, two."""

LONG_FORM = 0xFFFF
"""Stands for a length in the place of one of 16 bits: the length follows, in 32."""

GROUP_MAX = 16384
"""Members in key distribution mode: thrice what takes a second to page to a newcomer."""

NODES_MAX = 2 * MEMBERS_MAX
NUMBER_MAX = 1 << 62
"""Largest epoch number on the wire. Never reached: see rule MIKE-4."""


def pull_number(reader: Reader, name: str) -> int:
    """Read an epoch number."""
    number = reader.pull_u64(name)
    if number > NUMBER_MAX:
        reader.fail(name, "no epoch has so large a number")
    return number


def push_epoch(writer: Writer, epoch: EpochId) -> None:
    """Append an epoch id."""
    writer.push_u64(epoch.number, "epoch number")
    writer.push_bytes(epoch.tag, EPOCH_TAG_LENGTH, "epoch tag")


def pull_epoch(reader: Reader, name: str) -> EpochId:
    """Read an epoch id."""
    return EpochId(pull_number(reader, name), reader.pull_bytes(EPOCH_TAG_LENGTH, name))


def push_head(writer: Writer, number: int, previous: EpochId, tm: IPv6Address) -> None:
    """Begin an announcement, of either mode."""
    writer.push_zero(SUITE_LENGTH)
    writer.push_u64(number, "number")
    push_epoch(writer, previous)
    writer.push_address(tm)


def pull_head(reader: Reader) -> tuple[int, EpochId, IPv6Address]:
    """Read how an announcement begins: number of the epoch, the one before, TM."""
    reader.pull_zero(SUITE_LENGTH, "suite")
    number = pull_number(reader, "number")
    if number == 0:
        reader.fail("number", "is zero")
    previous = pull_epoch(reader, "previous")
    if previous.number >= number:
        reader.fail("previous", f"epoch {previous.number} before epoch {number}")
    return number, previous, reader.pull_address("tm")


def push_keys(writer: Writer, keys: dict[NodeName, bytes]) -> None:
    """Append blinded keys by node, in ascending order."""
    writer.push_count(len(keys), NODES_MAX, "keys")
    for name in sorted(keys):
        writer.push_u32(name, "node")
        writer.push_bytes(keys[name], BLINDED_LENGTH, "key")


def pull_keys(reader: Reader) -> dict[NodeName, bytes]:
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


def push_confirmation(writer: Writer, tag: bytes | None) -> None:
    """Append an optional tag."""
    writer.push_u8(0 if tag is None else 1)
    if tag is not None:
        writer.push_bytes(tag, CONFIRMATION_LENGTH, "confirmation")


def pull_confirmation(reader: Reader) -> bytes | None:
    """Read an optional tag."""
    present = reader.pull_u8("has confirmation")
    if present > 1:
        reader.fail("has confirmation", f"unknown value {present}")
    return reader.pull_bytes(CONFIRMATION_LENGTH, "confirmation") if present else None


def push_announcement(writer: Writer, encoded: bytes) -> None:
    """Append the announcement of a TREE: its length, in the shortest form, and the bytes."""
    if len(encoded) < LONG_FORM:
        writer.push_vector(encoded, LONG_FORM - 1, "announcement")
        return
    writer.push_u16(LONG_FORM, "announcement")
    writer.push_u32(len(encoded), "announcement")
    writer.push_bytes(encoded)


def pull_announcement(reader: Reader) -> bytes:
    """Read the announcement of a TREE."""
    length = reader.pull_u16("announcement")
    if length == LONG_FORM:
        length = reader.pull_u32("announcement")
        if not LONG_FORM <= length <= TREE_MAX:
            reader.fail("announcement", f"length {length} is none of the long form")
    return reader.pull_bytes(length, "announcement")


def push_position(writer: Writer, place: int, size: int, name: str) -> None:
    """Append a position in a group of some size."""
    if size <= SHORT_POSITIONS_MAX:
        writer.push_u8(place, name)
    else:
        writer.push_u16(place, name)


def pull_position(reader: Reader, last: int, size: int, name: str) -> int:
    """Read a position above the last one."""
    place = reader.pull_u8(name) if size <= SHORT_POSITIONS_MAX else reader.pull_u16(name)
    if not last < place < size:
        reader.fail(name, f"position {place} of {size}, or not in ascending order")
    return place


def pull_nonces(reader: Reader, size: int) -> list[tuple[int, bytes]]:
    """Read positions in ascending order, each with a nonce."""
    nonces: list[tuple[int, bytes]] = []
    for _ in range(reader.pull_count(size, "nonces")):
        last = nonces[-1][0] if nonces else -1
        place = pull_position(reader, last, size, "nonce position")
        nonces.append((place, reader.pull_bytes(NONCE_LENGTH, "nonce")))
    return nonces


def pull_order(reader: Reader, size: int, name: str) -> list[int]:
    """Read positions in an order of the sender's choice, no two equal."""
    places: dict[int, None] = {}
    for _ in range(reader.pull_count(size, name)):
        place = pull_position(reader, -1, size, name)
        if place in places:
            reader.fail(name, f"position {place} twice")
        places[place] = None
    return list(places)
