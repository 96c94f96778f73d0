"""Epochs told by what differs from the one before (CHANGE), as message diagrams."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from protocol.identity import PROTOCOL_MIKE
from protocol.mike.agreement import Agreement
from protocol.mike.change import Change, Inner, Kept, Leaf, difference
from protocol.mike.config import MikeConfig
from protocol.mike.messages import Announcement, Kind
from protocol.mike.schedule import NodeSecret
from protocol.mike.treemath import ROOT, NodeName
from tests.support.identities import address
from tests.support.world import EPOCH_WALL_NS, Seen, World

JOIN, TREE, PATH, STATUS, REPAIR, CHANGE = (
    Kind.JOIN,
    Kind.TREE,
    Kind.PATH,
    Kind.STATUS,
    Kind.REPAIR,
    Kind.CHANGE,
)
ALWAYS = MikeConfig(change_parts_min=1)
"""Every epoch that can be told by a CHANGE is."""


def said(world: World, since_ns: int) -> list[tuple[Kind, int, object]]:
    """Return kind, sender and destination of all but STATUS."""
    return [
        (s.kind, s.sender, s.destination)
        for s in world.wire
        if s.at_ns >= since_ns and s.kind is not STATUS
    ]


def lose(kind: Kind, *receivers: int) -> Callable[[Seen, int], bool]:
    """Drop the next message of a kind towards each of these receivers."""
    left = set(receivers)

    def drops(seen: Seen, to: int) -> bool:
        if seen.kind is kind and to in left:
            left.discard(to)
            return True
        return False

    return drops


def agreement(world: World, index: int) -> Agreement:
    """Return a device's established epoch."""
    current = world[index].engine.current
    assert isinstance(current, Agreement)
    return current


def test_a_join() -> None:
    """joiner: JOIN, TM to the joiner: TREE, to all: CHANGE, joiner: PATH (MIKE-39)."""
    world = World(11, config=ALWAYS)
    world.form(10)
    start = world.now_ns
    world.join(10)
    assert world.run_until(lambda: world.agreed(*range(11))) < 5
    assert said(world, start) == [
        (JOIN, 10, None),
        (TREE, 0, address(10)),
        (CHANGE, 0, None),
        (PATH, 10, None),
    ]
    sizes = {s.kind: len(s.payload) for s in world.wire if s.at_ns >= start}
    assert sizes[CHANGE] < sizes[TREE] // 2


def test_a_leave_that_the_tm_sponsors() -> None:
    """TM to all: CHANGE, complete."""
    world = World(8, config=ALWAYS)
    world.form(8)
    tree = agreement(world, 0).tree
    leaf = tree.leaf_of(address(0))
    assert leaf is not None
    gone = next(n for n in range(8) if tree.leaf_of(address(n)) == leaf ^ 1)
    start = world.now_ns
    world.crash(gone)
    world.lose(gone)
    rest = [n for n in range(8) if n != gone]
    world.run_until(lambda: world.agreed(*rest))
    assert said(world, start) == [(CHANGE, 0, None)]


def test_a_leave_that_a_member_sponsors() -> None:
    """TM to all: CHANGE, sponsor: PATH."""
    world = World(8, config=ALWAYS)
    world.form(8)
    start = world.now_ns
    world.crash(5)
    world.lose(5)
    world.run_until(lambda: world.agreed(0, 1, 2, 3, 4, 6, 7))
    assert [kind for kind, _, _ in said(world, start)] == [CHANGE, PATH]


def test_a_member_renews_its_share() -> None:
    """It gets the TREE as a newcomer does, since the TM cannot know that it lost nothing."""
    world = World(6, config=ALWAYS)
    world.form(6)
    world.run(2000)
    start, before = world.now_ns, world[0].epoch
    world.rekey(3)
    world.run_until(lambda: world[0].epoch != before and world.agreed(*range(6)))
    # If the CHANGE overtook the TREE, that one looks like a repetition, and is answered.
    assert said(world, start)[:4] == [
        (JOIN, 3, None),
        (TREE, 0, address(3)),
        (CHANGE, 0, None),
        (PATH, 3, None),
    ]


def test_of_several_newcomers_each_needs_the_whole_so_all_get_it() -> None:
    """joiners: JOIN, JOIN, TM to all: TREE, joiners: PATH, PATH."""
    world = World(7, config=ALWAYS)
    world.form(5)
    start = world.now_ns
    world.busy(0, 5)
    world.join(5)
    world.join(6)
    world.run_until(lambda: world.agreed(*range(7)))
    assert (TREE, 0, None) in said(world, start)
    assert not world.sent(CHANGE, since_ns=start)


