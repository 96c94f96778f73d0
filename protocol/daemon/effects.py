"""One function for each effect an engine can ask for.

An effect never fails into the engine's face: what the network, the disk or the kernel refused is
counted, logged, and where the engine waits for an answer, told to it as an event.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
from protocol.daemon.keys import KeyDirectory, KeyDirectoryError
from protocol.daemon.logfile import LogFile
from protocol.daemon.loop import Loop
from protocol.daemon.sockets import GroupSocket, LocalSocket
from protocol.daemon.trace import TraceWriter
from protocol.idp.events import ApplySas, FetchKey, KeyFetched, SasApplied
from protocol.ipsec.backend import IpsecBackend, IpsecError, Outcome
from protocol.mike.events import Attend, PublishKey, RetireKey

ERRNO_BACKEND_FAILED = 5
"""EIO: the outcome of every operation of a batch whose backend as a whole failed."""

Performer = Callable[[Any], None]
"""Performs one kind of effect."""


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
        self._senders = {name: channel.send for name, channel in channels.items()}
        self._trace = trace

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


class IdpEffects:
    """SAs and policies, and the key that MIKE left."""

    def __init__(
        self,
        answers: Answers,
        backend: IpsecBackend,
        keys: KeyDirectory,
        trace: TraceWriter,
        log: LogFile,
    ) -> None:
        self._answers = answers
        self._backend = backend
        self._keys = keys
        self._trace = trace
        self._log = log

    def table(self) -> dict[type[Effect], Performer]:
        """Return the function for each effect."""
        return {ApplySas: self.apply_sas, FetchKey: self.fetch_key}

    def apply_sas(self, effect: ApplySas) -> None:
        """Perform the batch; its duration and result go to the trace."""
        self._trace.report(
            "sas.begin", {"label": effect.label, "operations": len(effect.operations)}
        )
        try:
            outcomes = self._backend.apply(effect.operations)
        except IpsecError as error:
            self._log.write("error", f"SA backend {self._backend.name}: {error}")
            outcomes = [Outcome(ERRNO_BACKEND_FAILED, str(error)) for _ in effect.operations]
        failed = [outcome.text for outcome in outcomes if not outcome.ok]
        fields: dict[str, Any] = {"label": effect.label, "failed": len(failed)}
        if failed:
            fields["texts"] = sorted(set(failed))[:8]
        self._trace.report("sas.end", fields)
        self._answers.deliver(SasApplied(effect.label, outcomes))

    def fetch_key(self, effect: FetchKey) -> None:
        """Read the key file the pointer names."""
        group_key = self._keys.fetch(effect.pointer)
        self._answers.deliver(KeyFetched(effect.pointer, group_key))


class MikeEffects:
    """The key files that idpd fetches, and what the black socket lets through."""

    def __init__(self, keys: KeyDirectory, log: LogFile, group: GroupSocket) -> None:
        self._keys = keys
        self._group = group
        self._log = log

    def table(self) -> dict[type[Effect], Performer]:
        """Return the function for each effect."""
        return {
            Attend: self.attend,
            PublishKey: self.publish_key,
            RetireKey: self.retire_key,
        }

    def attend(self, effect: Attend) -> None:
        """Have the kernel drop what the engine would."""
        self._group.attend(effect.kinds)

    def publish_key(self, effect: PublishKey) -> None:
        """Write the key file; if the disk refuses, idpd finds none and says so."""
        try:
            self._keys.publish(effect.pointer, effect.group_key)
        except KeyDirectoryError as error:
            self._log.write("error", str(error))

    def retire_key(self, effect: RetireKey) -> None:
        """Remove the key file."""
        try:
            self._keys.retire(effect.pointer)
        except KeyDirectoryError as error:
            self._log.write("error", str(error))
