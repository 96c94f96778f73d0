"""MIKE-29 and MIKE-4: the numbers of epochs grow over restarts, and nobody can use them up."""

from __future__ import annotations

import pytest

from protocol.core.engine import Instant, Started
from protocol.identity import PROTOCOL_MIKE
from protocol.mike.engine import MikeEngine
from protocol.mike.events import EpochMarkFound, KeepEpochMark, PublishKey
from protocol.mike.messages import Handover, Kind
from protocol.mike.rules import NUMBER_JUMP_MAX
from tests.support.identities import address
from tests.support.world import EPOCH_WALL_NS, World


def number(world: World, index: int) -> int:
    epoch = world[index].engine.current
    assert epoch is not None
    return int(epoch.epoch.number)


def test_a_device_alone_founds_above_its_mark_after_a_crash() -> None:
    world = World(1)
    world[0].remembers = True
    world.form(1)
    world.rekey(0)
    world.run(1000)
    before = number(world, 0)
    assert world[0].epoch_mark == before
    world.crash(0)
    world.run(100)
    world.form(1)
    assert number(world, 0) == before + 1


def test_the_group_goes_above_the_mark_of_whoever_joins() -> None:
    """The joiner names its mark in its JOIN; all others follow, and put that on their disks."""
    world = World(3)
    world.form(2)
    world[2].remembers = True
    world[2].epoch_mark = 5000
    world.join(2)
    world.run_until(lambda: world.agreed(0, 1, 2))
    assert number(world, 0) == 5001
    assert [device.epoch_mark for device in world.devices] == [5001] * 3


def test_without_a_memory_an_old_number_does_come_back() -> None:
    """What the mark is for: the same device, the same crash, no disk."""
    world = World(1)
    world.form(1)
    before = number(world, 0)
    world.crash(0)
    world.form(1)
    assert number(world, 0) == before


def test_a_stop_and_a_start_go_on_above_the_numbers_used() -> None:
    world = World(2)
    world.form(2)
    before = number(world, 0)
    for index in (0, 1):
        world.stop(index)
    world.run(100)
    world.form(1)
    assert number(world, 0) > before


def test_the_mark_is_kept_before_anything_that_uses_the_number() -> None:
    """In every effect list that announces or publishes an epoch, the mark comes first."""
    world = World(3)
    order: list[tuple[int, str]] = []
    perform = world._perform

    def watched(device, effects):  # type: ignore[no-untyped-def]
        for effect in effects:
            if isinstance(effect, KeepEpochMark):
                order.append((device.index, "mark"))
            elif isinstance(effect, PublishKey):
                marked = device.epoch_mark
                told = [e.number for e in effects if isinstance(e, KeepEpochMark)]
                published = int(effect.pointer.partition("-")[0])
                assert max([marked, *told]) >= published
                if told:
                    assert isinstance(effects[0], KeepEpochMark) or isinstance(
                        effects[1], KeepEpochMark
                    )
                order.append((device.index, "publish"))
        perform(device, effects)

    world._perform = watched  # type: ignore[method-assign]
    world.form(3)
    for index in range(3):
        mine = [what for who, what in order if who == index]
        assert mine[0] == "mark"
        assert "publish" in mine


def test_a_started_instance_keeps_the_mark_it_was_told() -> None:
    world = World(1)
    engine: MikeEngine = world[0].engine
    now = Instant(0, EPOCH_WALL_NS)
    assert list(engine.handle(EpochMarkFound(41), now)) == []
    engine.handle(Started(EPOCH_WALL_NS), now)
    assert engine.highest == 41
    assert engine.prepared is not None
    assert engine.prepared.highest == 41


def test_a_device_that_was_away_enters_a_group_that_has_gone_far() -> None:
    """MIKE-4: whoever answers our own JOIN may name a number that nobody may jump to later."""
    world = World(3)
    world.form(2)
    for index in (0, 1):
        world[index].engine.highest = 3 * NUMBER_JUMP_MAX
    world[2].remembers = True
    world[2].epoch_mark = 5
    world.join(2)
    world.run_until(lambda: world.agreed(0, 1, 2))
    assert world[2].epoch_mark == 3 * NUMBER_JUMP_MAX + 1


@pytest.mark.parametrize(("jump", "taken"), [(NUMBER_JUMP_MAX, True), (1 << 61, False)])
def test_a_hand_over_cannot_use_the_numbers_up(jump: int, taken: bool) -> None:
    """MIKE-4: found in review; no epoch could be made above what such a HANDOVER named."""
    world = World(3)
    world.form(3)
    tm = world.tm()
    successor, witness = (index for index in range(3) if index != tm)
    before = world[witness].engine.highest
    current = world[witness].engine.current
    assert current is not None
    handover = Handover(current.epoch, address(successor), 1, before + jump, leaving=False)
    identity = world[tm].engine.identity
    payload = identity.seal(PROTOCOL_MIKE, Kind.HANDOVER, handover.encode(), world.instant)
    world.deliver(world[witness], address(tm), payload)
    world.run(10)
    assert world[witness].engine.highest == before + (jump if taken else 0)
    assert world[witness].counted("MIKE-4") == (not taken)
