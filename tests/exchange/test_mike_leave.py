"""Leaving, hand-over and election, as message diagrams."""

from __future__ import annotations

import pytest

from protocol.idpmike import SignalKind
from protocol.mike.messages import Kind, Tree
from tests.support.world import Seen, World

JOIN, TREE, PATH, STATUS, HANDOVER = Kind.JOIN, Kind.TREE, Kind.PATH, Kind.STATUS, Kind.HANDOVER


@pytest.mark.parametrize("leaver", [1, 2, 3, 4])
def test_a_leave_is_executed_by_the_tm_alone(leaver: int) -> None:
    world = World(5)
    world.form(5)
    before = world[0].group_key
    start = world.now_ns
    world.crash(leaver)
    world.lose(leaver)
    rest = [index for index in range(5) if index != leaver]
    world.run_until(lambda: world.agreed(*rest))
    assert world[0].group_key != before
    kinds = [kind for kind, _ in world.sent(since_ns=start)]
    # One TREE of the TM, and one PATH of the sponsor unless the TM is the sponsor itself.
    assert kinds in ([TREE], [TREE, PATH])
    assert world.sent(since_ns=start)[0] == (TREE, 0)


def test_a_leave_with_the_tm_as_sponsor_takes_one_message() -> None:
    world = World(3)
    world.form(3)
    world.hand_over(0, 1)
    world.run(1500)
    start = world.now_ns
    # 2 sits beside the subtree of 0 and 1, whose rightmost member is the TM.
    world.crash(2)
    world.lose(2)
    world.run_until(lambda: world.agreed(0, 1))
    assert world.sent(since_ns=start) == [(TREE, 1)]


def test_the_last_member_renews_its_key_without_a_message() -> None:
    world = World(2)
    world.form(2)
    before = world[0].group_key
    start = world.now_ns
    world.crash(1)
    world.lose(1)
    world.run_until(lambda: world.agreed(0))
    assert world[0].group_key != before
    assert world.sent(since_ns=start) == []


def test_leaves_reported_together_share_epochs() -> None:
    world = World(8)
    world.form(8)
    start = world.now_ns
    for index in (2, 5, 7):
        world.crash(index)
    for index in (2, 5, 7):
        world.lose(index)
    world.run_until(lambda: world.agreed(0, 1, 3, 4, 6))
    trees = [seen.message for seen in world.wire if seen.at_ns >= start]
    numbers = {tree.announcement.number for tree in trees if isinstance(tree, Tree)}
    assert len(numbers) <= 3


def test_a_burst_of_joins_and_leaves_takes_two_epochs() -> None:
    """MIKE-10: the first event at once, all that came meanwhile together.

    Two of the second epoch's sponsors are siblings, both with a new leaf: neither can compute
    anything before the other one published, and none may wait for a repetition of TREE to do so.
    """
    world = World(13)
    world.form(8)
    start, number = world.now_ns, world[0].engine.highest
    gone, new = (2, 5, 7), range(8, 13)
    for index in gone:
        world.crash(index)
        world.lose(index)
    for index in new:
        world.join(index)
    rest = [index for index in range(13) if index not in gone]
    took = world.run_until(lambda: world.agreed(*rest))
    assert world[0].engine.highest == number + 2
    assert took < 5
    assert Kind.REPAIR not in {kind for kind, _ in world.sent(since_ns=start)}


def test_a_sponsor_that_left_too_is_replaced_at_once() -> None:
    """MIKE-10."""
    world = World(6)
    world.form(6)
    start = world.now_ns
    # 0's neighbourhood: whoever sponsors the first exclusion is dead as well.
    world.crash(2)
    world.crash(3)
    world.lose(2)
    world.run(2)
    world.lose(3)
    world.run_until(lambda: world.agreed(0, 1, 4, 5), 1000)
    assert (world.now_ns - start) / 1e6 < 100


