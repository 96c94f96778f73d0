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
