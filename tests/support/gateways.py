"""A world of partitions joined by gateways, on virtual time: real engines, a model of idpd.

The model: a device is up for every other one in its partition until `DEAD_S` after it was killed;
what a leg's idpd was told to announce is seen by all others in the partition, as IDP would show it.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv6Address, IPv6Network, ip_network

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.core.engine import (
    CancelTimer,
    DatagramReceived,
    Effect,
    Event,
    Instant,
    Log,
    Report,
    SendDatagram,
    SetTimer,
    Started,
    Stopped,
    TimerExpired,
)
from protocol.gateway import rules
from protocol.gateway.config import GatewayConfig, Leg, Network
from protocol.gateway.engine import GatewayEngine
from protocol.gateway.events import (
    AnnouncePrefix,
    FetchKey,
    KeyFetched,
    LegPolled,
    LegView,
    WithdrawPrefix,
)
from protocol.gateway.messages import Member
from protocol.identity import Identity, KnownDevice, Peer
from protocol.idpmike import EpochId
from protocol.mproxy.events import DeleteMfc, FlowKey, SetMfc, Upcall

NS = 1_000_000_000
DEAD_S = 4.0
POLL_S = 0.5
WALL_NS = 1_700_000_000 * NS
GROUP = IPv6Address("ff0e::7")


def known(name: str, address: IPv6Address, beyond: Sequence[Network] | None = None) -> KnownDevice:
    """Return what everybody knows of a device, or of a leg with what lies beyond it."""
    fingerprint = hashlib.sha256(b"certificate of " + name.encode()).digest()[:16]
    peer = Peer(
        address, name, "alpha", fingerprint, beyond is not None, rules.summary(beyond or ())
    )
    return KnownDevice(peer, signing_key(name).public_key())


def signing_key(name: str) -> Ed25519PrivateKey:
    """Return a device's key, derived from its name."""
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest())


def group_key(partition: str, epoch: EpochId) -> bytes:
    """Return a partition's group key."""
    return hashlib.sha256(f"{partition} {epoch}".encode()).digest()


def prefixes(*texts: str) -> tuple[Network, ...]:
    """Return prefixes."""
    return tuple(ip_network(text) for text in texts)


@dataclass
class Device:
    """A device of a partition, as IDP shows it."""

    name: str
    address: IPv6Address
    prefixes: tuple[Network, ...] = ()
    down_at: float | None = None

    def up(self, now_s: float) -> bool:
        return self.down_at is None or now_s < self.down_at + DEAD_S


@dataclass
class Idpd:
    """The idpd of one leg."""

    device: Device
    startup: int = 1
    told: set[Network] = field(default_factory=set)


class Box:
    """One gateway: its engine, its legs' idpd, its routes."""

    def __init__(self, name: str, engine: GatewayEngine, idpds: dict[str, Idpd]) -> None:
        self.name = name
        self.engine = engine
        self.idpds = idpds
        self.alive = True
        self.timers: dict[str, int] = {}
        self.mfc: dict[FlowKey, tuple[str, tuple[str, ...]]] = {}
        self.log: list[str] = []
        self.reports: list[tuple[float, Report]] = []
        self.effects: list[Effect] = []
        self.cut: set[str] = set()


