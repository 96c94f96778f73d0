"""Key distribution mode as message diagrams: joins, leaves, the TM's loss, what is missed."""

from __future__ import annotations

from itertools import pairwise

import pytest

from protocol.idpmike import SignalKind
from protocol.mike.config import MikeConfig
from protocol.mike.distribution import Distribution
from protocol.mike.keytree import KeyTree
from protocol.mike.messages import Announcement, Kind, Repair, Tree
from protocol.mike.rekeying import LEAF, Page, Rekey, RekeyAnnouncement
from protocol.mike.schedule import NodeSecret
from protocol.mike.treemath import NodeName
from tests.support.identities import address
from tests.support.world import MS, Seen, World

JOIN, REKEY, PAGE, STATUS = Kind.JOIN, Kind.REKEY, Kind.PAGE, Kind.STATUS
REPAIR = Kind.REPAIR
KD = MikeConfig(mode="kd")


def group(n: int, *, more: int = 0, config: MikeConfig = KD) -> World:
    """Return a world whose first n devices are a group, some time ago."""
    world = World(n + more, config=config)
    world.form(n)
    world.run(300)
    return world


def rekeys(world: World, since_ns: int) -> list[Rekey]:
    sent = [seen.message for seen in world.wire if seen.at_ns >= since_ns]
    return [message for message in sent if isinstance(message, Rekey)]


def test_a_join_takes_one_rekey_and_the_roster_for_the_newcomer() -> None:
    world = group(4, more=1)
    start, before = world.now_ns, world[0].group_key
    world.join(4)
    took = world.run_until(lambda: world.agreed(0, 1, 2, 3, 4))
    assert took < 2
    assert world.sent(since_ns=start) == [(JOIN, 4), (REKEY, 0), (PAGE, 0)]
    assert world[0].group_key != before
    assert [s.destination for s in world.wire[-2:]] == [None, address(4)]
    (rekey,) = rekeys(world, start)
    assert [who for who, _ in rekey.announcement.added] == [address(4)]


@pytest.mark.parametrize("leaver", [1, 2, 3, 4])
def test_a_leave_takes_one_rekey(leaver: int) -> None:
    world = group(5)
    start, before = world.now_ns, world[0].group_key
    world.crash(leaver)
    world.lose(leaver)
    world.run_until(lambda: world.agreed(*(i for i in range(5) if i != leaver)))
    assert world.sent(since_ns=start) == [(REKEY, 0)]
    assert world[0].group_key != before
    (rekey,) = rekeys(world, start)
    assert rekey.announcement.removed == (address(leaver),)


def test_the_last_member_renews_its_key_without_a_message() -> None:
    world = group(2)
    start, before = world.now_ns, world[0].group_key
    world.crash(1)
    world.lose(1)
    world.run_until(lambda: world.agreed(0))
    assert world[0].group_key != before
    assert world.sent(since_ns=start) == []


def test_a_burst_of_joins_and_leaves_takes_two_epochs() -> None:
    """MIKE-35: the first event at once, all that come soon after together."""
    world = group(8, more=5)
    start, number = world.now_ns, world[0].engine.highest
    gone = (2, 5, 7)
    for index in gone:
        world.crash(index)
        world.lose(index)
    for index in range(8, 13):
        world.join(index)
    rest = [index for index in range(13) if index not in gone]
    took = world.run_until(lambda: world.agreed(*rest))
    assert world[0].engine.highest == number + 2
    assert KD.kd_batch_ms <= took < KD.kd_batch_ms + 5
    assert Kind.REPAIR not in {kind for kind, _ in world.sent(since_ns=start)}


def test_more_changes_than_one_epoch_holds_take_several(monkeypatch: pytest.MonkeyPatch) -> None:
    """MIKE-35."""
    monkeypatch.setattr("protocol.mike.making.changes_max", lambda _: 2)
    world = group(3, more=5)
    start = world.now_ns
    for index in range(3, 8):
        world.join(index)
    world.run_until(lambda: world.agreed(*range(8)))
    granted = [len(rekey.announcement.added) for rekey in rekeys(world, start)]
    assert sum(granted) == 5
    assert max(granted) == 2


