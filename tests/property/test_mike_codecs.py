"""Every decoder of MIKE: reads back what was written, and raises nothing but DecodeError."""

from __future__ import annotations

import contextlib
from ipaddress import IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.core.errors import DecodeError, PeerError
from protocol.idpmike import EpochId
from protocol.mike.change import Change, Inner, Kept, Leaf, Piece, changed, difference
from protocol.mike.fields import GROUP_MAX, MEMBERS_MAX, NUMBER_MAX, PARTS_MAX
from protocol.mike.keytree import KeyTree
from protocol.mike.messages import (
    DECODERS,
    FRAGMENTED,
    MESSAGE_ID_LENGTH,
    NO_EPOCH,
    Announcement,
    Fragment,
    Handover,
    Join,
    Kind,
    Message,
    Path,
    Repair,
    Status,
    Tree,
    limits,
)
from protocol.mike.rekeying import (
    ENTRY_LENGTH,
    LEAF,
    PAGE_OVERHEAD,
    REKEY_OVERHEAD,
    WRAP_LENGTH,
    Page,
    Rekey,
    RekeyAnnouncement,
    Wrap,
)
from protocol.mike.rules import tree_body_max
from protocol.mike.schedule import WRAPPED_LENGTH
from protocol.mike.treemath import ROOT, NodeName

numbers = st.integers(0, NUMBER_MAX)
addresses = st.integers(0, (1 << 128) - 1).map(IPv6Address)
keys = st.binary(min_size=32, max_size=32)
tags = st.binary(min_size=16, max_size=16)
epochs = st.builds(EpochId, numbers, st.binary(min_size=8, max_size=8))
node_keys = st.dictionaries(st.integers(2, (1 << 32) - 1).map(NodeName), keys, max_size=8)


@st.composite
def trees(draw: st.DrawFn) -> KeyTree:
    """A tree grown and shrunk at random, with some of its keys known."""
    who = draw(st.lists(addresses, min_size=1, max_size=12, unique=True))
    tree = KeyTree({ROOT: who[0]}, {})
    for address in who[1:]:
        tree, _ = tree.inserted(address, draw(keys), draw(st.none() | keys))
    for address in draw(st.lists(st.sampled_from(who), max_size=len(who) - 1, unique=True)):
        tree, _ = tree.removed(address)
    for name in tree.open_nodes():
        if draw(st.booleans()):
            tree = tree.filled({name: draw(keys)})
    return tree


@st.composite
def announcements(draw: st.DrawFn) -> Announcement:
    tree = draw(trees())
    members = tree.addresses
    number = draw(st.integers(1, NUMBER_MAX))
    previous = EpochId(draw(st.integers(0, number - 1)), draw(st.binary(min_size=8, max_size=8)))
    picks = draw(st.lists(st.booleans(), min_size=len(members), max_size=len(members)))
    asked = draw(st.lists(st.booleans(), min_size=len(members), max_size=len(members)))
    return Announcement(
        number,
        previous,
        draw(st.sampled_from(members)),
        tree,
        tuple(who for who, pick in zip(members, picks, strict=True) if pick),
        tuple((who, draw(tags)) for who, ask in zip(members, asked, strict=True) if ask),
    )


@st.composite
def tree_messages(draw: st.DrawFn) -> Tree:
    announcement = draw(announcements())
    supplement = {
        name: draw(keys) for name in announcement.tree.open_nodes() if draw(st.booleans())
    }
    return Tree(announcement, draw(st.integers(0, 1 << 31)), supplement, draw(st.none() | tags))


entries = st.lists(st.tuples(addresses, keys), max_size=6, unique_by=lambda entry: entry[0])


@st.composite
def rekeys(draw: st.DrawFn) -> Rekey:
    number = draw(st.integers(1, NUMBER_MAX))
    previous = EpochId(draw(st.integers(0, number - 1)), draw(st.binary(min_size=8, max_size=8)))
    added = draw(entries)
    tm = draw(addresses)
    kept = {tm, *(who for who, _ in added)}
    removed = draw(st.lists(addresses.filter(lambda who: who not in kept), max_size=6, unique=True))
    nonces = draw(st.dictionaries(addresses, tags, max_size=6))
    content = RekeyAnnouncement(
        number,
        previous,
        tm,
        draw(st.integers(1, GROUP_MAX)),
        draw(keys),
        tuple(sorted(removed)),
        tuple(added),
        tuple(sorted(nonces.items())),
    )
    unders = draw(st.lists(st.integers(1, (1 << 32) - 1), max_size=8, unique=True))
    wraps = {
        under: Wrap(
            draw(st.integers(0, LEAF - 1).filter(lambda number, under=under: number != under)),
            draw(st.binary(min_size=WRAPPED_LENGTH, max_size=WRAPPED_LENGTH)),
        )
        for under in unders
    }
    confirmation = draw(st.none() | tags)
    return Rekey(content, draw(st.integers(0, 1 << 31)), draw(keys), wraps, confirmation)


pages = st.builds(Page, keys, st.integers(0, GROUP_MAX - 6), entries.filter(bool).map(tuple))

members_of_trees = st.builds(Leaf, addresses, st.none() | keys)
subtrees = st.builds(Kept, st.integers(1, (1 << 32) - 1).map(NodeName), st.none() | keys)


