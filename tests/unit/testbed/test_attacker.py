"""The attacker's programs: frames are what a kernel takes, forgeries are well-formed and sharp.

That the forgeries achieve nothing is worth something only if they would with the right key: the
same messages, sealed by the transaction manager's own key, do change a group.
"""

from __future__ import annotations

from ipaddress import IPv6Address
from random import Random

import pytest
from cryptography import x509

from experiments.campaign import ATTACKS, DECRYPTION, FLOODS
from protocol.identity import PROTOCOL_IDP, PROTOCOL_MIKE, envelope
from protocol.identity.pki import Authority, DeviceSpec
from protocol.idp.lighthello import LightHello
from protocol.idp.messages import Hello, MessageKind
from protocol.idp.notice import Notice, notice_key
from protocol.idpmike import EpochId
from protocol.ipsec.schedule import sender_sas
from protocol.mike.messages import DECODERS, Kind
from testbed.attacker import espkeys, floods, frames, weapons
from testbed.attacker.evidence import differences, protocol_state, refused
from testbed.attacker.forger import Forger, Holder, Wanted
from testbed.attacker.frames import Way
from testbed.attacker.program import ALL
from testbed.attacker.scene import Channels, Scene
from testbed.attacker.weapons import Armoury, Weapon
from tests.support.identities import address, make_identities, signing_key
from tests.support.world import World

DEVICES = 3
OWN = IPv6Address("2001:db8:b::bad")
CHANNELS = Channels(
    IPv6Address("ff0e::1d0"),
    47500,
    IPv6Address("ff0e::319e"),
    47510,
    IPv6Address("ff0e::1"),
    (47503, 47501, 47502),
    tuple(address(index) for index in range(DEVICES)),
)
GROUP_KEY = bytes(range(32))
EPOCH = EpochId(7, bytes(8))


def checksum(frame: frames.Frame) -> int:
    """Return 0xFFFF for a packet whose UDP checksum is right."""
    data = frame.source.packed + frame.destination.packed
    data += len(frame.payload).to_bytes(4, "big") + b"\0\0\0\x11" + frame.payload
    data += b"\0" * (len(data) % 2)
    total = sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@pytest.mark.parametrize("length", [0, 1, 7, 1200])
def test_a_datagram_is_one_frame_with_a_good_checksum(length: int) -> None:
    datagram = Random(1).randbytes(length)
    (made,) = Way(OWN, CHANNELS.idp_group).udp(47500, datagram)
    frame = frames.read(made)
    assert frame is not None
    assert (frame.source, frame.destination) == (OWN, CHANNELS.idp_group)
    assert frame.destination_mac == bytes.fromhex("3333000001d0")
    assert frame.udp_ports == (47500, 47500)
    assert frame.datagram == datagram
    assert checksum(frame) == 0xFFFF


def test_a_long_datagram_is_fragmented_and_nothing_is_lost() -> None:
    datagram = Random(1).randbytes(9001)
    made = Way(OWN, CHANNELS.idp_group).udp(47500, datagram)
    parts = [frames.read(one) for one in made]
    assert len(made) == 7
    assert all(len(one) <= frames.MTU + frames.ETHERNET_BYTES for one in made)
    assert all(part is not None and part.protocol == frames.FRAGMENT for part in parts)
    whole = b"".join(part.payload[8:] for part in parts if part is not None)
    assert whole[8:] == datagram
    offsets = [int.from_bytes(part.payload[2:4], "big") for part in parts if part is not None]
    assert [at & 1 for at in offsets] == [1] * 6 + [0]
    assert [at & ~7 for at in offsets] == [n * (offsets[1] & ~7) for n in range(7)]


def test_a_captured_datagram_gets_the_checksum_that_no_hardware_made() -> None:
    (made,) = Way(OWN, CHANNELS.idp_group).udp(47500, b"hello")
    partial = made[:60] + b"\x12\x34" + made[62:]
    assert frames.completed(partial) == made
    esp = Way(OWN, CHANNELS.black_group).esp(300, 1, bytes(40))
    assert frames.completed(esp) == esp


def test_what_is_no_ipv6_is_not_read() -> None:
    assert frames.read(b"") is None
    assert frames.read(bytes(12) + b"\x08\x00" + bytes(60)) is None


# What is seen.


def world_of_three() -> World:
    world = World(DEVICES)
    for index in range(DEVICES):
        world.join(index)
        world.run(400)
    world.run(1500)
    return world