def test_a_rejoin_gives_a_new_leaf_and_new_keys_above_it() -> None:
    """MIKE-32: all that the member had is replaced, nobody else changes its leaf."""
    world = group(5)
    start, before = world.now_ns, world[3].engine.current
    world.restore_at(3)
    world.run_until(lambda: world[3].engine.current is not before)
    world.run(5)
    assert world.agreed(*range(5))
    after = world[3].engine.current
    assert isinstance(before, Distribution)
    assert isinstance(after, Distribution)
    assert not {key for _, key in before.path.steps} & {key for _, key in after.path.steps}
    assert before.leaf is not after.leaf
    assert before.members == after.members
    assert world.sent(since_ns=start) == [(JOIN, 3), (REKEY, 0), (PAGE, 0)]


def test_the_tm_renews_its_own_share_by_a_new_hierarchy() -> None:
    """MIKE-33: whoever copied the TM's state has none of the keys that follow."""
    world = group(5)
    hierarchy = world[0].engine.hierarchy
    world.run(1000)
    start, before = world.now_ns, world[0].epoch
    world.rekey(0)
    world.run_until(lambda: world[0].epoch != before and world.agreed(*range(5)))
    (rekey,) = rekeys(world, start)
    assert rekey.key == world[0].engine.hierarchy.secret.blinded != hierarchy.secret.blinded
    assert sum(bool(under & LEAF) for under in rekey.wraps) == 4


def test_a_key_that_is_renewed_by_time_takes_one_wrap() -> None:
    """MIKE-24."""
    world = group(5, config=MikeConfig(mode="kd", rekey_interval_ms=3000))
    start, before = world.now_ns, world[4].group_key
    world.run(3000)
    assert world.agreed(*range(5))
    assert world[4].group_key != before
    (rekey,) = rekeys(world, start)
    assert len(rekey.wraps) == 1


def test_the_first_live_member_succeeds_a_crashed_tm_with_keys_of_its_own() -> None:
    """MIKE-13, MIKE-33: no extra round: the new TM's REKEY is the election."""
    world = group(5, more=1)
    start, old = world.now_ns, world[0].engine.hierarchy
    world.crash(0)
    world.lose(0, spread_ms=20)
    world.run_until(lambda: world.agreed(1, 2, 3, 4))
    assert world.tm() == 1
    assert world.sent(since_ns=start) == [(REKEY, 1)]
    (rekey,) = rekeys(world, start)
    assert rekey.announcement.removed == (address(0),)
    assert rekey.key != old.secret.blinded
    # From now on it serves as cheaply as the old one.
    world.run(300)
    start = world.now_ns
    world.join(5)
    world.run_until(lambda: world.agreed(1, 2, 3, 4, 5))
    assert rekeys(world, start)[0].key == rekey.key
    assert sum(bool(under & LEAF) for under in rekeys(world, start)[0].wraps) == 2


def test_the_next_one_acts_when_the_first_candidate_does_not() -> None:
    """MIKE-13."""
    world = group(5)
    for index in (0, 1):
        world.crash(index)
    world.lose(0)
    took = world.run_until(lambda: world.agreed(1, 2, 3, 4) or world[2].engine.state.value == "tm")
    assert 500 <= took < 600
    world.lose(1)
    world.run_until(lambda: world.agreed(2, 3, 4))


def test_a_leaving_tm_hands_over_and_is_then_excluded() -> None:
    world = group(4)
    start = world.now_ns
    world.stop(0)
    world.run_until(lambda: world.agreed(1, 2, 3))
    handover = (Kind.HANDOVER, 0)
    assert world.sent(since_ns=start)[:3] == [handover, handover, (REKEY, 1)]
    assert world[0].keys == {}


