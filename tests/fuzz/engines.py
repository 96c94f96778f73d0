"""Engines under sequences of datagrams: the bytes say what happens next, to whom, and when.

An input is a script. The harness is the worst neighbour there can be: besides replaying, damaging
and delaying what it saw, it holds the signing keys of every device, so damaged bodies pass the
signature and reach the rules behind it. What must hold afterwards: no exception, no two keys for
one epoch, nothing accepted beyond a certificate, and a status that can be printed.
"""

from __future__ import annotations

import json
import zlib
from ipaddress import IPv6Address, ip_address, ip_network

from protocol.core.engine import DatagramReceived, Event
from protocol.identity import PROTOCOL_IDP, PROTOCOL_MIKE, Identity, envelope
from protocol.idp.config import IdpConfig, Unicast
from protocol.idp.messages import MessageKind
from protocol.idpmike import SignalKind
from protocol.mike.events import HandoverRequested, RekeyRequested
from protocol.mike.messages import Kind
from protocol.mproxy import igmp, mld
from protocol.mproxy.events import InterfaceChanged, MessageReceived, Upcall
from protocol.mproxy.messages import Family, Message, Query, Record, RecordKind, Report
from tests.fuzz.targets import Target, with_checksum
from tests.support.fakelink import SA_GROUP, Network
from tests.support.identities import address, known_device, red_blocks, signing_key
from tests.support.proxy import (
    GROUP,
    GROUP4,
    HOST,
    HOST4,
    OTHER_HOST,
    OUR_ADDRESS,
    OUR_ADDRESS4,
    OWN_SENDER,
    OWN_SENDER4,
    Proxy,
    device_config,
    router_config,
)
from tests.support.world import World

DEVICES = 3
STEPS_MAX = 24
BODY_MAX = 600


class Script:
    """Reads an input byte by byte; at its end everything is zero."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> bool:
        return self._at < len(self._data)

    def byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def pick(self, count: int) -> int:
        """Return a number below ``count``."""
        return self.byte() % max(count, 1)

    def take(self, most: int) -> bytes:
        """Return as many bytes as the next one says."""
        length = min(self.byte() * 4, most)
        self._at += length
        return self._data[self._at - length : self._at]

    def damaged(self, data: bytes) -> bytes:
        """Return the bytes with some of them changed, cut off, doubled or added."""
        found = bytearray(data)
        for _ in range(self.pick(4)):
            place = (self.byte() << 8 | self.byte()) % (len(found) + 1)
            match self.pick(6):
                case 0:
                    found[place : place + 1] = bytes([self.byte()])
                case 1:
                    del found[place:]
                case 2:
                    found[place:place] = found[place : place + self.byte()]
                case 3:
                    found[place:place] = self.take(64)
                case 4:
                    length = self.byte()
                    found[place : place + length] = bytes(length)
                case _:
                    found[place : place + 8] = self.take(8)
        return bytes(found[: envelope.BODY_MAX])


def _insider(index: int, startup_wall_ns: int) -> Identity:
    """Return a second holder of a device's key: its messages verify, numbered on their own."""
    devices = [known_device(number) for number in range(DEVICES)]
    insider = Identity(devices[index], signing_key(index), devices)
    insider.begin(startup_wall_ns)
    return insider


def mike(data: bytes) -> None:
    """Three MIKE engines in one group, and somebody who can sign as any of them."""
    script = Script(data)
    world = World(DEVICES)
    for index in range(DEVICES):
        world.join(index)
        world.run(150)
    forgers: dict[tuple[int, bool], Identity] = {}

    def sealed(index: int, kind: int, body: bytes, *, later: bool) -> bytes:
        """Sign as a device: in its running instance, or as its next one."""
        key = index, later
        if key not in forgers:
            started = world[index].engine.identity.startup_wall_ns or world.instant.wall_ns
            forgers[key] = _insider(index, started + later)
            forgers[key]._sequence = 200  # above what the device itself has used
        return forgers[key].seal(PROTOCOL_MIKE, kind, body, world.instant)

    for _ in range(STEPS_MAX):
        if not script.left:
            break
        device = world[script.pick(DEVICES)]
        about = script.pick(DEVICES)
        match script.pick(10):
            case 0 | 1 | 2:
                seen = world.wire[-1 - script.pick(len(world.wire))]
                body = script.damaged(envelope.decode(seen.payload).body)
                kind = script.pick(9) or int(seen.kind)
                payload = sealed(about, kind, body, later=script.pick(4) == 3)
                world.deliver(device, address(about), payload)
            case 3:
                body = script.take(BODY_MAX)
                kind = script.pick(len(Kind)) + 1
                world.deliver(device, address(about), sealed(about, kind, body, later=False))
            case 4:
                seen = world.wire[-1 - script.pick(len(world.wire))]
                payload = script.damaged(seen.payload)
                world.deliver(device, address(seen.sender), payload, script.byte() * 10)
            case 5:
                world.signal(device.index, SignalKind(script.pick(3) + 1), about)
            case 6:
                event: Event = (
                    RekeyRequested() if script.pick(2) else HandoverRequested(address(about))
                )
                world.feed(device, event)
            case 7:
                world.feed(
                    device, DatagramReceived("local", IPv6Address("::1"), script.take(BODY_MAX))
                )
            case 8:
                if device.alive:
                    world.crash(device.index)
                else:
                    world.join(device.index)
            case _:
                pass
        world.run(1 << script.pick(12))
    world.run(2000)
    keys: dict[str, bytes] = {}
    for device in world.devices:
        json.dumps(device.engine.status(world.instant))
        assert len(device.keys) <= world.config.keys_kept + 1, "keys are not retired"
        for pointer, key in device.all_keys.items():
            assert keys.setdefault(pointer, key) == key, f"two group keys for {pointer}"


