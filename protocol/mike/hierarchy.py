"""The TM's logical key hierarchy (LKH, RFC 2627) in key distribution mode.

A binary tree with the other members at its leaves. A leaf's key is the pairwise key of TM and
member; every inner node has a random key, known to the members below it; the root secret, new in
every epoch, is wrapped under the topmost key. After a change every key on the path of a leaf that
came, went or has a new leaf key is drawn anew (MIKE-32): an excluded member knows none of the keys
that stay, and a new one gets none that was used before. Each new key is wrapped under the keys of
both children.

A key has a number, which is never used again in this hierarchy, so members need not know the tree:
they follow the numbers.

Balance: a leaf is inserted beside the one that is reached by going to the lighter child at every
node. It ends at most log2(n) + 1 below the top, n the number of leaves with it, and removals only
bring leaves up. So no path is ever longer than log2 of the largest n so far, plus 1, and no member
has to move.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from ipaddress import IPv6Address

from protocol.idpmike import EpochId
from protocol.mike.rekeying import LEAF, ROOT_KEY, Wrap
from protocol.mike.schedule import NodeSecret, pairwise_key, wrapped


class Node:
    """A leaf or an inner node.

    Attributes:
        key: its key; of a leaf: the pairwise key.
        number: of an inner node's key; of a leaf 0.
        parent: None at the top.
        children: left and right; empty at a leaf.
        weight: number of leaves below, itself included.
        member: whose leaf it is.
    """

    __slots__ = ("children", "key", "member", "number", "parent", "weight")

    def __init__(self, key: bytes, member: IPv6Address | None = None) -> None:
        self.key = key
        self.member = member
        self.number = 0
        self.parent: Node | None = None
        self.children: list[Node] = []
        self.weight = 1

    def path(self) -> Iterator[Node]:
        """Yield the inner nodes above, the top last."""
        above = self.parent
        while above is not None:
            yield above
            above = above.parent

    def __repr__(self) -> str:
        return f"Node({self.member or self.number})"


class Hierarchy:
    """The keys of one TM in one term of its role.

    Attributes:
        secret: the TM's distribution secret, drawn for this hierarchy.
        epoch: whose keys it has, None: of no epoch yet.
        root: that epoch's root secret.
    """

    def __init__(self, secret: NodeSecret, draw: Callable[[], bytes]) -> None:
        self.secret = secret
        self.epoch: EpochId | None = None
        self.root = b""
        self._draw = draw
        self._leaves: dict[IPv6Address, Node] = {}
        self._top: Node | None = None
        self._stale: dict[Node, None] = {}
        self._replaced: list[Node] = []
        self._numbers = ROOT_KEY

    def __len__(self) -> int:
        return len(self._leaves)

    def depth(self, address: IPv6Address) -> int:
        """Return the number of keys above a member's leaf key, the root secret included."""
        return sum(1 for _ in self._leaves[address].path()) + 1

    # Changes, then `renew`.

    def pairwise(self, address: IPv6Address, leaf_key: bytes) -> bytes:
        """Return the key shared with one member.

        Raises:
            PeerError: its leaf key is of low order (MIKE-6).
        """
        return pairwise_key(self.secret, leaf_key, self.secret.blinded, leaf_key, address)

    def put(self, address: IPv6Address, pairwise: bytes) -> None:
        """Add a member, or replace its leaf's key."""
        leaf = self._leaves.get(address)
        if leaf is None:
            leaf = self._leaves[address] = Node(pairwise, address)
            self._insert(leaf)
        leaf.key = pairwise
        self._mark(leaf)

    def remove(self, address: IPv6Address) -> None:
        """Take a member out; its sibling takes the parent's place."""
        leaf = self._leaves.pop(address)
        above = leaf.parent
        if above is None:
            self._top = None
            return
        self._mark(leaf)
        (heir,) = (child for child in above.children if child is not leaf)
        self._replace(above, heir)
        for node in heir.path():
            node.weight -= 1
        del self._stale[above]

    def renew(self) -> None:
        """Draw every key anew that somebody knows who must not, and the root secret."""
        self._replaced = list(self._stale)
        self._stale.clear()
        for node in self._replaced:
            self._numbers += 1
            node.number = self._numbers
            node.key = self._draw()
        self.root = self._draw()

    def _insert(self, leaf: Node) -> None:
        """Put a leaf beside the one that lies where the tree is lightest."""
        beside = self._top
        if beside is None:
            self._top = leaf
            return
        while beside.children:
            beside = min(beside.children, key=lambda child: child.weight)
        above = Node(b"")
        self._replace(beside, above)
        above.children = [beside, leaf]
        beside.parent = leaf.parent = above
        above.weight = 1
        for node in leaf.path():
            node.weight += 1

    def _replace(self, old: Node, new: Node) -> None:
        """Put a node into another one's place."""
        new.parent = old.parent
        if old.parent is None:
            self._top = new
        else:
            siblings = old.parent.children
            siblings[siblings.index(old)] = new

    def _mark(self, leaf: Node) -> None:
        """Note that every key above a leaf is to be drawn anew."""
        for node in leaf.path():
            self._stale[node] = None

    # What members get.

    def wraps(self, places: Mapping[IPv6Address, int], digest: bytes) -> dict[int, Wrap]:
        """Return the keys of the present epoch that are new, wrapped for all who may have them.

        Args:
            places: positions in the epoch's roster.
            digest: of the epoch's announcement.
        """
        found = {
            _under(child, places): _wrap(child, node.number, node.key, digest)
            for node in self._replaced
            for child in node.children
        }
        if self._top is not None:
            found[_under(self._top, places)] = _wrap(self._top, ROOT_KEY, self.root, digest)
        return found

    def path(
        self, address: IPv6Address, places: Mapping[IPv6Address, int], digest: bytes
    ) -> dict[int, Wrap]:
        """Return all keys from a member's leaf to the root, wrapped one under the other."""
        leaf = self._leaves.get(address)
        if leaf is None:
            return {}
        found = {}
        below = leaf
        for node in leaf.path():
            found[_under(below, places)] = _wrap(below, node.number, node.key, digest)
            below = node
        found[_under(below, places)] = _wrap(below, ROOT_KEY, self.root, digest)
        return found


def _under(node: Node, places: Mapping[IPv6Address, int]) -> int:
    """Return how a wrap names the key that wraps."""
    return node.number if node.member is None else LEAF | places[node.member]


def _wrap(under: Node, number: int, key: bytes, digest: bytes) -> Wrap:
    return Wrap(number, wrapped(under.key, digest, key))
