"""Our end of the interface to MIKE: signals out, statuses in, and who has heard our own JOIN.

Pure state, owned and driven by the engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv6Address
from typing import Any

from protocol.core.addresses import text_of
from protocol.core.engine import DatagramReceived, Effect, Instant, Report
from protocol.idpmike import (
    Credential,
    LocalLink,
    Reliable,
    Side,
    Signal,
    SignalKind,
    Standing,
)


class Signalling:
    """Wraps the `LocalLink` of idpd."""

    def __init__(self, secret: bytes) -> None:
        self._link = LocalLink(secret, Side.IDP)
        self._own_join_serial: int | None = None
        self._own_join_known_by = 0

    @property
    def waits(self) -> bool:
        """Whether MIKE has not yet acknowledged everything."""
        return self._link.outstanding > 0

    def status(self) -> dict[str, Any]:
        """Return our part of ``idpd status``."""
        return self._link.status()

    def begin(self, own: IPv6Address, startup_wall_ns: int, now: Instant) -> list[Effect]:
        """Open a new instance of the link and signal our own JOIN."""
        self._own_join_known_by = 0
        return self._link.begin(now) + self._join_self(own, startup_wall_ns, now)

    def signal(
        self, kind: SignalKind, peer: IPv6Address, startup_wall_ns: int, now: Instant
    ) -> list[Effect]:
        """Hand a signal to MIKE."""
        effects = self._link.send(Signal(kind, peer, startup_wall_ns), now)
        serial = self._link.last_serial
        fields = {"kind": kind.name, "peer": text_of(peer), "serial": serial}
        return [*effects, Report("t_signal", fields)]

    def inform(self, message: Credential | Standing, now: Instant) -> list[Effect]:
        """Tell MIKE what its own trust depends on, before any later signal."""
        return self._link.send(message, now)

    def repeat(
        self,
        own: tuple[IPv6Address, int],
        others: Sequence[tuple[IPv6Address, int]],
        now: Instant,
    ) -> list[Effect]:
        """Tell a new instance of MIKE who is there, unless it knows or is being told already.

        Args:
            own: our address and start-up time-stamp.
            others: those of the devices that are up.
            now: the time.
        """
        told = self._own_join_known_by == self._link.peer_instance
        if told or self._own_join_serial is not None:
            return []
        effects = self._join_self(*own, now)
        for address, startup_wall_ns in others:
            effects += self.signal(SignalKind.JOIN, address, startup_wall_ns, now)
        return effects

    def handle(self, event: DatagramReceived, now: Instant) -> tuple[Reliable | None, list[Effect]]:
        """Take one datagram of channel ``local``.

        Raises:
            PeerError: not from ::1, not authentic, or not a message.
        """
        message, effects = self._link.handle(event, now)
        if self._own_join_is_done():
            self._own_join_known_by = self._link.peer_instance
        return message, effects

    def on_timer(self, name: str, now: Instant) -> tuple[int, list[Effect]]:
        """Repeat what is not acknowledged; return how many messages were given up."""
        before = self._link.given_up_total
        effects = self._link.on_timer(name, now)
        self._own_join_is_done()
        return self._link.given_up_total - before, effects

    def _join_self(self, own: IPv6Address, startup_wall_ns: int, now: Instant) -> list[Effect]:
        effects = self.signal(SignalKind.JOIN, own, startup_wall_ns, now)
        self._own_join_serial = self._link.last_serial
        return effects

    def _own_join_is_done(self) -> bool:
        """Whether our own JOIN was acknowledged or given up since the last look."""
        oldest = self._link.last_serial - self._link.outstanding
        if self._own_join_serial is None or self._own_join_serial > oldest:
            return False
        self._own_join_serial = None
        return True