def test_after_an_epoch_of_many_sponsors_all_get_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Members may lack keys of it that they did not need; here, after one of two sponsors."""
    monkeypatch.setattr("protocol.mike.making.EARLY_MAX", 1)
    world = World(8, config=ALWAYS)
    world.form(5)
    world.busy(0, 5)
    world.join(5)
    world.join(6)
    world.run_until(lambda: world.agreed(*range(7)))
    assert len(agreement(world, 0).content.sponsors) == 2
    start = world.now_ns
    world.join(7)
    world.run_until(lambda: world.agreed(*range(8)))
    assert (TREE, 0, None) in said(world, start)
    assert not world.sent(CHANGE, since_ns=start)


def test_who_lost_a_change_gets_it_again_and_not_the_whole() -> None:
    """member: REPAIR with the epoch that it has, TM to the member: CHANGE."""
    world = World(8, config=ALWAYS)
    world.form(8)
    world.run(1000)
    start = world.now_ns
    world.filters.append(lose(CHANGE, 3))
    world.crash(5)
    world.lose(5)
    assert world.run_until(lambda: world.agreed(0, 1, 2, 3, 4, 6, 7)) < 210
    assert (CHANGE, 0, address(3)) in said(world, start)
    assert not world.sent(TREE, since_ns=start)


def test_who_lost_two_epochs_gets_the_whole() -> None:
    """member: REPAIR with the epoch that it has, TM to the member: TREE."""
    world = World(8, config=ALWAYS)
    world.form(8)
    world.run(1000)
    deaf = lambda seen, to: to == 3 and seen.kind in (CHANGE, PATH, STATUS)  # noqa: E731
    world.filters.append(deaf)
    for gone, rest in ((5, (0, 1, 2, 4, 6, 7)), (7, (0, 1, 2, 4, 6))):
        world.crash(gone)
        world.lose(gone)
        world.run_until(lambda rest=rest: len({world[n].epoch for n in rest}) == 1)  # type: ignore[misc]
        world.run(50)
    start = world.now_ns
    world.filters.remove(deaf)
    world.run_until(lambda: world.agreed(0, 1, 2, 3, 4, 6))
    assert (TREE, 0, address(3)) in said(world, start)


def test_who_lacks_a_key_of_the_epoch_before_gets_the_whole() -> None:
    """member: REPAIR without an epoch, TM to the member: TREE."""
    world = World(8, config=ALWAYS)
    world.form(8)
    world.run(1000)
    current = agreement(world, 3)
    far = next(n for n in current.blinded if n >> (n.bit_length() - 2) != 2)
    del current.blinded[far]
    start = world.now_ns
    world.crash(5)
    world.lose(5)
    world.run_until(lambda: world.agreed(0, 1, 2, 3, 4, 6, 7))
    asked = [s.message for s in world.wire if s.at_ns >= start and s.kind is REPAIR]
    assert [question.held.number for question in asked] == [0]  # type: ignore[union-attr]
    assert (TREE, 0, address(3)) in said(world, start)


def test_who_holds_another_key_than_the_group_learns_it_from_the_hash() -> None:
    """MIKE-39: a CHANGE that does not make what it names is counted, and the TREE asked for."""
    world = World(8, config=ALWAYS)
    world.form(8)
    world.run(1000)
    current = agreement(world, 3)
    leaves = {n: current.tree.leaf_of(address(n)) for n in range(8)}
    path = {leaves[3], leaves[3] ^ 1}  # type: ignore[operator]
    odd = [n for n in range(1, 8) if leaves[n] not in path and leaves[n] % 2]  # type: ignore[operator]
    other, gone = odd[:2]
    current.blinded[leaves[other]] = bytes([7]) * 32  # type: ignore[index]
    world.crash(gone)
    world.lose(gone)
    rest = [n for n in range(8) if n != gone]
    world.run_until(lambda: world.agreed(*rest))
    assert world[3].counted("MIKE-39") == 1


def test_a_successor_tells_its_first_epoch_by_a_change() -> None:
    """The TM dies; the next member's CHANGE waits for the verdict of each IDP (MIKE-14)."""
    world = World(8, config=ALWAYS)
    world.form(8)
    world.run(1000)
    start = world.now_ns
    world.crash(0)
    world.lose(0, spread_ms=40)
    heir = next(d.index for d in world.devices if d.address == world[1].engine.members[1])
    world.run_until(lambda: world.agreed(*range(1, 8)))
    assert world.tm() == heir
    assert (CHANGE, heir, None) in said(world, start)
    assert sum(world[n].counted("MIKE-14") for n in range(1, 8)) > 0


