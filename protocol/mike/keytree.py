"""The key tree as all members see it: who sits where, and which blinded keys are known.

Immutable: every operation returns a new tree. No secret is ever in it. A node without a blinded key
is *open*: its key is not known to us (yet). The root has no blinded key while it is the root: its
secret is the group's.

Balance: a member is inserted at the shallowest, then rightmost node where the height does not grow,
at the root where none exists (TGDH's rule); a removed leaf's sibling subtree takes its parent's
place. Where leaves were many, the deepest members are moved until the height is at most
`height_max`, so every path is short, whoever left. A joiner's path has one node whenever the tree
was full.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv6Address
from typing import TypeVar

from protocol.core.errors import LocalError
from protocol.mike.treemath import (
    ROOT,
    NodeName,
    inner_nodes,
    is_below,
    key_path,
    left,
    level,
    moved,
    parent,
    position_key,
    right,
    sibling,
)

T = TypeVar("T")


def height_max(size: int) -> int:
    """Return the largest height of a tree with so many members: one above that of a full tree.

    The one in reserve makes moves rare: each costs its member and a neighbour a new leaf secret.
    """
    return (size - 1).bit_length() + 1


class KeyTree:
    """Members at leaves, blinded keys at nodes.

    Attributes:
        members: leaf to black address, from left to right (the position order).
        blinded: the known blinded keys by node; the root is not among them.
    """

    __slots__ = ("_leaf_of", "blinded", "members")

    def __init__(
        self, members: Mapping[NodeName, IPv6Address], blinded: Mapping[NodeName, bytes]
    ) -> None:
        self.members = dict(sorted(members.items(), key=lambda item: position_key(item[0])))
        self.blinded = dict(blinded)
        self._leaf_of = {address: leaf for leaf, address in self.members.items()}

    def __len__(self) -> int:
        return len(self.members)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, KeyTree):
            return NotImplemented
        return self.members == other.members and self.blinded == other.blinded

    __hash__ = None  # type: ignore[assignment]

    @property
    def addresses(self) -> tuple[IPv6Address, ...]:
        """The members in position order."""
        return tuple(self.members.values())

    @property
    def height(self) -> int:
        """Level of the deepest leaf."""
        return max(map(level, self.members))

    def leaf_of(self, address: IPv6Address) -> NodeName | None:
        """Return the member's leaf, or None."""
        return self._leaf_of.get(address)

    def nodes(self) -> list[NodeName]:
        """Return every node but the root, in ascending order."""
        return sorted([leaf for leaf in self.members if leaf > ROOT] + inner_nodes(self.members))

    def open_nodes(self) -> list[NodeName]:
        """Return the nodes whose blinded key is unknown, in ascending order."""
        return [name for name in self.nodes() if name not in self.blinded]

    def consistent(self) -> KeyTree:
        """Return the tree without the keys above open nodes: what is below will change them."""
        above = {node for name in self.open_nodes() for node in key_path(parent(name))}
        if above.isdisjoint(self.blinded):
            return self
        kept = {name: key for name, key in self.blinded.items() if name not in above}
        return KeyTree(self.members, kept)

    def rightmost(self, top: NodeName) -> NodeName:
        """Return the rightmost leaf below a node."""
        return [leaf for leaf in self.members if is_below(leaf, top)][-1]

    def filled(self, keys: Mapping[NodeName, bytes]) -> KeyTree:
        """Return the tree with these blinded keys added; known ones are never replaced."""
        return KeyTree(self.members, {**keys, **self.blinded})

    def refreshed(self, leaf: NodeName, key: bytes | None) -> KeyTree:
        """Return the tree after a member chose a new leaf secret: its whole path is open.

        Args:
            leaf: whose secret is new.
            key: the leaf's new blinded key, or None while only the member knows it.
        """
        path = set(key_path(leaf))
        blinded = {name: value for name, value in self.blinded.items() if name not in path}
        if key is not None and leaf != ROOT:
            blinded[leaf] = key
        return KeyTree(self.members, blinded)

    def inserted(
        self,
        address: IPv6Address,
        key: bytes | None,
        top_key: bytes | None,
        limit: int | None = None,
    ) -> tuple[KeyTree, NodeName]:
        """Return the tree with a new member, and its leaf.

        Args:
            address: who.
            key: its blinded leaf key, None while only the member knows it.
            limit: height that the insertion may reach; None: that of the tree.
            top_key: blinded key of the present root, which stays a key only if the member is
                inserted beside it; None if unknown.
        """
        if address in self._leaf_of:
            raise LocalError(f"{address} is in the tree")
        spot = self._insertion_point(limit)
        blinded = dict(self.blinded)
        if spot == ROOT and top_key is not None:
            blinded[ROOT] = top_key
        members = _moved_below(self.members, spot, left(spot))
        blinded = _moved_below(blinded, spot, left(spot))
        for name in key_path(spot):
            blinded.pop(name, None)
        leaf = right(spot)
        members[leaf] = address
        if key is not None:
            blinded[leaf] = key
        return KeyTree(members, blinded), leaf

    def removed(self, address: IPv6Address) -> tuple[KeyTree, NodeName]:
        """Return the tree without a member, and the top of the subtree that took its place."""
        leaf = self._leaf_of[address]
        if leaf == ROOT:
            raise LocalError("the last member cannot be removed")
        top = parent(leaf)
        members = {name: who for name, who in self.members.items() if name != leaf}
        blinded = {name: key for name, key in self.blinded.items() if name != leaf}
        for name in key_path(top):
            blinded.pop(name, None)
        kept = _moved_below(members, sibling(leaf), top)
        keys = _moved_below(blinded, sibling(leaf), top)
        keys.pop(ROOT, None)
        return KeyTree(kept, keys), top

    def deepest(self) -> NodeName:
        """Return the rightmost of the leaves furthest from the root."""
        return max(self.members, key=lambda leaf: (level(leaf), leaf))

    def _insertion_point(self, limit: int | None) -> NodeName:
        """Return the shallowest, then rightmost node where the height stays within the limit.

        The root, if there is none. The limit is the present height unless another one is given.
        """
        heights = dict.fromkeys(self.members, 0)
        inner = [ROOT, *inner_nodes(self.members)] if len(self.members) > 1 else []
        for name in reversed(inner):
            heights[name] = 1 + max(heights[left(name)], heights[right(name)])
        height = heights[ROOT] if limit is None else limit
        fitting = [name for name in heights if level(name) + heights[name] + 1 <= height]
        return min(fitting, key=lambda name: (level(name), -name), default=ROOT)


def _moved_below(
    entries: Mapping[NodeName, T], old_top: NodeName, new_top: NodeName
) -> dict[NodeName, T]:
    """Return the entries with those at and below ``old_top`` moved to ``new_top``."""
    return {
        moved(name, old_top, new_top) if is_below(name, old_top) else name: value
        for name, value in entries.items()
    }
