"""A large group as engines: a join, a leave, a lost TM, from the signal to everybody's key.

Beside `testbed.sim.scale`, which counts on epochs alone: here every device is miked's engine with
all that belongs to it (signatures, replay windows, timers, the local interface), real cryptography,
nothing shared between devices. Time is virtual: a datagram is under way for a drawn time, and
nothing is lost. Each device has a processor of its own, which is busy with an event for as long as
this thread's processor was. Sockets and the kernel are not in it, nor is IDP: its word comes to all
devices at the same moment.

The group is there from the beginning, its epoch computed, not agreed on message by message. In key
distribution mode members only listen, so the TM and a sample of members are enough to see what all
of a larger group see.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from ipaddress import IPv6Address
from random import Random
from typing import Any

from protocol.core.agenda import NS_PER_MS, Agenda
from protocol.core.engine import (
    CancelTimer,
    DatagramReceived,
    Effect,
    Event,
    Instant,
    SendDatagram,
    SetTimer,
    Started,
    TimerExpired,
)
from protocol.core.timers import TimerTable
from protocol.identity import Identity, KnownDevice
from protocol.identity.envelope import MARKS_MAX
from protocol.idpmike import LocalLink, Side, Signal, SignalKind
from protocol.mike.config import LISTED_MAX, MikeConfig, Mode
from protocol.mike.engine import MikeEngine
from protocol.mike.epochs import Epoch
from protocol.mike.events import PublishKey
from protocol.mike.hierarchy import Hierarchy
from protocol.mike.states import State
from testbed.errors import TestbedError
from testbed.sim.chance import Chance, SeededKeys
from testbed.sim.costing import CountedSecret
from testbed.sim.daemon import LOCAL_DELAY_NS, LOOPBACK, WALL_START_NS
from testbed.sim.people import Crypto, People, SharedVerifier, address, local_secret
from testbed.sim.scale import Agreed, Distributed

NETWORK_US = (200, 400)
"""Shortest and longest time of a datagram between two devices."""

SAMPLE = 50
"""Members of a larger group in key distribution mode that are engines, the TM included."""

QUIET_MS = 1_500
"""From the start to the event: every timer of the start has run, and the TM has said a STATUS."""

LIMIT_MS = 30_000
"""Virtual time within which everybody has the new key."""


@dataclass(frozen=True, slots=True)
class Delay:
    """How long an event took in one group.

    A member is one that was there before the event and still is, the TM apart.

    Attributes:
        mode: ``ka`` or ``kd``.
        event: ``join``, ``leave`` or ``take-over``.
        members: before the event.
        engines: how many devices were engines, a newcomer included.
        newcomer_ms: from IDP's JOIN to the key at the newcomer; None without one.
        tm_ms: from IDP's signal to the key at the TM (the new one).
        median_ms: ... at the members, median.
        last_ms: ... at the last one of all devices.
        datagrams: to all, until everybody had the key.
        bytes: UDP payload of these.
        newcomer_bytes: UDP payload to single devices.
        tm_operations: public-key operations (X25519) of the TM.
        member_operations: of the member that has most.
        newcomer_operations: of the newcomer, since its start.
        tm_cpu_ms: processor time of the TM.
        member_cpu_ms: of the member that has most.
        newcomer_cpu_ms: of the newcomer, from IDP's JOIN on.
    """

    mode: str
    event: str
    members: int
    engines: int
    newcomer_ms: float | None
    tm_ms: float
    median_ms: float
    last_ms: float
    datagrams: int
    bytes: int
    newcomer_bytes: int
    tm_operations: int
    member_operations: int
    newcomer_operations: int
    tm_cpu_ms: float
    member_cpu_ms: float
    newcomer_cpu_ms: float

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


class SeatedEngine(MikeEngine):
    """Can be put into a group whose epoch is known."""

    def seat(self, epoch: Epoch, tm: IPv6Address, hierarchy: Hierarchy | None) -> None:
        """Be a member, or the TM, as if the epoch had just been established; send nothing."""
        self.tm = tm
        self.highest = self._marked = epoch.epoch.number
        self.remember(epoch.epoch)
        self.move(State.JOINING)
        self.move(State.TM if tm == self.own else State.MEMBER)
        if tm == self.own:
            self.hierarchy = hierarchy
        self.establish(epoch)
        epoch.prepare()

    def tell_idp(self, agreement: Epoch) -> None:
        """Leave out what the local interface cannot carry."""
        if len(agreement.members) <= LISTED_MAX:
            super().tell_idp(agreement)


class Seat:
    """One device: engine, timers, processor, and IDP's end of the local interface.

    Attributes:
        engine: its MIKE.
        alive: False once it is gone.
        key_ns: when it had the newest key.
        spent_ns, operations: processor time and X25519 operations since `reset`.
    """

    def __init__(self, crowd: Crowd, index: int) -> None:
        self.crowd = crowd
        self.address = address(index)
        self.alive = True
        self.key_ns: int | None = None
        self.spent_ns = self.operations = 0
        secret = local_secret(index)
        source = SeededKeys(crowd.chance.stream(f"keys of {index}"))
        identity = crowd.identity(index)
        self.engine = SeatedEngine(crowd.config, identity, secret, source, CountedSecret)
        self.idp = LocalLink(secret, Side.IDP)
        self._timers, self._idp_timers = TimerTable(), TimerTable()
        self._waiting: deque[Event] = deque()
        self._busy_until_ns = 0
        self._busy = False

    def reset(self) -> None:
        """Count from now on."""
        self.spent_ns = self.operations = 0
        self.key_ns = None

    # The processor.

    def feed(self, event: Event) -> None:
        """Let an event wait for the processor."""
        if not self.alive:
            return
        self._waiting.append(event)
        if not self._busy:
            self._busy = True
            self.crowd.agenda.at(self._busy_until_ns, self._work)

    def _work(self) -> None:
        """Handle what waited longest; its effects are there when the processor is done."""
        event = self._waiting.popleft()
        self.compute(lambda: self.engine.handle(event, self.crowd.instant))
        if self._waiting:
            self.crowd.agenda.at(self._busy_until_ns, self._work)
        else:
            self._busy = False

    def compute(self, work: Callable[[], Sequence[Effect]]) -> None:
        """Be busy for as long as something takes, then perform its effects."""
        operations, since_ns = CountedSecret.operations, time.thread_time_ns()
        effects = work()
        spent_ns = time.thread_time_ns() - since_ns
        self.spent_ns += spent_ns
        self.operations += CountedSecret.operations - operations
        self._busy_until_ns = self.crowd.agenda.now_ns + spent_ns
        self.crowd.agenda.at(self._busy_until_ns, self._perform, effects)

    def _perform(self, effects: Iterable[Effect]) -> None:
        if not self.alive:
            return
        for effect in effects:
            match effect:
                case SendDatagram(channel="local", payload=payload):
                    self.crowd.agenda.after(LOCAL_DELAY_NS, self._at_idp, payload)
                case SendDatagram():
                    self.crowd.transmit(self, effect)
                case SetTimer(name=name, at_mono_ns=at_ns):
                    self._timers.set(name, at_ns)
                    self.crowd.agenda.at(at_ns, self._expire)
                case CancelTimer(name=name):
                    self._timers.cancel(name)
                case PublishKey():
                    self.key_ns = self.crowd.agenda.now_ns
                case _:
                    pass  # logs, reports, marks on the disk: nobody reads them here

    def _expire(self) -> None:
        while (name := self._timers.pop_expired(self.crowd.agenda.now_ns)) is not None:
            self.feed(TimerExpired(name))

    # IDP.

    def signal(self, kind: SignalKind, about: IPv6Address, startup_wall_ns: int) -> None:
        """IDP tells this device's MIKE about a device."""
        said = Signal(kind, about, startup_wall_ns, 0, 0)
        self._as_idp(self.idp.send(said, self.crowd.instant))

    def _at_idp(self, payload: bytes) -> None:
        event = DatagramReceived("local", LOOPBACK, payload)
        self._as_idp(self.idp.handle(event, self.crowd.instant)[1])

    def _as_idp(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case SendDatagram(payload=payload):
                    event = DatagramReceived("local", LOOPBACK, payload)
                    self.crowd.agenda.after(LOCAL_DELAY_NS, self.feed, event)
                case SetTimer(name=name, at_mono_ns=at_ns):
                    self._idp_timers.set(name, at_ns)
                    self.crowd.agenda.at(at_ns, self._idp_expire)
                case CancelTimer(name=name):
                    self._idp_timers.cancel(name)
                case _:
                    pass

    def _idp_expire(self) -> None:
        while (name := self._idp_timers.pop_expired(self.crowd.agenda.now_ns)) is not None:
            self._as_idp(self.idp.on_timer(name, self.crowd.instant))


class Crowd:
    """A group of engines in virtual time.

    Attributes:
        agenda: what is due.
        chance: where the group's secrets and the network's delays come from.
        config: of every device.
        seats: by address.
    """

    def __init__(self, mode: Mode, members: int, seed: int = 1) -> None:
        self.agenda, self.chance = Agenda(), Chance(seed)
        self.config = _config(mode, members)
        self.seats: dict[IPv6Address, Seat] = {}
        self.sent: list[tuple[IPv6Address | None, int]] = []
        self._mode, self._size = mode, members
        self._known = _everybody(members + 1)
        self._delays: Random = self.chance.stream("delays")
        group = Agreed(members) if mode is Mode.KA else Distributed(members)
        hierarchy = group.hierarchy if isinstance(group, Distributed) else None
        step = 1 if mode is Mode.KA or members < LISTED_MAX else members // SAMPLE
        epochs = group.established()
        for index in sorted({0, 1, members // 2, *range(2, members, step)}):
            self._seat(index, epochs[address(index)], group.tm, hierarchy)
        self.tm = group.tm
        self.agenda.run(QUIET_MS * NS_PER_MS)

    @property
    def instant(self) -> Instant:
        """Virtual time."""
        return Instant(self.agenda.now_ns, WALL_START_NS + self.agenda.now_ns)

    def identity(self, index: int) -> Identity:
        """Return the identity of a device; it trusts all others."""
        key = _people(self._size + 1).signing_key(index, Crypto.REAL)
        return Identity(self._known[index], key, self._known)

    def _start(self, index: int) -> Seat:
        seat = Seat(self, index)
        self.seats[seat.address] = seat
        seat.feed(Started(self.instant.wall_ns))
        self.agenda.run(self.agenda.now_ns + NS_PER_MS // 2)
        return seat

    def _seat(self, index: int, epoch: Epoch, tm: IPv6Address, hierarchy: Hierarchy | None) -> None:
        seat = self._start(index)
        # As the daemons do before they are needed. Members send to all, or to the TM.
        seat.engine.identity.agree(None if index < 2 else MARKS_MAX)

        def sit() -> Sequence[Effect]:
            seat.engine.now = self.instant
            seat.engine.seat(epoch, tm, hierarchy)
            effects = seat.engine.drain()
            return [e for e in effects if not isinstance(e, SendDatagram) or e.channel == "local"]

        seat.compute(sit)

    def transmit(self, sender: Seat, effect: SendDatagram) -> None:
        """Carry a datagram to one device or to all."""
        self.sent.append((effect.destination, len(effect.payload)))
        event = DatagramReceived(effect.channel, sender.address, effect.payload)
        if effect.destination is not None:
            receivers = [self.seats[effect.destination]] if effect.destination in self.seats else []
        else:
            receivers = [seat for seat in self.seats.values() if seat is not sender]
        for seat in receivers:
            delay_ns = self._delays.randint(*NETWORK_US) * 1_000
            self.agenda.after(delay_ns, seat.feed, event)

    def happen(self, event: str) -> Delay:
        """Let an event happen; return how long it took.

        Raises:
            TestbedError: not everybody has the key within `LIMIT_MS`.
        """
        newcomer = self._start(self._size) if event == "join" else None
        if newcomer is not None:
            newcomer.engine.identity.agree()
            self.agenda.run(self.agenda.now_ns + 500 * NS_PER_MS)
        before = {seat.engine.held_epoch() for seat in self.seats.values() if seat is not newcomer}
        assert len(before) == 1, "the group is not at rest"
        prepared = 0 if newcomer is None else newcomer.operations
        about = newcomer
        if event != "join":
            about = self.seats.pop(self.tm if event == "take-over" else address(self._size // 2))
            about.alive = False
        assert about is not None
        for seat in self.seats.values():
            seat.reset()
        self.sent.clear()
        since_ns = self.agenda.now_ns
        kind = SignalKind.JOIN if event == "join" else SignalKind.LEAVE
        started = about.engine.identity.startup_wall_ns
        assert started is not None
        for seat in self.seats.values():
            seat.signal(kind, about.address, started)
        while not self._agreed():
            if self.agenda.now_ns > since_ns + LIMIT_MS * NS_PER_MS:
                have = sum(seat.key_ns is not None for seat in self.seats.values())
                raise TestbedError(
                    f"{have} of {len(self.seats)} devices have the new key {LIMIT_MS} ms after the"
                    f" {event} in a group of {self._size}: this is a bug, please report it"
                )
            self.agenda.run(self.agenda.now_ns + NS_PER_MS)
        return self._delay(event, newcomer, since_ns, prepared)

    def _agreed(self) -> bool:
        """Say whether every device has a new key, the same one."""
        if any(seat.key_ns is None or seat.engine.pending for seat in self.seats.values()):
            return False
        return len({seat.engine.held_epoch() for seat in self.seats.values()}) == 1

    def _delay(self, event: str, newcomer: Seat | None, since_ns: int, prepared: int) -> Delay:
        """Add up."""
        (tm,) = {seat.engine.tm for seat in self.seats.values()}
        assert tm is not None
        keys = {seat.engine.current.keys for seat in self.seats.values() if seat.engine.current}
        assert len({key.group_key for key in keys if key is not None}) == 1, "two keys"
        took = {
            who: (seat.key_ns - since_ns) / NS_PER_MS
            for who, seat in self.seats.items()
            if seat.key_ns is not None
        }
        fresh = None if newcomer is None else newcomer.address
        members = [seat for who, seat in self.seats.items() if who not in (tm, fresh)]
        sizes = [size for to, size in self.sent if to is None]
        return Delay(
            self._mode.value,
            event,
            self._size,
            len(self.seats),
            None if fresh is None else took[fresh],
            took[tm],
            statistics.median(took[seat.address] for seat in members),
            max(took.values()),
            len(sizes),
            sum(sizes),
            sum(size for to, size in self.sent if to is not None),
            self.seats[tm].operations,
            max(seat.operations for seat in members),
            0 if newcomer is None else newcomer.operations + prepared,
            self.seats[tm].spent_ns / 1e6,
            max(seat.spent_ns for seat in members) / 1e6,
            0.0 if newcomer is None else newcomer.spent_ns / 1e6,
        )


def delay(mode: Mode, members: int, event: str, seed: int = 1) -> Delay:
    """Make a group, let an event happen, and return how long it took.

    Raises:
        TestbedError: not everybody has the key in time.
    """
    gc.collect()
    gc.disable()
    try:
        return Crowd(mode, members, seed).happen(event)
    finally:
        gc.enable()


def _config(mode: Mode, members: int) -> MikeConfig:
    """Return what every device is configured with."""
    config = MikeConfig(mode=mode, members_max=min(members + 1, LISTED_MAX))
    if members >= LISTED_MAX:
        # The product stops where a status to IDP cannot list all; there is no IDP here.
        object.__setattr__(config, "members_max", members + 1)
    return config


@cache
def _people(size: int) -> People:
    return People(size)


@cache
def _everybody(size: int) -> list[KnownDevice]:
    """Return all devices; each check of a signature is made by everybody that needs it."""
    found = []
    for known in _people(size).known(Crypto.REAL):
        assert isinstance(known.verify_key, SharedVerifier)
        found.append(replace(known, verify_key=known.verify_key.key))
    return found
