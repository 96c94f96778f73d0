"""From key agreement to key distribution and back, without losing the group (MIKE-34)."""

from __future__ import annotations

import pytest

from protocol.mike.config import MikeConfig, Mode
from protocol.mike.distribution import Distribution
from protocol.mike.engine import MikeEngine
from protocol.mike.making import mode_of
from protocol.mike.messages import Kind
from protocol.mike.rules import next_mode
from tests.support.identities import address, make_identities
from tests.support.world import Seen, World

TREE, PATH, REKEY = Kind.TREE, Kind.PATH, Kind.REKEY
AUTO = MikeConfig(mode="auto", kd_members_min=6, ka_members_max=3)


def mode(world: World, index: int) -> Mode:
    current = world[index].engine.current
    assert current is not None
    return mode_of(current)


def group(n: int, *, more: int = 0, config: MikeConfig = AUTO) -> World:
    world = World(n + more, config=config)
    world.form(n)
    world.run(300)
    return world


def always_keyed(world: World) -> list[int]:
    """Note whoever of a group has no published key at any moment from now on."""
    keyless: list[int] = []
    step = world._step

    def watched(end: int) -> bool:
        more = step(end)
        keyless.extend(
            d.index for d in world.devices if d.alive and d.engine.members and not d.keys
        )
        return more

    world._step = watched  # type: ignore[method-assign]
    return keyless


def test_the_group_is_switched_by_the_join_that_makes_it_large() -> None:
    world = group(5, more=1)
    assert {mode(world, index) for index in range(5)} == {Mode.KA}
    keyless = always_keyed(world)
    start, number = world.now_ns, world[0].engine.highest
    world.join(5)
    took = world.run_until(lambda: world.agreed(*range(6)))
    assert took < 2
    assert {mode(world, index) for index in range(6)} == {Mode.KD}
    assert world[0].engine.highest == number + 1
    assert [kind for kind, _ in world.sent(since_ns=start)] == [Kind.JOIN, REKEY, Kind.PAGE]
    assert keyless == []


def test_the_group_is_switched_back_by_the_leave_that_makes_it_small() -> None:
    world = group(6)
    for index in (5, 4):
        world.crash(index)
        world.lose(index)
        world.run_until(lambda i=index: world.agreed(*range(i)))
    assert {mode(world, index) for index in range(4)} == {Mode.KD}
    world.run(300)
    keyless = always_keyed(world)
    start, number, before = world.now_ns, world[0].engine.highest, world[0].group_key
    world.crash(3)
    world.lose(3)
    took = world.run_until(lambda: world.agreed(0, 1, 2))
    assert took < 5
    assert {mode(world, index) for index in range(3)} == {Mode.KA}
    assert world[0].engine.highest == number + 1
    assert world[0].group_key != before
    assert {kind for kind, _ in world.sent(since_ns=start)} <= {TREE, PATH}
    assert keyless == []
    # The tree serves from now on as if it had always been there.
    world.restore_at(1)
    world.run_until(lambda: world[0].engine.highest == number + 2)
    world.run_until(lambda: world.agreed(0, 1, 2))


@pytest.mark.parametrize("size", [9, 16, 23])
def test_a_whole_tree_is_agreed_upon_at_once(size: int) -> None:
    """One epoch, a sponsor in every pair of leaves; the levels follow each other unasked."""
    config = MikeConfig(mode="auto", kd_members_min=size, ka_members_max=size - 1)
    world = group(size, config=config)
    assert mode(world, 0) is Mode.KD
    start, number = world.now_ns, world[0].engine.highest
    world.crash(size - 1)
    world.lose(size - 1)
    took = world.run_until(lambda: world.agreed(*range(size - 1)))
    assert took < 10
    assert mode(world, 1) is Mode.KA
    assert world[0].engine.highest == number + 1
    assert world[0].engine.current.tree.height == (size - 2).bit_length()
    assert Kind.REPAIR not in {kind for kind, _ in world.sent(since_ns=start)}


def test_a_switch_survives_the_loss_of_what_announces_it() -> None:
    world = group(5, more=1)
    lost: list[Seen] = []
    world.filters.append(lambda seen, to: seen.kind is REKEY and to == 2 and not lost.append(seen))
    world.join(5)
    world.run(10)
    assert mode(world, 2) is Mode.KA
    world.filters.clear()
    world.run_until(lambda: world.agreed(*range(6)), 2000)
    assert lost
    assert mode(world, 2) is Mode.KD


