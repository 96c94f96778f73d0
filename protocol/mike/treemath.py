"""Numbers of tree nodes, and nothing else: no keys, no members, no state.

A node ``<level, index>`` (the naming of TGDH) is held as the heap number ``2**level + index``: the
root is 1, the children of v are 2v and 2v + 1. Any binary tree has such names, balanced or not, and
every question about a path is a shift.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NewType

NodeName = NewType("NodeName", int)
"""Heap number of a node."""

ROOT = NodeName(1)
LEVEL_MAX = 31
"""Deepest level of a node: its name fits in 32 bits, and a tree that we keep balanced never comes
near it."""


def node(level: int, index: int) -> NodeName:
    """Return the name of ``<level, index>``."""
    return NodeName((1 << level) + index)


def level(name: NodeName) -> int:
    """Return the distance from the root."""
    return name.bit_length() - 1


def index(name: NodeName) -> int:
    """Return the position within the level, counted from the left."""
    return name - (1 << level(name))


def text(name: NodeName) -> str:
    """Return the name as people read it."""
    return f"<{level(name)},{index(name)}>"


def parent(name: NodeName) -> NodeName:
    """Return the parent; the root has none."""
    assert name > ROOT
    return NodeName(name >> 1)


def sibling(name: NodeName) -> NodeName:
    """Return the other child of the parent; the root has none."""
    assert name > ROOT
    return NodeName(name ^ 1)


def left(name: NodeName) -> NodeName:
    """Return the left child."""
    return NodeName(name << 1)


def right(name: NodeName) -> NodeName:
    """Return the right child."""
    return NodeName(name << 1 | 1)


def is_below(name: NodeName, top: NodeName) -> bool:
    """Say whether ``name`` is ``top`` or one of its descendants."""
    depth = name.bit_length() - top.bit_length()
    return depth >= 0 and name >> depth == top


def key_path(name: NodeName) -> Iterator[NodeName]:
    """Yield the node itself and its ancestors, the root last."""
    current: int = name
    while current:
        yield NodeName(current)
        current >>= 1


def moved(name: NodeName, old_top: NodeName, new_top: NodeName) -> NodeName:
    """Return the name of a node below ``old_top`` after that subtree moved to ``new_top``."""
    depth = name.bit_length() - old_top.bit_length()
    return NodeName((new_top << depth) + name - (old_top << depth))


def position_key(name: NodeName) -> int:
    """Return what sorts leaves from left to right."""
    return name << (LEVEL_MAX + 1 - name.bit_length())


def leaves_from_levels(levels: Sequence[int]) -> tuple[NodeName, ...] | None:
    """Return the leaves, left to right, of the one full binary tree with these leaf levels.

    A full binary tree is determined by the levels of its leaves. None: no tree has these levels.
    """
    names: list[NodeName] = []
    free: int = 0
    whole = 1 << LEVEL_MAX
    for depth in levels:
        if not 0 <= depth <= LEVEL_MAX:
            return None
        width = 1 << (LEVEL_MAX - depth)
        if free % width or free + width > whole:
            return None
        names.append(node(depth, free // width))
        free += width
    return tuple(names) if free == whole else None


def balanced_levels(count: int) -> tuple[int, ...]:
    """Return the levels of so many leaves, left to right, of a tree as flat as can be."""
    height = (count - 1).bit_length()
    upper = (1 << height) - count
    return (height,) * (count - upper) + (height - 1,) * upper


def inner_nodes(leaves: Iterable[NodeName]) -> list[NodeName]:
    """Return all inner nodes above these leaves but the root, in ascending order."""
    found: set[NodeName] = set()
    for leaf in leaves:
        above = NodeName(leaf >> 1)
        while above > ROOT and above not in found:
            found.add(above)
            above = NodeName(above >> 1)
    return sorted(found)
