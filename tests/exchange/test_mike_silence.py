"""A TM that is there but not heard: it is asked before it counts as lost (MIKE-22, MIKE-36)."""

from __future__ import annotations

import pytest

from protocol.idpmike import SignalKind
from protocol.mike.messages import Kind
from tests.support.world import MS, World


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("period_ms", [500, 1000, 2000])
def test_mike_36_link_that_flips_costs_no_election(period_ms: int, seed: int) -> None:
    """MIKE-36."""
    world = World(5, seed=seed)
    world.form(5)
    epoch = world[0].epoch
    begin_ns = world.now_ns
    world.filters.append(
        lambda seen, receiver: (
            4 in (seen.sender, receiver)
            and (world.now_ns - begin_ns) % (period_ms * MS) < period_ms * MS // 2
        )
    )
    world.run(60_000)
    assert [device.counted("MIKE-22") for device in world.devices] == [0] * 5
    assert {device.epoch for device in world.devices} == {epoch}


def test_mike_36_member_that_misses_all_beacons_asks_and_is_answered_alone() -> None:
    """MIKE-36."""
    world = World(3)
    world.form(3)
    world.run(2000)
    start_ns = world.now_ns
    world.filters.append(
        lambda seen, receiver: (
            receiver == 2 and seen.kind is Kind.STATUS and seen.destination is None
        )
    )
    # 0 --x 2: STATUS; 2 --> 0: REPAIR(the epoch it has); 0 --> 2: STATUS
    world.run(12_000)
    asked = [seen for seen in world.wire if seen.kind is Kind.REPAIR and seen.at_ns >= start_ns]
    assert 3 <= len(asked) <= 6
    assert {(seen.sender, seen.destination) for seen in asked} == {(2, world[0].address)}
    assert Kind.TREE not in {kind for kind, _ in world.sent(since_ns=start_ns)}
    assert world[2].counted("MIKE-22") == 0
    assert world.agreed(0, 1, 2)


def test_mike_36_dead_tm_is_asked_a_bounded_number_of_times() -> None:
    """MIKE-22, MIKE-36."""
    world = World(4)
    world.form(4)
    start_ns = world.now_ns
    world.crash(0)
    world.run_until(lambda: world.agreed(1, 2, 3), 8000)
    for member in (1, 2, 3):
        asked = [
            seen
            for seen in world.wire
            if (seen.kind, seen.sender) == (Kind.REPAIR, member) and seen.at_ns >= start_ns
        ]
        assert 5 <= len(asked) <= 20


def test_mike_22_tm_that_idp_hears_again_must_show_that_it_is_tm_still() -> None:
    """MIKE-22: member 3 misses the election of 1, and then that 0 is no member any more."""
    world = World(4)
    world.form(4)
    cut = True
    world.filters.append(lambda seen, receiver: cut and 3 in (seen.sender, receiver))
    world.crash(0)
    for member in (1, 2):
        world.signal_leave(member, 0)
    world.run_until(lambda: world[3].counted("MIKE-22") == 1, 8000)
    # IDP --> 3: JOIN(0), which is back and in no group; nothing is heard of it at 3
    world.signal(3, SignalKind.JOIN, 0)
    world.run(50)
    cut = False
    world.run_until(lambda: world.agreed(1, 2, 3), 12_000)
    assert world[3].counted("MIKE-22") >= 2


def know(world: World) -> None:
    """Let each device's IDP have told its MIKE of the TM's device, as it does of all it meets."""
    for index in range(1, len(world.devices)):
        world.signal(index, SignalKind.JOIN, 0)
    world.run(1500)


@pytest.mark.parametrize("size", [2, 4, 6])
@pytest.mark.parametrize("away_ms", [100, 1500, 3900])
def test_mike_37_tm_that_crashed_and_is_back_before_it_was_missed_costs_no_more(
    size: int, away_ms: int
) -> None:
    """MIKE-37: 0 dies as TM and begins anew; the others ask it, elect, and let it in."""
    world = World(size)
    world.form(size)
    others = range(1, size)
    know(world)
    begin_ns = world.now_ns
    old = world[1].epoch
    world.crash(0)
    world.run(away_ms)
    excluded = [world[index].counted("MIKE-21") for index in others]
    # IDP of each --> MIKE: JOIN(0, later); MIKE --> 0: REPAIR(the epoch we have); no answer
    world.join(0)
    took = world.run_until(lambda: world[1].epoch != old and world.agreed(*range(size)), 4000)
    assert took < 2500
    assert world.tm() != 0
    keys = [world[index].points("t_key") for index in others]
    first_ns = [next(at for at in points if at > begin_ns) for points in keys]
    assert max(first_ns) - begin_ns < (away_ms + 700) * MS
    assert [world[index].counted("MIKE-21") for index in others] == excluded, "nobody was excluded"


def test_mike_37_tm_of_which_only_idp_began_anew_stays_tm() -> None:
    """MIKE-37: it answers the question."""
    world = World(4)
    world.form(4)
    know(world)
    start_ns = world.now_ns
    world.started[0] += 1
    for index in (1, 2, 3):
        world.signal(index, SignalKind.JOIN, 0)
    world.run(3000)
    asked = [kind for kind, _ in world.sent(since_ns=start_ns) if kind is Kind.REPAIR]
    assert len(asked) == 3
    assert [device.counted("MIKE-22") for device in world.devices] == [0] * 4
    assert world.tm() == 0


