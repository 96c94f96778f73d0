"""A small deterministic world: N devices' MIKE engines on virtual time over one faulty network.

One seed decides every loss, duplicate and delay, and all key material, so a run repeats exactly.
IDP is a script: the test says which device hears what, and when. Everything a device does is
kept: keys published, statuses sent to IDP, points reported, datagrams seen by everybody.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv6Address

from protocol.core.agenda import Agenda
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
from protocol.core.timers import TimerTable
from protocol.identity import PROTOCOL_MIKE, envelope
from protocol.idpmike import GroupStatus, LocalLink, Side, Signal, SignalKind
from protocol.mike.config import MikeConfig
from protocol.mike.engine import MikeEngine
from protocol.mike.events import (
    Attend,
    EpochMarkFound,
    HandoverRequested,
    KeepEpochMark,
    PublishKey,
    RekeyRequested,
    RetireKey,
)
from protocol.mike.messages import DECODERS, Kind, Message
from tests.support.identities import address, make_identities

MS = 1_000_000
EPOCH_WALL_NS = 1_700_000_000 * 1_000_000_000
LOOPBACK = IPv6Address("::1")
LOCAL_DELAY_NS = 50_000


class SeededKeys:
    """Key source of one device, drawn from the world's seed."""

    def __init__(self, seed: int, device: int) -> None:
        self._random = random.Random(f"{seed} keys of {device}")

    def random_bytes(self, length: int) -> bytes:
        return self._random.randbytes(length)


@dataclass(frozen=True)
class Faults:
    """What the network does to datagrams; delays are uniform between the two bounds."""

    loss: float = 0.0
    duplication: float = 0.0
    delay_ms_min: float = 0.2
    delay_ms_max: float = 0.4


@dataclass(frozen=True)
class Seen:
    """One datagram put on the wire."""

    at_ns: int
    sender: int
    kind: Kind
    destination: IPv6Address | None
    payload: bytes = field(repr=False)
    message: Message = field(repr=False)


Filter = Callable[[Seen, int], bool]
"""Whether a datagram is dropped on its way to a receiver (an index)."""


class Device:
    """An engine, its timers, its scripted IDP, and what came out of them."""

    def __init__(
        self, world: World, index: int, engine: MikeEngine, secret: bytes, source: SeededKeys
    ) -> None:
        self.world = world
        self.secret = secret
        self.source = source
        self.index = index
        self.address = address(index)
        self.engine = engine
        self.timers = TimerTable()
        self.idp_timers = TimerTable()
        self.idp = LocalLink(secret, Side.IDP)
        self.alive = True
        self.busy_until_ns = 0
        self.remembers = False
        self.keys: dict[str, bytes] = {}
        self.all_keys: dict[str, bytes] = {}
        self.statuses: list[GroupStatus] = []
        self.reports: list[tuple[int, Report]] = []
        self.logs: list[Log] = []
        self.attended: tuple[int, ...] = ()
        self.epoch_mark = 0
        self.attended_at_send: list[tuple[Kind, tuple[int, ...]]] = []

    @property
    def epoch(self) -> str | None:
        current = self.engine.current
        return None if current is None else str(current.epoch)

    @property
    def group_key(self) -> bytes | None:
        return None if self.epoch is None else self.keys.get(self.epoch)

    def points(self, name: str) -> list[int]:
        return [at for at, report in self.reports if report.point == name]

    def counted(self, rule: str) -> int:
        return self.engine.counters[rule]


