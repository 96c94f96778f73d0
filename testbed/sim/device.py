"""One simulated device: the engines of both daemons, what they run on, and what can befall them.

Effects are performed as the daemons do (`protocol.daemon.effects` and its neighbours): in order, at
once, and an answer to an effect is an event that waits until the list is through. Between the two
engines lies the local interface with its real encoding. The SAD is `protocol.ipsec.memory`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from ipaddress import IPv6Address
from typing import Any, Protocol

from protocol.core.engine import (
    CancelTimer,
    DatagramReceived,
    Effect,
    Engine,
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
from protocol.core.errors import LocalError
from protocol.core.timers import TimerTable
from protocol.daemon.reconcile import remove_own, remove_own_routes
from protocol.daemon.routes import MemoryRoutes
from protocol.identity import Identity
from protocol.idp.config import IdpConfig, Unicast
from protocol.idp.engine import IdpEngine
from protocol.idp.events import (
    ApplyRoutes,
    ApplySas,
    FetchKey,
    KeyFetched,
    LinkChanged,
    PrefixAdded,
    PrefixRemoved,
    RoutesApplied,
    SasApplied,
    TrustReread,
)
from protocol.idp.unicast import CHANNEL as PAIR
from protocol.ipsec.memory import MemoryBackend
from protocol.ipsec.model import Prefix, SecurityAssociation
from protocol.ipsec.pairpolicy import link_local
from protocol.mike.config import MikeConfig
from protocol.mike.engine import MikeEngine
from protocol.mike.events import Attend, EpochMarkFound, KeepEpochMark, PublishKey, RetireKey
from testbed.sim.agenda import NS_PER_MS, Agenda
from testbed.sim.chance import Chance, SeededKeys
from testbed.sim.people import Crypto, People, local_secret, secret_type

WALL_START_NS = 1_800_000_000_000_000_000
"""UTC at virtual time 0."""

LOCAL_DELAY_NS = 50_000
"""From one daemon of a device to the other."""

SOCKET_MAX = 200
"""Datagrams that wait for a process that does not run: Linux's default holds about as many."""

STOP_GAP_NS = 50 * NS_PER_MS
"""An orderly stop parks idpd first, so that its LEAVE still reaches miked."""

LOOPBACK = IPv6Address("::1")


_expired = cache(TimerExpired)
"""There are few names of timers."""


class Observer(Protocol):
    """Who is told what devices do."""

    def transmit(
        self, daemon: Daemon, effect: SendDatagram, sa: SecurityAssociation | None
    ) -> None:
        """Carry a datagram to the other devices; in an SA only to who has that too."""
        ...

    def performed(self, daemon: Daemon, effect: Effect) -> None:
        """Take note of an effect, before it is performed."""
        ...

    def started(self, daemon: Daemon) -> None:
        """Take note of a new instance."""
        ...

    def left_out(self, daemon: Daemon, effect: Effect) -> None:
        """Take note that the simulator has no model of an effect: it was not performed."""
        ...


