"""What outsiders, replayers and insiders who break the rules can and cannot do."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from ipaddress import IPv6Address

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.core.engine import Instant
from protocol.core.errors import PeerError
from protocol.identity import PROTOCOL_MIKE, Identity
from protocol.idpmike import EpochId
from protocol.mike.config import MikeConfig
from protocol.mike.keytree import KeyTree
from protocol.mike.messages import (
    Announcement,
    Handover,
    Join,
    Kind,
    Message,
    Path,
    Repair,
    Status,
    Tree,
)
from protocol.mike.rules import check_published
from protocol.mike.schedule import NodeSecret
from protocol.mike.treemath import ROOT, NodeName
from tests.support.identities import address, known_device, make_identities, signing_key
from tests.support.world import EPOCH_WALL_NS, Device, World


def snapshot(device: Device) -> tuple[object, ...]:
    """Everything of the protocol's state that a datagram could change."""
    engine = device.engine
    return (
        engine.state,
        engine.tm,
        engine.term,
        engine.highest,
        engine.current,
        None if engine.current is None else dict(engine.current.blinded),
        engine.pending,
        engine.held,
        dict(engine.early),
        dict(engine.work.requests),
        dict(engine.liveness.gone),
        sorted(device.keys),
    )


def seal(identity: Identity, world: World, message: Message) -> bytes:
    kind = Kind[type(message).__name__.upper()]
    if identity.startup_wall_ns is None:
        identity.begin(EPOCH_WALL_NS + world.now_ns)
    return identity.seal(PROTOCOL_MIKE, kind, message.encode(), world.instant)


def forgeries(world: World) -> Iterator[Message]:
    """One plausible message of each kind for the world's present group."""
    current = world[0].engine.current
    assert current is not None
    epoch = current.epoch
    content = current.content
    yield Join(bytes(16), bytes([9]) + bytes(31), 0)
    yield Tree(
        Announcement(epoch.number + 1, epoch, address(0), current.known_tree(), (), ()), 0, {}, None
    )
    yield Path(epoch, {}, bytes(16))
    yield Status(EpochId(epoch.number + 9, bytes(8)), 0, 200, bytes(16))
    yield Repair(epoch, epoch)
    yield Handover(epoch, address(1), 7, epoch.number, leaving=True)
    assert content.number == epoch.number


def test_a_device_without_a_certificate_changes_nothing() -> None:
    world = World(3)
    world.form(3)
    stranger = Identity(known_device(7), signing_key(7), [known_device(i) for i in range(3)])
    before = [snapshot(device) for device in world.devices]
    start = world.now_ns
    for message in list(forgeries(world)):
        for device in world.devices:
            world.deliver(device, address(7), seal(stranger, world, message))
    world.run(20)
    assert [snapshot(device) for device in world.devices] == before
    assert world.sent(since_ns=start) == []
    assert world[0].engine.identity.refusals["AUTH-4"] >= 5


def test_a_forged_signature_changes_nothing() -> None:
    world = World(3)
    world.form(3)
    # Somebody who knows the TM's and another member's certificate but not their keys.
    wrong = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"not the key").digest())
    before = [snapshot(device) for device in world.devices]
    start = world.now_ns
    for claimed in (0, 1):
        forger = Identity(known_device(claimed), wrong, [])
        for message in list(forgeries(world)):
            for device in world.devices:
                if device.index != claimed:
                    world.deliver(device, address(claimed), seal(forger, world, message))
    world.run(20)
    assert [snapshot(device) for device in world.devices] == before
    assert world.sent(since_ns=start) == []
    assert world[2].engine.identity.refusals["AUTH-9"] >= 4


def test_a_replay_of_everything_changes_nothing() -> None:
    world = World(5)
    world.form(5)
    world.crash(3)
    world.lose(3)
    world.run_until(lambda: world.agreed(0, 1, 2, 4))
    world.run(200)
    before = [snapshot(device) for device in world.devices]
    start = world.now_ns
    for seen in list(world.wire):
        for device in world.devices:
            if device.alive and device.index != seen.sender:
                world.deliver(device, address(seen.sender), seen.payload)
    world.run(20)
    assert [snapshot(device) for device in world.devices] == before
    assert world.sent(since_ns=start) == []
    assert world[0].engine.identity.refusals["AUTH-10"] > 5


