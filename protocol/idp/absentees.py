"""Members of the group that are not there: nobody else tells MIKE of them (IDP-40).

A LEAVE is signalled when a device that was up falls silent. A member that this instance never had
up cannot: it died before we heard it, or while idpd did not run. So the members of MIKE's newest
status are compared with the connectivity table, one dead interval later and again until they agree.
"""

from __future__ import annotations

from collections.abc import Set
from ipaddress import IPv6Address

from protocol.idp import rules


class Absentees:
    """Remembers the members to look for; owned and driven by the engine.

    Args:
        own: our address, which needs no hello.
        patience_ns: how long a member may be unheard.
    """

    def __init__(self, own: IPv6Address, patience_ns: int) -> None:
        self._own = own
        self._patience_ns = patience_ns
        self.forget()

    def forget(self) -> None:
        """Begin anew with an instance."""
        self._members: tuple[IPv6Address, ...] = ()
        self._needed: frozenset[IPv6Address] = frozenset()

    def on_status(
        self, members: tuple[IPv6Address, ...], up: Set[IPv6Address], now_mono_ns: int
    ) -> int | None:
        """Take MIKE's newest members; return when to look for them, None if all are up."""
        self._members = members
        self._needed = frozenset(members) - {self._own}
        return self._when(up, now_mono_ns)

    def look(
        self, up: Set[IPv6Address], now_mono_ns: int
    ) -> tuple[tuple[IPv6Address, ...], int | None]:
        """Return the members that are not up, and when to look again."""
        return self.absent(up), self._when(up, now_mono_ns)

    def absent(self, up: Set[IPv6Address]) -> tuple[IPv6Address, ...]:
        """Return the members that are not up."""
        if self._needed <= up:
            return ()
        return rules.absent_members(self._members, self._own, up)

    def _when(self, up: Set[IPv6Address], now_mono_ns: int) -> int | None:
        return now_mono_ns + self._patience_ns if self.absent(up) else None