@st.composite
def changes(draw: st.DrawFn) -> Change:
    number = draw(st.integers(1, NUMBER_MAX))
    pieces: list[Piece] = []
    wanting = 1
    while wanting:
        grows = len(pieces) < 8 and draw(st.booleans())
        pieces.append(Inner(draw(st.none() | keys)) if grows else draw(members_of_trees | subtrees))
        wanting += 1 if grows else -1
    return Change(
        number,
        EpochId(draw(st.integers(0, number - 1)), draw(st.binary(min_size=8, max_size=8))),
        draw(addresses),
        draw(keys),
        tuple(pieces),
        tuple(draw(st.lists(addresses, max_size=3))),
        tuple(draw(st.lists(st.tuples(addresses, tags), max_size=3))),
        draw(st.integers(0, 1 << 31)),
        draw(node_keys),
        draw(st.none() | tags),
    )


message_ids = st.binary(min_size=MESSAGE_ID_LENGTH, max_size=MESSAGE_ID_LENGTH).filter(any)


@st.composite
def fragments(draw: st.DrawFn) -> Fragment:
    kind = draw(st.sampled_from(sorted(FRAGMENTED)))
    count = draw(st.integers(2, limits(kind)[1]))
    return Fragment(
        draw(message_ids),
        kind,
        draw(st.integers(0, count - 1)),
        count,
        draw(st.binary(min_size=1, max_size=1500)),
    )


messages = st.one_of(
    st.builds(Join, tags, keys, numbers),
    tree_messages(),
    st.builds(Path, epochs, node_keys, st.none() | tags),
    st.builds(Status, epochs, st.integers(0, 1 << 31), st.integers(1, 255), tags),
    st.builds(Repair, epochs.filter(lambda epoch: epoch != NO_EPOCH), epochs),
    st.builds(Repair, st.just(NO_EPOCH), epochs, message_ids, st.integers(1, (1 << PARTS_MAX) - 1)),
    fragments(),
    rekeys(),
    pages,
    changes(),
    st.builds(Handover, epochs, addresses, st.integers(0, 1 << 31), numbers, st.booleans()),
)


def kind_of(message: Message) -> Kind:
    return Kind[type(message).__name__.upper()]


@given(messages)
def test_what_is_written_is_read_back(message: Message) -> None:
    body = message.encode()
    again = DECODERS[kind_of(message)](body)
    assert again == message
    assert again.encode() == body
    if isinstance(message, Tree):
        assert isinstance(again, Tree)
        assert again.announcement.epoch == message.announcement.epoch
        fresh = Announcement(
            again.announcement.number,
            again.announcement.previous,
            again.announcement.tm,
            again.announcement.tree,
            again.announcement.sponsors,
            again.announcement.nonces,
        )
        assert fresh.encoded == again.announcement.encoded
        assert len(body) <= tree_body_max(len(message.announcement.tree))


@given(messages, st.data())
def test_a_damaged_body_is_refused_or_is_another_canonical_message(
    message: Message, data: st.DataObject
) -> None:
    """MIKE-1."""
    body = bytearray(message.encode())
    place = data.draw(st.integers(0, len(body) - 1))
    body[place] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(DecodeError):
        again: Message = DECODERS[kind_of(message)](bytes(body))
        assert again.encode() == bytes(body)
        assert again != message


@given(messages, st.data())
def test_a_truncated_or_longer_body_is_refused(message: Message, data: st.DataObject) -> None:
    """MIKE-1."""
    body = message.encode()
    cut = data.draw(st.integers(0, len(body) - 1))
    decode = DECODERS[kind_of(message)]
    for bad in (body[:cut], body + b"\x00"):
        with pytest.raises(DecodeError) as refused:
            decode(bad)
        assert refused.value.rule == "MIKE-1"


@given(trees(), trees())
def test_any_tree_can_be_told_in_pieces_of_any_other(before: KeyTree, after: KeyTree) -> None:
    """MIKE-39."""
    assert changed(before, difference(before, after)) == after
    assert difference(after, after) == (Kept(ROOT),) or len(after) == 1


@given(trees(), changes())
def test_pieces_of_anybody_make_a_tree_or_are_refused(before: KeyTree, message: Change) -> None:
    """MIKE-39, MIKE-1: and what they make is no larger than a TREE may be."""
    with contextlib.suppress(PeerError):
        assert len(changed(before, message.pieces)) <= MEMBERS_MAX


@given(st.sampled_from(list(Kind)), st.binary(max_size=400))
def test_noise_raises_decode_error_and_nothing_else(kind: Kind, noise: bytes) -> None:
    with contextlib.suppress(DecodeError):
        DECODERS[kind](noise)


def test_the_size_of_a_rekey_is_what_the_bounds_count_on() -> None:
    """MIKE-35."""
    who = IPv6Address("2001:db8::1")
    content = RekeyAnnouncement(1, NO_EPOCH, who, 1, bytes(32))
    assert len(Rekey(content, 0, bytes(32), {}, bytes(16)).encode()) == REKEY_OVERHEAD
    entry = ((who, bytes(32)),)
    assert len(Page(bytes(32), 0, entry).encode()) == PAGE_OVERHEAD + ENTRY_LENGTH
    told = Rekey(content, 0, bytes(32), {1: Wrap(0, bytes(WRAPPED_LENGTH))}, bytes(16))
    assert len(told.encode()) == REKEY_OVERHEAD + WRAP_LENGTH


def test_no_epoch_is_all_zero() -> None:
    assert Repair(NO_EPOCH, NO_EPOCH).encode() == bytes(44)