def test_truncated_and_flipped_datagrams_change_nothing() -> None:
    """MIKE-1 at the latest; mostly the envelope refuses them."""
    world = World(3)
    world.form(3)
    before = [snapshot(device) for device in world.devices]
    for seen in list(world.wire)[-6:]:
        for cut in range(0, len(seen.payload), 17):
            bad = bytearray(seen.payload)
            bad[cut] ^= 0x40
            for payload in (seen.payload[:cut], bytes(bad)):
                world.deliver(world[(seen.sender + 1) % 3], address(seen.sender), payload)
    world.run(1)
    assert [snapshot(device) for device in world.devices] == before


def test_a_signed_body_that_is_no_message_is_counted() -> None:
    """MIKE-1."""
    world = World(3)
    world.form(3)
    member = make_identities(3)[1]
    member.begin(EPOCH_WALL_NS + world.now_ns)
    before = snapshot(world[0])
    for body in (b"", b"\x00" * 7, bytes(300)):
        datagram = member.seal(PROTOCOL_MIKE, Kind.TREE, body, world.instant)
        world.deliver(world[0], address(1), datagram)
    world.run(1)
    assert snapshot(world[0]) == before
    assert world[0].counted("MIKE-1") == 3
    refused = world[0].engine.status(world.instant)["refused"]
    assert refused[0]["peer"] == "d2"
    assert refused[0]["rule"] == "MIKE-1"


def impostor(world: World, index: int) -> Identity:
    """A compromised insider: its own hand signs."""
    return world[index].engine.identity if world[index].engine.current else _fresh(world, index)


def _fresh(world: World, index: int) -> Identity:
    identity = make_identities(len(world.devices))[index]
    identity.begin(EPOCH_WALL_NS + world.now_ns)
    return identity


def held_sender(device: Device) -> IPv6Address | None:
    held = device.engine.held
    return None if held is None else held.sender


def test_a_member_cannot_act_as_tm_while_the_tm_lives() -> None:
    """MIKE-3, MIKE-14."""
    world = World(4)
    world.form(4)
    current = world[2].engine.current
    assert current is not None
    tree = current.known_tree()
    usurped = Announcement(9, current.epoch, address(2), tree, (), ())
    rogue = impostor(world, 2)
    world.deliver(world[1], address(2), seal(rogue, world, Tree(usurped)))
    world.run(1)
    assert held_sender(world[1]) == address(2)
    assert world[1].epoch == world[0].epoch
    assert world[1].engine.tm == address(0)
    # Only one such TREE is kept, and not for ever (MIKE-14).
    other = impostor(world, 3)
    second = Announcement(12, current.epoch, address(3), tree, (), ())
    world.deliver(world[1], address(3), seal(other, world, Tree(second)))
    world.run(1)
    assert held_sender(world[1]) == address(2)
    world.run(5100)
    assert held_sender(world[1]) is None
    assert world.agreed(0, 1, 2, 3)


@pytest.mark.parametrize("has_key", [False, True])
def test_a_tm_yields_only_to_who_has_the_key_of_the_epoch(has_key: bool) -> None:
    """MIKE-38: a copy of a member's certificate alone takes nobody's role away."""
    world = World(4)
    world.form(4)
    current = world[2].engine.current
    assert current is not None
    assert current.keys is not None
    tag = current.keys.confirmation(address(2)) if has_key else bytes(16)
    beacon = Status(current.epoch, 50, 4, tag)
    before = snapshot(world[0])
    world.deliver(world[0], address(2), seal(impostor(world, 2), world, beacon))
    world.run(1)
    if has_key:
        assert world[0].engine.tm == address(2), "it may have handed over and not know"
    else:
        assert snapshot(world[0]) == before
        assert world[0].counted("MIKE-38") == 1