class World:
    """Partitions, devices, gateways.

    Args:
        devices: partition -> name of a device -> its prefixes.
        gateways: name -> its partitions. Addresses in a partition follow their order.
        settings: of all gateways.
    """

    def __init__(
        self,
        devices: Mapping[str, Mapping[str, Sequence[str]]],
        gateways: Mapping[str, Sequence[str]],
        **settings: object,
    ) -> None:
        self.now_s = 0.0
        self.epochs = {name: EpochId(1, name.encode().ljust(8, b"-")[:8]) for name in devices}
        self.devices: dict[str, list[Device]] = {name: [] for name in devices}
        self.boxes: dict[str, Box] = {}
        self.wire: deque[tuple[str, str, bytes]] = deque()
        self.sent: list[tuple[float, str, str, bytes]] = []
        everybody = []
        networks = {
            name: IPv6Network(f"2001:db8:{number:x}::/64") for number, name in enumerate(devices, 1)
        }
        for partition, named in devices.items():
            for number, (name, texts) in enumerate(named.items(), 1):
                device = Device(name, networks[partition][number], prefixes(*texts))
                self.devices[partition].append(device)
                everybody.append(known(name, device.address))
        legs: dict[str, dict[str, Device]] = {}
        for number, (name, partitions) in enumerate(gateways.items(), 0xF1):
            legs[name] = {}
            for partition in partitions:
                leg = Device(f"{name}-{partition}", networks[partition][number])
                legs[name][partition] = leg
                beyond = [
                    net
                    for other, named in devices.items()
                    if other != partition
                    for texts in named.values()
                    for net in prefixes(*texts)
                ]
                everybody.append(known(leg.name, leg.address, beyond))
        self.everybody = {entry.peer.name: entry for entry in everybody}
        for name, own in legs.items():
            config = GatewayConfig(
                tuple(Leg(at, leg.address, f"x{at}") for at, leg in own.items()),
                **settings,  # type: ignore[arg-type]
            )
            identities = {at: self.identity(leg.name) for at, leg in own.items()}
            engine = GatewayEngine(config, identities)
            self.boxes[name] = Box(name, engine, {at: Idpd(leg) for at, leg in own.items()})
            for at, leg in own.items():
                self.devices[at].append(leg)
            self.feed(self.boxes[name], Started(WALL_NS))

    def identity(self, name: str) -> Identity:
        """Return a new identity of a device or leg."""
        return Identity(self.everybody[name], signing_key(name), self.everybody.values())

    # Time.

    def instant(self) -> Instant:
        ns = int(self.now_s * NS)
        return Instant(ns, WALL_NS + ns)

    def run(self, seconds: float) -> None:
        """Let time pass: timers, polls, datagrams."""
        end = round(self.now_s + seconds, 3)
        while self.now_s < end:
            for box in self.boxes.values():
                if box.alive:
                    self.poll(box)
                    now_ns = int(self.now_s * NS)
                    for name in [n for n, at in box.timers.items() if at <= now_ns]:
                        box.timers.pop(name, None)
                        self.feed(box, TimerExpired(name))
            self.deliver()
            self.now_s = round(self.now_s + POLL_S, 3)

    def poll(self, box: Box) -> None:
        """Show a gateway what its idpds know."""
        for partition, idpd in box.idpds.items():
            self.feed(box, LegPolled(partition, self.view(box, partition, idpd)))

    def view(self, box: Box, partition: str, idpd: Idpd) -> LegView | None:
        others = [
            device
            for device in self.devices[partition]
            if device is not idpd.device and device.up(self.now_s) and partition not in box.cut
        ]
        return LegView(
            idpd.startup,
            self.epochs[partition],
            tuple(Member(device.address, device.name) for device in others),
            tuple((net, device.address) for device in others for net in device.prefixes),
            frozenset(idpd.told),
        )

    def deliver(self) -> None:
        """Bring every datagram to every other gateway in its partition."""
        while self.wire:
            partition, sender, payload = self.wire.popleft()
            for box in self.boxes.values():
                if box.name == sender or not box.alive or partition not in box.idpds:
                    continue
                if partition not in box.cut and partition not in self.boxes[sender].cut:
                    source = self.boxes[sender].idpds[partition].device.address
                    self.feed(box, DatagramReceived(partition, source, payload))

    def feed(self, box: Box, event: Event) -> list[Effect]:
        """Hand an event to a gateway's engine and perform what it asks for."""
        effects = list(box.engine.handle(event, self.instant()))
        box.effects += effects
        for effect in effects:
            self.perform(box, effect)
        return effects

    def perform(self, box: Box, effect: Effect) -> None:
        match effect:
            case SendDatagram(partition, payload):
                self.wire.append((partition, box.name, payload))
                self.sent.append((self.now_s, box.name, partition, payload))
            case SetTimer(name, at):
                box.timers[name] = at
            case CancelTimer(name):
                box.timers.pop(name, None)
            case FetchKey(leg, epoch):
                self.feed(box, KeyFetched(leg, epoch, group_key(leg, epoch)))
            case AnnouncePrefix(leg, net):
                idpd = box.idpds[leg]
                idpd.told.add(net)
                idpd.device.prefixes = tuple(idpd.told)
            case WithdrawPrefix(leg, net):
                idpd = box.idpds[leg]
                idpd.told.discard(net)
                idpd.device.prefixes = tuple(idpd.told)
            case SetMfc(key, interface, outs):
                box.mfc[key] = (interface, outs)
            case DeleteMfc(key):
                box.mfc.pop(key, None)
            case Log(_, text):
                box.log.append(text)
            case Report():
                box.reports.append((self.now_s, effect))

    # What happens.

    def device(self, name: str) -> Device:
        return next(d for devices in self.devices.values() for d in devices if d.name == name)

    def kill(self, name: str) -> None:
        """Switch a device, or a gateway with all of its daemons, off."""
        if name not in self.boxes:
            self.device(name).down_at = self.now_s
            return
        box = self.boxes[name]
        box.alive = False
        for idpd in box.idpds.values():
            idpd.device.down_at = self.now_s

    def stop(self, name: str) -> None:
        """Stop a gateway in order."""
        box = self.boxes[name]
        self.feed(box, Stopped())
        box.alive = False

    def revive(self, name: str) -> None:
        """Switch a gateway on again: new instances of all daemons."""
        box = self.boxes[name]
        identities = {at: self.identity(idpd.device.name) for at, idpd in box.idpds.items()}
        box.engine = GatewayEngine(box.engine._config, identities)
        box.alive = True
        box.timers.clear()
        box.mfc.clear()
        for idpd in box.idpds.values():
            idpd.startup += 1
            idpd.told.clear()
            idpd.device.prefixes = ()
            idpd.device.down_at = None
        self.feed(box, Started(self.instant().wall_ns))

    # What is seen.

    def status(self, name: str) -> dict[str, object]:
        return self.boxes[name].engine.status(self.instant())

    def partition_as_seen(self, gateway: str, partition: str) -> dict[str, object] | None:
        """Return what a gateway knows of a partition."""
        known_ones = self.status(gateway)["partitions"]
        assert isinstance(known_ones, list)
        return next((entry for entry in known_ones if entry["partition"] == partition), None)

    def announcers(self, partition: str) -> dict[Network, list[str]]:
        """Return which legs announce each foreign prefix in a partition now."""
        found: dict[Network, list[str]] = {}
        for box in self.boxes.values():
            for at, idpd in box.idpds.items():
                if at == partition and idpd.device.up(self.now_s):
                    for net in idpd.told:
                        found.setdefault(net, []).append(idpd.device.name)
        return found

    def own_prefixes(self, partition: str) -> set[Network]:
        """Return what the devices of a partition that are up announce."""
        legs = {idpd.device.name for box in self.boxes.values() for idpd in box.idpds.values()}
        return {
            net
            for device in self.devices[partition]
            if device.name not in legs and device.up(self.now_s)
            for net in device.prefixes
        }

    def multicast(self, partition: str, source: IPv6Address, hops: int = 32) -> dict[str, int]:
        """Send one red packet in a partition; return how often each partition carries it."""
        carried: dict[str, int] = {}
        todo = deque([(partition, "", hops)])
        while todo:
            at, sender, left = todo.popleft()
            carried[at] = carried.get(at, 0) + 1
            assert left, f"a packet from {partition} goes round: {carried}"
            for box in self.boxes.values():
                if not box.alive or at not in box.idpds or box.name == sender or at in box.cut:
                    continue
                key = FlowKey(source, GROUP)
                if key not in box.mfc:
                    self.feed(box, Upcall(f"x{at}", source, GROUP))
                interface, outs = box.mfc[key]
                if interface == f"x{at}":
                    todo += [
                        (out[1:], box.name, left - 1) for out in outs if out[1:] not in box.cut
                    ]
        return carried