def scene_of(world: World) -> Scene:
    """Return what a tap has seen of a group, with a hello, light hello and notice of each."""
    scene = Scene(CHANNELS)
    for seen in world.wire:
        way = Way(address(seen.sender), CHANNELS.mike_group)
        for frame in way.udp(47510, seen.payload):
            scene.observe(frame)
    for index, identity in enumerate(make_identities(DEVICES)):
        identity.begin(1000 + index)
        hello = Hello(1000, 4, epoch=EPOCH)
        sealed = identity.seal(PROTOCOL_IDP, MessageKind.HELLO, hello.encode(), world.instant)
        light = LightHello(identity.me.fingerprint, 1000 + index, 0, 1, bytes(32))
        made = Notice.made(notice_key(GROUP_KEY, EPOCH), EPOCH, address(index), word=0)
        for datagram in (sealed, light.encode(), made.encode()):
            (frame,) = Way(address(index), CHANNELS.idp_group).udp(47500, datagram)
            scene.observe(frame)
    for spi in (300, 301):
        packet = Way(address(0), CHANNELS.black_group).esp(spi, 5, bytes(60))
        scene.observe(packet)
    return scene


def test_a_scene_knows_whom_it_has_heard() -> None:
    world = world_of_three()
    scene = scene_of(world)
    assert list(scene.known) == list(CHANNELS.devices)
    assert set(scene.lights) == set(CHANNELS.devices)
    assert len(scene.notices) == DEVICES
    assert scene.epoch == EPOCH
    assert scene.tree is not None
    assert str(scene.tree[0].epoch) == world[0].epoch
    assert {spi: known.highest for spi, known in scene.sending.items()} == {300: 5, 301: 5}
    assert scene.heard == len(scene.recorded)


def test_a_scene_survives_other_attackers() -> None:
    scene = scene_of(world_of_three())
    heard = scene.heard
    for noise in (b"", b"\1\2\3", b"\1\1\x08\0short", b"\1\1\x09\0short"):
        (frame,) = Way(OWN, CHANNELS.idp_group).udp(47500, noise)
        scene.observe(frame)
    assert scene.heard == heard + 4
    assert list(scene.known) == list(CHANNELS.devices)


# What is forged.


def foreigner() -> Holder:
    return Holder.foreign(Random(3), OWN)


def holder(index: int) -> Holder:
    """Return a copy of a device; in these tests certificates are stood in for by fingerprints."""
    spec = DeviceSpec(f"d{index + 1}", "alpha", address(index))
    key = signing_key(index)
    certificate: x509.Certificate = Authority.create("alpha").issue(spec, key.public_key())
    made = Holder(Random(3), key, certificate, address(index), copied=True)
    made._print = make_identities(DEVICES)[index].me.fingerprint
    return made


def armoury(scene: Scene, forger: Forger, world: World) -> Armoury:
    return Armoury(
        scene, forger, OWN, Random(5), world.instant.wall_ns, psk=bytes(32), policy=bytes(300)
    )


def forger_for(weapon: Weapon) -> Forger:
    if weapon.who == weapons.FOREIGN:
        return foreigner()
    return Forger(Random(3)) if weapon.who == weapons.OUTSIDER else holder(2)


@pytest.mark.parametrize("name", list(ALL))
def test_every_weapon_makes_frames_that_are_read(name: str) -> None:
    world = world_of_three()
    weapon = ALL[name]
    scene = scene_of(world)
    scene.session = list(scene.recorded)
    made = weapon.make(armoury(scene, forger_for(weapon), world))
    assert made
    assert all(frames.read(frame) is not None for frame in made)
    assert max(map(len, made)) <= frames.MTU + frames.ETHERNET_BYTES


def test_every_attack_of_the_campaign_has_a_weapon() -> None:
    assert set(ATTACKS) == set(ALL) | {DECRYPTION}
    assert set(FLOODS) == {name for name, weapon in ALL.items() if weapon.rate_pps is None}


@pytest.mark.parametrize("make", [weapons.act_as_tm, weapons.downgrade_mode, floods.join_flood])
def test_forgeries_are_well_formed_to_the_last_field(make: weapons.Make) -> None:
    world = world_of_three()
    for frame in make(armoury(scene_of(world), foreigner(), world)):
        read = frames.read(frame)
        assert read is not None
        message = envelope.decode(read.datagram)
        DECODERS[Kind(message.kind)](message.body)


def bombard(world: World, made: list[bytes]) -> None:
    """Hand every forged datagram of MIKE to every device but the one it claims to be of."""
    for frame in made:
        read = frames.read(frame)
        assert read is not None
        if read.udp_ports == (47510, 47510):
            for device in world.devices:
                if device.address != read.source:
                    world.deliver(device, read.source, read.datagram)
    world.run(300)


def states(world: World) -> list[dict[str, object]]:
    moving = {"counters", "refused", "at_wall_ns"}
    return [
        {
            name: value
            for name, value in device.engine.status(world.instant).items()
            if name not in moving
        }
        for device in world.devices
    ]