def test_a_tree_of_a_device_outside_the_group_is_refused() -> None:
    """MIKE-3."""
    world = World(4)
    world.form(3)
    current = world[1].engine.current
    assert current is not None
    tree, _ = current.known_tree().inserted(address(3), bytes([9]) * 32, bytes([9]) * 32)
    rogue = impostor(world, 3)
    message = Tree(Announcement(9, current.epoch, address(3), tree, (), ()))
    world.deliver(world[1], address(3), seal(rogue, world, message))
    world.run(1)
    assert world[1].counted("MIKE-3") == 1
    assert world[1].engine.held is None


def test_an_old_epoch_and_an_absurd_one_are_refused() -> None:
    """MIKE-4."""
    world = World(3)
    world.form(3)
    current = world[1].engine.current
    assert current is not None
    rogue = impostor(world, 0)
    for number in (1, 3, 1 << 40):
        previous = EpochId(0, bytes(8))
        content = Announcement(number, previous, address(0), current.known_tree(), (), ())
        world.deliver(world[1], address(0), seal(rogue, world, Tree(content)))
    world.run(1)
    assert world[1].counted("MIKE-4") == 3


def test_an_announcement_that_cannot_be_completed_is_refused() -> None:
    """MIKE-9."""
    world = World(4)
    world.form(4)
    current = world[1].engine.current
    assert current is not None
    tree = current.known_tree()
    leaf = tree.leaf_of(address(3))
    assert leaf is not None
    opened = tree.refreshed(leaf, None)
    above = NodeName(leaf >> 1)
    mixed = opened.filled({above: tree.blinded[above]})
    rogue = impostor(world, 0)
    for content in (
        Announcement(8, current.epoch, address(0), opened, (), ()),
        Announcement(8, current.epoch, address(0), tree, (address(1),), ()),
        Announcement(8, current.epoch, address(0), mixed, (address(3),), ()),
    ):
        world.deliver(world[1], address(0), seal(rogue, world, Tree(content)))
    world.run(1)
    assert world[1].counted("MIKE-9") == 3


def test_a_tree_with_a_foreign_leaf_key_for_us_makes_us_rejoin() -> None:
    """MIKE-5."""
    world = World(4)
    world.form(4)
    current = world[1].engine.current
    assert current is not None
    tree = current.known_tree()
    leaf = tree.leaf_of(address(1))
    assert leaf is not None
    replaced = tree.refreshed(leaf, NodeSecret(bytes(32)).blinded)
    content = Announcement(8, current.epoch, address(0), replaced, (address(1),), ())
    world.deliver(world[1], address(0), seal(impostor(world, 0), world, Tree(content)))
    world.run(1)
    assert world[1].counted("MIKE-5") == 1
    assert world[1].epoch == world[0].epoch or world[1].engine.attempt is not None


def test_a_member_publishes_only_its_own_nodes() -> None:
    """MIKE-7."""
    world = World(4)
    world.form(3)
    world.filters.append(lambda seen, to: seen.kind is Kind.PATH)
    world.join(3)
    world.run(2)
    pending = world[1].engine.pending
    assert pending is not None
    (name,) = pending.content.tree.open_nodes()
    rogue = impostor(world, 2)
    world.deliver(
        world[1], address(2), seal(rogue, world, Path(pending.epoch, {name: bytes([9]) * 32}))
    )
    world.run(1)
    assert world[1].counted("MIKE-7") == 1
    assert name not in pending.blinded


def test_a_sponsor_publishes_no_other_sponsor_s_nodes() -> None:
    """MIKE-7."""
    tree = KeyTree({ROOT: address(0)}, {})
    for index in range(1, 4):
        tree, _ = tree.inserted(address(index), bytes([index]) * 32, None)
    sponsors = (NodeName(5), NodeName(7))
    check_published(tree, sponsors, NodeName(5), {NodeName(2): bytes(32)})
    for name, leaf in ((3, 5), (2, 7), (4, 5)):
        with pytest.raises(PeerError, match="MIKE-7"):
            check_published(tree, sponsors, NodeName(leaf), {NodeName(name): bytes(32)})
    with pytest.raises(PeerError, match="MIKE-7"):
        check_published(tree, sponsors, NodeName(4), {})


