"""CHANGE: an epoch of key agreement mode, told by what differs from the epoch before.

The announcement stays what it is, and so does its hash, which names the epoch. A CHANGE is another
way to say it to whoever has the epoch before with all its blinded keys: the tree from its root
down, where a subtree that only moved is one number. Whoever lacks that epoch needs the TREE.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv6Address

from protocol.core.errors import PeerError
from protocol.core.wire import Reader, Writer
from protocol.idpmike import EpochId
from protocol.mike.fields import (
    MEMBERS_MAX,
    NODES_MAX,
    NONCE_LENGTH,
    RULE_SYNTAX,
    pull_confirmation,
    pull_head,
    pull_keys,
    push_confirmation,
    push_head,
    push_keys,
)
from protocol.mike.keytree import KeyTree
from protocol.mike.schedule import BLINDED_LENGTH, DIGEST_LENGTH, EPOCH_TAG_LENGTH
from protocol.mike.treemath import (
    LEVEL_MAX,
    ROOT,
    NodeName,
    inner_nodes,
    left,
    level,
    right,
    sibling,
)

RULE_CHANGE = "MIKE-39"

KEY_FLAG = 0x01
INNER, LEAF, KEPT = 0x00, 0x02, 0x04


@dataclass(frozen=True, slots=True)
class Inner:
    """An inner node; what is below its left child comes next, then what is below its right one.

    Attributes:
        key: its blinded key, None if it is open.
    """

    key: bytes | None


@dataclass(frozen=True, slots=True)
class Leaf:
    """A member that is new, or at whose leaf another key is.

    Attributes:
        address: who.
        key: blinded key of the leaf, None if it is open.
    """

    address: IPv6Address
    key: bytes | None


@dataclass(frozen=True, slots=True)
class Kept:
    """A subtree of the tree before, with all its members and keys.

    Attributes:
        node: its top there.
        key: key of the top in the new tree where it is another one (the old root had none).
    """

    node: NodeName
    key: bytes | None = None


Piece = Inner | Leaf | Kept


@dataclass(frozen=True, slots=True)
class Change:
    """The TM's word about an epoch, for those who have the one before.

    Attributes:
        number, previous, tm, sponsors, nonces: as in the announcement.
        digest: of the announcement.
        pieces: its tree, from the root down, left before right.
        term, keys, confirmation: as in TREE.
    """

    number: int
    previous: EpochId
    tm: IPv6Address
    digest: bytes
    pieces: tuple[Piece, ...]
    sponsors: tuple[IPv6Address, ...] = ()
    nonces: tuple[tuple[IPv6Address, bytes], ...] = ()
    term: int = 0
    keys: dict[NodeName, bytes] = field(default_factory=dict)
    confirmation: bytes | None = None

    @property
    def epoch(self) -> EpochId:
        """The epoch's id."""
        return EpochId(self.number, self.digest[:EPOCH_TAG_LENGTH])

    def encode(self) -> bytes:
        """Return the body."""
        writer = Writer()
        push_head(writer, self.number, self.previous, self.tm)
        writer.push_bytes(self.digest, DIGEST_LENGTH, "digest")
        for piece in self.pieces:
            _push_piece(writer, piece)
        writer.push_count(len(self.sponsors), MEMBERS_MAX, "sponsors")
        for sponsor in self.sponsors:
            writer.push_address(sponsor)
        writer.push_count(len(self.nonces), MEMBERS_MAX, "nonces")
        for member, nonce in self.nonces:
            writer.push_address(member)
            writer.push_bytes(nonce, NONCE_LENGTH, "nonce")
        writer.push_u32(self.term, "term")
        push_keys(writer, self.keys)
        push_confirmation(writer, self.confirmation)
        return writer.finish()

    @classmethod
    def decode(cls, body: bytes) -> Change:
        """Read a body."""
        reader = Reader(body, RULE_SYNTAX)
        number, previous, tm = pull_head(reader)
        digest = reader.pull_bytes(DIGEST_LENGTH, "digest")
        pieces = _pull_pieces(reader)
        sponsors = tuple(
            reader.pull_address("sponsor")
            for _ in range(reader.pull_count(MEMBERS_MAX, "sponsors"))
        )
        nonces = tuple(
            (reader.pull_address("nonce"), reader.pull_bytes(NONCE_LENGTH, "nonce"))
            for _ in range(reader.pull_count(MEMBERS_MAX, "nonces"))
        )
        term = reader.pull_u32("term")
        keys = pull_keys(reader)
        confirmation = pull_confirmation(reader)
        reader.finish()
        return cls(number, previous, tm, digest, pieces, sponsors, nonces, term, keys, confirmation)


