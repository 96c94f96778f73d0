"""Renewal of the key, as message diagrams."""

from __future__ import annotations

import itertools

import pytest

from protocol.core.errors import LocalError
from protocol.idpmike import SignalKind
from protocol.mike.agreement import Agreement
from protocol.mike.config import MikeConfig
from protocol.mike.messages import Announcement, Kind, Tree
from tests.support.world import Device, World

JOIN, TREE, PATH, STATUS = Kind.JOIN, Kind.TREE, Kind.PATH, Kind.STATUS
INTERVAL_MS = 10_000


def timed(n: int) -> World:
    world = World(n, config=MikeConfig(rekey_interval_ms=INTERVAL_MS))
    world.form(n)
    return world


def with_the_state_of(victim: Device, announcement: Announcement) -> bool:
    """Say whether all that a device held before gets at the root of an epoch announced later."""
    old = victim.engine.current
    assert old is not None
    name = announcement.tree.leaf_of(victim.address)
    assert name is not None
    thief = Agreement(
        victim.address, announcement.tree, announcement.sponsors, old.leaf, dict(old.secrets)
    )
    thief.bind(announcement)
    thief.climb()
    return thief.keys is not None


def announced(world: World, since_ns: int) -> Announcement:
    trees = [s.message for s in world.wire if s.at_ns >= since_ns and s.kind is TREE]
    (tree,) = (message for message in trees if isinstance(message, Tree))
    return tree.announcement


def test_a_member_renews_its_share() -> None:
    """member: JOIN, TM: TREE, member: PATH; members and positions stay."""
    world = World(5)
    world.form(5)
    world.run(1000)
    before, members, start = world[3].group_key, world[0].engine.members, world.now_ns
    share = world[3].engine.current.leaf.blinded  # type: ignore[union-attr]
    world.rekey(3)
    world.run_until(lambda: world[0].group_key != before and world.agreed(*range(5)))
    kinds = [entry for entry in world.sent(since_ns=start) if entry[0] is not STATUS]
    assert kinds == [(JOIN, 3), (TREE, 0), (PATH, 3)]
    assert world[0].engine.members == members
    assert world[3].engine.current.leaf.blinded != share  # type: ignore[union-attr]


def test_the_tm_renews_the_key_with_one_message() -> None:
    world = World(5)
    world.form(5)
    world.run(1000)
    before, start = world[0].group_key, world.now_ns
    world.rekey(0)
    world.run_until(lambda: world[0].group_key != before and world.agreed(*range(5)))
    assert [e for e in world.sent(since_ns=start) if e[0] is not STATUS] == [(TREE, 0)]


def test_the_only_member_renews_without_a_message() -> None:
    world = World(1)
    world.form(1)
    world.run(1000)
    before, start = world[0].group_key, world.now_ns
    world.rekey(0)
    world.run_until(lambda: world.agreed(0) and world[0].group_key != before)
    assert [e for e in world.sent(since_ns=start) if e[0] is not STATUS] == []


def test_only_its_own_renewal_heals_a_device_whose_secrets_were_copied() -> None:
    world = World(5)
    world.form(5)
    world.run(1000)
    start, before = world.now_ns, world[0].epoch
    thief = world[3].engine.current
    assert thief is not None
    world.rekey(0)
    world.run_until(lambda: world[0].epoch != before)
    renewed_by_tm = announced(world, start)
    assert with_the_state_of(world[3], renewed_by_tm)
    world.run_until(lambda: world[3].epoch != before and world.agreed(*range(5)))
    world.run(1000)
    start, before = world.now_ns, world[3].epoch
    stolen = world[3].engine.current
    world.rekey(3)
    world.run_until(lambda: world[3].epoch != before and world.agreed(*range(5)))
    content = announced(world, start)
    assert stolen is not None
    name = content.tree.leaf_of(world[3].address)
    assert name is not None
    assert content.tree.blinded[name] != stolen.leaf.blinded
    # All keys published, the thief still has no secret of a node on the new key path.
    copy = Agreement(
        world[3].address, content.tree, content.sponsors, stolen.leaf, dict(stolen.secrets)
    )
    copy.bind(content)
    current = world[0].engine.current
    assert current is not None
    copy.take(current.supplement(), None)
    copy.climb()
    assert (
        copy.keys is None or current.keys is None or (copy.keys.group_key != current.keys.group_key)
    )


