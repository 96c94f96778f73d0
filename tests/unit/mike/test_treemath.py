"""Node numbers against the definition."""

from __future__ import annotations

from protocol.mike import treemath as tm
from protocol.mike.treemath import ROOT, NodeName


def test_names_follow_tgdh() -> None:
    assert tm.node(0, 0) == ROOT
    for level in range(6):
        for index in range(1 << level):
            name = tm.node(level, index)
            assert (tm.level(name), tm.index(name)) == (level, index)
            assert tm.left(name) == tm.node(level + 1, 2 * index)
            assert tm.right(name) == tm.node(level + 1, 2 * index + 1)
            assert tm.parent(tm.left(name)) == tm.parent(tm.right(name)) == name
            assert tm.sibling(tm.left(name)) == tm.right(name)
    assert tm.text(tm.node(2, 3)) == "<2,3>"


def test_key_path_ends_at_the_root() -> None:
    assert list(tm.key_path(tm.node(3, 5))) == [13, 6, 3, 1]


def test_is_below() -> None:
    assert tm.is_below(NodeName(13), NodeName(3))
    assert tm.is_below(NodeName(3), NodeName(3))
    assert not tm.is_below(NodeName(13), NodeName(2))
    assert not tm.is_below(NodeName(3), NodeName(13))


def test_moved_keeps_the_shape() -> None:
    assert tm.moved(NodeName(13), NodeName(3), NodeName(1)) == 5
    assert tm.moved(NodeName(1), NodeName(1), NodeName(2)) == 2
    assert tm.moved(NodeName(5), NodeName(1), NodeName(2)) == 9


def test_leaves_from_levels() -> None:
    assert tm.leaves_from_levels([0]) == (1,)
    assert tm.leaves_from_levels([2, 2, 1]) == (4, 5, 3)
    assert tm.leaves_from_levels([1, 2, 2]) == (2, 6, 7)
    for wrong in ([], [1], [1, 1, 1], [2, 1, 2], [0, 0], [32, 1], [1, 2]):
        assert tm.leaves_from_levels(wrong) is None


def test_inner_nodes_leave_out_the_root() -> None:
    assert tm.inner_nodes([NodeName(4), NodeName(5), NodeName(3)]) == [2]
    assert tm.inner_nodes([NodeName(1)]) == []