@pytest.mark.parametrize("who", ["outsider", "foreign"])
@pytest.mark.parametrize("make", [weapons.act_as_tm, weapons.downgrade_mode, floods.join_flood])
def test_without_a_certificate_of_the_group_nothing_changes(make: weapons.Make, who: str) -> None:
    world = world_of_three()
    forger = Forger(Random(3)) if who == "outsider" else foreigner()
    before = states(world)
    made = make(armoury(scene_of(world), forger, world))
    bombard(world, made)
    assert [s["epoch"] for s in states(world)] == [s["epoch"] for s in before]
    assert states(world) == before
    rule = "AUTH-9" if who == "outsider" else "AUTH-4"
    refusals = world[0].engine.identity.refusals
    assert refusals[rule] > 0


def test_a_member_that_is_not_tm_gets_no_role_by_its_certificate() -> None:
    world = world_of_three()
    before = states(world)
    tm = before[0]["tm"]
    index = next(d.index for d in world.devices if str(d.address) != tm)
    bombard(world, weapons.usurp(armoury(scene_of(world), holder(index), world)))
    for device, old, new in zip(world.devices, before, states(world), strict=True):
        if device.index != index:
            assert {k: new[k] for k in ("epoch", "tm", "role", "members", "mode")} == {
                k: old[k] for k in ("epoch", "tm", "role", "members", "mode")
            }


def test_the_same_messages_under_the_tm_s_own_key_would_change_everything() -> None:
    world = world_of_three()
    before = states(world)
    index = next(d.index for d in world.devices if str(d.address) == before[0]["tm"])
    bombard(world, weapons.usurp(armoury(scene_of(world), holder(index), world)))
    assert states(world) != before


def test_a_forged_message_claims_a_fresh_number_of_the_present_instance() -> None:
    world = world_of_three()
    scene = scene_of(world)
    forger = Forger(Random(1))
    last = scene.signed[PROTOCOL_MIKE, address(0)]
    numbers = set()
    for newer in (False, True):
        now_ns = world.instant.wall_ns
        wanted = Wanted(PROTOCOL_MIKE, Kind.JOIN, b"", address(0), now_ns, newer)
        sealed = forger.seal(scene, wanted)
        message = envelope.decode(sealed)
        assert message.fingerprint == last.fingerprint
        assert (message.startup_wall_ns > last.startup_wall_ns) == newer
        assert newer or message.sequence > last.sequence
        numbers.add(message.sequence)
    assert len(numbers) == 2


# What old keys open.


def test_old_keys_open_their_own_epoch_and_no_later_one() -> None:
    members = [address(index) for index in range(DEVICES)]
    sas = {}
    for number, secret in ((7, GROUP_KEY), (8, bytes(32))):
        sas[number] = sender_sas(
            secret,
            epoch_number=number,
            epoch_tag=bytes(8),
            members=members,
            group=CHANNELS.black_group,
            suite=espkeys.Suite.AES_GCM_128,
            own=members[0],
            reqid=7,
        )
    packets = {}
    for number, of_epoch in sas.items():
        sa = of_epoch[1]
        head = sa.spi.to_bytes(4, "big") + (1).to_bytes(4, "big")
        packets[number] = [head + espkeys.sealed(sa.key, sa.spi, 1, bytes(40))]
    old = espkeys.OldKeys({"7-00": GROUP_KEY}, sas[7])
    assert old.opens(packets[7]) == 1
    assert old.opens(packets[8]) == 0
    epochs = [EpochId(8, bytes(8))]
    assert old.derives(packets[8], epochs, members, CHANNELS.black_group) == 0
    assert old.derives(packets[7], [EPOCH], members, CHANNELS.black_group) == 1
    notices = [
        (members[0], Notice.made(notice_key(secret, epoch), epoch, members[0], word=0).encode())
        for secret, epoch in ((GROUP_KEY, EPOCH), (bytes(32), epochs[0]))
    ]
    assert old.verifies(notices) == 1
    assert "07" not in repr(old)


# What is compared.


def test_a_change_is_named_and_the_time_alone_is_none() -> None:
    idpd = {"peers": [{"address": "a", "state": "up", "last_hello_ms": 3}], "epoch": "1-00"}
    miked = {"members": ["a", "b"], "tm": "a"}
    before = protocol_state(idpd, miked)
    idpd["peers"][0]["last_hello_ms"] = 700  # type: ignore[index]
    assert differences(before, protocol_state(idpd, miked)) == []
    miked["tm"] = "b"
    assert differences(before, protocol_state(idpd, miked)) == ["miked tm: a became b"]


def test_refusals_are_counted_and_nothing_else() -> None:
    counters = {"AUTH-9": 2, "IDP-34": 1, "group.oversized": 4, "idp.hello_light": 900}
    assert refused(counters) == 7