def test_a_tm_that_dies_while_it_switches_back_is_succeeded() -> None:
    """The unfinished epoch is replaced by the next TM's; the old key serves until then."""
    world = group(6)
    for index in (5, 4):
        world.crash(index)
        world.lose(index)
        world.run_until(lambda i=index: world.agreed(*range(i)))
    world.run(300)
    keyless = always_keyed(world)
    world.filters.append(lambda seen, _: seen.kind is PATH)
    world.crash(3)
    world.lose(3)
    world.run(50)
    assert world[0].engine.pending is not None
    world.crash(0)
    world.filters.clear()
    world.lose(0)
    world.run_until(lambda: world.agreed(1, 2), 3000)
    assert mode(world, 1) is Mode.KA
    assert keyless == []


def test_a_new_tm_takes_the_group_to_its_own_mode() -> None:
    """Nobody else's configuration matters; the members follow what the TM announces."""
    world = group(4, config=MikeConfig())
    device = world[1]
    device.engine.config = MikeConfig(mode="kd")
    start = world.now_ns
    world.hand_over(0, 1)
    world.run_until(lambda: world.agreed(*range(4)) and mode(world, 3) is Mode.KD)
    assert {mode(world, index) for index in range(4)} == {Mode.KD}
    assert [kind for kind, _ in world.sent(since_ns=start)][:2] == [Kind.HANDOVER, REKEY]
    world.run(100)
    world.hand_over(1, 2)
    world.run_until(lambda: world.agreed(*range(4)) and mode(world, 3) is Mode.KA)


def test_a_device_in_the_middle_switches_nothing() -> None:
    """Hysteresis: one member that comes and goes at the threshold."""
    world = group(6)
    for _ in range(3):
        world.crash(5)
        world.lose(5)
        world.run_until(lambda: world.agreed(*range(5)))
        world.run(100)
        assert mode(world, 0) is Mode.KD
        world.join(5)
        world.run_until(lambda: world.agreed(*range(6)))
        world.run(100)


@pytest.mark.parametrize(
    ("config", "present", "members", "wanted"),
    [
        (MikeConfig(), Mode.KA, 120, Mode.KA),
        (MikeConfig(), Mode.KD, 120, Mode.KA),
        (MikeConfig(), Mode.KD, 500, Mode.KD),
        (MikeConfig(mode="kd"), Mode.KA, 1, Mode.KD),
        (AUTO, Mode.KA, 5, Mode.KA),
        (AUTO, Mode.KA, 6, Mode.KD),
        (AUTO, Mode.KD, 4, Mode.KD),
        (AUTO, Mode.KD, 3, Mode.KA),
    ],
)
def test_the_mode_follows_from_configuration_and_size(
    config: MikeConfig, present: Mode, members: int, wanted: Mode
) -> None:
    """MIKE-34: a group too large for key agreement stays, whatever the TM is set to."""
    assert next_mode(present, members, config) is wanted


def test_the_status_says_the_mode() -> None:
    world = group(2, config=MikeConfig(mode="kd"))
    assert world[1].engine.status(world.instant)["mode"] == "kd"
    fresh = MikeEngine(AUTO, make_identities(2)[0], bytes(32), world[0].source)
    assert fresh.status(world.instant)["mode"] is None


def test_who_takes_the_role_over_an_epoch_of_unknown_members_makes_another() -> None:
    """MIKE-10, 15: an old HANDOVER comes while the roster of a newer epoch is lacked.

    The successor cannot go on from that epoch, and its beacon of the older one would tell the
    others of a group worse than theirs: they would not follow for more than a second.
    """
    world = group(6, more=1, config=MikeConfig(mode="kd"))
    late: list[bytes] = []
    deaf = True

    def drops(seen: Seen, to: int) -> bool:
        if to != 4:
            return False
        late.extend([seen.payload] if seen.kind is Kind.HANDOVER else [])
        return seen.kind in (Kind.HANDOVER, Kind.PAGE) or (seen.kind is REKEY and deaf)

    world.filters.append(drops)
    world.hand_over(0, 4)
    world.run_until(lambda: world[0].engine.state.value == "tm" and bool(late), 10_000)
    world.rekey(0)
    world.run(100)
    world.join(6)
    world.run(100)
    deaf = False

    def lacks_the_roster() -> bool:
        pending = world[4].engine.pending
        return isinstance(pending, Distribution) and pending.roster is None

    world.run_until(lacks_the_roster, 2000)
    world.filters.clear()
    world.deliver(world[4], address(0), late[-1])
    assert world.run_until(lambda: world.agreed(*range(7)), 2000) < 500
    assert world.tm() == 4