def test_a_leaving_tm_hands_over_and_is_then_excluded() -> None:
    world = World(4)
    world.form(4)
    before = world[1].group_key
    start = world.now_ns
    world.stop(0)
    world.run_until(lambda: world.agreed(1, 2, 3))
    assert world.sent(since_ns=start)[:3] == [(HANDOVER, 0), (HANDOVER, 0), (TREE, 1)]
    assert world.tm() == 1
    assert world[1].group_key != before
    assert world[0].keys == {}
    assert world[0].engine.state.value == "parked"


def test_the_operator_hands_over_without_a_new_epoch() -> None:
    """MIKE-15."""
    world = World(4)
    world.form(4)
    epoch = world[0].epoch
    start = world.now_ns
    world.hand_over(0, 2)
    world.run(50)
    assert world.sent(since_ns=start) == [(HANDOVER, 0), (STATUS, 2)]
    assert world.tm() == 2
    assert world.agreed(0, 1, 2, 3)
    assert world[0].epoch == epoch
    # The new TM serves.
    world.crash(3)
    world.lose(3)
    world.run_until(lambda: world.agreed(0, 1, 2))
    assert world.tm() == 2


def test_who_takes_the_role_without_every_key_makes_an_epoch() -> None:
    """MIKE-10: it waited for keys that no sponsor had to say again (seed 1017036)."""
    world = World(4)
    world.form(3)
    # The joiner's neighbour in the tree needs no key of its PATH, and has the TM's confirmation.
    world.filters.append(lambda seen, to: seen.kind is PATH and to == 2)
    world.join(3)
    world.run_until(lambda: world.agreed(*range(4)))
    world.filters.clear()
    current = world[2].engine.current
    assert current is not None
    assert not current.is_complete
    world.hand_over(0, 2)
    world.run_until(lambda: world.agreed(*range(4)) and world.tm() == 2)
    world.crash(1)
    world.lose(1)
    world.run_until(lambda: world.agreed(0, 2, 3))


def test_a_lost_handover_is_repeated() -> None:
    """MIKE-15."""
    world = World(3)
    world.form(3)
    lost: list[int] = []

    def drops(seen: Seen, to: int) -> bool:
        lost.extend([to] if seen.kind is HANDOVER else [])
        return seen.kind is HANDOVER and len(lost) <= 2

    world.filters.append(drops)
    world.hand_over(0, 1)
    world.run_until(lambda: world.agreed(0, 1, 2) and world.tm() == 1)
    world.run(2000)
    assert world.agreed(0, 1, 2)


def test_a_third_device_that_missed_the_handover_learns_it_from_the_former_tm() -> None:
    world = World(3)
    world.form(3)
    world.filters.append(
        lambda seen, to: seen.kind is HANDOVER and to == 2 and seen.destination is None
    )
    world.hand_over(0, 1)
    world.run_until(lambda: world.agreed(0, 1, 2) and world.tm() == 1)


def test_a_tm_takes_its_role_back_from_a_silent_successor() -> None:
    world = World(3)
    world.form(3)
    world.crash(1)
    world.hand_over(0, 1)
    world.run_until(lambda: world[0].engine.state.value == "member")
    world.run_until(lambda: world[0].engine.state.value == "tm", 8000)
    world.lose(1)
    world.run_until(lambda: world.agreed(0, 2), 8000)


def test_the_first_live_member_succeeds_a_crashed_tm() -> None:
    """MIKE-13: no extra round: the new TM's TREE is the election."""
    world = World(5)
    world.form(5)
    start = world.now_ns
    world.crash(0)
    world.lose(0, spread_ms=20)
    world.run_until(lambda: world.agreed(1, 2, 3, 4))
    assert world.tm() == 1
    # A member whose IDP is later than the new TM keeps the TREE until its IDP agrees (MIKE-14).
    assert sum(device.counted("MIKE-14") for device in world.devices) >= 1
    assert world.sent(TREE, since_ns=start)[0] == (TREE, 1)