class Daemon:
    """One daemon: engine, timers, and what waits for it while it does not run.

    Attributes:
        name: ``idpd`` or ``miked``.
        device: where it runs.
        stamp: device and name, for the digest of a run.
        engine: None while there is no process.
        running: between Started and Stopped.
        sent: datagrams sent to the black network.
    """

    def __init__(self, device: Device, name: str) -> None:
        self.name = name
        self.device = device
        self.stamp = f" {device.index} {name} "
        self.engine: Engine | None = None
        self.running = False
        self.sent = 0
        self.timers = TimerTable()
        self.other: Daemon = self
        self._wake_ns: int | None = None
        self._waiting: deque[Event] = deque()
        self._events: deque[Event] = deque()
        self._busy = False
        self._performers: dict[type[Effect], Callable[[Any], None]] = {
            SendDatagram: self._send,
            SetTimer: self._set_timer,
            CancelTimer: self._cancel_timer,
            Report: self._nothing,
            Log: self._nothing,
        }

    def __repr__(self) -> str:
        return f"d{self.device.index + 1}/{self.name}"

    def perform_with(self, table: Mapping[type[Effect], Callable[[Any], None]]) -> None:
        """Add the functions that perform effects."""
        self._performers.update(table)

    # The process.

    def boot(self, engine: Engine) -> None:
        """Run a new process, parked."""
        self.kill()
        self.engine = engine

    def kill(self) -> None:
        """Kill -9: engine, timers and what waited in the sockets are gone."""
        self.engine = None
        self.running = False
        self.timers.clear()
        self._waiting.clear()

    def start(self) -> None:
        """Start the protocol now."""
        self.running = True
        self.device.observer.started(self)
        self.deliver(Started(self.device.now().wall_ns))

    def stop(self) -> None:
        """Return to parked."""
        if self.running:
            self.deliver(Stopped())
            self.running = False

    def resume(self) -> None:
        """Run again after a pause: one datagram, then the timers that are late, then the rest."""
        first = True
        while self._waiting:
            self.deliver(self._waiting.popleft())
            if first:
                self._wake()
            first = False
        self._wake()

    # Events.

    def arrive(self, event: DatagramReceived, sa: SecurityAssociation | None) -> None:
        """A datagram comes from the black network; in an SA only who has that too can read it."""
        device = self.device
        if device.connected and (sa is None or device.backend.receives(sa)):
            self.receive(event)

    def receive(self, event: DatagramReceived) -> None:
        """A datagram reached the socket."""
        if self.running or (self.engine is not None and event.channel == "local"):
            self.notify(event)

    def notify(self, event: Event) -> None:
        """Something happened to the process; if it stands still, it sees that later."""
        if not self.device.paused:
            self.deliver(event)
        elif len(self._waiting) < SOCKET_MAX:
            self._waiting.append(event)

    def deliver(self, event: Event) -> Sequence[Effect]:
        """Hand an event to the engine and perform its effects, then those of their answers.

        Returns:
            All that was performed; nothing if this event is itself an answer and waits.
        """
        if self._busy:
            self._events.append(event)
            return []
        if self.engine is None:
            return []
        self._busy = True
        try:
            effects = self._handle(self.engine, event)
            while self._events and self.engine is not None:
                effects = [*effects, *self._handle(self.engine, self._events.popleft())]
        finally:
            self._busy = False
            self._events.clear()
        return effects

    def _handle(self, engine: Engine, event: Event) -> Sequence[Effect]:
        """Hand one event to the engine, and perform its effects."""
        device = self.device
        now_ns = device.agenda.now_ns
        effects = engine.handle(event, Instant(now_ns, WALL_START_NS + now_ns + device.clock_ns))
        for effect in effects:
            device.observer.performed(self, effect)
            perform = self._performers.get(effect.__class__)
            if perform is None:
                device.observer.left_out(self, effect)
            else:
                perform(effect)
        return effects

    # Effects of every engine.

    def _send(self, effect: SendDatagram) -> None:
        if effect.channel == "local":
            event = DatagramReceived("local", LOOPBACK, effect.payload)
            self.device.agenda.after(LOCAL_DELAY_NS, self.other.receive, event)
            return
        if effect.channel == PAIR:
            assert effect.destination is not None
            sa = self.device.backend.sending_sa(link_local(effect.destination))
            if sa is None:
                return  # as the xfrm interface drops what finds no policy or no SA
        else:
            sa = None
        self.sent += 1
        self.device.observer.transmit(self, effect, sa)

    def _nothing(self, effect: Effect) -> None:
        """Reports and log lines are the observer's."""

    # Timers.

    def _set_timer(self, effect: SetTimer) -> None:
        self.timers.set(effect.name, effect.at_mono_ns)
        self._wake_at(effect.at_mono_ns)

    def _cancel_timer(self, effect: CancelTimer) -> None:
        self.timers.cancel(effect.name)

    def _wake_at(self, at_ns: int) -> None:
        """Make sure that we wake at this time, or earlier."""
        if self._wake_ns is None or at_ns < self._wake_ns:
            self._wake_ns = at_ns
            self.device.agenda.at(at_ns, self._on_wake, at_ns)

    def _on_wake(self, at_ns: int) -> None:
        if at_ns == self._wake_ns:
            self._wake_ns = None
            if not self.device.paused:
                self._wake()

    def _wake(self) -> None:
        """Fire what is due, no more than ran at the beginning, as the daemon's loop does."""
        now_ns = self.device.agenda.now_ns
        timers = self.timers
        for _ in range(len(timers)):
            name = timers.pop_expired(now_ns)
            if name is None:
                break
            self.deliver(_expired(name))
        deadline_ns = timers.next_deadline()
        if deadline_ns is not None:
            self._wake_at(max(deadline_ns, now_ns))


