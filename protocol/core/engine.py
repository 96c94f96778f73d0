"""The shape of a sans-I/O engine: an event and the time go in, a list of effects comes out.

An engine reads no clock, opens no socket, starts no thread and draws no random number; whatever it
needs of those arrives as an event, as ``now``, or through the `KeySource` given at construction.
The daemon (``protocol.daemon.runtime``) and the seeded simulator run the very same engines.

Each protocol adds its own events and effects beside the ones here (``protocol/idp/events.py``,
``protocol/mike/events.py``); all are frozen dataclasses, events named in the past tense and effects
in the imperative.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from typing import Any, NamedTuple, Protocol


class Instant(NamedTuple):
    """One reading of both clocks of a device.

    Attributes:
        mono_ns: monotonic time in nanoseconds; all timers and durations use it.
        wall_ns: UTC in nanoseconds since 1970; only for time-stamps that leave the device
            (start-up time-stamp, freshness) and for certificate validity.
    """

    mono_ns: int
    wall_ns: int


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened; the only input of an engine."""


@dataclass(frozen=True, slots=True)
class Effect:
    """Something to be done by whoever runs the engine, in the order returned."""


@dataclass(frozen=True, slots=True)
class Started(Event):
    """The device's daemon was told to start the protocol.

    Attributes:
        trigger_wall_ns: the pre-calculated trigger time (``t_start``), UTC nanoseconds. Also the
            start-up time-stamp of this instance unless the engine must move it forward to stay
            above the last one it used.
    """

    trigger_wall_ns: int


@dataclass(frozen=True, slots=True)
class Stopped(Event):
    """The daemon was told to stop the protocol and to return to the parked state."""


@dataclass(frozen=True, slots=True)
class FromNetwork(Event):
    """Something that others caused: a fault of ours in handling it must not end the daemon."""


@dataclass(frozen=True, slots=True)
class DatagramReceived(FromNetwork):
    """A datagram arrived.

    Attributes:
        channel: name of the socket: ``"group"`` (black multicast and unicast to the same port) or
            ``"local"`` (the IDP-MIKE interface on ::1).
        source: the sender's IPv6 address as the socket reports it (scope removed).
        payload: the UDP payload, untrusted.
        waited_ns: how long it was in our socket before it was read. On a starved machine that is
            long, and neither its sender's fault nor the network's.
    """

    channel: str
    source: IPv6Address
    payload: bytes = field(repr=False)
    waited_ns: int = 0

    def arrived(self, now: Instant) -> Instant:
        """Return when it arrived, if it is read now."""
        if not self.waited_ns:
            return now
        return Instant(now.mono_ns - self.waited_ns, now.wall_ns - self.waited_ns)


@dataclass(frozen=True, slots=True)
class TimerExpired(Event):
    """The timer set under this name ran out."""

    name: str


@dataclass(frozen=True, slots=True)
class SendDatagram(Effect):
    """Send one datagram.

    Attributes:
        channel: as in `DatagramReceived`.
        payload: the UDP payload.
        destination: a device's address on the ``"group"`` channel, or None for the channel's
            default peer (the multicast group; the other daemon on ``"local"``).
    """

    channel: str
    payload: bytes = field(repr=False)
    destination: IPv6Address | None = None


@dataclass(frozen=True, slots=True)
class SetTimer(Effect):
    """(Re)start the named timer; it fires once, at or after ``at_mono_ns``."""

    name: str
    at_mono_ns: int


@dataclass(frozen=True, slots=True)
class CancelTimer(Effect):
    """Stop the named timer; no error if it is not running."""

    name: str


@dataclass(frozen=True, slots=True)
class Report(Effect):
    """Record a measurement point or a notable event in the trace.

    The runner of the engine stamps it with both clocks at the moment it performs the effect, so an
    engine puts a `Report` exactly where in the list the point lies.

    Attributes:
        point: ``t_hello``, ``t_detect``, ... (docs/ARCHITECTURE.md, measurement points) or a
            dotted event name such as ``idp.peer_up``.
        fields: plain JSON values; never key material.
        at: for a point that lies at the event itself (a message *received*), the ``now`` that came
            with it: what the engine computed since then belongs to the next phase. None: when
            the effect is performed.
    """

    point: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    at: Instant | None = None


@dataclass(frozen=True, slots=True)
class Log(Effect):
    """One line for the daemon's log: ``level`` is ``debug``, ``info``, ``warning`` or ``error``."""

    level: str
    text: str


class KeySource(Protocol):
    """Where an engine takes unpredictable bytes from; seeded in the simulator."""

    def random_bytes(self, length: int) -> bytes:
        """Return ``length`` fresh bytes."""
        ...


class Engine(Protocol):
    """A protocol engine."""

    def handle(self, event: Event, now: Instant) -> Sequence[Effect]:
        """Consume one event; return what is to be done, in order."""
        ...

    def status(self, now: Instant) -> dict[str, Any]:
        """Describe the present state as plain JSON values; never key material."""
        ...
