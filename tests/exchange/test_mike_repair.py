"""Every message of a join or a leave lost once, doubled, delayed: the group agrees all the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from protocol.mike.config import MikeConfig
from protocol.mike.messages import Kind
from tests.support.world import Faults, Seen, World

JOIN, TREE, PATH, STATUS, REPAIR = Kind.JOIN, Kind.TREE, Kind.PATH, Kind.STATUS, Kind.REPAIR


def first(kind: Kind, *receivers: int) -> Callable[[Seen, int], bool]:
    """Drop the first datagram of a kind towards these receivers."""
    left = dict.fromkeys(receivers, 1)

    def drops(seen: Seen, to: int) -> bool:
        if seen.kind is kind and left.get(to, 0):
            left[to] -= 1
            return True
        return False

    return drops


@pytest.mark.parametrize(
    ("kind", "receivers", "within_ms"),
    [
        (JOIN, (0,), 235),  # the joiner repeats it
        (TREE, (3,), 160),  # the joiner repeats its JOIN, the TM its TREE
        (TREE, (1,), 160),  # the PATH that comes alone makes 1 ask
        (TREE, (0, 1, 2, 3), 160),
        (PATH, (1,), 160),  # 1 asks the TM
        (PATH, (0,), 110),  # the TM repeats TREE, and the sponsor its PATH
        (PATH, (0, 1, 2), 160),
        (STATUS, (1, 2, 3), 5),  # nobody waits for it
    ],
)
def test_one_loss_costs_one_repair(kind: Kind, receivers: tuple[int, ...], within_ms: int) -> None:
    world = World(4)
    world.form(3)
    world.filters.append(first(kind, *receivers))
    world.join(3)
    took = world.run_until(lambda: world.agreed(0, 1, 2, 3))
    assert took < within_ms


@pytest.mark.parametrize(("kind", "receiver"), [(TREE, 1), (TREE, 2), (PATH, 0), (PATH, 1)])
def test_one_loss_in_a_leave(kind: Kind, receiver: int) -> None:
    world = World(5)
    world.form(5)
    world.filters.append(first(kind, receiver))
    world.crash(3)
    world.lose(3)
    took = world.run_until(lambda: world.agreed(0, 1, 2, 4))
    assert took < 250


def test_a_member_that_missed_everything_learns_it_from_the_status() -> None:
    world = World(5)
    world.form(3)

    def deaf(seen: Seen, to: int) -> bool:
        return to == 2

    world.filters.append(deaf)
    world.join(3)
    world.run_until(lambda: world[3].group_key is not None)
    world.join(4)
    world.run_until(lambda: world[4].group_key is not None)
    world.filters.clear()
    took = world.run_until(lambda: world.agreed(0, 1, 2, 3, 4))
    # The next beacon, then one question and one answer.
    assert took < 1500 + 160


def test_the_confirming_status_comes_again() -> None:
    world = World(4)
    world.form(3)
    world.filters.append(first(STATUS, 3))
    world.join(3)
    world.run_until(lambda: world.agreed(0, 1, 2, 3))
    assert world[3].engine.current is not None
    assert not world[3].engine.current.confirmed
    # The beacon comes after 0.5 to 1.5 of its interval.
    world.run(1600)
    assert world[3].engine.current.confirmed


def test_a_path_that_overtakes_its_tree_is_kept() -> None:
    """MIKE-23."""
    world = World(4)
    world.form(3)
    world.filters.append(first(TREE, 1))
    world.join(3)
    world.run_until(lambda: world[3].group_key is not None)
    tree = next(s for s in reversed(world.wire) if s.kind is TREE)
    world.run(2)
    assert world[1].counted("MIKE-23") == 1
    assert len(world[1].engine.early) == 1
    world.deliver(world[1], world[0].address, tree.payload)
    world.run(1)
    assert world.agreed(0, 1, 2, 3)
    assert world[1].engine.early == {}


def test_a_joiner_that_dies_after_its_join_is_dropped_again() -> None:
    """MIKE-11."""
    world = World(4)
    world.form(3)
    world.filters.append(lambda seen, to: seen.kind is PATH or to == 3)
    world.join(3)
    world.run(5)
    world.crash(3)
    world.filters.clear()
    took = world.run_until(lambda: world.agreed(0, 1, 2) and world[0].counted("MIKE-11") == 1)
    assert took < 1700


def test_a_flood_of_questions_is_answered_at_a_bounded_rate() -> None:
    """MIKE-18."""
    world = World(4, config=MikeConfig(repair_delay_ms=1, repair_retry_max_ms=1))
    world.form(3)
    world.filters.append(lambda seen, to: seen.kind in (PATH, TREE) and to == 1)
    start = world.now_ns
    world.join(3)
    world.run(400)
    questions = len(world.sent(REPAIR, since_ns=start))
    answers = [s for s in world.wire if s.at_ns >= start and s.destination == world[1].address]
    assert 8 <= questions < 40
    assert len(answers) <= 8 + 1
    assert world[0].counted("MIKE-18") > 0


def test_duplicates_and_reordering_change_nothing() -> None:
    world = World(6, faults=Faults(duplication=1.0, delay_ms_max=30))
    world.form(6)
    world.crash(4)
    world.lose(4)
    world.run_until(lambda: world.agreed(0, 1, 2, 3, 5))


def test_a_sender_of_a_wrong_tag_is_doubted_and_the_epoch_repaired() -> None:
    """MIKE-8."""
    world = World(4)
    world.form(3)
    # 1 is made to compute another root: a wrong secret under the right pair of keys.
    engine = world[1].engine
    assert engine.current is not None
    secrets = engine.current.secrets
    for pair in secrets:
        secrets[pair] = engine.fresh_secret()
    world.join(3)
    world.run(5)
    assert world[1].counted("MIKE-8") == 1
    assert len(world[1].all_keys) == 2
    took = world.run_until(lambda: world.agreed(0, 1, 2, 3))
    assert took < 110


def test_two_groups_that_meet_become_one() -> None:
    """MIKE-16."""
    world = World(5)
    apart = [lambda seen, to: (seen.sender < 3) != (to < 3)]
    world.filters += apart
    for index in range(5):
        world.join(index)
    world.run_until(lambda: world.agreed(0, 1, 2) and world.agreed(3, 4))
    world.filters.clear()
    took = world.run_until(lambda: world.agreed(0, 1, 2, 3, 4))
    assert world.tm() == 0
    assert took < 2500
    assert world[3].counted("MIKE-16") == 1


def test_a_partitioned_group_heals() -> None:
    """MIKE-16, with LEAVEs on both sides while they are apart."""
    world = World(6)
    world.form(6)
    world.filters.append(lambda seen, to: (seen.sender < 4) != (to < 4))
    for lost in (4, 5):
        for at in range(4):
            world.signal_leave(at, lost)
    for lost in range(4):
        for at in (4, 5):
            world.signal_leave(at, lost)
    world.run_until(lambda: world.agreed(0, 1, 2, 3) and world.agreed(4, 5))
    world.filters.clear()
    world.run_until(lambda: world.agreed(*range(6)), 5000)


def test_a_deposed_tm_returns_as_a_member() -> None:
    world = World(4)
    world.form(4)
    world.filters.append(lambda seen, to: 0 in (seen.sender, to))
    world.lose(0)
    for other in (1, 2, 3):
        world.signal_leave(0, other)
    world.run_until(lambda: world.agreed(1, 2, 3) and world.agreed(0))
    world.filters.clear()
    world.run_until(lambda: world.agreed(0, 1, 2, 3), 4000)
    assert world.tm() == 1


def test_epoch_numbers_grow_at_every_member_over_merges() -> None:
    """MIKE-4."""
    world = World(5)
    world.form(5)
    world.filters.append(lambda seen, to: (seen.sender < 3) != (to < 3))
    for other in (3, 4):
        for at in range(3):
            world.signal_leave(at, other)
    for other in range(3):
        for at in (3, 4):
            world.signal_leave(at, other)
    world.run(3000)
    for _ in range(3):
        world.restore_at(4)
        world.run(500)
    world.filters.clear()
    world.run_until(lambda: world.agreed(*range(5)), 8000)
    for device in world.devices:
        numbers = [int(pointer.split("-")[0]) for pointer in device.all_keys]
        assert numbers == sorted(numbers)
        assert len(set(numbers)) == len(numbers)


def test_a_handover_in_an_epoch_that_we_lack_does_not_keep_its_tree_from_us() -> None:
    world = World(4)
    world.form(3)
    before = world[0].epoch
    world.filters.append(lambda seen, to: seen.kind is TREE and to == 2)
    world.join(3)
    world.run_until(lambda: world[0].epoch == world[1].epoch == world[3].epoch != before)
    world.hand_over(0, 1)
    world.run_until(lambda: world[2].engine.tm == world[1].address)
    assert world[2].epoch == before
    world.filters.clear()
    world.run_until(lambda: world.agreed(0, 1, 2, 3))
    assert world[2].counted("MIKE-4") == 0
