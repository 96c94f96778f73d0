"""Pieces of a tree (MIKE-39): what they may not make."""

from __future__ import annotations

import pytest

from protocol.core.errors import PeerError
from protocol.mike.change import Inner, Kept, Leaf, Piece, changed
from protocol.mike.keytree import KeyTree
from protocol.mike.treemath import LEVEL_MAX, ROOT, balanced_levels, leaves_from_levels
from tests.support.identities import address


def flat(members: int) -> KeyTree:
    """Return a tree of so many, without keys."""
    leaves = leaves_from_levels(balanced_levels(members))
    assert leaves is not None
    return KeyTree({leaf: address(index) for index, leaf in enumerate(leaves)}, {})


def test_pieces_make_no_tree_larger_than_any_group_s() -> None:
    """A hundred bytes could stand for a million members."""
    twice: list[Piece] = [Inner(None), Kept(ROOT), Kept(ROOT)]
    assert len(changed(flat(512), twice).members) == 1024
    with pytest.raises(PeerError, match="MIKE-39"):
        changed(flat(513), twice)


def test_pieces_make_no_tree_deeper_than_nodes_have_names() -> None:
    chain: list[Piece] = []
    for index in range(LEVEL_MAX):
        chain += [Inner(None), Leaf(address(index), None)]
    assert changed(flat(2), [*chain, Leaf(address(99), None)]).height == LEVEL_MAX
    with pytest.raises(PeerError, match="MIKE-39"):
        changed(flat(2), [*chain, Inner(None), Leaf(address(98), None), Leaf(address(99), None)])
