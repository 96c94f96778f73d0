"""MIKE-16 and its neighbours after partitions: what the simulator found, one step at a time."""

from __future__ import annotations

from protocol.idpmike import SignalKind
from protocol.mike.messages import Join, Kind, Status, Tree
from tests.support.world import Seen, World

JOIN, TREE, PATH, STATUS = Kind.JOIN, Kind.TREE, Kind.PATH, Kind.STATUS


def test_who_dissolves_asks_the_winner_alone_and_everybody_only_later() -> None:
    world = World(5)
    world.form(3)
    cut = {3, 4}
    world.filters.append(lambda seen, to: (seen.sender in cut) != (to in cut))
    for index in (3, 4):
        world.join(index)
    world.run_until(lambda: world.agreed(3, 4))
    world.run(100)
    start = world.now_ns
    world.filters.clear()
    # The winner does not hear them at first.
    world.filters.append(lambda seen, to: seen.kind is JOIN and to == 0)
    world.run(3000)
    asked = [s for s in world.wire if s.at_ns >= start and isinstance(s.message, Join)]
    for sender in (3, 4):
        whom = [seen.destination for seen in asked if seen.sender == sender]
        assert whom[:3] == [world[0].address] * 3
        assert whom[3] is None
    world.filters.clear()
    world.run_until(lambda: world.agreed(0, 1, 2, 3, 4))


def test_a_tm_beacons_while_its_epoch_is_unfinished_and_says_how_large_that_one_is() -> None:
    world = World(4)
    world.form(4)
    # Nobody hears device 1, which believes that 0 and 3 have left: it is elected, and the other
    # sponsor of its epoch, 2, never answers.
    world.filters.append(lambda seen, to: 1 in (seen.sender, to))
    for index in (3, 0):
        world.signal(1, SignalKind.LEAVE, index)
    world.run_until(lambda: world[1].engine.state.value == "tm")
    world.run(1200)
    said = [s.message for s in world.wire if s.sender == 1 and isinstance(s.message, Status)]
    assert world[1].engine.pending is not None
    assert [status.members for status in said] == [2]


def test_a_status_of_the_epoch_we_have_is_no_other_groups_however_many_were_begun_since() -> None:
    world = World(4)
    world.form(4)

    def unfinished(seen: Seen, _to: int) -> bool:
        return seen.kind is PATH

    world.filters.append(unfinished)
    # Each RESTORE of a sponsor replaces the unfinished epoch by another one.
    for _ in range(12):
        world.restore_at(3)
        world.run(60)
        world.signal(0, SignalKind.LEAVE, 3)
        world.run(60)
    world.run(1200)
    for device in world.devices[1:3]:
        assert device.counted("MIKE-22") == 0


def test_of_two_tms_elected_in_one_epoch_one_dissolves_though_neither_finished_another() -> None:
    world = World(6)
    world.form(6)
    side = {0, 3, 4, 5}
    # No PATH arrives: an epoch with another sponsor than its TM stays unfinished.
    world.filters.append(lambda seen, _to: seen.kind is PATH)
    world.filters.append(lambda seen, to: (seen.sender in side) != (to in side))
    for index in range(6):
        for other in reversed(range(6)):
            if (index in side) != (other in side):
                world.signal_leave(index, other)
    world.run_until(
        lambda: world[0].engine.pending is not None and world[1].engine.state.value == "tm"
    )
    assert world[1].epoch == world[0].epoch
    assert world[1].engine.pending is not None
    del world.filters[1]
    for index in (1, 2):
        world.run_until(lambda i=index: world[i].counted("MIKE-16") == 1, 1200)  # type: ignore[misc]
    assert [world[index].counted("MIKE-16") for index in side] == [0] * 4
    world.filters.clear()
    world.run_until(lambda: world.agreed(*range(6)))


def test_a_tm_that_was_cut_off_gives_up_its_unfinished_epoch_for_the_tm_of_a_later_term() -> None:
    world = World(5)
    world.form(5)
    world.hand_over(0, 2)
    world.run_until(lambda: world[2].engine.state.value == "tm")
    world.run(100)
    # Nobody hears device 1, nor it them; it is back before the others notice.
    world.filters.append(lambda seen, to: 1 in (seen.sender, to))
    for index in (0, 2):
        world.signal_leave(1, index)
    world.run_until(lambda: world[1].engine.state.value == "tm")
    announced = world[1].engine.highest
    assert world[1].engine.pending is not None
    world.filters.clear()
    world.run_until(lambda: world[1].engine.state.value != "tm", 1_100)
    world.run_until(lambda: world.agreed(*range(5)))
    assert world[1].counted("MIKE-16") == 1
    assert world[1].engine.highest > announced


def test_a_tm_that_still_beacons_the_epoch_before_ours_has_not_restarted() -> None:
    """Whoever enters its group from one with larger numbers meets an epoch it never heard of."""
    world = World(5)
    world.form(3)
    cut = {3, 4}
    world.filters.append(lambda seen, to: (seen.sender in cut) != (to in cut))
    for index in (3, 4):
        world.join(index)
    world.run_until(lambda: world.agreed(3, 4))
    for _ in range(4):
        world.restore_at(3)
        world.run(200)
    assert world[3].engine.highest > world[0].engine.highest
    established = world[0].engine.current
    assert established is not None

    def follows_it(seen: Seen) -> bool:
        message = seen.message
        return isinstance(message, Tree) and message.announcement.previous == established.epoch

    # Together again; no epoch is finished, and of the first one that names them they hear nothing.
    world.filters[:] = [lambda seen, _to: seen.kind is PATH or follows_it(seen)]
    world.run_until(lambda: world[3].engine.pending is not None)
    world.run(1_100)
    assert [world[index].counted("MIKE-22") for index in (3, 4)] == [0, 0]
    world.filters.clear()
    world.run_until(lambda: world.agreed(*range(5)))