def test_the_operator_hands_over_without_a_new_epoch_and_the_next_one_has_new_keys() -> None:
    """MIKE-15, MIKE-33: the new TM knows only its own path of the old hierarchy."""
    world = group(5)
    epoch, start = world[0].epoch, world.now_ns
    world.hand_over(0, 2)
    world.run(50)
    assert world.sent(since_ns=start) == [(Kind.HANDOVER, 0), (STATUS, 2)]
    assert world.agreed(*range(5))
    assert world[0].epoch == epoch
    world.crash(3)
    world.lose(3)
    world.run_until(lambda: world.agreed(0, 1, 2, 4))
    (rekey,) = rekeys(world, start)
    assert sum(bool(under & LEAF) for under in rekey.wraps) == 3


def test_a_new_tm_answers_for_the_epoch_of_its_predecessor() -> None:
    """It has no hierarchy: it wraps the root secret alone, under the asker's pairwise key."""
    world = group(5)
    drops = True

    def loses(seen: Seen, to: int) -> bool:
        return drops and to == 4 and seen.kind in (REKEY, STATUS)

    world.filters.append(loses)
    world.crash(3)
    world.lose(3)
    world.run(10)
    world.hand_over(0, 2)
    world.run(100)
    drops = False
    start = world.now_ns
    world.run_until(lambda: world.agreed(0, 1, 2, 4))
    answers = [s for s in world.wire if s.at_ns >= start and s.kind is REKEY and s.sender == 2]
    assert [set(answer.message.wraps) for answer in answers] == [{LEAF | 3}]


# What is missed.


def lose_next(world: World, kind: Kind, receiver: int) -> list[Seen]:
    """Drop the next datagram of this kind to this receiver."""
    lost: list[Seen] = []

    def drops(seen: Seen, to: int) -> bool:
        if seen.kind is kind and to == receiver and not lost:
            lost.append(seen)
            return True
        return False

    world.filters.append(drops)
    return lost


def repairs(world: World, since_ns: int) -> list[tuple[int, Repair]]:
    return [
        (s.sender, s.message) for s in world.wire if s.at_ns >= since_ns and s.kind is Kind.REPAIR
    ]


def test_a_member_that_missed_a_rekey_gets_it_by_one_question() -> None:
    world = group(6)
    lose_next(world, REKEY, 4)
    world.crash(5)
    world.lose(5)
    world.run(10)
    assert not world.agreed(0, 1, 2, 3, 4)
    start = world.now_ns
    world.run_until(lambda: world.agreed(0, 1, 2, 3, 4), 2000)
    assert [who for who, _ in repairs(world, start)] == [4]
    # It has the epoch before: the answer needs neither roster nor more keys than all others got.
    assert PAGE not in {kind for kind, _ in world.sent(since_ns=start)}


def test_a_member_that_missed_two_gets_its_keys_and_the_roster() -> None:
    world = group(6, more=1)
    world.filters.append(lambda seen, to: seen.kind is REKEY and to == 4 and blind)
    blind = True
    world.crash(5)
    world.lose(5)
    world.run(100)
    world.join(6)
    world.run(100)
    blind = False
    start = world.now_ns
    rest = (0, 1, 2, 3, 4, 6)
    world.run_until(lambda: world.agreed(*rest), 2000)
    answers = [s for s in world.wire if s.at_ns >= start and s.destination == address(4)]
    assert [answer.kind for answer in answers] == [REKEY, PAGE]
    path = answers[0].message.wraps
    assert len(path) <= 5
    assert sum(bool(under & LEAF) for under in path) == 1
    assert answers[1].message.entries[-1][0] == address(6)


