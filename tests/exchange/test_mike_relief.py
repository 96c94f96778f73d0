"""A sponsor that would have too much to compute, and who relieves it, as message diagrams.

In groups of a thousand; here the bound on operations is as low as if these were such groups.
"""

from __future__ import annotations

import pytest

from protocol.mike.agreement import Agreement
from protocol.mike.config import MikeConfig
from protocol.mike.messages import Kind, Path
from tests.support.world import Seen, World

PATH, CHANGE = Kind.PATH, Kind.CHANGE


@pytest.fixture(autouse=True)
def _bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five operations: who sponsors a leave of one of sixteen has three exchanges, three keys."""
    monkeypatch.setattr("protocol.mike.duties.OPERATIONS_MAX", 5)


def formed() -> World:
    world = World(16, config=MikeConfig(change_parts_min=1))
    world.form(16)
    world.run(2000)
    return world


def sponsors(world: World) -> tuple[int, ...]:
    """Sponsors of the newest epoch at the TM, in the order listed."""
    newest = world[world.tm()].engine.newest
    assert isinstance(newest, Agreement)
    return tuple(d.index for who in newest.content.sponsors for d in world.devices
                 if d.address == who)  # fmt: skip


def leaves(world: World, who: int) -> tuple[int, list[int]]:
    start = world.now_ns
    world.crash(who)
    world.lose(who)
    return start, [d.index for d in world.devices if d.alive]


def test_sponsor_and_relief_publish_one_after_the_other() -> None:
    """The TM's CHANGE, the sponsor's PATH up to where it is relieved, the relief's from there."""
    world = formed()
    start, rest = leaves(world, 5)
    world.run_until(lambda: world.agreed(*rest))
    first, second = sponsors(world)
    assert world.sent(since_ns=start) == [(CHANGE, 0), (PATH, first), (PATH, second)]
    told = [s.message for s in world.wire if s.at_ns >= start and s.kind is PATH]
    lower, upper = (set(path.keys) for path in told if isinstance(path, Path))
    assert max(upper) < min(lower)
    assert (len(lower), len(upper)) == (2, 1)
    newest = world[0].engine.current
    assert isinstance(newest, Agreement)
    assert lower | upper == set(newest.content.tree.open_nodes())


def test_the_relief_answers_for_the_epoch_and_keeps_its_leaf() -> None:
    world = formed()
    start, rest = leaves(world, 5)
    world.run_until(lambda: world.agreed(*rest))
    relief = sponsors(world)[-1]
    paths = [s.message for s in world.wire if s.at_ns >= start and s.sender == relief]
    assert isinstance(paths[0], Path)
    assert paths[0].confirmation is not None
    newest = world[relief].engine.current
    assert isinstance(newest, Agreement)
    assert newest.tree.leaf_of(newest.own) not in newest.published


@pytest.mark.parametrize("lost_at", ["relief", "everybody", "sponsor"])
def test_a_lost_path_costs_a_repetition_of_the_tree(lost_at: str) -> None:
    """One of the sponsor's at the relief, one of the relief's at all others or at the sponsor."""
    world = formed()
    lost: list[tuple[int, int]] = []

    def drops(seen: Seen, to: int) -> bool:
        if seen.kind is not PATH or len(sponsors(world)) != 2:
            return False
        first, second = sponsors(world)
        wanted = {
            "relief": seen.sender == first and to == second,
            "everybody": seen.sender == second,
            "sponsor": seen.sender == second and to == first,
        }[lost_at]
        if not wanted or (seen.sender, to) in lost:
            return False
        lost.append((seen.sender, to))
        return True

    world.filters.append(drops)
    _, rest = leaves(world, 5)
    assert world.run_until(lambda: world.agreed(*rest)) < 350
    assert lost


def test_a_relief_that_died_is_replaced() -> None:
    """MIKE-11: it stays silent, and the next epoch excludes it."""
    world = formed()
    world.filters.append(lambda seen, to: seen.kind is PATH)
    start, _ = leaves(world, 5)
    world.run_until(lambda: len(sponsors(world)) == 2 and world.now_ns > start)
    first, second = sponsors(world)
    world.crash(second)
    world.filters.clear()
    rest = [d.index for d in world.devices if d.alive]
    world.run_until(lambda: world.agreed(*rest), 5000)
    assert first in rest
    assert world[world.tm()].points("mike.sponsor_silent")


def test_a_new_tm_is_relieved_as_any_sponsor() -> None:
    """It takes over by its CHANGE, and a member beside its path publishes what is above."""
    world = formed()
    start, rest = leaves(world, 0)
    world.run_until(lambda: world.agreed(*rest))
    tm = world.tm()
    relief = sponsors(world)[-1]
    assert relief != tm
    assert world.sent(CHANGE, PATH, since_ns=start) == [(CHANGE, tm), (PATH, relief)]
