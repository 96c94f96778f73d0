"""Several joins and leaves at once: what has arrived together shares one epoch (MIKE-10)."""

from __future__ import annotations

import pytest

from protocol.mike.config import MikeConfig
from protocol.mike.messages import Kind
from tests.support.world import World

MODES = [MikeConfig(mode="ka"), MikeConfig(mode="kd")]


@pytest.mark.parametrize("config", MODES, ids=lambda config: str(config.mode))
def test_joins_and_a_leave_that_arrived_together_take_one_epoch(config: MikeConfig) -> None:
    """MIKE-10: the TM was not scheduled while three JOINs and a LEAVE came.

    The third JOIN repeats that of a device that is a member already, which renews its share.
    """
    world = World(9, config=config)
    world.form(6)
    world.run(1000)
    start, number, before = world.now_ns, world[0].engine.highest, world[0].group_key
    world.busy(0, 2)
    for index in (6, 7, 8):
        world.join(index)
    world.crash(3)
    world.lose(3)
    world.restore_at(4)
    took = world.run_until(lambda: world.agreed(0, 1, 2, 4, 5, 6, 7, 8))
    assert took < 5
    assert world[0].engine.highest == number + 1
    assert world[0].group_key != before
    assert Kind.REPAIR not in {kind for kind, _ in world.sent(since_ns=start)}


@pytest.mark.parametrize("config", MODES, ids=lambda config: str(config.mode))
def test_a_join_alone_waits_for_nobody(config: MikeConfig) -> None:
    """MIKE-10: the timer has no delay, so in virtual time the answer leaves when the JOIN came."""
    world = World(4, config=config)
    world.form(3)
    world.run(1000)
    start = world.now_ns
    world.join(3)
    world.run_until(lambda: len(world.wire) > 0 and world.wire[-1].sender == 0)
    arrived_ms = (world.now_ns - start) / 1e6
    assert arrived_ms <= 0.05 + world.faults.delay_ms_max


@pytest.mark.parametrize("config", MODES, ids=lambda config: str(config.mode))
def test_leaves_that_were_reported_together_take_one_epoch(config: MikeConfig) -> None:
    world = World(8, config=config)
    world.form(8)
    world.run(1000)
    number = world[0].engine.highest
    for index in (2, 5, 7):
        world.crash(index)
        world.lose(index)
    world.run_until(lambda: world.agreed(0, 1, 3, 4, 6))
    assert world[0].engine.highest == number + 1


def test_what_comes_while_an_epoch_is_unfinished_waits_for_it() -> None:
    """MIKE-10: a JOIN beside an unfinished epoch does not replace it, whatever else comes."""
    world = World(7)
    world.form(5)
    world.run(1000)
    number = world[0].engine.highest
    world.filters.append(lambda seen, to: seen.kind is Kind.PATH and to == 0 and world.now_ns < end)
    end = world.now_ns + 5_000_000
    world.join(5)
    world.run(2)
    assert world[0].engine.pending is not None or not world[0].engine.current.is_complete
    world.join(6)
    world.run(2)
    assert world[0].engine.highest == number + 1
    world.run_until(lambda: world.agreed(*range(7)))
    assert world[0].engine.highest == number + 2