@pytest.mark.parametrize("kind", [REKEY, PAGE])
def test_a_newcomer_that_lost_its_answer_asks_once(kind: Kind) -> None:
    world = group(4, more=1)
    lose_next(world, kind, 4)
    start = world.now_ns
    world.join(4)
    took = world.run_until(lambda: world.agreed(*range(5)), 1000)
    assert took < 300
    asked = [kind for kind, sender in world.sent(since_ns=start) if sender == 4]
    assert asked == ([JOIN, JOIN] if kind is REKEY else [JOIN, Kind.REPAIR])


def test_what_many_missed_is_told_to_all_after_the_second_question() -> None:
    """MIKE-28."""
    world = group(8)
    deaf = {3, 4, 5, 6}
    world.filters.append(
        lambda seen, to: seen.kind is REKEY and to in deaf and not seen.destination
    )
    world.crash(7)
    world.lose(7)
    world.run(20)
    world.filters.clear()
    start = world.now_ns
    world.run_until(lambda: world.agreed(*range(7)), 2000)
    assert len(repairs(world, start)) <= 3
    assert None in [s.destination for s in world.wire if s.at_ns >= start and s.kind is REKEY]


@pytest.mark.parametrize("later", [False, True])
def test_an_excluded_device_that_missed_it_learns_it_from_the_answer(later: bool) -> None:
    """MIKE-21: it is among the removed or, epochs later, not in the roster that it asks for."""
    world = group(4)
    world.filters.append(lambda seen, to: seen.kind is REKEY and to == 3 and not seen.destination)
    world.signal_leave(0, 3)
    world.run(10)
    if later:
        world.restore_at(1)
        world.run(100)
    assert world[3].keys
    world.run_until(lambda: not world[3].keys, 3000)
    assert world[3].counted("MIKE-21") == 1
    world.filters.clear()
    world.run_until(lambda: world.agreed(0, 1, 2, 3), 4000)


def test_a_page_that_overtakes_its_rekey_is_kept() -> None:
    """MIKE-23."""
    world = group(3, more=1)
    held: list[Seen] = []
    world.filters.append(lambda seen, to: seen.kind is REKEY and to == 3 and not held.append(seen))
    start = world.now_ns
    world.join(3)
    world.run(5)
    world.filters.clear()
    world.deliver(world[3], address(0), held[0].payload)
    world.run(1)
    assert world.agreed(0, 1, 2, 3)
    assert world[3].counted("MIKE-23") == 1
    assert [kind for kind, _ in world.sent(since_ns=start)] == [JOIN, REKEY, PAGE]


def test_a_large_roster_is_asked_for_page_by_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("protocol.mike.making.PAGE_OVERHEAD", 32 * 1024 - 4 * 48)
    world = group(9, more=1)
    start = world.now_ns
    world.join(9)
    world.run_until(lambda: world.agreed(*range(10)), 2000)
    pages = [s.message for s in world.wire if s.at_ns >= start and s.kind is PAGE]
    assert [(page.start, len(page.entries)) for page in pages if isinstance(page, Page)] == [
        (0, 4),
        (4, 4),
        (8, 2),
    ]
    assert [question.missing for _, question in repairs(world, start)] == [5, 9]
    asked = [(s.at_ns - start) / MS for s in world.wire if s.at_ns >= start and s.kind is REPAIR]
    assert asked[0] < 5  # the first page came unasked
    assert asked[1] > 50  # MIKE-18: a device gets one answer in that time


