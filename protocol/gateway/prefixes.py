"""Whose a red prefix is: intervals of addresses, none overlapping another origin's (GATE-10)."""

from __future__ import annotations

from bisect import bisect_right

from protocol.gateway.config import Network
from protocol.mproxy.messages import Address


class PrefixOwners:
    """Finds the origin of an address; first come, first served."""

    def __init__(self) -> None:
        self._starts: dict[int, list[int]] = {4: [], 6: []}
        self._entries: dict[int, list[tuple[int, int, str]]] = {4: [], 6: []}

    def claim(self, net: Network, origin: str) -> str:
        """Take a prefix for an origin; return the origin that has part of it already, or ''."""
        first, last = int(net.network_address), int(net.broadcast_address)
        starts, entries = self._starts[net.version], self._entries[net.version]
        at = bisect_right(starts, last)
        # Entries do not overlap, so those that touch [first, last] stand right before `at`.
        before = at - 1
        while before >= 0 and entries[before][1] >= first:
            if entries[before][2] != origin:
                return entries[before][2]
            before -= 1
        place = bisect_right(starts, first)
        starts.insert(place, first)
        entries.insert(place, (first, last, origin))
        return ""

    def find(self, address: Address) -> str | None:
        """Return the origin that an address belongs to, or None."""
        number = int(address)
        entries = self._entries[address.version]
        place = bisect_right(self._starts[address.version], number) - 1
        if place < 0 or entries[place][1] < number:
            return None
        return entries[place][2]