class Device:
    """Both daemons of a device, its clock, SAD and key directory.

    Attributes:
        index: counts from 0.
        people: all devices of its network, itself among them.
        address: its black address.
        announced: red prefixes that its idpd was told to announce.
        idpd, miked: its daemons.
        backend: its SAD and SPD.
        routes: its routes to red prefixes.
        keys: its key directory, by pointer.
        connected: whether its black interface has a carrier.
        paused: whether its processes stand still.
        clock_ns: how far its wall clock is ahead.
        entropy: its key source, the same for both daemons and over restarts.
        epoch_mark: on its disk: the largest epoch number used or seen (MIKE-29).
    """

    def __init__(
        self,
        index: int,
        people: People,
        chance: Chance,
        agenda: Agenda,
        observer: Observer,
        *,
        crypto: Crypto = Crypto.MODELLED,
        idp: IdpConfig,
        mike: MikeConfig | None = None,
    ) -> None:
        self.index = index
        self.people = people
        self.address = people.address(index)
        self.agenda = agenda
        self.observer = observer
        self.connected = True
        self.paused = False
        self.clock_ns = 0
        self.backend = MemoryBackend()
        self.routes = MemoryRoutes()
        self.keys: dict[str, bytes] = {}
        self._crypto = crypto
        red = () if idp.unicast is Unicast.OFF else people.prefixes(index)
        self._idp_config = replace(idp, prefixes=red)
        self.announced: set[Prefix] = set()
        self._revoked: set[int] = set()
        self._identities: dict[str, Identity] = {}
        self._commands: list[Callable[[], None]] = []
        self._mike_config = mike or MikeConfig()
        self.entropy = SeededKeys(chance.stream(f"keys of device {index}"))
        self._secret = local_secret(index)
        self._newest_wall_ns = dict.fromkeys(("idpd", "miked"), 0)
        self._wanted = False
        self.epoch_mark = 0
        self.idpd, self.miked = Daemon(self, "idpd"), Daemon(self, "miked")
        self.daemons = (self.idpd, self.miked)
        self.idpd.other, self.miked.other = self.miked, self.idpd
        self.idpd.perform_with(
            {
                ApplySas: self._apply_sas,
                ApplyRoutes: self._apply_routes,
                FetchKey: self._fetch_key,
            }
        )
        self.miked.perform_with(
            {
                PublishKey: self._publish,
                RetireKey: self._retire,
                KeepEpochMark: self._keep_mark,
                Attend: lambda _: None,
            }
        )

    def now(self) -> Instant:
        """Read both clocks; the monotonic one is virtual time."""
        now_ns = self.agenda.now_ns
        return Instant(now_ns, WALL_START_NS + now_ns + self.clock_ns)

    @property
    def alive(self) -> bool:
        """Whether both daemons run the protocol."""
        return self.idpd.running and self.miked.running

    # What befalls it.

    def boot(self, daemon: Daemon) -> None:
        """Start a process anew, parked; it removes what a killed one left, as the daemons do."""
        own = self.people.identity(self.index, self._crypto, revoked=self._revoked)
        self._identities[daemon.name] = own
        if daemon is self.idpd:
            self.announced = set(self._idp_config.prefixes)
            remove_own(self.backend, self._idp_config)
            remove_own_routes(self.routes)
            daemon.boot(IdpEngine(self._idp_config, own, self._secret, self.entropy))
        else:
            self.keys.clear()
            secrets = secret_type(self._crypto)
            engine = MikeEngine(self._mike_config, own, self._secret, self.entropy, secrets)
            daemon.boot(engine)
            daemon.deliver(EpochMarkFound(self.epoch_mark))

    def power_on(self, gap_ms: int = 0) -> None:
        """Switch on: new processes on an empty kernel, idpd started so long after miked."""
        self.backend, self.routes = MemoryBackend(), MemoryRoutes()
        for daemon in self.daemons:
            self.boot(daemon)
        self.start(gap_ms)

    def start(self, gap_ms: int = 0) -> None:
        """Start both protocols, idpd so long after miked, or before."""
        self._wanted = True
        first, second = self.daemons if gap_ms < 0 else self.daemons[::-1]
        self.start_daemon(first)
        self.agenda.after(abs(gap_ms) * NS_PER_MS, self.start_daemon, second)

    def start_daemon(self, daemon: Daemon) -> None:
        """Start one protocol if its process is there and parked.

        A start-up time-stamp may not be below an earlier one of the same device: others would
        refuse it as recorded. So a clock that was set back is waited for.
        """
        if daemon.engine is None or daemon.running or not self._wanted:
            return
        wall_ns = self.now().wall_ns
        wait_ns = self._newest_wall_ns[daemon.name] - wall_ns
        if wait_ns >= 0:
            self.agenda.after(wait_ns + NS_PER_MS, self.start_daemon, daemon)
            return
        self._newest_wall_ns[daemon.name] = wall_ns
        daemon.start()

    def revive(self, daemon: Daemon) -> None:
        """Start a killed daemon anew."""
        self.boot(daemon)
        self.start_daemon(daemon)

    def power_off(self) -> None:
        """Lose power."""
        self._wanted = False
        for daemon in self.daemons:
            daemon.kill()
        self.backend, self.routes = MemoryBackend(), MemoryRoutes()
        self.keys.clear()

    def stop(self) -> None:
        """Park both protocols in order."""
        self._wanted = False
        self.idpd.stop()
        self.agenda.after(STOP_GAP_NS, self._stop_mike)

    def _stop_mike(self) -> None:
        if not self.idpd.running:
            self.miked.stop()

    def pause(self) -> None:
        """Let both processes stand still."""
        self.paused = True

    def resume(self) -> None:
        """Let them go on."""
        self.paused = False
        for daemon in self.daemons:
            daemon.resume()
        commands, self._commands = self._commands, []
        for command in commands:
            command()

    def set_carrier(self, up: bool) -> None:
        """Cut or heal the black interface."""
        self.connected = up
        if self.idpd.engine is not None:
            self.idpd.notify(LinkChanged(up))

    # What its operator does.

    def announce(self, prefix: Prefix, *, forced: bool = False) -> None:
        """``idpd prefix add``; ``forced``: by one whose own daemon does not check it.

        Commands wait while the processes stand still; without idpd they fail.
        """
        engine = self.idpd.engine
        if self.paused:
            self._commands.append(partial(self.announce, prefix, forced=forced))
        elif isinstance(engine, IdpEngine) and self.idpd.running:
            try:
                if not forced:
                    engine.unicast.check_addition(prefix)
            except LocalError:
                return
            self.announced.add(prefix)
            self.idpd.deliver(PrefixAdded(prefix))

    def withdraw(self, prefix: Prefix) -> None:
        """``idpd prefix remove``, of a prefix that may not be announced any more."""
        if self.paused:
            self._commands.append(partial(self.withdraw, prefix))
        elif self.idpd.engine is not None and prefix in self.announced:
            self.announced.discard(prefix)
            self.idpd.deliver(PrefixRemoved(prefix))

    def distrust(self, other: int) -> None:
        """Give both daemons a list that revokes another device's certificate."""
        if self.paused:
            self._commands.append(partial(self.distrust, other))
            return
        self._revoked.add(other)
        for identity in self._identities.values():
            identity.trust(self.people.known(self._crypto, self._revoked))
        self.idpd.deliver(TrustReread())

    # Effects of one engine.

    def _apply_sas(self, effect: ApplySas) -> None:
        outcomes = self.backend.apply(effect.operations)
        self.idpd.deliver(SasApplied(effect.label, outcomes))

    def _apply_routes(self, effect: ApplyRoutes) -> None:
        outcomes = self.routes.apply(effect.operations)
        self.idpd.deliver(RoutesApplied(effect.label, outcomes))

    def _fetch_key(self, effect: FetchKey) -> None:
        self.idpd.deliver(KeyFetched(effect.pointer, self.keys.get(effect.pointer)))

    def _publish(self, effect: PublishKey) -> None:
        self.keys[effect.pointer] = effect.group_key

    def _keep_mark(self, effect: KeepEpochMark) -> None:
        self.epoch_mark = effect.number

    def _retire(self, effect: RetireKey) -> None:
        self.keys.pop(effect.pointer, None)
