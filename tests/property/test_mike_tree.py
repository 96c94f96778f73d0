"""Random sequences of joins and leaves: the tree stays balanced, all members agree, keys differ."""

from __future__ import annotations

from math import ceil, log2

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.idpmike import EpochId
from protocol.mike.agreement import Agreement
from protocol.mike.change import changed, difference
from protocol.mike.keytree import KeyTree, height_max
from protocol.mike.messages import Announcement
from protocol.mike.rules import check_announcement
from protocol.mike.schedule import NodeSecret
from protocol.mike.transaction import Carried, Request, plan, with_work
from protocol.mike.treemath import ROOT, key_path
from tests.support.identities import address

steps = st.lists(
    st.tuples(st.sets(st.integers(1, 14), max_size=4), st.sets(st.integers(1, 14), max_size=4)),
    min_size=1,
    max_size=8,
)
"""Per epoch: devices that join (or rejoin) and devices that leave; device 0 is the TM."""


class Model:
    """All members of a group, computing every epoch without a network."""

    def __init__(self, devices: int = 15) -> None:
        self.devices = devices
        self.drawn = 0
        self.agreements = {
            0: Agreement(address(0), KeyTree({ROOT: address(0)}, {}), (), self.secret(), {})
        }
        self.agreements[0].climb()
        self.agreements[0].bind(
            Announcement(1, EpochId(0, bytes(8)), address(0), self.agreements[0].tree)
        )
        self.known: dict[int, set[bytes]] = {}
        self.keys: list[bytes] = []

    def secret(self) -> NodeSecret:
        self.drawn += 1
        return NodeSecret(self.drawn.to_bytes(32, "big"))

    def step(self, joins: set[int], leaves: set[int]) -> None:
        leaves = {who for who in leaves if who in self.agreements and who not in joins}
        if not joins and not leaves:
            return
        old = self.agreements[0]
        fresh = {who: self.secret() for who in sorted(joins)}
        requests = [
            Request(address(who), bytes([who]) * 16, leaf.blinded, 0) for who, leaf in fresh.items()
        ]
        assert old.root is not None
        gone = [address(who) for who in sorted(leaves)]
        planned = plan(old.known_tree(), old.root.blinded, requests, gone, Carried())
        tree = planned.tree
        assert tree.height <= ceil(log2(len(tree))) + 1
        self.check_open(old, leaves, planned.tree)
        leaf0 = tree.leaf_of(address(0))
        assert leaf0 is not None
        own = old.leaf
        if leaf0 not in tree.blinded:
            own = self.secret()
            if leaf0 != ROOT:
                tree = tree.filled({leaf0: own.blinded})
        first = Agreement(address(0), tree, planned.sponsors, own, old.secrets)
        first.climb()
        tree = first.known_tree()
        content = Announcement(
            old.content.number + 1,
            old.epoch,
            address(0),
            tree,
            with_work(tree, planned.sponsors),
            planned.nonces,
        )
        check_announcement(content)
        told = difference(old.known_tree(), content.tree)
        assert changed(old.known_tree(), told) == content.tree
        first.bind(content)
        present = {0: first}
        for who in range(1, self.devices):
            name = tree.leaf_of(address(who))
            if name is None:
                continue
            leaf = fresh.get(who) or (
                self.agreements[who].leaf if name in tree.blinded else self.secret()
            )
            earlier = self.agreements[who].secrets if who in self.agreements else {}
            present[who] = Agreement(address(who), tree, content.sponsors, leaf, earlier)
            present[who].bind(content)
        for who in leaves:
            del self.agreements[who]
        self.agreements = present
        self.exchange()

    def check_open(self, old: Agreement, leaves: set[int], tree: KeyTree) -> None:
        """MIKE-19: no key that an excluded member knew the secret of is still in the tree."""
        for who in leaves:
            state = self.agreements[who]
            secrets = {secret.blinded for secret in state.secrets.values()} | {state.leaf.blinded}
            assert not secrets & set(tree.blinded.values())

    def exchange(self) -> None:
        """Let all sponsors publish until everybody has the root; at most one round per level."""
        for _ in range(self.agreements[0].tree.height + 2):
            for agreement in self.agreements.values():
                agreement.climb()
            for agreement in self.agreements.values():
                if agreement.published:
                    for other in self.agreements.values():
                        if other is not agreement:
                            other.take(agreement.published, agreement.own)
        keys = {a.keys.group_key for a in self.agreements.values() if a.keys is not None}
        assert all(a.keys is not None for a in self.agreements.values())
        assert all(a.is_complete for a in self.agreements.values())
        assert len(keys) == 1
        assert not keys & set(self.keys)
        self.keys += keys
        for agreement in self.agreements.values():
            assert agreement.late_sponsors() == []
            assert (
                len(agreement.secrets)
                == len(list(key_path(agreement.tree.leaf_of(agreement.own) or ROOT))) - 1
            )


