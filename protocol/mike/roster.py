"""Who is in a group in key distribution mode: addresses and leaf keys, in position order.

A roster is named by its digest. A member keeps it up to date by the changes that each epoch
announces, or gets it in pages; either way it knows that it has the right one. Immutable.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from ipaddress import IPv6Address

from protocol.mike.schedule import roster_digest

Entry = tuple[IPv6Address, bytes]
"""A member's black address and its blinded leaf key."""


class Roster:
    """The members of an epoch.

    Attributes:
        keys: leaf key by address; its order is the position order.
    """

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.keys = dict(entries)

    def __len__(self) -> int:
        return len(self.keys)

    def __repr__(self) -> str:
        return f"Roster({len(self)} members, {self.digest.hex()[:8]})"

    @cached_property
    def digest(self) -> bytes:
        """Names the roster."""
        return roster_digest(b"".join(who.packed + key for who, key in self.keys.items()))

    @cached_property
    def addresses(self) -> tuple[IPv6Address, ...]:
        """The members in position order."""
        return tuple(self.keys)

    @cached_property
    def places(self) -> Mapping[IPv6Address, int]:
        """Position by address."""
        return {address: place for place, address in enumerate(self.keys)}

    def changed(self, removed: Iterable[IPv6Address], added: Iterable[Entry]) -> Roster:
        """Return the roster after an epoch's changes.

        A member that is added again keeps its place; a new one comes last.
        """
        keys = dict(self.keys)
        for address in removed:
            keys.pop(address, None)
        keys.update(added)
        return Roster(keys.items())

    def part(self, start: int, count: int) -> Sequence[Entry]:
        """Return some entries in position order."""
        return [(who, self.keys[who]) for who in self.addresses[start : start + count]]
