"""One daemon of a simulated device: its engine, its timers, its sockets; what runs it.

Effects are performed as the daemons do (`protocol.daemon.effects` and its neighbours): in order, at
once, and an answer to an effect is an event that waits until the list is through.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from ipaddress import IPv6Address
from typing import TYPE_CHECKING, Any, Protocol

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
from protocol.core.timers import TimerTable
from protocol.idp.unicast import CHANNEL as PAIR
from protocol.ipsec.model import SecurityAssociation
from protocol.ipsec.pairpolicy import link_local

if TYPE_CHECKING:
    from testbed.sim.device import Device

WALL_START_NS = 1_800_000_000_000_000_000
"""UTC at virtual time 0."""

LOCAL_DELAY_NS = 50_000
"""From one daemon of a device to the other."""

SOCKET_MAX = 200
"""Datagrams that wait for a process that does not run: Linux's default holds about as many."""

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
        if self.running and device.connected and (sa is None or device.backend.receives(sa)):
            self.notify(event)

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
        performed, performers = device.observer.performed, self._performers
        for effect in effects:
            performed(self, effect)
            perform = performers.get(effect.__class__)
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
