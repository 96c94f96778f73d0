"""The TM's key hierarchy under random changes: what each member has, can unwrap, and cannot."""

from __future__ import annotations

import math
import random
from ipaddress import IPv6Address

from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.idpmike import EpochId
from protocol.mike.distribution import Distribution, KeyPath
from protocol.mike.hierarchy import Hierarchy
from protocol.mike.rekeying import Rekey, RekeyAnnouncement
from protocol.mike.roster import Roster
from testbed.sim.modelled import ModelledSecret

TM = IPv6Address("2001:db8::1")


class Story:
    """A TM, its hierarchy, and members that follow every epoch."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.hierarchy = Hierarchy(self.secret(), lambda: self.random.randbytes(32))
        self.leaves = {TM: self.secret()}
        self.roster = Roster([(TM, self.leaves[TM].blinded)])
        self.epochs: dict[IPv6Address, Distribution] = {}
        self.number = 0
        self.largest = 0
        self.serial = int(TM)

    def secret(self) -> ModelledSecret:
        return ModelledSecret(self.random.randbytes(32))

    def change(self, joins: int, leaves: int, renewals: int) -> tuple[list[IPv6Address], Rekey]:
        """Make an epoch; return who was removed, and the REKEY."""
        members = [who for who in self.roster.addresses if who != TM]
        removed = self.random.sample(members, min(leaves, len(members)))
        stay = [who for who in members if who not in removed]
        renewed = self.random.sample(stay, min(renewals, len(stay)))
        new = [IPv6Address(self.serial + 1 + k) for k in range(joins)]
        self.serial += joins
        for who in removed:
            self.hierarchy.remove(who)
        for who in [*renewed, *new]:
            self.leaves[who] = self.secret()
            pair = self.hierarchy.pairwise(who, self.leaves[who].blinded)
            self.hierarchy.put(who, pair)
        added = [(who, self.leaves[who].blinded) for who in [*renewed, *new]]
        self.roster = self.roster.changed(removed, added)
        self.hierarchy.renew()
        self.number += 1
        content = RekeyAnnouncement(
            self.number,
            EpochId(self.number - 1, bytes(8)),
            TM,
            len(self.roster),
            self.roster.digest,
            tuple(sorted(removed)),
            tuple(added),
        )
        wraps = self.hierarchy.wraps(self.roster.places, content.digest)
        rekey = Rekey(content, 0, self.hierarchy.secret.blinded, wraps)
        self.largest = max(self.largest, len(self.hierarchy))
        return removed, rekey

    def follow(self, who: IPv6Address, rekey: Rekey, path: KeyPath) -> Distribution:
        """What a member makes of a REKEY."""
        made = Distribution(who, rekey.announcement, [self.leaves[who]], path)
        made.take_wraps(rekey)
        if made.enter(self.roster):
            made.climb()
        return made


changes = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 2)), min_size=1, max_size=12
)


@settings(deadline=None)
@given(changes, st.integers(0, 1 << 16))
def test_members_follow_ex_members_do_not_and_newcomers_get_nothing_old(
    steps: list[tuple[int, int, int]], seed: int
) -> None:
    """MIKE-32."""
    story = Story(seed)
    for step in steps:
        before = dict(story.epochs)
        removed, rekey = story.change(*step)
        story.epochs = {
            who: story.follow(who, rekey, before[who].path if who in before else KeyPath())
            for who in story.roster.addresses
            if who != TM
        }
        for epoch in story.epochs.values():
            assert epoch.root == story.hierarchy.root
        for who in removed:
            held = {key for _, key in before[who].path.steps} | {before[who].root}
            assert not held & keys_in_use(story)
        for who in {who for who, _ in rekey.announcement.added} - before.keys():
            had = {key for old in before.values() for _, key in old.path.steps}
            assert not {key for _, key in story.epochs[who].path.steps} & had


def keys_in_use(story: Story) -> set[bytes]:
    """Every key that wraps another one, and the root."""
    inner = {node.key for leaf in story.hierarchy._leaves.values() for node in leaf.path()}
    return inner | {story.hierarchy.root}


@settings(deadline=None)
@given(changes, st.integers(0, 1 << 16))
def test_no_path_is_longer_than_the_largest_group_makes_it(
    steps: list[tuple[int, int, int]], seed: int
) -> None:
    story = Story(seed)
    for step in steps:
        story.change(*step)
        if not story.largest:
            continue
        # Keys above a leaf, the root secret among them.
        bound = math.floor(math.log2(story.largest)) + 2
        depths = [story.hierarchy.depth(who) for who in story.roster.addresses if who != TM]
        assert max(depths, default=0) <= bound


@settings(deadline=None)
@given(changes, st.integers(0, 1 << 16))
def test_who_missed_everything_follows_by_its_path(
    steps: list[tuple[int, int, int]], seed: int
) -> None:
    story = Story(seed)
    for step in steps:
        _, rekey = story.change(*step)
    content = rekey.announcement
    for who in story.roster.addresses:
        if who == TM:
            continue
        wraps = story.hierarchy.path(who, story.roster.places, content.digest)
        assert len(wraps) == story.hierarchy.depth(who)
        own = story.follow(who, Rekey(content, 0, rekey.key, wraps), KeyPath())
        assert own.root == story.hierarchy.root


def test_members_that_only_leave_on_one_side_leave_short_paths() -> None:
    story = Story(1)
    story.change(256, 0, 0)
    for _ in range(200):
        story.change(0, 1, 0)
    story.change(200, 0, 0)
    depths = [story.hierarchy.depth(who) for who in story.roster.addresses if who != TM]
    assert max(depths) <= 8 + 2