class World:
    """Devices, a network, virtual time."""

    def __init__(
        self,
        n: int,
        *,
        seed: int = 1,
        faults: Faults | None = None,
        config: MikeConfig | None = None,
    ) -> None:
        self.random = random.Random(f"{seed} network")
        self.faults = faults or Faults()
        self.config = config or MikeConfig()
        self.agenda = Agenda()
        self.started: dict[int, int] = {}
        self.filters: list[Filter] = []
        self.wire: list[Seen] = []
        self._digest = hashlib.sha256()
        self.devices = []
        for index in range(n):
            secret = hashlib.sha256(b"local secret %d" % index).digest()
            keys = SeededKeys(seed, index)
            engine = MikeEngine(self.config, make_identities(n)[index], secret, keys)
            self.devices.append(Device(self, index, engine, secret, keys))
        self._index_of = {device.address: device.index for device in self.devices}

    def __getitem__(self, index: int) -> Device:
        return self.devices[index]

    @property
    def now_ns(self) -> int:
        return self.agenda.now_ns

    @property
    def instant(self) -> Instant:
        return Instant(self.now_ns, EPOCH_WALL_NS + self.now_ns)

    @property
    def digest(self) -> str:
        """Names the whole trace: every effect of every device in order."""
        return self._digest.hexdigest()

    # Time.

    def at(self, delay_ns: int, action: Callable[[], None]) -> None:
        self.agenda.after(delay_ns, action)

    def run(self, ms: float) -> None:
        end = self.now_ns + int(ms * MS)
        while self._step(end):
            pass
        self.agenda.skip(end)

    def run_until(self, condition: Callable[[], bool], limit_ms: float = 10_000) -> float:
        """Run until the condition holds; return how many ms it took."""
        start = self.now_ns
        end = start + int(limit_ms * MS)
        while not condition():
            assert self._step(end), f"not within {limit_ms} ms: {self.describe()}"
        return (self.now_ns - start) / MS

    def _step(self, end: int) -> bool:
        """Do the next thing that is due until ``end``; tests look at the world after each."""
        return self.agenda.step(end)

    # Devices.

    def feed(self, device: Device, event: Event) -> None:
        if self.now_ns < device.busy_until_ns:
            self.at(device.busy_until_ns - self.now_ns, lambda: self.feed(device, event))
        elif device.alive:
            self._perform(device, device.engine.handle(event, self.instant))

    def _perform(self, device: Device, effects: Sequence[Effect]) -> None:
        for effect in effects:
            self._digest.update(f"{self.now_ns} {device.index} {effect!r}\n".encode())
            match effect:
                case SendDatagram(channel="local", payload=payload):
                    self.at(LOCAL_DELAY_NS, lambda p=payload: self._at_idp(device, p))  # type: ignore[misc]
                case SendDatagram():
                    self._digest.update(effect.payload)
                    self._transmit(device, effect)
                case SetTimer(name=name, at_mono_ns=at):
                    device.timers.set(name, at)
                    self.at(max(0, at - self.now_ns), lambda: self._timers(device))
                case CancelTimer(name=name):
                    device.timers.cancel(name)
                case PublishKey(pointer=pointer, group_key=key):
                    assert device.all_keys.get(pointer, key) == key, f"two keys for {pointer}"
                    device.keys[pointer] = device.all_keys[pointer] = key
                case RetireKey(pointer=pointer):
                    device.keys.pop(pointer, None)
                case KeepEpochMark(number=number):
                    assert number > device.epoch_mark
                    device.epoch_mark = number
                case Attend(kinds=kinds):
                    device.attended = kinds
                case Report():
                    device.reports.append((self.now_ns, effect))
                case Log():
                    device.logs.append(effect)
                case _:
                    raise AssertionError(effect)

    def _timers(self, device: Device) -> None:
        while (name := device.timers.pop_expired(self.now_ns)) is not None:
            self.feed(device, TimerExpired(name))

    # The network.

    def _transmit(self, device: Device, effect: SendDatagram) -> None:
        outer = envelope.decode(effect.payload)
        assert outer.protocol == PROTOCOL_MIKE
        kind = Kind(outer.kind)
        message = DECODERS[kind](outer.body)
        seen = Seen(self.now_ns, device.index, kind, effect.destination, effect.payload, message)
        self.wire.append(seen)
        device.attended_at_send.append((kind, device.attended))
        for receiver in self.devices:
            if receiver is device or effect.destination not in (None, receiver.address):
                continue
            if any(drops(seen, receiver.index) for drops in self.filters):
                continue
            if self.random.random() < self.faults.loss:
                continue
            copies = 2 if self.random.random() < self.faults.duplication else 1
            for _ in range(copies):
                delay_ms = self.random.uniform(self.faults.delay_ms_min, self.faults.delay_ms_max)
                self.deliver(receiver, device.address, effect.payload, delay_ms)

    def deliver(
        self, receiver: Device, source: IPv6Address, payload: bytes, delay_ms: float = 0.0
    ) -> None:
        event = DatagramReceived("group", source, payload)
        self.at(int(delay_ms * MS), lambda: self.feed(receiver, event))

    # IDP, scripted.

    def _at_idp(self, device: Device, payload: bytes) -> None:
        event = DatagramReceived("local", LOOPBACK, payload)
        message, effects = device.idp.handle(event, self.instant)
        if isinstance(message, GroupStatus):
            assert message.pointer == "" or message.pointer in device.all_keys
            device.statuses.append(message)
        self._perform_idp(device, effects)

    def _perform_idp(self, device: Device, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case SendDatagram(payload=payload):
                    event = DatagramReceived("local", LOOPBACK, payload)
                    self.at(LOCAL_DELAY_NS, lambda e=event: self.feed(device, e))  # type: ignore[misc]
                case SetTimer(name=name, at_mono_ns=at):
                    device.idp_timers.set(name, at)
                    self.at(at - self.now_ns, lambda: self._idp_timers(device))
                case CancelTimer(name=name):
                    device.idp_timers.cancel(name)

    def _idp_timers(self, device: Device) -> None:
        while (name := device.idp_timers.pop_expired(self.now_ns)) is not None:
            self._perform_idp(device, device.idp.on_timer(name, self.instant))

    def signal(self, at: int, kind: SignalKind, about: int) -> None:
        """IDP at one device tells its MIKE about a device."""
        device = self.devices[at]
        if device.alive:
            startup_wall_ns = self.started.get(about, EPOCH_WALL_NS)
            signal = Signal(kind, address(about), startup_wall_ns, 0, 0)
            self._perform_idp(device, device.idp.send(signal, self.instant))

    def signal_leave(self, at: int, about: int) -> None:
        self.signal(at, SignalKind.LEAVE, about)

    def restore_at(self, index: int) -> None:
        """Only the device itself hears that it was restored."""
        self.signal(index, SignalKind.RESTORE, index)

    # What tests do.

    def start(self, index: int) -> None:
        device = self.devices[index]
        if not device.alive:
            # A process that died forgets everything; its numbers and secrets are not drawn again.
            identity = make_identities(len(self.devices))[index]
            device.engine = MikeEngine(self.config, identity, device.secret, device.source)
            device.idp = LocalLink(device.secret, Side.IDP)
            device.idp_timers.clear()
            device.timers.clear()
            device.keys.clear()
            if not device.remembers:
                device.epoch_mark = 0
        device.alive = True
        if device.remembers:
            self.feed(device, EpochMarkFound(device.epoch_mark))
        device.reports.append((self.now_ns, Report("world.started")))
        self.started[index] = EPOCH_WALL_NS + self.now_ns
        self.feed(device, Started(EPOCH_WALL_NS + self.now_ns))

    def join(self, index: int) -> None:
        """A device starts up: its own IDP signals JOIN, and so does every other device's."""
        self.start(index)
        for other in range(len(self.devices)):
            if other == index or self.devices[other].engine.state.value != "parked":
                self.signal(other, SignalKind.JOIN, index)

    def restore(self, index: int) -> None:
        for other in range(len(self.devices)):
            self.signal(other, SignalKind.RESTORE, index)

    def lose(self, index: int, *, spread_ms: float = 0.0) -> None:
        """Every other device's IDP declares this one down, within ``spread_ms`` of each other."""
        for other in range(len(self.devices)):
            if other != index:
                delay = int(self.random.uniform(0, spread_ms) * MS)
                self.at(delay, lambda o=other: self.signal(o, SignalKind.LEAVE, index))  # type: ignore[misc]

    def crash(self, index: int) -> None:
        """A device falls silent; nobody knows yet."""
        device = self.devices[index]
        device.alive = False
        device.timers.clear()

    def busy(self, index: int, ms: float) -> None:
        """A device is not scheduled for a while: what comes meanwhile waits in its sockets."""
        self.devices[index].busy_until_ns = self.now_ns + int(ms * MS)

    def stop(self, index: int) -> None:
        self.feed(self.devices[index], Stopped())

    def hand_over(self, holder: int, to: int) -> None:
        self.feed(self.devices[holder], HandoverRequested(address(to)))

    def rekey(self, index: int) -> None:
        self.feed(self.devices[index], RekeyRequested())

    # What tests ask.

    def sent(self, *kinds: Kind, since_ns: int = 0) -> list[tuple[Kind, int]]:
        """Return (kind, sender) of the datagrams on the wire, in order."""
        return [
            (seen.kind, seen.sender)
            for seen in self.wire
            if seen.at_ns >= since_ns and (not kinds or seen.kind in kinds)
        ]

    def agreed(self, *indices: int) -> bool:
        """Say whether exactly these devices form one group with one key and one TM."""
        devices = [self.devices[index] for index in indices]
        first = devices[0]
        members = {device.address for device in devices}
        return (
            first.group_key is not None
            and all(d.engine.pending is None for d in devices)
            and all(set(d.engine.members) == members for d in devices)
            and len({d.epoch for d in devices}) == 1
            and len({d.group_key for d in devices}) == 1
            and len({d.engine.tm for d in devices}) == 1
            and first.engine.tm in members
            and [d for d in devices if d.engine.state.value == "tm"]
            == [d for d in devices if d.address == first.engine.tm]
        )

    def tm(self) -> int:
        """Return the only TM."""
        (found,) = [d.index for d in self.devices if d.alive and d.engine.state.value == "tm"]
        return found

    def form(self, n: int) -> None:
        """Let the first n devices join one after the other."""
        for index in range(n):
            self.join(index)
            self.run_until(lambda i=index: self.agreed(*range(i + 1)))  # type: ignore[misc]
        self.run(100)

    def describe(self) -> str:
        return "; ".join(
            f"{d.index}:{'' if d.alive else 'dead '}{d.engine.state.value} {d.epoch}"
            f" tm={d.engine.tm and self._index_of[d.engine.tm]}"
            f" n={len(d.engine.members)}"
            + (f" pending {d.engine.pending.epoch}" if d.engine.pending else "")
            for d in self.devices
        )
