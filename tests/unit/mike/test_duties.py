"""Who publishes which key, and who takes work off a sponsor that would have too much."""

from __future__ import annotations

import random
from ipaddress import IPv6Address

import pytest

from protocol.core.errors import DecodeError
from protocol.idpmike import EpochId
from protocol.mike.duties import OPERATIONS_MAX, duties, publisher, relieved
from protocol.mike.keytree import KeyTree
from protocol.mike.messages import Announcement
from protocol.mike.rules import check_announcement
from protocol.mike.transaction import Carried, Plan, Request, plan
from protocol.mike.treemath import (
    ROOT,
    NodeName,
    balanced_levels,
    is_below,
    key_path,
    leaves_from_levels,
    level,
    node,
)
from tests.support.identities import address


def grown(size: int) -> KeyTree:
    """A flat tree whose keys are all known."""
    leaves = leaves_from_levels(balanced_levels(size))
    assert leaves is not None
    tree = KeyTree({leaf: address(place) for place, leaf in enumerate(leaves)}, {})
    return known(tree)


def known(tree: KeyTree) -> KeyTree:
    return tree.filled({name: name.to_bytes(32, "big") for name in tree.open_nodes()})


def leaves_of(planned: Plan) -> list[NodeName]:
    return [leaf for who in planned.sponsors if (leaf := planned.tree.leaf_of(who)) is not None]


def operations(planned: Plan, leaf: NodeName) -> int:
    """Exchanges on the changed part of a path, and keys to publish, counted from the tree alone."""
    path = list(key_path(leaf))
    changed = {up for at in path if at not in planned.tree.blinded for up in key_path(at)} - {leaf}
    return len(changed) + len(duties(planned.tree, leaves_of(planned), leaf))


def test_the_last_listed_sponsor_below_publishes() -> None:
    sponsors = [NodeName(8), NodeName(11), NodeName(14)]
    assert publisher(NodeName(2), sponsors) == 11
    assert publisher(NodeName(4), sponsors) == 8
    assert publisher(NodeName(3), sponsors) == 14
    assert publisher(NodeName(13), sponsors) is None
    assert publisher(NodeName(2), [NodeName(11), NodeName(8)]) == 8


@pytest.mark.parametrize("size", [3, 17, 64, 65, 128])
def test_a_small_group_needs_no_relief(size: int) -> None:
    tree = grown(size)
    for who in tree.addresses[1:]:
        assert len(plan(tree, None, [], [who], Carried()).sponsors) == 1


@pytest.mark.parametrize("size", [300, 520, 1000, 1024])
def test_no_leave_costs_anybody_more_than_the_bound(size: int) -> None:
    """Whoever leaves a flat tree: on the right edge, on the left, in the middle."""
    tree = grown(size)
    for who in {*tree.addresses[:: size // 60], *tree.addresses[-8:]}:
        planned = plan(tree, None, [], [who], Carried())
        costs = [operations(planned, leaf) for leaf in leaves_of(planned)]
        assert max(costs) <= OPERATIONS_MAX, (who, costs)
        told = [name for leaf in leaves_of(planned) for name in duties(
            planned.tree, leaves_of(planned), leaf)]  # fmt: skip
        assert sorted(told) == planned.tree.open_nodes()
        check_announcement(
            Announcement(1, EpochId(0, bytes(8)), address(0), planned.tree, planned.sponsors)
            if who != address(0)
            else Announcement(1, EpochId(0, bytes(8)), address(1), planned.tree, planned.sponsors)
        )


def test_nor_in_a_tree_that_has_lost_many() -> None:
    """Leaves hang as deep as the balance lets them, one level below those of a flat tree."""
    chance = random.Random(7)
    tree, deepest, relieved_once = grown(1024), 0, 0
    order = list(tree.addresses)
    chance.shuffle(order)
    for who in order[:700]:
        planned = plan(tree, None, [], [who], Carried())
        if len(planned.sponsors) <= 2:
            deepest = max(deepest, *(level(leaf) for leaf in leaves_of(planned)))
            relieved_once += len(planned.sponsors) == 2
            assert all(operations(planned, leaf) <= OPERATIONS_MAX for leaf in leaves_of(planned))
        tree = known(planned.tree)
    assert deepest >= 10
    assert relieved_once > 100


def test_the_relief_holds_old_keys_and_sits_beside_the_path() -> None:
    tree = grown(1024)
    planned = plan(tree, None, [], [address(1)], Carried())
    first, second = leaves_of(planned)
    assert first not in planned.tree.blinded
    assert second in planned.tree.blinded
    own = duties(planned.tree, [first, second], first)
    assert own[0] == first
    assert duties(planned.tree, [first, second], second)[0] == own[-1] >> 1
    assert second >> (level(second) - level(own[-1])) == own[-1] ^ 1


def test_a_newcomer_gets_no_relief() -> None:
    """It would wait for one more message; what it computes is its own affair."""
    tree = grown(1023)
    request = Request(address(2000), bytes(16), bytes(32), 0)
    assert plan(tree, None, [request], [], Carried()).sponsors == (address(2000),)


def beside(tree: KeyTree) -> list[IPv6Address]:
    """The members that may relieve the last one of a tree, from left to right."""
    leaf = tree.leaf_of(tree.addresses[-1])
    assert leaf is not None
    opened = tree.refreshed(leaf, None)
    relief = relieved(opened, (tree.addresses[-1],), ())[1]
    top = next(name for name in key_path(leaf) if is_below(tree.leaf_of(relief) or leaf, name))
    return [who for at, who in tree.members.items() if is_below(at, NodeName(top << 1))]


@pytest.mark.parametrize(("place", "fresh"), [(-1, True), (-2, True), (-1, False)])
def test_the_relief_is_no_sponsor_and_has_not_too_much_to_do_itself(
    place: int, fresh: bool
) -> None:
    """Who would be asked has a new leaf too, or its neighbour has, or it is listed already."""
    tree = grown(1024)
    last = tree.addresses[-1]
    able = beside(tree)
    other = able[place]
    for who in (last, other) if fresh else (last,):
        tree = tree.refreshed(tree.leaf_of(who) or ROOT, None)
    planned = Plan(tree, relieved(tree, (other, last), ()), ())
    assert planned.sponsors[:2] == (other, last)
    assert planned.sponsors[2] in set(able) - {other}
    assert all(operations(planned, leaf) <= OPERATIONS_MAX for leaf in leaves_of(planned)[1:])


def test_nobody_to_relieve_leaves_the_work_where_it_is() -> None:
    tree = grown(512)
    everybody = tree.addresses
    opened = tree.refreshed(node(9, 0), None)
    assert relieved(opened, everybody, ()) == everybody


def test_a_sponsor_is_listed_once() -> None:
    tree = plan(grown(8), None, [], [address(3)], Carried()).tree
    who = tree.addresses[2]
    content = Announcement(2, EpochId(1, bytes(8)), address(0), tree, (who, address(7)))
    assert Announcement.decode(content.encoded).sponsors == (who, address(7))
    turned = Announcement(2, EpochId(1, bytes(8)), address(0), tree, (address(7), who))
    assert Announcement.decode(turned.encoded).sponsors == (address(7), who)
    twice = Announcement(2, EpochId(1, bytes(8)), address(0), tree, (who, who))
    with pytest.raises(DecodeError, match="twice"):
        Announcement.decode(twice.encoded)
