"""Insertion, removal, refresh: shapes, and which keys stay valid."""

from __future__ import annotations

import pytest

from protocol.core.errors import LocalError
from protocol.mike.keytree import KeyTree
from protocol.mike.treemath import ROOT, NodeName, level
from tests.support.identities import address


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def full(n: int) -> KeyTree:
    """A tree of n members in which every node has a key that names it."""
    tree = KeyTree({ROOT: address(0)}, {})
    for index in range(1, n):
        tree, _ = tree.inserted(address(index), key(index), None)
        tree = tree.filled({name: key(1000 + name) for name in tree.open_nodes()})
    return tree


def shape(tree: KeyTree) -> list[int]:
    return [level(leaf) for leaf in tree.members]


@pytest.mark.parametrize(
    ("n", "levels"),
    [
        (1, [0]),
        (2, [1, 1]),
        (3, [2, 2, 1]),
        (4, [2, 2, 2, 2]),
        (5, [3, 3, 3, 3, 1]),
        (6, [3, 3, 3, 3, 2, 2]),
        (7, [3, 3, 3, 3, 3, 3, 2]),
        (9, [4] * 8 + [1]),
    ],
)
def test_growth_follows_tgdh(n: int, levels: list[int]) -> None:
    tree = full(n)
    assert shape(tree) == levels
    assert tree.addresses == tuple(address(index) for index in range(n))


def test_insertion_beside_the_root_keeps_all_keys() -> None:
    tree = full(4)
    grown, leaf = tree.inserted(address(4), key(4), key(77))
    assert leaf == 3
    assert grown.open_nodes() == []
    assert grown.blinded[NodeName(2)] == key(77)
    for name, value in tree.blinded.items():
        assert value in grown.blinded.values(), name


def test_insertion_elsewhere_opens_the_nodes_above() -> None:
    grown, leaf = full(5).inserted(address(5), key(5), key(77))
    assert leaf == 7
    assert grown.open_nodes() == [3]


def test_removal_promotes_the_sibling_and_opens_the_nodes_above() -> None:
    tree, top = full(8).removed(address(5))
    assert top == 6
    assert tree.members[top] == address(4)
    assert tree.blinded[top] == key(4) or top in tree.blinded
    assert tree.open_nodes() == [3]
    assert shape(tree) == [3, 3, 3, 3, 2, 3, 3]


def test_removal_to_one_member_leaves_no_key() -> None:
    tree, top = full(2).removed(address(1))
    assert top == ROOT
    assert tree.members == {ROOT: address(0)}
    assert tree.blinded == {}
    with pytest.raises(LocalError):
        tree.removed(address(0))


def test_refresh_opens_the_whole_path() -> None:
    tree = full(8)
    leaf = tree.leaf_of(address(5))
    assert leaf is not None
    assert tree.refreshed(leaf, None).open_nodes() == [3, 6, leaf]
    assert tree.refreshed(leaf, key(9)).open_nodes() == [3, 6]


def test_filled_never_replaces() -> None:
    tree = full(4)
    leaf = NodeName(4)
    assert tree.filled({leaf: key(500)}).blinded[leaf] == tree.blinded[leaf]


def test_a_member_is_inserted_once() -> None:
    with pytest.raises(LocalError):
        full(2).inserted(address(1), key(1), None)


def test_a_key_above_an_open_node_is_of_no_use() -> None:
    tree = full(4)
    assert tree.consistent() is tree
    leaf = tree.leaf_of(address(2))
    assert leaf is not None
    # The sibling published their parent's key; the leaf's own was lost on the way.
    blinded = {name: value for name, value in tree.blinded.items() if name != leaf}
    opened = KeyTree(tree.members, blinded).consistent()
    assert opened.open_nodes() == [NodeName(leaf >> 1), leaf]
    assert opened.consistent() is opened
