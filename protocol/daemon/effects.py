"""One function for each effect an engine can ask for.

An effect never fails into the engine's face: what the network, the disk or the kernel refused is
counted, logged, and where the engine waits for an answer, told to it as an event.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from ipaddress import IPv6Address
from typing import Any, Protocol

from protocol.core.engine import (
    CancelTimer,
    Effect,
    Event,
    Log,
    Report,
    SendDatagram,
    SetTimer,
)
from protocol.daemon.groupsocket import GroupSocket
from protocol.daemon.logfile import LogFile
from protocol.daemon.loop import Loop
from protocol.daemon.sockets import LocalSocket
from protocol.daemon.trace import TraceWriter

Performer = Callable[[Any], None]
"""Performs one kind of effect."""

Sender = Callable[[bytes, IPv6Address | None], None]
"""Sends a datagram to a device, or to a channel's default."""


class Answers(Protocol):
    """Where an effect's answer goes: the runtime, which hands it in after the present list."""

    def deliver(self, event: Event) -> None:
        """Hand an event to the engine."""
        ...

    def on_timer(self, name: str) -> None:
        """Hand in the expiry of an engine's timer."""
        ...


class CommonEffects:
    """Datagrams, timers, trace and log: what every engine has."""

    def __init__(
        self,
        answers: Answers,
        loop: Loop,
        trace: TraceWriter,
        log: LogFile,
        channels: Mapping[str, GroupSocket | LocalSocket],
    ) -> None:
        self._answers = answers
        self._loop = loop
        self._log = log
        self._senders: dict[str, Sender] = {
            name: channel.send for name, channel in channels.items()
        }
        self._trace = trace

    def add_channel(self, name: str, send: Sender) -> None:
        """Let datagrams be sent on one more channel."""
        self._senders[name] = send

    def table(self) -> dict[type[Effect], Performer]:
        """Return the function for each effect."""
        return {
            SendDatagram: self.send_datagram,
            SetTimer: self.set_timer,
            CancelTimer: self.cancel_timer,
            Report: self.report,
            Log: self.log,
        }

    def send_datagram(self, effect: SendDatagram) -> None:
        """Hand the datagram to the kernel."""
        self._senders[effect.channel](effect.payload, effect.destination)

    def set_timer(self, effect: SetTimer) -> None:
        """(Re)start the timer."""
        self._loop.set_timer(effect.name, effect.at_mono_ns, self._answers.on_timer)

    def cancel_timer(self, effect: CancelTimer) -> None:
        """Stop the timer."""
        self._loop.cancel_timer(effect.name)

    def report(self, effect: Report) -> None:
        """Stamp the point, now unless the engine says when."""
        self._trace.report(effect.point, effect.fields, effect.at)

    def log(self, effect: Log) -> None:
        """Queue the line."""
        self._log.write(effect.level, effect.text)