def test_mike_22_a_tm_that_began_anew_does_not_take_the_members_into_its_new_group() -> None:
    """MIKE-22: 0 founds a group with a higher number; its TREE and STATUS are not followed."""
    world = World(5)
    world.form(5)
    world.crash(0)
    world.start(0)
    world.signal(0, SignalKind.JOIN, 0)  # no other device's IDP has noticed yet
    world.run_until(lambda: world[0].points("mike.founded") != [], 3000)
    world.run_until(lambda: world.agreed(*range(5)), 4000)
    assert [world[index].counted("MIKE-21") for index in range(1, 5)] == [0] * 4
    assert world.tm() != 0


def test_mike_14_a_member_that_begins_anew_while_the_tm_is_dead_succeeds_nobody() -> None:
    """MIKE-14: 0 dies as TM just when 3 begins anew; 3 founds a group, which nobody follows."""
    world = World(5)
    world.form(5)
    know(world)
    world.crash(0)
    world.crash(3)
    world.start(3)
    for index in (1, 2, 3, 4):
        world.signal(index, SignalKind.JOIN, 3)
    world.run_until(lambda: world[3].points("mike.founded") != [], 3000)
    world.run(1500)  # its TREE and STATUS are heard; then IDP misses 0
    begin_ns = world.now_ns
    world.lose(0)
    world.run_until(lambda: world.agreed(1, 2, 3, 4), 4000)
    assert world.now_ns - begin_ns < 2500 * MS
    first_ns = [next(at for at in world[i].points("t_key") if at > begin_ns) for i in (1, 2, 4)]
    assert max(first_ns) - begin_ns < 100 * MS, "nobody waits for 3, though it may come first"
    assert [world[index].counted("MIKE-21") for index in (1, 2, 4)] == [0] * 3
    assert world.tm() == 1


def test_mike_13_the_first_in_order_that_begins_anew_while_the_tm_is_dead_is_passed_over() -> None:
    """MIKE-13: 1 would succeed 0, but knows nothing of the group any more; so 2 does, at once."""
    world = World(5)
    for device in world.devices:
        device.remembers = True  # or the numbers of its new group are refused by all
    world.form(5)
    for index in (2, 3, 4):
        world.signal(index, SignalKind.JOIN, 1)
    world.run(1500)
    world.crash(0)
    world.crash(1)
    world.run(1000)
    world.start(1)
    for index in (1, 2, 3, 4):
        world.signal(index, SignalKind.JOIN, 1)
    world.run(1000)
    begin_ns = world.now_ns
    world.lose(0)
    world.run_until(lambda: world.agreed(1, 2, 3, 4), 4000)
    first_ns = [next(at for at in world[i].points("t_key") if at > begin_ns) for i in (2, 3, 4)]
    assert max(first_ns) - begin_ns < 100 * MS
    assert world.tm() == 2


def test_who_founded_alone_while_the_tm_was_down_does_not_take_the_others_one_by_one() -> None:
    """MIKE-14: the fault campaign found it; each waited for its predecessor's turn to pass."""
    world = World(6)
    for device in world.devices:
        device.remembers = True  # or its new group's numbers are refused by all
    world.form(6)
    know(world)
    # 5 begins anew; 0, the TM, dies before it hears the JOIN; 5 founds a group and lets 0 in.
    world.crash(5)
    world.crash(0)
    world.join(5)
    world.run_until(lambda: world[5].engine.state.value == "tm", 4000)
    world.join(0)
    took = world.run_until(lambda: world.agreed(*range(6)), 8000)
    assert took < 2500
    assert [world[index].counted("MIKE-21") for index in range(1, 5)] == [0] * 4


def test_mike_37_who_holds_the_tree_of_a_successor_asks_its_tm() -> None:
    """MIKE-37, MIKE-14: 3 began after 0 and cannot know that 0 is another instance now."""
    world = World(4)
    world.form(4)
    for index in (1, 2):
        world.signal(index, SignalKind.JOIN, 0)
    world.run(1500)
    world.crash(0)
    world.run(500)
    begin_ns = world.now_ns
    # Nobody hears 0's MIKE any more, so nothing of its being another instance.
    world.filters.append(lambda seen, receiver: seen.sender == 0)
    world.join(0)
    world.run_until(lambda: world.agreed(1, 2, 3), 8000)
    # 1 and 2 have no answer after half a second; 1's TREE is held by 3, which asks in vain, too.
    first_ns = next(at for at in world[3].points("t_key") if at > begin_ns)
    assert first_ns - begin_ns < 1700 * MS
    assert world[3].counted("MIKE-14") >= 1


def test_mike_22_who_was_silent_as_tm_and_joined_again_is_no_more_gone() -> None:
    """MIKE-22: 0's MIKE dies and comes back, its IDP lives; a later TM must not exclude it."""
    world = World(4)
    world.form(4)
    world.crash(0)
    world.run_until(lambda: world.agreed(1, 2, 3), 9000)
    world.start(0)
    world.signal(0, SignalKind.JOIN, 0)
    world.run_until(lambda: world.agreed(0, 1, 2, 3), 3000)
    for index in (1, 2, 3):  # whoever is TM next
        assert world[0].address not in world[index].engine.gone()