_IDP = IdpConfig(sa_group=SA_GROUP, news_delay_ms=0, unicast=Unicast.GROUP)
_PREFIXES = {0: ("fd00:1:1::/64",), 1: ("10.2.1.0/24",)}


def idp(data: bytes) -> None:
    """Three IDP engines with their SADs in memory, MIKE a script."""
    script = Script(data)
    net = Network(DEVICES, _IDP, _PREFIXES)
    for device in net.devices:
        device.start()
    net.run(50)
    for device in net.devices:
        device.status_from_mike(1, net.devices)
    net.run(1500)
    forgers = {
        (index, later): _insider(index, net.now.wall_ns + later)
        for index in range(DEVICES)
        for later in (False, True)
    }
    epoch = 1
    for _ in range(STEPS_MAX):
        if not script.left:
            break
        device = net.devices[script.pick(DEVICES)]
        about = script.pick(DEVICES)
        source = address(about)
        match script.pick(10):
            case 0 | 1 | 2 | 3:
                _, seen = net.wire[-1 - script.pick(len(net.wire))]
                channel = "pair" if script.pick(3) == 2 else "group"
                payload = seen.payload
                if len(payload) >= envelope.OVERHEAD:
                    outer = envelope.decode(payload)
                    body = script.damaged(outer.body)
                    kind = script.pick(10) or outer.kind
                    later = script.pick(2) == 1
                    payload = forgers[about, later].seal(PROTOCOL_IDP, kind, body, net.now)
                else:
                    payload = script.damaged(payload)
                device.feed(DatagramReceived(channel, source, payload))
            case 4:
                kind = list(MessageKind)[script.pick(len(MessageKind))]
                body = script.take(BODY_MAX)
                payload = forgers[about, False].seal(PROTOCOL_IDP, kind, body, net.now)
                device.feed(DatagramReceived("group", source, payload))
            case 5:
                _, seen = net.wire[-1 - script.pick(len(net.wire))]
                device.feed(DatagramReceived("group", source, script.damaged(seen.payload)))
            case 6:
                epoch += script.pick(4)
                members = [one for one in net.devices if script.pick(4)]
                device.status_from_mike(epoch, members or [device], key=script.pick(4) > 0)
            case 7:
                device.link(not device.connected)
            case 8:
                code = script.pick(256)
                device.backend.refuse = lambda operation, code=code: (
                    hash_of(operation) & code == code
                )
            case _:
                device.stop()
                net.run(script.byte())
                device.start()
        net.run(1 << script.pick(13))
    net.run(3000)
    for device in net.devices:
        status = device.status()
        json.dumps(status)
        for item in status["prefixes"]:
            owner = next(n for n in range(DEVICES) if str(address(n)) == item["peer"])
            prefix = ip_network(item["prefix"])
            inside = [
                block
                for block in red_blocks(owner)
                if block.version == prefix.version and prefix.subnet_of(block)  # type: ignore[arg-type]
            ]
            assert inside, f"{prefix} is not {owner}'s to announce"


def hash_of(operation: object) -> int:
    """Return a number for an operation, the same in every run."""
    return zlib.crc32(type(operation).__name__.encode())


def mproxy(data: bytes) -> None:
    """A multicast proxy under any MLD and IGMP messages, upcalls and flapping interfaces."""
    script = Script(data)
    proxy = Proxy(router_config() if script.pick(2) else device_config())
    places = [place.interface for place in proxy.config.downstreams]
    for _ in range(2 * STEPS_MAX):
        if not script.left:
            break
        interface = [*places, proxy.config.upstream][script.pick(len(places) + 1)]
        four = script.pick(2) == 1
        host = ip_address((HOST4 if four else HOST) if script.pick(4) or four else OTHER_HOST)
        group = ip_address(GROUP4 if four else GROUP) + script.pick(4)
        match script.pick(6):
            case 0:
                sender = ip_address(OWN_SENDER4 if four else OWN_SENDER)
                proxy.give(Upcall(interface, sender + script.pick(200), group))
            case 1:
                family = Family.IPV4 if four else Family.IPV6
                gone = script.pick(2) == 0
                own = ip_address(OUR_ADDRESS4 if four else OUR_ADDRESS)
                proxy.give(InterfaceChanged(interface, family, None if gone else own))
            case 2:
                payload = script.take(BODY_MAX)
                payload = with_checksum(payload) if four else payload
                proxy.give(MessageReceived(interface, host, 1, True, payload))
            case _:
                kind = RecordKind(script.pick(6) + 1)
                sources = tuple(host + n for n in range(script.pick(20)))
                records = tuple(
                    Record(kind, group + n, sources if script.pick(2) else ())
                    for n in range(script.pick(20))
                )
                said: Message = Report(records, version=3 if four else 2)
                if script.pick(3) == 0:
                    version = 3 if four else 2
                    said = Query(group, script.byte() * 100, sources, version=version)
                payload = (igmp if four else mld).encode(said)
                if script.pick(2):
                    payload = script.damaged(payload)
                payload = with_checksum(payload) if four else payload
                hops, alert = script.pick(8) or 1, script.pick(8) > 0
                proxy.give(MessageReceived(interface, host, hops, alert, payload))
        proxy.advance(1 << script.pick(15))
    json.dumps(proxy.engine.status(proxy.now))


def engines() -> dict[str, Target]:
    """Return the targets by name."""
    return {
        "engine-mike": Target(mike, (b"\x00\x01\x00\x05" * 8, bytes(range(200))), weight=8),
        "engine-idp": Target(idp, (b"\x00\x01\x00\x05" * 8, bytes(range(200))), weight=8),
        "engine-mproxy": Target(mproxy, (bytes(range(200)),), weight=3),
    }
