"""One multicast proxy on virtual time: what its kernel, its LANs and its upstream get to see."""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any

from protocol.core.engine import (
    CancelTimer,
    Effect,
    Event,
    Instant,
    Report,
    SetTimer,
    Started,
    Stopped,
    TimerExpired,
)
from protocol.core.timers import TimerTable
from protocol.mproxy import igmp, mld
from protocol.mproxy.config import Downstream, MproxyConfig
from protocol.mproxy.engine import MproxyEngine
from protocol.mproxy.events import (
    CountersRead,
    DeleteMfc,
    FlowCount,
    FlowKey,
    InterfaceChanged,
    JoinUpstream,
    LeaveUpstream,
    MessageReceived,
    ReadCounters,
    SendQuery,
    SetMfc,
    Upcall,
)
from protocol.mproxy.messages import Address, Family, Query, Record, RecordKind
from protocol.mproxy.messages import Report as Said

START_NS = 1_000_000_000_000
NS_PER_MS = 1_000_000

GROUP = "ff0e::77"
GROUP4 = "239.1.2.3"
PREFIXES = ("fd00:1::/64", "10.1.0.0/24")
OWN_SENDER, OWN_SENDER4 = "fd00:1::5", "10.1.0.5"
FAR_SENDER, FAR_SENDER4 = "fd00:2::5", "10.2.0.5"
OUR_ADDRESS, OUR_ADDRESS4 = "fe80::10", "10.1.0.1"
HOST, OTHER_HOST, HOST4 = "fe80::20", "fe80::21", "10.1.0.20"


def downstream(interface: str, *prefixes: str) -> Downstream:
    return Downstream(interface, tuple(ip_network(prefix) for prefix in prefixes))


def device_config(**changes: Any) -> MproxyConfig:
    """An IPsec device: tunnel upstream, one LAN, its black groups never forwarded."""
    fields: dict[str, Any] = {
        "upstream": "xfrm0",
        "downstreams": (downstream("red0", *PREFIXES),),
        "signal_upstream": False,
        "never": (ip_network("ff0e::1/128"),),
        **changes,
    }
    return MproxyConfig(**fields)


def router_config(**changes: Any) -> MproxyConfig:
    """A LAN router: it joins upstream what its two LANs want."""
    fields: dict[str, Any] = {
        "upstream": "eth0",
        "downstreams": (
            downstream("eth1", *PREFIXES),
            downstream("eth2", "fd00:1:2::/64", "10.1.2.0/24"),
        ),
        **changes,
    }
    return MproxyConfig(**fields)


