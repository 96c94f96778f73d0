"""Who publishes which blinded key of an epoch, and how much that may cost a member.

Sponsors are listed in an order that the TM chooses: a node is published by the last one listed that
sits below it. A member without a new leaf secret may be among them: it takes the upper nodes off a
sponsor that would have to compute too much (a *relief*).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from ipaddress import IPv6Address

from protocol.mike.keytree import KeyTree
from protocol.mike.treemath import ROOT, NodeName, is_below, key_path, level, sibling

OPERATIONS_MAX = 15
"""Public-key operations that one membership event may cost a member that was there before."""


def publisher(name: NodeName, sponsors: Sequence[NodeName]) -> NodeName | None:
    """Return the leaf of who must publish an open node: the last listed sponsor below it."""
    for leaf in reversed(sponsors):
        if is_below(leaf, name):
            return leaf
    return None


def duties(tree: KeyTree, sponsors: Sequence[NodeName], leaf: NodeName) -> list[NodeName]:
    """Return the open nodes that a sponsor has to publish, from its leaf upwards."""
    return [
        name
        for name in key_path(leaf)
        if name != ROOT and name not in tree.blinded and publisher(name, sponsors) == leaf
    ]


def relieved(
    tree: KeyTree, sponsors: Sequence[IPv6Address], spared: Collection[IPv6Address]
) -> tuple[IPv6Address, ...]:
    """Return the sponsors, each that would have too much to compute followed by its relief.

    The relief sits beside the path of who it relieves, high enough that both have few levels left:
    in a tree of 1024 members neither has more than `OPERATIONS_MAX` operations.

    Args:
        tree: of the epoch; what is to be published is open.
        sponsors: in position order.
        spared: who gets no relief, because it is no member yet.
    """
    listed = list(sponsors)
    # As many exchanges as a leaf has levels, and as many keys at most: nothing to look for.
    if 2 * tree.height <= OPERATIONS_MAX:
        return tuple(listed)
    for who in sponsors:
        leaf = tree.leaf_of(who)
        if leaf is None or who in spared:
            continue
        leaves = [name for one in listed if (name := tree.leaf_of(one)) is not None]
        own = duties(tree, leaves, leaf)
        excess = _exchanges(tree, leaf) + len(own) - OPERATIONS_MAX
        if not 0 < excess < len(own):
            continue
        relief = _relief(tree, sibling(own[-excess - 1]), leaves, leaves.index(leaf) + 1)
        if relief is not None:
            listed.insert(listed.index(who) + 1, relief)
    return tuple(listed)


def _exchanges(tree: KeyTree, leaf: NodeName) -> int:
    """Return how many node secrets on a member's path it has to compute anew, the root's too."""
    path = list(key_path(leaf))
    lowest = next((name for name in path if name not in tree.blinded), ROOT)
    return level(lowest) + (lowest != leaf)


def _relief(
    tree: KeyTree, top: NodeName, sponsors: Sequence[NodeName], place: int
) -> IPv6Address | None:
    """Return the rightmost member below a node that can be listed there without too much to do."""
    for leaf in reversed(tree.members):
        if not is_below(leaf, top) or leaf in sponsors:
            continue
        listed = [*sponsors[:place], leaf, *sponsors[place:]]
        if _exchanges(tree, leaf) + len(duties(tree, listed, leaf)) <= OPERATIONS_MAX:
            return tree.members[leaf]
    return None