@settings(max_examples=60, deadline=None)
@given(steps)
def test_members_agree_and_the_tree_stays_balanced(
    sequence: list[tuple[set[int], set[int]]],
) -> None:
    model = Model()
    for joins, leaves in sequence:
        model.step(joins, leaves)


@settings(max_examples=60, deadline=None)
@given(steps, st.integers(3, 8))
def test_members_agree_where_sponsors_are_relieved(
    sequence: list[tuple[set[int], set[int]]], bound: int
) -> None:
    """As above, with a bound on operations as low as if these were groups of a thousand."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("protocol.mike.duties.OPERATIONS_MAX", bound)
        test_members_agree_and_the_tree_stays_balanced.hypothesis.inner_test(sequence)  # type: ignore[attr-defined]


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 120), st.data())
def test_a_tree_stays_low_whoever_leaves(size: int, data: st.DataObject) -> None:
    """Only the shape: groups of any size, leaves in any order, several in one epoch."""
    who = [address(index) for index in range(size)]
    tree = KeyTree({ROOT: who[0]}, {})
    requests = [Request(a, bytes(16), bytes(32), 0) for a in who[1:]]
    tree = plan(tree, None, requests, [], Carried()).tree
    assert tree.height == ceil(log2(size))
    tree = tree.filled({name: bytes(32) for name in tree.open_nodes()})
    order = data.draw(st.permutations(who[1:]))
    while order:
        count = data.draw(st.integers(1, min(8, len(order))))
        gone, order = order[:count], order[count:]
        planned = plan(tree, None, [], gone, Carried())
        tree = planned.tree
        assert tree.height <= height_max(len(tree))
        assert set(tree.addresses) == {who[0], *order}
        check_announcement(
            Announcement(
                1, EpochId(0, bytes(8)), who[0], tree, with_work(tree, planned.sponsors), ()
            )
        )
        tree = tree.filled({name: bytes(32) for name in tree.open_nodes()})


def test_a_lopsided_tree_is_balanced_by_moving_few() -> None:
    """Of 64 members the right half and more leave: the left rest hangs deep, and is lifted."""
    who = [address(index) for index in range(64)]
    tree = plan(
        KeyTree({ROOT: who[0]}, {}),
        None,
        [Request(a, bytes(16), bytes(32), 0) for a in who[1:]],
        [],
        Carried(),
    ).tree
    keep = set(tree.addresses[:2] + tree.addresses[2:4] + tree.addresses[32:33])
    moved = 0
    for leaver in [a for a in tree.addresses if a not in keep and a != who[0]]:
        planned = plan(tree, None, [], [leaver], Carried())
        moved += len(planned.sponsors) > 1
        tree = planned.tree
        assert tree.height <= height_max(len(tree))
    assert tree.height <= height_max(len(keep | {who[0]}))
    assert 1 <= moved <= 8


@pytest.mark.parametrize("at_once", [1, 2, 5, 26])
def test_members_agree_after_moves(at_once: int) -> None:
    """Of 32 members six stay that hang below one another: one or more must move.

    `Model.step` checks that nothing an excluded member knew is left (MIKE-19), that every member
    computes the same new key, and the height.
    """
    model = Model(32)
    model.step(set(range(1, 32)), set())
    places = [model.agreements[0].members.index(address(who)) for who in range(32)]
    at = {place: who for who, place in enumerate(places)}
    assert at[0] == 0
    stay = {at[place] for place in (0, 16, 24, 28, 30, 31)}
    leave = [at[place] for place in range(32) if at[place] not in stay]
    moved = 0
    while leave:
        gone, leave = leave[:at_once], leave[at_once:]
        before = model.agreements[0].tree
        model.step(set(), set(gone))
        after = model.agreements[0].tree
        order = [who for who in before.addresses if after.leaf_of(who) is not None]
        moved += list(after.addresses) != order
    assert moved >= 1
    assert len(model.agreements) == len(stay)