def _push_piece(writer: Writer, piece: Piece) -> None:
    """Append what a piece is, and whether a key follows; then what it says."""
    flag = 0 if piece.key is None else KEY_FLAG
    match piece:
        case Inner():
            writer.push_u8(INNER | flag)
        case Leaf(address=address):
            writer.push_u8(LEAF | flag)
            writer.push_address(address)
        case Kept(node=node):
            writer.push_u8(KEPT | flag)
            writer.push_u32(node, "node")
    if piece.key is not None:
        writer.push_bytes(piece.key, BLINDED_LENGTH, "key")


def _pull_pieces(reader: Reader) -> tuple[Piece, ...]:
    """Read pieces until the tree is whole."""
    pieces: list[Piece] = []
    wanting = 1
    while wanting:
        if len(pieces) == NODES_MAX:
            reader.fail("piece", f"more than {NODES_MAX} pieces")
        pieces.append(_pull_piece(reader))
        wanting += 1 if isinstance(pieces[-1], Inner) else -1
    return tuple(pieces)


def _pull_piece(reader: Reader) -> Piece:
    """Read one piece."""
    kind = reader.pull_u8("piece")
    address, node = None, 0
    match kind & ~KEY_FLAG:
        case 0x00:
            pass
        case 0x02:
            address = reader.pull_address("member")
        case 0x04:
            node = reader.pull_u32("node")
            if node < ROOT:
                reader.fail("node", "no node")
        case _:
            reader.fail("piece", f"unknown value {kind}")
    key = reader.pull_bytes(BLINDED_LENGTH, "key") if kind & KEY_FLAG else None
    if address is not None:
        return Leaf(address, key)
    return Kept(NodeName(node), key) if node else Inner(key)


def difference(before: KeyTree, after: KeyTree) -> tuple[Piece, ...]:
    """Return a tree in pieces of another one."""
    same = dict(_unchanged(before, after))
    pieces: list[Piece] = []
    todo = [ROOT]
    while todo:
        name = todo.pop()
        key = after.blinded.get(name)
        was = same.get(name)
        if was is not None and (key is not None or before.blinded.get(was) is None):
            pieces.append(Kept(was, None if before.blinded.get(was) == key else key))
        elif name in after.members:
            pieces.append(Leaf(after.members[name], key))
        else:
            pieces.append(Inner(key))
            todo += [right(name), left(name)]
    return tuple(pieces)


def _unchanged(before: KeyTree, after: KeyTree) -> Iterator[tuple[NodeName, NodeName]]:
    """Yield the nodes whose subtree was there before, and where; their own keys may differ."""
    same: dict[int, NodeName] = {}
    for leaf, who in after.members.items():
        was = before.leaf_of(who)
        if was is not None and before.blinded.get(was) == after.blinded.get(leaf):
            same[leaf] = was
            yield leaf, was
    tops: Iterable[NodeName] = reversed([ROOT, *inner_nodes(after.members)])
    for name in tops:
        below, beside = same.get(left(name)), same.get(right(name))
        if below is None or beside is None or below & 1 or sibling(below) != beside:
            continue
        top = NodeName(below >> 1)
        yield name, top
        if before.blinded.get(top) == after.blinded.get(name):
            same[name] = top


def changed(before: KeyTree, pieces: Iterable[Piece]) -> KeyTree:
    """Return the tree that pieces make of another one.

    Raises:
        PeerError: they make none of what is there, or too large a one (MIKE-39).
    """
    inner = {ROOT, *inner_nodes(before.members)}
    members: dict[NodeName, IPv6Address] = {}
    blinded: dict[NodeName, bytes] = {}
    todo = [ROOT]
    for piece in pieces:
        name = todo.pop()
        match piece:
            case Inner():
                todo += [right(name), left(name)]
            case Leaf(address=address):
                members[name] = address
            case Kept(node=node):
                if node not in inner and node not in before.members:
                    raise PeerError(RULE_CHANGE, f"node {node} was not there before")
                _keep(before, node, name, members, blinded)
        if piece.key is not None:
            blinded[name] = piece.key
        if len(members) > MEMBERS_MAX or level(name) > LEVEL_MAX:
            raise PeerError(RULE_CHANGE, "a tree larger than any group's")
    return KeyTree(members, blinded)


def _keep(
    before: KeyTree,
    old_top: NodeName,
    new_top: NodeName,
    members: dict[NodeName, IPv6Address],
    blinded: dict[NodeName, bytes],
) -> None:
    """Add a subtree of the tree before, at another place."""
    todo = [(old_top, new_top)]
    while todo:
        was, name = todo.pop()
        key = before.blinded.get(was)
        if key is not None:
            blinded[name] = key
        who = before.members.get(was)
        if who is not None:
            members[name] = who
        else:
            todo += [(left(was), left(name)), (right(was), right(name))]