def test_the_next_one_acts_when_the_first_candidate_does_not() -> None:
    """MIKE-13."""
    world = World(5)
    world.form(5)
    world.crash(0)
    world.crash(1)
    world.lose(0)
    took = world.run_until(lambda: world.agreed(1, 2, 3, 4) or world[2].engine.state.value == "tm")
    assert 500 <= took < 600
    world.lose(1)
    world.run_until(lambda: world.agreed(2, 3, 4))


def test_tm_and_first_candidate_lost_together() -> None:
    world = World(5)
    world.form(5)
    for index in (0, 1):
        world.crash(index)
        world.lose(index)
    took = world.run_until(lambda: world.agreed(2, 3, 4))
    assert took < 100


def test_a_tm_whose_mike_died_is_replaced_although_idp_hears_the_device() -> None:
    """MIKE-22."""
    world = World(4)
    world.form(4)
    world.crash(0)
    took = world.run_until(lambda: world.agreed(1, 2, 3), 8000)
    assert 3900 <= took < 6000
    assert world[1].counted("MIKE-22") == 1


def test_an_excluded_live_device_drops_its_keys_and_comes_back() -> None:
    """MIKE-21."""
    world = World(4)
    world.form(4)
    world.signal(0, SignalKind.LEAVE, 3)  # only the TM's IDP lost device 3
    world.run_until(lambda: world.agreed(0, 1, 2))
    world.run(1)
    assert world[3].keys == {}
    assert world[3].statuses[-1].pointer == ""
    assert world[3].address not in world[3].statuses[-1].members
    assert world[3].counted("MIKE-21") == 1
    took = world.run_until(lambda: world.agreed(0, 1, 2, 3))
    assert 400 < took < 1700


def test_leave_of_oneself_ends_in_idle_without_keys() -> None:
    world = World(3)
    world.form(3)
    world.signal(2, SignalKind.LEAVE, 2)
    world.run(1)
    assert world[2].engine.state.value == "idle"
    assert world[2].keys == {}
    world.lose(2)
    world.run_until(lambda: world.agreed(0, 1))
    world.signal(2, SignalKind.JOIN, 2)
    world.run_until(lambda: world.agreed(0, 1, 2))


def test_members_move_when_those_that_stay_hang_below_one_another() -> None:
    """TM: one TREE in which members move; they and their neighbours publish new leaves."""
    world = World(32)
    world.join(0)
    world.run_until(lambda: world.agreed(0))
    for index in range(1, 32):
        world.join(index)
    world.run_until(lambda: world.agreed(*range(32)), 20_000)
    world.run(1000)
    current = world[0].engine.current
    assert current is not None
    places = current.members
    index_of = {device.address: device.index for device in world.devices}
    stay = sorted(index_of[places[place]] for place in (0, 16, 24, 28, 30, 31))
    gone = [index for index in range(32) if index not in stay]
    for index in gone:
        world.crash(index)
    for index in gone:
        world.lose(index)
    took = world.run_until(lambda: world.agreed(*stay))
    assert took < 5
    current = world[0].engine.current
    assert current is not None
    assert current.tree.height <= 4
    assert list(current.members) != [who for who in places if index_of[who] in stay], "none moved"
    assert Kind.REPAIR not in {kind for kind, _ in world.sent()}


def test_a_sponsor_that_comes_to_the_root_in_one_go_publishes_all_the_same() -> None:
    """The TM sponsors what is beside it, and would publish what is above: it waits for the other.

    That one has all that it needs with the announcement. Nobody else has its new keys.
    """
    world = World(16)
    world.form(16)
    at = {device.address: device.index for device in world.devices}
    places = [at[who] for who in world[0].engine.members]
    tm = places[7]
    world.hand_over(world.tm(), tm)
    world.run(2000)
    start = world.now_ns
    gone = (places[1], places[6])
    for who in gone:
        world.crash(who)
    for who in gone:
        world.lose(who)
    rest = [index for index in range(16) if index not in gone]
    assert world.run_until(lambda: world.agreed(*rest)) < 50
    newest = world[tm].engine.current
    assert newest is not None
    assert [at[who] for who in newest.content.sponsors] == [places[0], tm]
    assert (PATH, places[0]) in world.sent(PATH, since_ns=start)
