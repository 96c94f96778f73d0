"""Groups whose TREE does not fit into one datagram, as message diagrams."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from protocol.identity import PROTOCOL_MIKE
from protocol.mike.config import MikeConfig
from protocol.mike.fields import PARTS_MAX, TREE_MAX, TREE_PARTS_MAX
from protocol.mike.fragments import SENDERS_MAX
from protocol.mike.messages import Fragment, Kind
from tests.support.identities import address, make_identities
from tests.support.world import EPOCH_WALL_NS, Faults, Seen, World

JOIN, TREE, PATH, STATUS, REPAIR, FRAGMENT = (
    Kind.JOIN,
    Kind.TREE,
    Kind.PATH,
    Kind.STATUS,
    Kind.REPAIR,
    Kind.FRAGMENT,
)
SMALL = MikeConfig(datagram_size_max=512)
"""Datagrams so small that a TREE of five members has two fragments, of eleven three."""


def lose_index(index: int, *receivers: int, times: int = 1) -> Callable[[Seen, int], bool]:
    """Drop the first fragments with this index towards these receivers."""
    left = dict.fromkeys(receivers, times)

    def drops(seen: Seen, to: int) -> bool:
        message = seen.message
        if isinstance(message, Fragment) and message.index == index and left.get(to, 0):
            left[to] -= 1
            return True
        return False

    return drops


def fragments(world: World, since_ns: int) -> list[Fragment]:
    return [
        s.message for s in world.wire if s.at_ns >= since_ns and isinstance(s.message, Fragment)
    ]


def test_a_join_whose_tree_comes_in_fragments() -> None:
    """joiner: JOIN, TM: FRAGMENT 1/3 2/3 3/3, joiner: PATH (MIKE-26)."""
    world = World(11, config=SMALL)
    world.form(10)
    start = world.now_ns
    world.join(10)
    took = world.run_until(lambda: world.agreed(*range(11)))
    assert took < 5
    sent = [entry for entry in world.sent(since_ns=start) if entry[0] is not STATUS]
    assert sent == [(JOIN, 10), (FRAGMENT, 0), (FRAGMENT, 0), (FRAGMENT, 0), (PATH, 10)]
    parts = fragments(world, start)
    assert [(part.index, part.count) for part in parts] == [(0, 3), (1, 3), (2, 3)]
    assert len({part.message for part in parts}) == 1


@pytest.mark.parametrize("members", [50, pytest.param(100, marks=pytest.mark.slow)])
def test_no_datagram_of_a_large_group_is_above_the_minimum_mtu(members: int) -> None:
    """MIKE-26, MIKE-20: all join almost at once; then one leaves."""
    world = World(members)
    world.join(0)
    world.run_until(lambda: world.agreed(0))
    for index in range(1, members):
        world.join(index)
    world.run_until(lambda: world.agreed(*range(members)), 20_000)
    world.crash(members // 2)
    world.lose(members // 2)
    rest = [index for index in range(members) if index != members // 2]
    world.run_until(lambda: world.agreed(*rest))
    assert max(len(seen.payload) for seen in world.wire) <= 1232
    assert any(seen.kind is FRAGMENT for seen in world.wire)
    assert world[0].counted("MIKE-20") == 0


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("receivers", [(10,), (4,), (3, 10), (1, 2, 3, 4, 5, 6, 7, 8, 9, 10)])
def test_one_lost_fragment_costs_one_repair(index: int, receivers: tuple[int, ...]) -> None:
    world = World(11, config=SMALL)
    world.form(10)
    world.filters.append(lose_index(index, *receivers))
    world.join(10)
    took = world.run_until(lambda: world.agreed(*range(11)))
    assert took < 160


def test_only_the_lost_fragment_is_sent_again() -> None:
    """member: REPAIR (bitmap 010), TM to the member alone: FRAGMENT 2/3."""
    world = World(11, config=SMALL)
    world.form(10)
    world.run(1000)
    start = world.now_ns
    world.filters.append(lose_index(1, 4))
    world.join(10)
    world.run_until(lambda: world.agreed(*range(11)))
    asked = [s for s in world.wire if s.at_ns >= start and s.kind is REPAIR]
    assert [(s.sender, s.destination, s.message.missing) for s in asked] == [  # type: ignore[union-attr]
        (4, address(0), 0b010)
    ]
    again = [s for s in world.wire if s.kind is FRAGMENT and s.destination is not None]
    assert [(s.destination, s.message.index) for s in again] == [  # type: ignore[union-attr]
        (address(4), 1)
    ]


def test_fragments_in_any_order_and_twice() -> None:
    world = World(11, config=SMALL, faults=Faults(duplication=1.0, delay_ms_max=30))
    world.form(11)
    assert world.agreed(*range(11))
    for device in world.devices:
        world.run(0)
        assert device.counted("MIKE-1") == 0
        assert device.counted("MIKE-27") == 0


def test_the_repetition_of_a_tree_completes_what_was_lost_of_it() -> None:
    """4 loses another fragment of each sending, and every answer to its questions."""
    world = World(11, config=SMALL)
    world.form(10)
    lost_of_first = lose_index(0, 4)
    sendings: dict[int, int] = dict.fromkeys(range(3), 0)

    def drops(seen: Seen, to: int) -> bool:
        if seen.kind is PATH and seen.sender == 10:
            return True  # so the TM repeats its TREE
        if to != 4 or not isinstance(seen.message, Fragment):
            return False
        if seen.destination is not None:
            return True
        sendings[seen.message.index] += 1
        return lost_of_first(seen, to) or (seen.message.index, sendings[2]) == (2, 2)

    world.filters.append(drops)
    world.join(10)
    world.run_until(lambda: world[4].engine.pending is not None)
    assert sendings[0] == 2
    assert world[4].engine.pending is not None
    assert len(world[4].engine.pending.members) == 11


def test_a_sponsor_answers_the_repetition_of_a_tree_that_it_has_already() -> None:
    """The TM lost the sponsor's PATH: FRAGMENT 1/3 2/3 3/3 again, and the sponsor's PATH again."""
    world = World(11, config=SMALL)
    world.form(10)
    lost: list[int] = []

    def drops(seen: Seen, to: int) -> bool:
        if seen.kind is PATH and to == 0 and not lost:
            lost.append(seen.sender)
            return True
        return False

    world.filters.append(drops)
    world.join(10)
    assert world.run_until(lambda: world.agreed(*range(11))) < 110
    assert lost == [10]
    assert world.sent(REPAIR) == []


def test_many_that_lost_the_same_fragment_ask_few_times() -> None:
    """MIKE-28: the second question makes the TM tell all."""
    world = World(40)
    world.join(0)
    world.run_until(lambda: world.agreed(0))
    for index in range(1, 39):
        world.join(index)
    world.run_until(lambda: world.agreed(*range(39)), 20_000)
    world.run(2000)
    start = world.now_ns
    world.filters.append(lose_index(1, *range(1, 39)))
    world.join(39)
    took = world.run_until(lambda: world.agreed(*range(40)))
    assert took < 160
    questions = world.sent(REPAIR, since_ns=start)
    assert 2 <= len(questions) <= 10
    told = [s for s in world.wire if s.at_ns > start and s.kind is FRAGMENT and not s.destination]
    assert len([s for s in told if s.message.index == 1]) == 2  # type: ignore[union-attr]


def test_many_that_lost_a_whole_tree_ask_few_times() -> None:
    """MIKE-28."""
    world = World(13)
    world.form(12)
    world.run(1000)
    start = world.now_ns
    left = dict.fromkeys(range(1, 12), 1)

    def drops(seen: Seen, to: int) -> bool:
        if seen.kind is TREE and left.get(to, 0):
            left[to] -= 1
            return True
        return False

    world.filters.append(drops)
    world.join(12)
    world.run_until(lambda: world.agreed(*range(13)))
    assert len(world.sent(REPAIR, since_ns=start)) <= 6
    assert len([s for s in world.wire if s.at_ns >= start and s.kind is TREE]) <= 4


def test_fragments_of_who_cannot_be_tm_are_not_kept() -> None:
    """MIKE-27: an authorised device outside the group, and a member's flood."""
    world = World(4, config=SMALL)
    world.form(3)
    stranger, member = make_identities(4)[3], make_identities(4)[2]
    for identity in (stranger, member):
        identity.begin(EPOCH_WALL_NS + world.now_ns)
    for number in range(200):
        for identity in (stranger, member):
            part = Fragment((number + 1).to_bytes(8, "big"), TREE, 0, PARTS_MAX, bytes(1000))
            payload = identity.seal(PROTOCOL_MIKE, FRAGMENT, part.encode(), world.instant)
            world.deliver(world[1], identity.me.address, payload)
    world.run(1)
    assemblies = world[1].engine.assemblies
    assert world[1].counted("MIKE-27") == 200
    assert len(assemblies) == 2
    assert assemblies.size == 2000
    world.run(4000)
    assert len(assemblies) == 0, "what nobody completes is dropped"


