"""Joining, as message diagrams: founding, a join with and without PATH, several at once."""

from __future__ import annotations

import pytest

from protocol.identity import envelope
from protocol.idpmike import SignalKind
from protocol.mike.messages import Kind, Path, Tree
from tests.support.world import EPOCH_WALL_NS, LOCAL_DELAY_NS, MS, Faults, World

JOIN, TREE, PATH, STATUS = Kind.JOIN, Kind.TREE, Kind.PATH, Kind.STATUS


def test_a_device_alone_founds_a_group_and_has_a_key() -> None:
    world = World(1)
    world.join(0)
    took = world.run_until(lambda: world.agreed(0))
    assert 400 <= took < 410
    assert world[0].statuses == []
    world.run(1)
    assert world[0].statuses[0].members == (world[0].address,)
    assert world[0].epoch is not None
    assert world[0].epoch.startswith("1-")


def test_joining_beside_the_root_takes_two_messages() -> None:
    world = World(3)
    world.form(2)
    start = world.now_ns
    world.join(2)
    world.run_until(lambda: world.agreed(0, 1, 2))
    # The joiner asks; the TM can compute the root from the JOIN alone, and so can everybody then.
    assert world.sent(since_ns=start) == [(JOIN, 2), (TREE, 0)]
    (tree,) = [seen.message for seen in world.wire if seen.at_ns >= start and seen.kind is TREE]
    assert isinstance(tree, Tree)
    assert tree.announcement.sponsors == ()
    assert tree.confirmation is not None


def test_joining_elsewhere_takes_a_path_of_the_joiner() -> None:
    world = World(4)
    world.form(3)
    start = world.now_ns
    world.join(3)
    world.run_until(lambda: world.agreed(0, 1, 2, 3))
    assert world.sent(since_ns=start) == [(JOIN, 3), (TREE, 0), (PATH, 3)]
    (path,) = [seen.message for seen in world.wire if seen.at_ns >= start and seen.kind is PATH]
    assert isinstance(path, Path)
    assert path.confirmation is not None
    # The joiner has the key before it sends its PATH, the others after it.
    reports = [report.point for at, report in world[3].reports if at >= start]
    assert [point for point in reports if point.startswith("t_")] == [
        "t_mike_in",
        "t_join_sent",
        "t_key",
    ]
    assert world[3].points("t_key")[0] < world[1].points("t_key")[-1]
    # Then the TM confirms the joiner's key.
    world.run(100)
    assert world.sent(since_ns=start)[3:] == [(STATUS, 0)]


def test_ten_devices_join_one_after_the_other() -> None:
    world = World(10)
    world.form(10)
    assert world.tm() == 0
    keys = [device.all_keys for device in world.devices]
    # Every epoch's key is the same at all who have it, and no two epochs share one.
    for pointer, key in keys[0].items():
        assert all(other.get(pointer, key) == key for other in keys)
    assert len(set(keys[0].values())) == len(keys[0]) == 10
    # Only the last two keys stay published.
    assert all(len(device.keys) == min(2, len(device.all_keys)) for device in world.devices)


def test_devices_that_start_together_form_one_group() -> None:
    world = World(6)
    for index in range(6):
        world.join(index)
    world.run_until(lambda: world.agreed(0, 1, 2, 3, 4, 5))
    # Whoever started first founds; the others enter in one epoch.
    assert world.tm() == 0
    assert world[0].epoch is not None
    assert world[0].epoch.startswith("2-")


def test_the_earlier_started_device_founds() -> None:
    """MIKE-17."""
    world = World(2)
    world.join(1)
    world.run(5)
    world.join(0)
    world.run_until(lambda: world.agreed(0, 1))
    assert world.tm() == 1


def test_joins_that_meet_an_unfinished_epoch_share_the_next() -> None:
    """MIKE-10."""
    world = World(8)
    world.form(3)
    start = world.now_ns
    for index in (3, 4, 5, 6, 7):
        world.join(index)
    world.run_until(lambda: world.agreed(*range(8)))
    trees = [seen.message for seen in world.wire if seen.at_ns >= start]
    numbers = {tree.announcement.number for tree in trees if isinstance(tree, Tree)}
    assert len(numbers) == 2


