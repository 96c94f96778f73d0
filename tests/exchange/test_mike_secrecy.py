"""What an ex-member and a newcomer can derive from their own state and every datagram."""

from __future__ import annotations

import pytest

from protocol.mike.agreement import Agreement
from protocol.mike.messages import Message, Path, Tree
from protocol.mike.schedule import NodeSecret, node_secret
from tests.support.world import World


def derives(agreement: Agreement, wire: list[Message], epoch: str) -> bool:
    """Say whether somebody with this old state derives an epoch's root from all datagrams."""
    known: dict[bytes, NodeSecret] = {agreement.leaf.blinded: agreement.leaf}
    for secret in agreement.secrets.values():
        known[secret.blinded] = secret
    for message in wire:
        if not isinstance(message, Tree) or str(message.announcement.epoch) != epoch:
            continue
        tree = message.announcement.tree.filled(message.keys)
        for path in wire:
            if isinstance(path, Path) and path.epoch == message.announcement.epoch:
                tree = tree.filled(path.keys)
        # Try to pose as every member whose leaf or inner key we hold.
        for name, key in sorted(tree.blinded.items()):
            if key not in known:
                continue
            current = name
            secret = known[key]
            while current > 1:
                beside = tree.blinded.get(current ^ 1)  # type: ignore[call-overload]
                if beside is None:
                    break
                pair = (beside, secret.blinded) if current & 1 else (secret.blinded, beside)
                secret = NodeSecret(node_secret(secret, beside, *pair))
                current >>= 1  # type: ignore[assignment]
            if current == 1:
                return True
    return False


@pytest.mark.parametrize("leaver", range(1, 7))
def test_an_excluded_member_cannot_derive_any_later_key(leaver: int) -> None:
    """MIKE-19: with all its old state and every later datagram."""
    world = World(8)
    world.form(7)
    state = world[leaver].engine.current
    assert state is not None
    world.crash(leaver)
    world.lose(leaver)
    rest = [index for index in range(7) if index != leaver]
    world.run_until(lambda: world.agreed(*rest))
    world.join(7)
    world.run_until(lambda: world.agreed(*rest, 7))
    world.restore(rest[-1])
    world.run(300)
    assert world.agreed(*rest, 7)
    wire = [seen.message for seen in world.wire]
    # The attack works on the epoch that the leaver was in, so it is a real one.
    last_with = str(state.epoch)
    repeated = Tree(state.content, 0, state.supplement(), None)
    assert derives(state, [*wire, repeated], last_with)
    later = [
        pointer for pointer in world[0].all_keys if int(pointer.split("-")[0]) > state.epoch.number
    ]
    assert len(later) >= 3
    for pointer in later:
        assert not derives(state, wire, pointer)


def test_two_excluded_members_together_cannot_derive_a_later_key() -> None:
    """MIKE-19."""
    world = World(8)
    world.form(8)
    states = [world[index].engine.current for index in (2, 3, 6)]
    for index in (2, 3, 6):
        world.crash(index)
        world.lose(index)
    world.run_until(lambda: world.agreed(0, 1, 4, 5, 7))
    wire = [seen.message for seen in world.wire]
    last = world[0].epoch
    assert last is not None
    for state in states:
        assert state is not None
        merged = Agreement(state.own, state.tree, (), state.leaf, {})
        for other in states:
            assert other is not None
            merged.secrets.update(other.secrets)
            merged.secrets[(other.leaf.blinded, b"leaf")] = other.leaf
        assert not derives(merged, wire, last)


def test_a_new_member_cannot_derive_an_earlier_key() -> None:
    world = World(6)
    world.form(5)
    earlier = list(world[0].all_keys)
    world.join(5)
    world.run_until(lambda: world.agreed(*range(6)))
    state = world[5].engine.current
    assert state is not None
    wire = [seen.message for seen in world.wire]
    assert derives(state, wire, str(state.epoch))
    for pointer in earlier:
        assert not derives(state, wire, pointer)
    assert not set(earlier) & set(world[5].all_keys)


def test_join_then_leave_does_not_bring_the_old_key_back() -> None:
    """The known fault of tree schemes whose sponsor keeps its share."""
    world = World(4)
    world.form(3)
    roots = []
    for _ in range(2):
        for members in ((0, 1, 2, 3), (0, 1, 2)):
            if 3 in members:
                world.join(3)
            else:
                world.crash(3)
                world.lose(3)
            world.run_until(lambda who=members: world.agreed(*who))  # type: ignore[misc]
            current = world[0].engine.current
            assert current is not None
            assert current.root is not None
            roots.append(current.root.reveal())
    assert len(set(roots)) == len(roots)
    keys = list(world[0].all_keys.values())
    assert len(set(keys)) == len(keys) == 7
