"""A black network of IDP engines on virtual time, each with a scripted MIKE and an SAD in memory.

Delivery takes `LATENCY_NS` and nothing is lost, unless the test says so. The runner performs
effects as the daemon does: in order, answers after the list is through.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv6Address, ip_network
from typing import Any

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
from protocol.identity import Identity
from protocol.idp.config import IdpConfig, Unicast
from protocol.idp.engine import IdpEngine
from protocol.idp.events import (
    AddRoute,
    ApplyRoutes,
    ApplySas,
    DropTrust,
    FetchKey,
    KeepTrust,
    KernelRead,
    KeyFetched,
    LinkChanged,
    ReadKernel,
    RouteOperation,
    RoutesApplied,
    SasApplied,
)
from protocol.idp.messages import prefix_order
from protocol.idp.notice import PREAMBLE as NOTICE
from protocol.idp.policykeeper import OwnPolicy
from protocol.idpmike import Credential, EpochId, GroupStatus, LocalLink, Side, Signal, Standing
from protocol.ipsec.backend import Operation, Outcome
from protocol.ipsec.memory import MemoryBackend
from protocol.ipsec.model import Prefix
from protocol.ipsec.pairpolicy import link_local
from tests.support.identities import address, make_identities

MS = 1_000_000
WALL_START_NS = 1_800_000_000_000_000_000
LATENCY_NS = 1 * MS
LOCAL_LATENCY_NS = MS // 10
LOOPBACK = IPv6Address("::1")
SA_GROUP = IPv6Address("ff0e::1")

SignalSeen = tuple[str, IPv6Address]


def epoch(number: int) -> EpochId:
    """Return an epoch id that differs from the others in number and tag."""
    return EpochId(number, hashlib.sha256(b"epoch %d" % number).digest()[:8])


def group_key(number: int) -> bytes:
    """Return the group key of an epoch."""
    return hashlib.sha256(b"group key %d" % number).digest()


class SeededKeys:
    """A KeySource whose bytes are a function of seed and count."""

    def __init__(self, seed: str) -> None:
        self._seed = seed
        self._count = 0

    def random_bytes(self, length: int) -> bytes:
        self._count += 1
        return hashlib.shake_128(f"{self._seed} {self._count}".encode()).digest(length)


class FaultyBackend(MemoryBackend):
    """An SAD that refuses what `refuse` says."""

    def __init__(self) -> None:
        super().__init__()
        self.refuse: Callable[[Operation], bool] = lambda operation: False
        self.errors: list[tuple[Operation, Outcome]] = []

    def apply(self, operations: Any) -> list[Outcome]:
        outcomes = []
        for operation in operations:
            if self.refuse(operation):
                outcomes.append(Outcome(12, "Cannot allocate memory"))
            else:
                outcomes += super().apply([operation])
            if not outcomes[-1].ok:
                self.errors.append((operation, outcomes[-1]))
        return outcomes


class Device:
    """One device: engine, SAD, keys in the key directory, scripted MIKE, what was observed."""

    def __init__(self, net: Network, index: int, config: IdpConfig) -> None:
        self.net = net
        self.index = index
        self.address = address(index)
        self.secret = hashlib.sha256(b"local secret %d" % index).digest()
        self.backend = FaultyBackend()
        self.key_directory: dict[str, bytes] = {}
        self.mike = LocalLink(self.secret, Side.MIKE)
        self.mike_up = True
        self.signals: list[SignalSeen] = []
        self.reports: list[tuple[int, Report]] = []
        self.logs: list[Log] = []
        self.batches: list[ApplySas] = []
        self.reads: list[int] = []
        self.routes: dict[Prefix, None] = {}
        self.announced: list[SendDatagram] = []
        self.sent: list[SendDatagram] = []
        self.notices: list[SendDatagram] = []
        self.connected = True
        self.asleep_ns = 0
        self.inbox: deque[tuple[int, DatagramReceived]] = deque()
        self.timers: dict[str, int] = {}
        self.config = config
        self.identity = net.identities[index]
        self.kept: dict[tuple[str, bytes], bytes] = {}
        self.told_mike: list[Credential | Standing] = []
        self.policy: OwnPolicy | None = None
        self.new_engine()

    def new_engine(self) -> None:
        """Begin a process: parked, knowing what its identity knows."""
        keys = SeededKeys(f"device {self.index}")
        self.engine = IdpEngine(self.config, self.identity, self.secret, keys, self.policy)

    @property
    def name(self) -> str:
        return self.identity.me.name

    # What a test does to the device.

    def start(self) -> None:
        self.feed(Started(self.net.now.wall_ns))

    def stop(self) -> None:
        self.feed(Stopped())

    def suspend(self, ms: float) -> None:
        """Let time pass while our machine sleeps; its monotonic clock stands still."""
        timers, self.timers, self.connected = self.timers, {}, False
        self.net.run(ms)
        self.asleep_ns += int(ms * MS)
        self.connected = True
        for name, at_mono_ns in timers.items():
            self._set_timer(name, at_mono_ns)

    def link(self, up: bool) -> None:
        self.connected = up
        self.feed(LinkChanged(up))

    def status_from_mike(self, number: int, members: list[Device], *, key: bool = True) -> None:
        """MIKE finished: the key is published, IDP is told."""
        if key:
            self.key_directory[str(epoch(number))] = group_key(number)
        addresses = tuple(member.address for member in members)
        status = GroupStatus(0, epoch(number), str(epoch(number)), addresses, addresses[0])
        self._perform_mike(self.mike.send(status, self.net.now))

    # What a test asks.

    @property
    def now(self) -> Instant:
        """The time by our clocks."""
        return Instant(self.net.now.mono_ns - self.asleep_ns, self.net.now.wall_ns)

    def status(self) -> dict[str, Any]:
        return self.engine.status(self.now)

    def points(self, *names: str) -> list[tuple[str, dict[str, Any]]]:
        """Return the measurement points with these names, in order."""
        return [(r.point, dict(r.fields)) for _, r in self.reports if r.point in names]

    def time_of(self, point: str, **fields: Any) -> int:
        """Return when a point was first reported with these fields, in ms."""
        for mono_ns, report in self.reports:
            if report.point == point and fields.items() <= dict(report.fields).items():
                return mono_ns // MS
        raise AssertionError(f"{point} {fields} not reported")

    def counter(self, name: str) -> int:
        return int(self.status()["counters"].get(name, 0))

    @property
    def labels(self) -> list[str]:
        return [batch.label for batch in self.batches]

    # The runner.

    def read(self) -> None:
        """Read what has waited in the socket for as long as the network says."""
        now_ns = self.net.now.mono_ns
        while self.inbox and self.inbox[0][0] + self.net.backlog_ms * MS <= now_ns:
            arrived_ns, event = self.inbox.popleft()
            self.feed(replace(event, waited_ns=now_ns - arrived_ns))
        if self.inbox:
            self.net.at(self.inbox[0][0] + self.net.backlog_ms * MS, self.read)

    def feed(self, event: Event) -> None:
        """Hand an event in; perform the effects; hand in their answers."""
        answers: list[Event] = []
        for effect in self.engine.handle(event, self.now):
            answers += self._perform(effect)
        for answer in answers:
            self.feed(answer)

    def _perform(self, effect: Effect) -> list[Event]:
        match effect:
            case SendDatagram("local", payload, _):
                if self.mike_up:
                    self.net.after(LOCAL_LATENCY_NS, lambda: self._mike_receives(payload))
            case SendDatagram("group", payload, _):
                (self.notices if payload.startswith(NOTICE) else self.sent).append(effect)
                self.net.transmit(self, effect)
            case SendDatagram("pair"):
                self.announced.append(effect)
                self.net.transmit_inside(self, effect)
            case SetTimer(name, at_mono_ns):
                self._set_timer(name, at_mono_ns)
            case CancelTimer(name):
                self.timers.pop(name, None)
            case Report():
                self.reports.append((self.net.now.mono_ns, effect))
            case Log():
                self.logs.append(effect)
            case ApplySas(label, operations):
                self.batches.append(effect)
                return [SasApplied(label, self.backend.apply(operations))]
            case ApplyRoutes(label, operations):
                return [RoutesApplied(label, [self._route(one) for one in operations])]
            case KeepTrust(kind, name, data):
                self.kept[kind, name] = data
            case DropTrust(kind, name):
                del self.kept[kind, name]
            case ReadKernel():
                sas = frozenset(sa.id for sa in self.backend.dump_sas())
                policies = tuple(self.backend.dump_policies())
                self.reads.append(self.net.now.mono_ns)
                return [KernelRead(sas, policies, frozenset(self.routes))]
            case FetchKey(pointer):
                return [KeyFetched(pointer, self.key_directory.get(pointer))]
            case _:
                raise AssertionError(effect)
        return []

    def _route(self, operation: RouteOperation) -> Outcome:
        """Change the routing table as the kernel would."""
        there = operation.prefix in self.routes
        if isinstance(operation, AddRoute):
            if there:
                return Outcome(17, "File exists")
            self.routes[operation.prefix] = None
            return Outcome()
        if not there:
            return Outcome(3, "No such process")
        del self.routes[operation.prefix]
        return Outcome()

    def _set_timer(self, name: str, at_mono_ns: int) -> None:
        self.timers[name] = at_mono_ns
        self.net.at(at_mono_ns + self.asleep_ns, lambda: self._expire(name, at_mono_ns))

    def _expire(self, name: str, at_mono_ns: int) -> None:
        if self.timers.get(name) == at_mono_ns:
            del self.timers[name]
            self.feed(TimerExpired(name))

    # The scripted MIKE.

    def restart_mike(self) -> None:
        self.mike = LocalLink(self.secret, Side.MIKE)
        self.mike_up = True
        self._perform_mike(self.mike.begin(self.net.now))

    def _mike_receives(self, payload: bytes) -> None:
        message, effects = self.mike.handle(
            DatagramReceived("local", LOOPBACK, payload), self.net.now
        )
        if isinstance(message, Signal):
            self.signals.append((message.kind.name, message.peer))
        if isinstance(message, (Credential, Standing)):
            self.told_mike.append(message)
        self._perform_mike(effects)

    def _perform_mike(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case SendDatagram("local", payload, _):
                    event = DatagramReceived("local", LOOPBACK, payload)
                    self.net.after(LOCAL_LATENCY_NS, lambda event=event: self.feed(event))
                case SetTimer(name, at_mono_ns):
                    self.net.at(at_mono_ns, lambda name=name: self._mike_timer(name))
                case _:
                    pass

    def _mike_timer(self, name: str) -> None:
        if self.mike_up:
            self._perform_mike(self.mike.on_timer(name, self.net.now))


def networks(texts: Iterable[str]) -> tuple[Prefix, ...]:
    """Return prefixes in their order."""
    return tuple(sorted(map(ip_network, texts), key=prefix_order))


class Network:
    """The black network and the time."""

    def __init__(
        self,
        size: int,
        config: IdpConfig | None = None,
        prefixes: Mapping[int, tuple[str, ...]] | None = None,
        identities: Sequence[Identity] | None = None,
    ) -> None:
        """Make the devices; ``prefixes`` are the red ones of some, by index."""
        self.size = size
        self.identities = identities or make_identities(size)
        self.agenda = Agenda(1_000 * MS)
        self.wall_ahead_ns = WALL_START_NS - self.agenda.now_ns
        self.wire: list[tuple[Device, SendDatagram]] = []
        self.drops: Callable[[Device, Device], bool] = lambda sender, receiver: False
        self.latency_ns = LATENCY_NS
        self.backlog_ms = 0  # what arrives waits so long in the sockets
        # News of others at once, unless the test is about the waiting (IDP-16); the group alone,
        # unless it is about pairs of devices.
        config = config or IdpConfig(sa_group=SA_GROUP, news_delay_ms=0, unicast=Unicast.OFF)
        self.devices = [
            Device(self, index, replace(config, prefixes=networks((prefixes or {}).get(index, ()))))
            for index in range(size)
        ]

    @property
    def now(self) -> Instant:
        mono_ns = self.agenda.now_ns
        return Instant(mono_ns, mono_ns + self.wall_ahead_ns)

    def at(self, mono_ns: int, action: Callable[[], None]) -> None:
        self.agenda.at(mono_ns, action)

    def after(self, delay_ns: int, action: Callable[[], None]) -> None:
        self.agenda.after(delay_ns, action)

    def run(self, ms: float) -> None:
        """Let virtual time pass."""
        self.agenda.run(self.agenda.now_ns + int(ms * MS))

    def freeze(self, ms: float) -> None:
        """Let time pass while nobody runs: all timers and datagrams are late."""
        self.agenda.skip(self.agenda.now_ns + int(ms * MS))

    def transmit(self, sender: Device, effect: SendDatagram) -> None:
        self.wire.append((sender, effect))
        if not sender.connected:
            return
        event = DatagramReceived("group", sender.address, effect.payload)
        for device in self.devices:
            if effect.destination in (None, device.address) and not self.drops(sender, device):
                self.after(self.latency_ns, lambda device=device: self._deliver(device, event))

    def transmit_inside(self, sender: Device, effect: SendDatagram) -> None:
        """Carry a datagram in the pair's SA, if sender and receiver have it with the same key."""
        (receiver,) = [one for one in self.devices if one.address == effect.destination]
        sa = sender.backend.sending_sa(link_local(receiver.address))
        if sa is None or not sender.connected:
            return
        event = DatagramReceived("pair", sender.address, effect.payload)

        def arrive() -> None:
            if receiver.backend.receives(sa):
                self._deliver(receiver, event)

        self.after(self.latency_ns, arrive)

    def _deliver(self, device: Device, event: DatagramReceived) -> None:
        if device.connected and event.channel == "group":
            device.inbox.append((self.now.mono_ns, event))
            self.after(self.backlog_ms * MS, device.read)
        elif device.connected:
            device.feed(event)
