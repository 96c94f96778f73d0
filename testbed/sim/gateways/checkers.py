"""What must hold between partitions: what gateways know, by which way packets go, and how often.

Judged from outside: gatewayd's status, what the legs' idpds were told, policies, routes and
multicast routes of the machines.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network, collapse_addresses
from typing import Any

from protocol.ipsec.model import Prefix
from testbed.sim.history import View

HOPS_MAX = 6
"""Machines on the longest way: two gateways; more is a loop."""


@dataclass(frozen=True, slots=True)
class GatewayView:
    """One live gateway.

    Attributes:
        name: its name.
        legs: black address of each leg, by partition.
        known: ``partitions`` of its status.
        routes: red prefixes to the partition by whose leg they are reached.
    """

    name: str
    legs: Mapping[str, IPv6Address]
    known: Sequence[Mapping[str, Any]]
    routes: Mapping[Prefix, str]


@dataclass(frozen=True, slots=True)
class Whole:
    """All partitions when they are judged.

    Attributes:
        devices: live devices of each partition, without legs.
        legs: live legs of each partition.
        gateways: whose gatewayd and legs run.
    """

    devices: Mapping[str, Sequence[View]]
    legs: Mapping[str, Sequence[View]]
    gateways: Sequence[GatewayView]

    def reachable(self, partition: str) -> set[str]:
        """Return the partitions that live gateways connect with this one, itself among them."""
        found = {partition}
        while True:
            more = {name for g in self.gateways if found & g.legs.keys() for name in g.legs}
            if more <= found:
                return found
            found |= more

    def announced(self, partitions: set[str]) -> set[Prefix]:
        """Return what the devices of partitions announce."""
        return {net for p in partitions for view in self.devices[p] for net in view.announced}

    # Each returns what is wrong, or None.

    def objections(self) -> Iterator[tuple[str, str]]:
        """Yield checkers' names and what they object to."""
        for gateway in self.gateways:
            for text in self._ignorance(gateway):
                yield "gateways-know", f"{gateway.name} {text}"
        for partition in self.devices:
            for text in self._announcements(partition):
                yield "one-speaks", f"in {partition} {text}"
        for text in self._ways():
            yield "packets-arrive", text

    def _ignorance(self, gateway: GatewayView) -> Iterator[str]:
        """Compare what a gateway knows of each partition with what there is."""
        wanted = self.reachable(next(iter(gateway.legs)))
        wanted = {name for name in wanted if self.devices[name]}
        known = {entry["partition"]: entry for entry in gateway.known}
        if known.keys() != wanted:
            yield f"knows partitions {sorted(known)}, there are {sorted(wanted)}"
        for name in sorted(known.keys() & wanted):
            members = {IPv6Address(member["address"]) for member in known[name]["members"]}
            there = {view.address for view in self.devices[name]}
            if members != there:
                yield f"knows {_listed(members)} in {name}, there are {_listed(there)}"
            prefixes = joined(map(network, known[name]["prefixes"]))
            announced = joined(self.announced({name}))
            if prefixes != announced:
                yield f"knows {_listed(prefixes)} of {name}, announced are {_listed(announced)}"

    def _announcements(self, partition: str) -> Iterator[str]:
        """Compare what legs announce in a partition with what lies beyond: each by one of them."""
        told = [(net, leg.device) for leg in self.legs[partition] for net in leg.announced]
        for place, (one, first) in enumerate(told):
            for two, second in told[place + 1 :]:
                if one.version == two.version and one.overlaps(two):
                    yield f"d{first + 1} and d{second + 1} announce {one} and {two}"
        wanted = joined(self.announced(self.reachable(partition) - {partition}))
        if joined(net for net, _ in told) != wanted:
            nets = _listed(net for net, _ in told)
            yield f"legs announce {nets}, beyond is {_listed(wanted)}"

    def _ways(self) -> Iterator[str]:
        """Follow a packet from each device to each network that it should reach."""
        for start, views in self.devices.items():
            for view in views:
                for end in sorted(self.reachable(start) - {start}):
                    for other in self.devices[end]:
                        for net in other.announced:
                            text = self._follow(start, view, net, other)
                            if text is not None:
                                who = f"{start}.d{view.device + 1}"
                                yield f"from {who} to {net} of {end}.d{other.device + 1}: {text}"

    def _follow(self, partition: str, view: View, net: Prefix, target: View) -> str | None:
        way = []
        for _ in range(HOPS_MAX):
            way.append(f"{partition}.d{view.device + 1}")
            if view.address == target.address:
                return None
            led = {n: peer for kind, peer, n in view.pairs.policies if kind == "out"}
            found = longest(net, led)
            if found is None:
                return f"no policy at {way[-1]}"
            peers = {one.address: one for one in (*self.devices[partition], *self.legs[partition])}
            peer = peers.get(led[found])
            if peer is None:
                return f"{way[-1]} sends to {led[found]}, not there"
            view = peer
            through = next((g for g in self.gateways if peer.address in g.legs.values()), None)
            if through is not None:
                route = longest(net, through.routes)
                if route is None:
                    return f"no route at {through.name}"
                partition = through.routes[route]
                legs = {leg.address: leg for leg in self.legs[partition]}
                view = legs[through.legs[partition]]
        return f"goes round: {' '.join(way)}"


def network(text: str) -> Prefix:
    """Return a prefix."""
    return IPv6Network(text) if ":" in text else IPv4Network(text)


def joined(prefixes: Iterator[Prefix] | set[Prefix] | map[Prefix]) -> set[Prefix]:
    """Return the fewest prefixes that cover the same."""
    found = list(prefixes)
    six = [net for net in found if isinstance(net, IPv6Network)]
    four = [net for net in found if isinstance(net, IPv4Network)]
    return {*collapse_addresses(six), *collapse_addresses(four)}


def longest(net: Prefix, table: Mapping[Prefix, object]) -> Prefix | None:
    """Return the longest prefix of a table that holds a network."""
    holding = [
        one
        for one in table
        if one.version == net.version and net.subnet_of(one)  # type: ignore[arg-type]
    ]
    return max(holding, key=lambda one: one.prefixlen, default=None)


def _listed(items: Iterator[object] | set[Any]) -> str:
    return ", ".join(sorted(map(str, items))) or "nothing"