class Proxy:
    """An engine, its timers and its surroundings.

    Attributes:
        routes: the kernel's routes: (source, group) -> (interface, outs).
        counts: the kernel's counters, to be set by the test.
        queries: every query sent: (interface, destination, query).
        joined: upstream memberships: (group, source or None).
        reports: trace points: (point, fields).
        log: every effect.
    """

    def __init__(self, config: MproxyConfig, *, start: bool = True) -> None:
        self.config = config
        self.engine = MproxyEngine(config)
        self.mono_ns = START_NS
        self.timers = TimerTable()
        self.routes: dict[tuple[str, str], tuple[str, tuple[str, ...]]] = {}
        self.counts: dict[tuple[str, str], FlowCount] = {}
        self.queries: list[tuple[str, str, Query]] = []
        self.joined: set[tuple[str, str | None]] = set()
        self.reports: list[tuple[str, dict[str, Any]]] = []
        self.log: list[Effect] = []
        for place in config.downstreams:
            self.address(place.interface, OUR_ADDRESS)
            self.address(place.interface, OUR_ADDRESS4)
        if start:
            self.give(Started(0))

    @property
    def now(self) -> Instant:
        return Instant(self.mono_ns, self.mono_ns)

    def give(self, event: Event) -> list[Effect]:
        """Hand an event in; perform what the engine says."""
        effects = list(self.engine.handle(event, self.now))
        self.log += effects
        for effect in effects:
            self._perform(effect)
        return effects

    def _perform(self, effect: Effect) -> None:
        if isinstance(effect, SetMfc):
            key = _texts(effect.key)
            self.routes[key] = (effect.interface, effect.outs)
            self.counts.setdefault(key, FlowCount(0, 0))
        elif isinstance(effect, DeleteMfc):
            del self.routes[_texts(effect.key)]
            del self.counts[_texts(effect.key)]
        elif isinstance(effect, SendQuery):
            is_six = isinstance(effect.destination, IPv6Address)
            query = (mld if is_six else igmp).decode(effect.payload)
            assert isinstance(query, Query)
            self.queries.append((effect.interface, str(effect.destination), query))
        elif isinstance(effect, JoinUpstream):
            membership = (str(effect.group), _text(effect.source))
            assert membership not in self.joined
            self.joined.add(membership)
        elif isinstance(effect, LeaveUpstream):
            self.joined.remove((str(effect.group), _text(effect.source)))
        elif isinstance(effect, SetTimer):
            self.timers.set(effect.name, effect.at_mono_ns)
        elif isinstance(effect, CancelTimer):
            self.timers.cancel(effect.name)
        elif isinstance(effect, Report):
            self.reports.append((effect.point, dict(effect.fields)))
        elif isinstance(effect, ReadCounters):
            known = {key: self.counts.get(_texts(key)) for key in effect.keys}
            counts = {key: count for key, count in known.items() if count is not None}
            self.give(CountersRead(counts))

    # The world.

    def address(self, interface: str, text: str | None, family: Family | None = None) -> None:
        address = None if text is None else ip_address(text)
        chosen = family if address is None else Family.of(address)
        assert chosen is not None
        self.give(InterfaceChanged(interface, chosen, address))

    def advance(self, by_ms: float) -> None:
        """Let time pass; timers fire in order."""
        end_ns = self.mono_ns + int(by_ms * NS_PER_MS)
        while (at := self.timers.next_deadline()) is not None and at <= end_ns:
            self.mono_ns = max(self.mono_ns, at)
            name = self.timers.pop_expired(self.mono_ns)
            assert name is not None
            self.give(TimerExpired(name))
        self.mono_ns = end_ns

    def says(
        self,
        host: str,
        message: Query | Said,
        interface: str | None = None,
        *,
        hop_limit: int = 1,
        router_alert: bool = True,
    ) -> list[Effect]:
        """Have a neighbour say something."""
        source = ip_address(host)
        payload = (mld if source.version == 6 else igmp).encode(message)
        place = interface or self.config.downstreams[0].interface
        return self.give(MessageReceived(place, source, hop_limit, router_alert, payload))

    def packet(self, interface: str, source: str, group: str = GROUP) -> tuple[str, ...]:
        """Have a packet come in; return where the kernel sends it."""
        key = (str(ip_address(source)), str(ip_address(group)))
        if key not in self.routes:
            self.give(Upcall(interface, ip_address(source), ip_address(group)))
        expected, outs = self.routes[key]
        packets, refused = self.counts[key]
        strayed = interface != expected
        self.counts[key] = FlowCount(packets + 1, refused + strayed)
        return () if strayed else outs

    def stop(self) -> None:
        self.give(Stopped())

    def status(self) -> dict[str, Any]:
        return self.engine.status(self.now)

    def count(self, name: str) -> int:
        return int(self.status()["counters"].get(name, 0))


def record(kind: RecordKind, *sources: str, group: str = GROUP) -> Record:
    return Record(kind, ip_address(group), tuple(ip_address(source) for source in sources))


def report(kind: RecordKind, *sources: str, group: str = GROUP) -> Said:
    """A report of one record, in the newest version of the group's protocol."""
    version = 2 if ip_address(group).version == 6 else 3
    return Said((record(kind, *sources, group=group),), version)


def join(group: str = GROUP) -> Said:
    return report(RecordKind.TO_EXCLUDE, group=group)


def leave(group: str = GROUP) -> Said:
    return report(RecordKind.TO_INCLUDE, group=group)


def general(version: int = 2, **fields: Any) -> Query:
    return Query(None, 1000, version=version, **fields)


def _text(address: Address | None) -> str | None:
    return None if address is None else str(address)


def _texts(key: FlowKey) -> tuple[str, str]:
    return str(key.source), str(key.group)