def test_a_key_is_not_reported_before_it_is_confirmed() -> None:
    """MIKE-8."""
    world = World(4)
    world.form(3)
    world.filters.append(lambda seen, to: seen.kind is Kind.PATH)
    world.join(3)
    world.run(2)
    path = next(s.message for s in reversed(world.wire) if s.kind is Kind.PATH)
    assert isinstance(path, Path)
    before = world[1].epoch
    bare = Path(path.epoch, path.keys, None)
    world.deliver(world[1], address(3), seal(world[3].engine.identity, world, bare))
    world.run(1)
    pending = world[1].engine.pending
    assert pending is not None
    assert pending.root is not None
    assert world[1].epoch == before
    world.filters.clear()
    world.run_until(lambda: world.agreed(0, 1, 2, 3))


def test_a_low_order_key_is_refused() -> None:
    """MIKE-6."""
    world = World(4)
    world.form(3)
    insider = impostor(world, 3)
    for key in (bytes(32), bytes([1]) + bytes(31)):
        world.deliver(world[0], address(3), seal(insider, world, Join(bytes(16), key, 0)))
    world.run(1)
    assert world[0].counted("MIKE-6") >= 1
    world.run(2000)
    assert len({d.group_key for d in world.devices[:3]}) == 1
    assert world[0].group_key is not None


def test_a_handover_of_someone_else_is_refused() -> None:
    """MIKE-15."""
    world = World(4)
    world.form(4)
    current = world[1].engine.current
    assert current is not None
    rogue = impostor(world, 2)
    message = Handover(current.epoch, address(3), 1, current.epoch.number, leaving=False)
    world.deliver(world[1], address(2), seal(rogue, world, message))
    world.run(1)
    assert world[1].counted("MIKE-15") == 1
    assert world[1].engine.tm == address(0)


def test_members_spend_no_signature_check_on_a_join() -> None:
    """MIKE-2: a flood of JOINs costs members nothing, and a parked instance opens nothing."""
    world = World(4)
    world.form(3)
    stranger = Identity(known_device(7), signing_key(7), [])
    join = seal(stranger, world, Join(bytes(16), bytes([9]) * 32, 0))
    for index in (1, 3):
        world.deliver(world[index], address(7), join)
    world.run(1)
    assert world[1].engine.identity.refusals == {}
    assert world[3].engine.identity.refusals == {}
    assert world[3].engine.status(Instant(0, 0))["role"] == "idle"


def test_a_full_group_takes_nobody_else() -> None:
    """MIKE-20."""
    world = World(3, config=MikeConfig(members_max=2))
    world.form(2)
    world.join(2)
    world.run(300)
    assert world.agreed(0, 1)
    assert world[0].counted("MIKE-20") >= 1


def test_a_join_made_before_the_device_left_is_not_granted() -> None:
    """MIKE-12."""
    world = World(3)
    world.form(2)
    world.filters.append(lambda seen, to: seen.kind is Kind.JOIN and to == 0)
    world.join(2)
    world.run(1)
    join = world.wire[-1].payload
    world.filters.clear()
    world.crash(2)
    world.lose(2)
    world.run(1)
    world.deliver(world[0], address(2), join)
    world.run(1)
    assert world.agreed(0, 1)
    assert world[0].counted("MIKE-12") == 1


def test_no_secret_is_printed() -> None:
    world = World(2)
    world.form(2)
    current = world[0].engine.current
    assert current is not None
    assert current.keys is not None
    assert current.root is not None
    shown = (
        repr(current.keys)
        + repr(current.root)
        + repr(current.leaf)
        + str(world[0].engine.status(world.instant))
    )
    for secret in (current.keys.group_key, current.root.reveal(), current.leaf.reveal()):
        assert secret.hex() not in shown
        assert repr(secret) not in shown