def test_a_joiner_keeps_a_bounded_number_of_fragments() -> None:
    """MIKE-27: it does not know the TM yet; every authorised device may flood it."""
    count = 20
    world = World(count, config=replace(SMALL, founding_delay_ms=60_000))
    world.join(0)
    world.run(1)
    identities = make_identities(count)
    for identity in identities[1:]:
        identity.begin(EPOCH_WALL_NS)
    for number in range(3):
        for who in range(1, count):
            for index in range(PARTS_MAX):
                name = (number * 1000 + who).to_bytes(8, "big")
                part = Fragment(name, TREE, index, PARTS_MAX, bytes(8000))
                payload = identities[who].seal(
                    PROTOCOL_MIKE, FRAGMENT, part.encode(), world.instant
                )
                world.deliver(world[0], address(who), payload)
    world.run(1)
    assemblies = world[0].engine.assemblies
    assert 0 < len(assemblies) <= 2 * SENDERS_MAX
    assert 0 < assemblies.size <= 2 * SENDERS_MAX * TREE_MAX
    assert world[0].counted("MIKE-27") > 0, "parts that make a message too large"


def test_a_message_that_is_not_what_its_fragments_name_is_dropped() -> None:
    """MIKE-27."""
    world = World(3, config=SMALL)
    world.form(3)
    liar = make_identities(3)[2]
    liar.begin(EPOCH_WALL_NS + world.now_ns)
    for index in (0, 1):
        part = Fragment(b"12345678", TREE, index, 2, b"no tree")
        payload = liar.seal(PROTOCOL_MIKE, FRAGMENT, part.encode(), world.instant)
        world.deliver(world[1], address(2), payload)
    world.run(1)
    assert world[1].counted("MIKE-27") == 1
    assert len(world[1].engine.assemblies) == 0


def test_a_message_in_too_many_fragments_is_not_sent() -> None:
    """MIKE-20."""
    world = World(2, config=SMALL)
    world.form(1)
    engine = world[0].engine
    engine.now = world.instant

    class Large:
        def encode(self) -> bytes:
            return bytes(TREE_PARTS_MAX * 512)

    Large.__name__ = "Tree"
    assert not engine.send(Large())  # type: ignore[arg-type]
    assert world[0].counted("MIKE-20") == 1
