"""Each single datagram of a join and of a leave is lost in turn: that costs one repair, no more.

A repair is one question and one answer, after the time that its asker waits: at most 1.5 times
`join_retry_ms` for a JOIN or its answer, `status_after_epoch_ms` and 1.5 times `repair_delay_ms`
for anything else. No time-out of seconds is waited for.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from protocol.mike.config import MikeConfig
from tests.support.world import Seen, World

WIRE_MS = 10
"""What the datagrams of event and repair take, far above what they need here."""

CASES = {
    "ka, the TREE is complete": (4, MikeConfig()),
    "ka, with a PATH": (5, MikeConfig()),
    "ka, in fragments": (5, MikeConfig(datagram_size_max=512)),
    "ka, a CHANGE": (5, MikeConfig(change_parts_min=1)),
    "ka, a CHANGE that needs no PATH": (4, MikeConfig(change_parts_min=1)),
    "ka, a CHANGE, the newcomer's TREE in fragments": (
        6,
        MikeConfig(change_parts_min=2, datagram_size_max=512),
    ),
    "kd": (5, MikeConfig(mode="kd")),
    "kd, in fragments and pages": (8, MikeConfig(mode="kd", datagram_size_max=512)),
}


def repair_ms(config: MikeConfig) -> float:
    """Return what one repair may take."""
    asked_ms = config.status_after_epoch_ms + 1.5 * config.repair_delay_ms
    return max(asked_ms, 1.5 * config.join_retry_ms) + WIRE_MS


def join(world: World, n: int) -> list[int]:
    world.join(n)
    return list(range(n + 1))


def leave(world: World, n: int) -> list[int]:
    world.crash(n - 2)
    world.lose(n - 2)
    return [index for index in range(n) if index != n - 2]


Happening = Callable[[World, int], list[int]]


def took_ms(happening: Happening, n: int, config: MikeConfig, lost: int, receiver: int) -> float:
    """Return how long an event takes with one loss, from -1 for a datagram that nobody gets.

    Args:
        happening: the event.
        n: members before it.
        config: of all.
        lost: which datagram, counted from the event; -1: none.
        receiver: who does not get it; -1: nobody does.
    """
    world = World(n + 1, config=config)
    world.form(n)
    world.run(1000)
    before, sent = world[0].epoch, len(world.wire)

    def drops(_: Seen, to: int) -> bool:
        return len(world.wire) - 1 - sent == lost and receiver in (-1, to)

    world.filters.append(drops)
    rest = happening(world, n)
    return world.run_until(lambda: world[0].epoch != before and world.agreed(*rest))


def datagrams(happening: Happening, n: int, config: MikeConfig) -> int:
    """Return how many datagrams an event takes if nothing is lost, the STATUS after it included."""
    world = World(n + 1, config=config)
    world.form(n)
    world.run(1000)
    sent = len(world.wire)
    happening(world, n)
    world.run(config.status_after_epoch_ms + WIRE_MS)
    return len(world.wire) - sent


@pytest.mark.parametrize("happening", [join, leave])
@pytest.mark.parametrize("case", CASES)
def test_whichever_datagram_is_lost_costs_one_repair(case: str, happening: Happening) -> None:
    n, config = CASES[case]
    count = datagrams(happening, n, config)
    assert count > 0
    late = {}
    for lost in range(count):
        for receiver in range(-1, n + 1):
            took = took_ms(happening, n, config, lost, receiver)
            if took > repair_ms(config):
                late[lost, receiver] = round(took)
    assert not late, f"{count} datagrams; (which, lost at): ms: {late}"