@pytest.mark.parametrize("spent", [0, 1, 2])
def test_members_that_do_not_compute_ahead_of_the_sponsor_follow_its_path(
    spent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a leaf is deep a member leaves blinded keys to their sponsor; here, at every leaf."""
    monkeypatch.setattr("protocol.mike.duties.OPERATIONS_MAX", 4 + spent)
    world = World(12, config=ALWAYS)
    world.form(11)
    world.join(11)
    assert world.run_until(lambda: world.agreed(*range(12))) < 5
    for gone, rest in ((5, 11), (8, 10)):
        world.crash(gone)
        world.lose(gone)
        world.filters.append(lose(PATH, 1, 2))
        here = [n for n in range(12) if world[n].alive]
        assert len(here) == rest
        assert world.run_until(lambda here=here: world.agreed(*here)) < 210  # type: ignore[misc]


def forged(world: World, sender: int, message: Change) -> bytes:
    """Sign a CHANGE as a device of the group."""
    liar = world[sender].engine.identity
    if liar.startup_wall_ns is None:
        liar.begin(EPOCH_WALL_NS + world.now_ns)
    return liar.seal(PROTOCOL_MIKE, CHANGE, message.encode(), world.instant)


def next_epoch(world: World, tm: int) -> Change:
    """Return a CHANGE that a TM might make: its own leaf has another key."""
    current = agreement(world, 1)
    before = current.known_tree()
    leaf = before.leaf_of(address(tm))
    assert leaf is not None
    after = before.refreshed(leaf, NodeSecret(bytes([9]) * 32).blinded)
    who = address(tm)
    content = Announcement(current.epoch.number + 1, current.epoch, who, after, (who,), ())
    return Change(
        content.number,
        content.previous,
        who,
        content.digest,
        difference(before, after),
        content.sponsors,
        content.nonces,
    )


def test_a_change_counts_only_from_who_may_be_tm() -> None:
    """MIKE-3: a member's is held at most, a stranger's refused, and the TM's own is followed."""
    world = World(5, config=ALWAYS)
    world.form(4)
    before = world[1].epoch
    world.deliver(world[1], address(2), forged(world, 2, next_epoch(world, 2)))
    world.run(1)
    assert world[1].counted("MIKE-14") == 1
    assert world[1].engine.pending is None
    stranger = replace(next_epoch(world, 0), tm=address(4))
    world.deliver(world[1], address(4), forged(world, 4, stranger))
    world.run(1)
    assert world[1].counted("MIKE-3") == 1
    assert world[1].epoch == before
    world.deliver(world[1], address(0), forged(world, 0, next_epoch(world, 0)))
    world.run(1)
    pending = world[1].engine.pending
    assert pending is not None
    assert pending.epoch == next_epoch(world, 0).epoch


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [
        (lambda c: {"digest": bytes(32)}, "MIKE-39"),
        (lambda c: {"tm": address(0), "sponsors": (address(9),)}, "MIKE-39"),
        (lambda c: {"nonces": ((address(9), bytes(16)),)}, "MIKE-39"),
        (lambda c: {"pieces": (Kept(NodeName(77)),)}, "MIKE-39"),
        (lambda c: {"pieces": (Inner(None), Kept(ROOT), Kept(ROOT))}, "MIKE-39"),
        (lambda c: {"pieces": (Inner(None), Kept(ROOT), Leaf(address(9), None))}, "MIKE-39"),
        (lambda c: {"keys": {NodeName(99): bytes(32)}}, "MIKE-39"),
        (lambda c: {"number": c.number - 1, "previous": replace(c.previous, number=0)}, "MIKE-4"),
        (lambda c: {"number": c.number + (1 << 40)}, "MIKE-4"),
        (lambda c: {"tm": address(1)}, "MIKE-3"),
    ],
)
def test_what_makes_no_epoch_changes_nothing(
    wrong: Callable[[Change], dict[str, object]], rule: str
) -> None:
    """MIKE-39."""
    world = World(4, config=ALWAYS)
    world.form(4)
    before = world[1].epoch
    message = next_epoch(world, 0)
    bad = replace(message, **wrong(message))  # type: ignore[arg-type]
    world.deliver(world[1], address(0), forged(world, 0, bad))
    world.run(1)
    assert world[1].counted(rule) == 1
    assert world[1].epoch == before
    assert world[1].engine.pending is None