def test_a_key_is_renewed_by_time_as_long_as_nothing_else_does() -> None:
    """MIKE-24."""
    world = timed(3)
    start = world.now_ns
    world.run(4 * INTERVAL_MS)
    times = [at for at in world[1].points("t_key") if at > start]
    assert len(times) >= 4
    gaps_ms = [(b - a) / 1e6 for a, b in itertools.pairwise(times)]
    assert all(0.9 * INTERVAL_MS <= gap <= INTERVAL_MS + 5 for gap in gaps_ms)
    assert min(gaps_ms) < INTERVAL_MS - 20, "no jitter"
    assert world.agreed(0, 1, 2)
    assert world.sent(JOIN, PATH, since_ns=start) == []


def test_every_epoch_begins_the_interval_anew() -> None:
    """MIKE-24."""
    world = timed(2)
    world.run(0.8 * INTERVAL_MS)
    world.rekey(1)
    world.run(0.8 * INTERVAL_MS)
    assert [r for _, r in world[0].reports if r.point == "mike.rekey"] == []


def test_a_new_tm_takes_the_renewal_over() -> None:
    """MIKE-24."""
    world = timed(3)
    world.hand_over(0, 1)
    world.run(2.2 * INTERVAL_MS)

    def rekeys(index: int) -> int:
        return len(world[index].points("mike.rekey"))

    assert rekeys(0) == 0
    assert rekeys(1) == 2


def test_a_role_that_is_handed_over_late_makes_no_key_older() -> None:
    """MIKE-24: the interval counts from the key, though a hand-over makes none."""
    world = timed(3)
    epoch = world[1].epoch
    world.run(0.7 * INTERVAL_MS)
    world.hand_over(0, 1)
    world.run(100)
    assert world[1].epoch == epoch
    world.run(0.3 * INTERVAL_MS)
    assert len(world[1].points("mike.rekey")) == 1
    assert world.agreed(0, 1, 2)


def test_no_key_is_renewed_by_time_unless_configured() -> None:
    world = World(2)
    world.form(2)
    epoch = world[0].epoch
    world.run(120_000)
    assert world[0].epoch == epoch


@pytest.mark.parametrize("index", [0, 1])
def test_an_operators_renewals_come_at_a_bounded_rate(index: int) -> None:
    """MIKE-25."""
    world = World(3)
    world.form(3)
    world.run(1000)
    first = world[0].epoch
    for _ in range(20):
        world.rekey(index)
        world.run(10)
    epochs = {r.fields["epoch"] for _, r in world[2].reports if r.point == "t_key"}
    assert world.agreed(0, 1, 2)
    assert world[2].epoch != first
    assert len([e for e in epochs if int(e.split("-")[0]) > int(str(first).split("-")[0])]) == 1
    assert world[index].counted("MIKE-25") >= 15


def test_a_member_that_asks_without_end_gets_an_epoch_a_second() -> None:
    """MIKE-25: the TM's side; a device may ignore its own limit."""
    world = World(3)
    world.form(3)
    number = world[0].engine.highest
    for _ in range(300):
        world.signal(1, SignalKind.RESTORE, 1)
        world.run(10)
    assert 2 <= world[0].engine.highest - number <= 5
    assert world[0].counted("MIKE-25") > 0
    world.run_until(lambda: world.agreed(0, 1, 2))


def test_a_restarted_device_is_no_renewal() -> None:
    """MIKE-25."""
    world = World(3)
    world.form(3)
    world.signal(1, SignalKind.RESTORE, 1)
    world.run(20)
    world.crash(1)
    world.join(1)
    assert world.run_until(lambda: world.agreed(0, 1, 2)) < 20
    assert world[0].counted("MIKE-25") == 0


def test_a_device_outside_a_group_renews_nothing() -> None:
    world = World(2)
    world.start(0)
    world.rekey(0)
    world.run(100)
    assert world.wire == []
    assert any("no rekey" in line.text for line in world[0].logs)


def test_status_says_when_key_and_share_were_renewed() -> None:
    world = World(3)
    world.form(3)
    world.run(1000)
    before = world[1].engine.status(world.instant)["rekey"]
    world.rekey(0)
    world.run(100)
    after = world[1].engine.status(world.instant)["rekey"]
    assert after["key_since_wall_ns"] > before["key_since_wall_ns"]
    assert after["share_since_wall_ns"] == before["share_since_wall_ns"]
    own = world[0].engine.status(world.instant)["rekey"]
    assert own["share_since_wall_ns"] > before["key_since_wall_ns"]
    assert 0 < own["wait_ms"] <= 1000
    assert own["interval_ms"] == 0


def test_an_interval_below_the_bound_is_refused() -> None:
    with pytest.raises(LocalError, match="rekey_interval_ms"):
        MikeConfig(rekey_interval_ms=10)