@pytest.mark.parametrize(("size", "count"), [(700, 2), (330, 5)])
def test_a_large_epoch_is_told_in_paced_parts(
    size: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MIKE-35: the wraps of a new hierarchy do not fit into one message.

    Nobody asks for what may be under way, though five parts take longer than a member waits.
    """
    world = group(9)
    monkeypatch.setattr("protocol.mike.making.body_size_max", lambda _: size)
    start = world.now_ns
    world.crash(0)
    world.lose(0)
    world.run_until(lambda: world.agreed(*range(1, 9)), 1000)
    parts = [seen for seen in world.wire if seen.at_ns >= start and seen.kind is REKEY]
    spaces = [(after.at_ns - before.at_ns) // MS for before, after in pairwise(parts)]
    assert len(parts) == count
    assert all(space == KD.kd_batch_ms for space in spaces)
    unders = [under for part in parts for under in part.message.wraps]
    assert len(unders) == len(set(unders)) == 2 * 7 - 1
    assert Kind.REPAIR not in {kind for kind, _ in world.sent(since_ns=start)}


def test_two_groups_become_one() -> None:
    """MIKE-16."""
    world = World(5, config=KD)
    side = {0, 1, 2}
    world.filters.append(lambda seen, to: (seen.sender in side) != (to in side))
    for index in range(5):
        world.start(index)
        world.signal(index, SignalKind.JOIN, index)
    world.run_until(lambda: world.agreed(0, 1, 2) and world.agreed(3, 4), 5000)
    world.filters.clear()
    world.run_until(lambda: world.agreed(*range(5)), 5000)
    assert world[3].counted("MIKE-16") + world[4].counted("MIKE-16") == 2


# What is refused.


class LowOrder(NodeSecret):
    """A liar's secret: its public key is of low order."""

    __slots__ = ()

    def _blind(self) -> bytes:
        return (1).to_bytes(32, "little")


def test_a_joiner_with_a_key_of_low_order_gets_nothing_and_harms_nobody() -> None:
    """MIKE-6."""
    world = group(3, more=4)
    world[3].engine._secret_type = LowOrder
    for index in (4, 3, 5, 6):
        world.join(index)
    took = world.run_until(lambda: world.agreed(0, 1, 2, 4, 5, 6))
    assert took < 2 * KD.kd_batch_ms, "those that asked with it had to ask again"
    assert world[0].counted("MIKE-6") >= 1


def test_a_member_cannot_speak_for_the_tm() -> None:
    """MIKE-3, MIKE-34: a REKEY, or a TREE that would change the mode, counts only from the TM."""
    world = group(4)
    epoch = world[0].engine.current
    assert isinstance(epoch, Distribution)
    liar = world[2].engine
    forged = RekeyAnnouncement(
        epoch.epoch.number + 1,
        epoch.epoch,
        address(2),
        4,
        epoch.content.roster,
    )
    rekey = Rekey(forged, 0, liar.fresh_secret().blinded, {}, bytes(16))
    tree = Tree(Announcement(epoch.epoch.number + 1, epoch.epoch, address(2), four(epoch)))
    liar.now = world.instant
    for kind, body in ((REKEY, rekey.encode()), (Kind.TREE, tree.encode())):
        world.deliver(world[1], address(2), liar.sealed(kind, body))
        world.run(50)
        assert world[1].engine.pending is None
        assert world[1].counted("MIKE-14") >= 1
        assert world.agreed(0, 1, 2, 3)


def test_a_roster_counts_only_from_the_tm() -> None:
    """MIKE-30: a member's page of lies does not even get among the others."""
    world = group(4, more=1)
    lose_next(world, PAGE, 4)
    world.join(4)
    world.run(5)
    pending = world[4].engine.pending
    assert isinstance(pending, Distribution)
    liar = world[2].engine
    liar.now = world.instant
    lies = Page(pending.content.roster, 0, ((address(2), bytes(32)),))
    world.deliver(world[4], address(2), liar.sealed(PAGE, lies.encode()))
    world.run(1)
    assert world[4].counted("MIKE-30") == 1
    assert pending.known_entries == 0
    world.run_until(lambda: world.agreed(*range(5)), 1000)


def four(epoch: Distribution) -> KeyTree:
    leaves = [NodeName(name) for name in range(4, 8)]
    assert epoch.roster is not None
    keys = dict(zip(leaves, epoch.roster.keys.values(), strict=True))
    return KeyTree(
        dict(zip(leaves, epoch.members, strict=True)),
        {**keys, NodeName(2): bytes(32), NodeName(3): bytes(32)},
    )
