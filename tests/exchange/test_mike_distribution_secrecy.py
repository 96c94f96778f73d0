"""Key distribution mode: what an ex-member and a newcomer can unwrap with all that they have."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from protocol.core.errors import PeerError
from protocol.mike.config import MikeConfig
from protocol.mike.distribution import Distribution
from protocol.mike.rekeying import LEAF, ROOT_KEY, Rekey
from protocol.mike.schedule import NodeSecret, epoch_keys, pairwise_key, unwrapped
from tests.support.world import World


class Holder:
    """Somebody with keys, of whatever number, and every REKEY: tries everything with everything."""

    def __init__(self, secrets: Iterable[NodeSecret], keys: Iterable[bytes]) -> None:
        self.secrets = list(secrets)
        self.keys = dict.fromkeys(keys)

    def opens(self, world: World, epoch: Distribution) -> bool:
        """Say whether an epoch's group key is in reach."""
        rekeys = [seen.message for seen in world.wire if isinstance(seen.message, Rekey)]
        for secret in self.secrets:
            for message in rekeys:
                for device in world.devices:
                    shared = pairwise_key(
                        secret, message.key, message.key, secret.blinded, device.address
                    )
                    self.keys[shared] = None
        roots: dict[bytes, None] = {}
        size = -1
        while size != len(self.keys):
            size = len(self.keys)
            for message in rekeys:
                for wrap in message.wraps.values():
                    for key in list(self.keys):
                        try:
                            found = unwrapped(key, message.announcement.digest, wrap.wrapped)
                        except PeerError:
                            continue
                        self.keys[found] = None
                        if wrap.key == ROOT_KEY:
                            roots[found] = None
        digest = epoch.content.digest
        return any(epoch_keys(digest, root) == epoch.keys for root in [*roots, *self.keys])


def current(world: World, index: int) -> Distribution:
    epoch = world[index].engine.current
    assert isinstance(epoch, Distribution)
    return epoch


def holder_of(epoch: Distribution) -> Holder:
    """All that a member has of an epoch."""
    assert epoch.root is not None
    return Holder(epoch.leaves, [epoch.root, *(key for _, key in epoch.path.steps)])


def group(n: int, more: int = 0) -> World:
    world = World(n + more, config=MikeConfig(mode="kd"))
    world.form(n)
    world.run(1200)
    return world


@pytest.mark.parametrize("gone", [1, 2, 4, 5])
def test_an_ex_member_with_all_its_state_and_all_datagrams_is_out(gone: int) -> None:
    """MIKE-32."""
    world = group(6)
    holder, before = holder_of(current(world, gone)), current(world, 0)
    assert holder.opens(world, before)
    world.crash(gone)
    world.lose(gone)
    rest = [index for index in range(6) if index != gone]
    world.run_until(lambda: world.agreed(*rest))
    assert not holder.opens(world, current(world, 0))
    # Nor later, whoever renews.
    world.restore_at(rest[-1])
    world.run(100)
    world.rekey(0)
    world.run(100)
    assert world.agreed(*rest)
    assert not holder.opens(world, current(world, 0))


def test_two_ex_members_together_are_out() -> None:
    world = group(6)
    one, two = holder_of(current(world, 2)), holder_of(current(world, 4))
    for index in (2, 4):
        world.crash(index)
        world.lose(index)
    world.run_until(lambda: world.agreed(0, 1, 3, 5))
    both = Holder([*one.secrets, *two.secrets], [*one.keys, *two.keys])
    assert not both.opens(world, current(world, 0))


def test_an_ex_tm_with_its_whole_hierarchy_is_out() -> None:
    """MIKE-33: the next TM uses nothing of it."""
    world = group(6)
    hierarchy, holder = world[0].engine.hierarchy, holder_of(current(world, 0))
    assert hierarchy is not None
    nodes = [node for leaf in hierarchy._leaves.values() for node in (leaf, *leaf.path())]
    holder.keys.update(dict.fromkeys(node.key for node in nodes))
    holder.secrets.append(hierarchy.secret)
    world.crash(0)
    world.lose(0)
    world.run_until(lambda: world.agreed(*range(1, 6)))
    assert not holder.opens(world, current(world, 1))


@pytest.mark.parametrize("present", [1, 2, 5])
def test_a_newcomer_with_all_its_state_and_all_datagrams_gets_no_earlier_key(present: int) -> None:
    """MIKE-32."""
    world = group(present, more=1)
    before = current(world, 0)
    world.join(present)
    world.run_until(lambda: world.agreed(*range(present + 1)))
    holder = holder_of(current(world, present))
    assert holder.opens(world, current(world, 0))
    assert not holder.opens(world, before)


def test_who_copied_a_member_is_out_after_the_member_renewed_its_share() -> None:
    """MIKE-25, MIKE-32."""
    world = group(5)
    copied, before = holder_of(current(world, 3)), current(world, 0)
    world.rekey(3)
    world.run_until(lambda: world[0].engine.current is not before)
    world.run_until(lambda: world.agreed(*range(5)))
    assert not copied.opens(world, current(world, 0))


def test_no_group_key_and_no_key_of_the_hierarchy_is_on_the_wire_or_in_a_report() -> None:
    world = group(5)
    hierarchy = world[0].engine.hierarchy
    assert hierarchy is not None
    secrets = [key for device in world.devices for key in device.all_keys.values()]
    secrets += [node.key for leaf in hierarchy._leaves.values() for node in (leaf, *leaf.path())]
    secrets += [hierarchy.root, hierarchy.secret.reveal()]
    said = b"".join(seen.payload for seen in world.wire)
    assert secrets
    assert not any(secret in said for secret in secrets)
    shown = repr([d.reports for d in world.devices]) + repr(hierarchy) + repr(current(world, 1))
    shown += repr(current(world, 1).path) + repr([seen.message for seen in world.wire])
    assert not any(secret.hex() in shown or repr(secret)[2:-1] in shown for secret in secrets)
    assert any(
        under & LEAF
        for s in world.wire
        if isinstance(s.message, Rekey)
        for under in s.message.wraps
    )
