"""Whose red prefix is whose: a table that answers overlaps without looking at every entry."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from ipaddress import IPv6Address, IPv6Network

from protocol.ipsec.model import Prefix

Key = tuple[int, int]
"""Length and leading bits of a prefix."""


class PrefixTable:
    """The accepted prefixes of all devices; those of different devices never overlap.

    An entry costs one look-up for each prefix length in use and a bisection, whatever the number of
    entries.
    """

    def __init__(self) -> None:
        self._owners: dict[int, dict[Key, IPv6Address]] = {4: {}, 6: {}}
        self._lengths: dict[int, dict[int, int]] = {4: {}, 6: {}}
        self._firsts: dict[int, list[tuple[int, int]]] = {4: [], 6: []}
        self._of: dict[IPv6Address, tuple[Prefix, ...]] = {}

    def __len__(self) -> int:
        return sum(len(owners) for owners in self._owners.values())

    def of(self, owner: IPv6Address) -> tuple[Prefix, ...]:
        """Return the prefixes of a device."""
        return self._of.get(owner, ())

    def items(self) -> Iterator[tuple[Prefix, IPv6Address]]:
        """Yield every prefix with its device, in the order of the devices."""
        for owner in sorted(self._of):
            for prefix in self._of[owner]:
                yield prefix, owner

    def overlap(self, prefix: Prefix, owner: IPv6Address) -> IPv6Address | None:
        """Return another device one of whose prefixes overlaps this one, or None."""
        family, first = prefix.version, int(prefix.network_address)
        owners = self._owners[family]
        for length in self._lengths[family]:
            if length <= prefix.prefixlen:
                found = owners.get((length, first >> (prefix.max_prefixlen - length)))
                if found is not None and found != owner:
                    return found
        firsts = self._firsts[family]
        last = int(prefix.broadcast_address)
        for start, length in firsts[bisect_left(firsts, (first, 0)) :]:
            if start > last:
                break
            found = owners[length, start >> (prefix.max_prefixlen - length)]
            if found != owner:
                return found
        return None

    def assign(self, owner: IPv6Address, prefixes: Iterable[Prefix]) -> None:
        """Let a device have these prefixes and no others; they overlap no other device's."""
        for prefix in self._of.pop(owner, ()):
            self._remove(prefix)
        kept = tuple(prefixes)
        if kept:
            self._of[owner] = kept
        for prefix in kept:
            self._add(prefix, owner)

    def _add(self, prefix: Prefix, owner: IPv6Address) -> None:
        family = prefix.version
        self._owners[family][_key(prefix)] = owner
        lengths = self._lengths[family]
        lengths[prefix.prefixlen] = lengths.get(prefix.prefixlen, 0) + 1
        insort(self._firsts[family], (int(prefix.network_address), prefix.prefixlen))

    def _remove(self, prefix: Prefix) -> None:
        family = prefix.version
        del self._owners[family][_key(prefix)]
        lengths = self._lengths[family]
        lengths[prefix.prefixlen] -= 1
        if not lengths[prefix.prefixlen]:
            del lengths[prefix.prefixlen]
        firsts = self._firsts[family]
        del firsts[bisect_left(firsts, (int(prefix.network_address), prefix.prefixlen))]


def _key(prefix: Prefix) -> Key:
    return prefix.prefixlen, int(prefix.network_address) >> (
        prefix.max_prefixlen - prefix.prefixlen
    )


def link_of(address: IPv6Address) -> IPv6Network:
    """Return the network of the link that a black address is on (RFC 4291 section 2.5.4)."""
    return IPv6Network((address.packed[:8] + bytes(8), 64))