def test_a_restored_member_rejoins_with_a_new_key() -> None:
    world = World(5)
    world.form(5)
    before = world[0].group_key
    world.restore(3)
    world.run_until(lambda: world.agreed(*range(5)) and world[0].group_key != before)
    assert world[0].engine.members == world[3].engine.members


def test_a_restored_tm_renews_the_key() -> None:
    world = World(4)
    world.form(4)
    before = world[0].group_key
    world.restore(0)
    world.run_until(lambda: world.agreed(*range(4)) and world[0].group_key != before)
    assert world.tm() == 0


def test_a_joiner_listens_before_it_asks() -> None:
    """A TREE that came while the socket still dropped its kind was lost until it was repeated."""
    world = World(2)
    world.form(1)
    world.join(1)
    world.run_until(lambda: world.agreed(0, 1))
    kinds = (TREE, PATH, STATUS, Kind.FRAGMENT, Kind.REKEY, Kind.PAGE, Kind.CHANGE)
    assert world[1].attended_at_send[0] == (JOIN, kinds)


def told(world: World, at: int, kind: SignalKind, about: int) -> None:
    """Let a device's IDP tell of a device, and nothing come from the black network meanwhile."""
    world.signal(at, kind, about)
    world.run(LOCAL_DELAY_NS / MS)


def test_a_joiner_listens_for_rivals_only_while_it_knows_no_elder() -> None:
    """MIKE-17: forged JOINs took a newcomer the time, and the room, for the answer to its own."""
    world = World(4, faults=Faults(delay_ms_min=500, delay_ms_max=500))
    world.form(2)
    world.run(1000)
    for index in (2, 3):
        world.start(index)
        told(world, index, SignalKind.JOIN, index)
        assert TREE in world[index].attended
        assert JOIN not in world[index].attended
    world.run(world.config.join_retry_ms / 2)
    for index, about in ((2, 3), (3, 2)):
        told(world, index, SignalKind.JOIN, about)
        assert JOIN in world[index].attended
    told(world, 2, SignalKind.JOIN, 0)
    assert JOIN not in world[2].attended
    told(world, 2, SignalKind.LEAVE, 0)
    assert JOIN in world[2].attended
    world.signal(2, SignalKind.JOIN, 1)
    world.run_until(lambda: world.agreed(*range(4)))
    assert JOIN not in world[2].attended


def test_joiners_that_wait_for_a_silent_elder_unite() -> None:
    """MIKE-17: the elder's MIKE is not there, and each takes it for the one that founds."""
    world = World(4)
    world.run(1000)
    for index in (1, 2, 3):
        world.start(index)
        world.signal(index, SignalKind.JOIN, index)
        world.signal(index, SignalKind.JOIN, 0)
    world.run_until(lambda: world.agreed(1, 2, 3))


def test_a_join_is_ready_when_idp_asks_and_made_anew_when_idp_asks_late() -> None:
    world = World(3)
    world.form(1)
    for index, late_ms, sequence in ((1, 20, 0), (2, 500, 1)):
        world.start(index)
        world.run(late_ms)
        asked_ns = world.now_ns
        world.signal(index, SignalKind.JOIN, index)
        world.run_until(lambda i=index: world.agreed(*range(i + 1)))  # type: ignore[misc]
        first = next(s for s in world.wire if (s.sender, s.kind) == (index, Kind.JOIN))
        sealed = envelope.decode(first.payload)
        assert sealed.sequence == sequence
        age_ms = (EPOCH_WALL_NS + asked_ns - sealed.sent_wall_ns) / MS
        assert (19 < age_ms <= 20) if sequence == 0 else age_ms < 1


@pytest.mark.parametrize(("members", "sends"), [(2, 2), (3, 3), (9, 3), (10, 3)])
def test_a_join_over_a_wide_area_network_takes_three_one_way_delays(
    members: int, sends: int
) -> None:
    """JOIN, TREE and PATH follow one another; nothing else of a join waits for the network."""
    delay_ms = 50.0
    world = World(members + 1, faults=Faults(delay_ms_min=delay_ms, delay_ms_max=delay_ms))
    world.form(members)
    world.join(members)
    took_ms = world.run_until(lambda: world.agreed(*range(members + 1)))
    # What is over: the local signalling, without a clock for the engines' own work.
    assert sends * delay_ms <= took_ms < sends * delay_ms + 5
