"""The flows that the kernel forwards: one (S,G) route each, bounded whatever arrives.

Flows are kept in the order of their last activity, so the longest idle one is found at once. A flow
whose first packet came in on the wrong interface is *suspect* until a proper packet shows in the
kernel's counters; suspects give way first, so that a host that invents sources pushes out only
what such hosts have made.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from protocol.mproxy import rules
from protocol.mproxy.events import FlowCount, FlowKey
from protocol.mproxy.messages import Address


class FlowLimits(Protocol):
    """The settings that bound the flows: a proxy's, or a gateway's."""

    @property
    def max_flows(self) -> int:
        """Flows in all."""
        ...

    @property
    def max_flows_per_source(self) -> int:
        """Of these, how many from one source."""
        ...


@dataclass(slots=True)
class Flow:
    """One multicast route.

    Attributes:
        key: (S,G).
        interface: the only one from which packets are accepted.
        outs: where they go.
        active_mono_ns: when it last was known to carry packets.
        suspect: no proper packet was seen yet.
        count: the kernel's counters when last read.
    """

    key: FlowKey
    interface: str
    outs: tuple[str, ...]
    active_mono_ns: int
    suspect: bool
    count: FlowCount = field(default_factory=lambda: FlowCount(0, 0))


class FlowTable:
    """All flows of both families."""

    def __init__(self, config: FlowLimits) -> None:
        self._config = config
        self._proper: OrderedDict[FlowKey, Flow] = OrderedDict()
        self._suspect: OrderedDict[FlowKey, Flow] = OrderedDict()
        self._by_group: dict[Address, dict[FlowKey, Flow]] = {}
        self._by_source: dict[Address, OrderedDict[FlowKey, Flow]] = {}

    def __len__(self) -> int:
        return len(self._proper) + len(self._suspect)

    def __iter__(self) -> Iterator[Flow]:
        yield from self._suspect.values()
        yield from self._proper.values()

    def get(self, key: FlowKey) -> Flow | None:
        """Return a flow."""
        return self._proper.get(key) or self._suspect.get(key)

    def of_group(self, group: Address) -> list[Flow]:
        """Return the flows of a group."""
        return list(self._by_group.get(group, {}).values())

    def add(self, flow: Flow) -> list[Flow]:
        """Add a flow; return those that had to go for it (MPROXY-11)."""
        gone = []
        siblings = self._by_source.get(flow.key.source)
        if siblings and not rules.has_flow_room(len(siblings), self._config.max_flows_per_source):
            gone.append(next(iter(siblings.values())))
        elif not rules.has_flow_room(len(self), self._config.max_flows):
            gone.append(next(iter(self)))
        for victim in gone:
            self.remove(victim)
        (self._suspect if flow.suspect else self._proper)[flow.key] = flow
        self._by_group.setdefault(flow.key.group, {})[flow.key] = flow
        self._by_source.setdefault(flow.key.source, OrderedDict())[flow.key] = flow
        return gone

    def remove(self, flow: Flow) -> None:
        """Remove a flow."""
        (self._suspect if flow.suspect else self._proper).pop(flow.key)
        source, group = flow.key
        del self._by_group[group][flow.key]
        if not self._by_group[group]:
            del self._by_group[group]
        del self._by_source[source][flow.key]
        if not self._by_source[source]:
            del self._by_source[source]

    def touch(self, flow: Flow, now_mono_ns: int) -> None:
        """Note that a flow carries packets from its proper interface."""
        flow.active_mono_ns = now_mono_ns
        if flow.suspect:
            del self._suspect[flow.key]
            flow.suspect = False
            self._proper[flow.key] = flow
        else:
            self._proper.move_to_end(flow.key)
        self._by_source[flow.key.source].move_to_end(flow.key)
