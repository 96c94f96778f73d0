"""Events and effects of the multicast proxy besides the common ones in `protocol.core.engine`.

Interfaces go by their names. Effects are performed in the order returned; `ReadCounters` is
answered by one `CountersRead`, after the effect list that caused it was performed to its end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from protocol.core.engine import Effect, Event, FromNetwork
from protocol.mproxy.messages import Address, Family


class FlowKey(NamedTuple):
    """What the kernel finds a multicast route by: (S,G)."""

    source: Address
    group: Address


class FlowCount(NamedTuple):
    """The kernel's counters of a multicast route.

    Attributes:
        packets: packets that found the route.
        refused: of these, how many came in on another interface than the route's; dropped.
    """

    packets: int
    refused: int


@dataclass(frozen=True, slots=True)
class InterfaceChanged(Event):
    """A downstream interface can speak a family under another address than before.

    Attributes:
        interface: its name.
        family: address family.
        address: our address there (IPv6: the link-local one); None: it cannot speak now.
    """

    interface: str
    family: Family
    address: Address | None


@dataclass(frozen=True, slots=True)
class MessageReceived(FromNetwork):
    """An MLD or IGMP message arrived on a downstream interface.

    Attributes:
        interface: where.
        source: the sender's address, scope removed.
        hop_limit: hop limit or TTL it arrived with.
        router_alert: whether it carried the router alert option (RFC 2711, RFC 2113).
        payload: from the ICMPv6 or IGMP type on, untrusted.
    """

    interface: str
    source: Address
    hop_limit: int
    router_alert: bool
    payload: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Upcall(FromNetwork):
    """The kernel holds a packet for which it has no route (``MRT6MSG_NOCACHE``).

    Attributes:
        interface: where the packet came in.
        source: its source.
        group: its destination.
    """

    interface: str
    source: Address
    group: Address


@dataclass(frozen=True, slots=True)
class CountersRead(Event):
    """The kernel's counters.

    Attributes:
        counts: by flow; a flow that the kernel does not know is missing.
    """

    counts: Mapping[FlowKey, FlowCount]


@dataclass(frozen=True, slots=True)
class SendQuery(Effect):
    """Send a query, with hop limit 1 and router alert.

    Attributes:
        interface: where.
        destination: all nodes, or the group asked about.
        payload: the MLD or IGMP message.
    """

    interface: str
    destination: Address
    payload: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class SetMfc(Effect):
    """Install or change a multicast route.

    Attributes:
        key: (S,G).
        interface: the only one from which packets are accepted.
        outs: where they go, in the order of the configuration; empty: nowhere.
    """

    key: FlowKey
    interface: str
    outs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DeleteMfc(Effect):
    """Remove a multicast route; no error if it is gone."""

    key: FlowKey


@dataclass(frozen=True, slots=True)
class ReadCounters(Effect):
    """Ask for the counters of these flows."""

    keys: tuple[FlowKey, ...]


@dataclass(frozen=True, slots=True)
class JoinUpstream(Effect):
    """Become a listener upstream.

    Attributes:
        group: the group.
        source: only this source, or None for all (RFC 3678).
    """

    group: Address
    source: Address | None


@dataclass(frozen=True, slots=True)
class LeaveUpstream(Effect):
    """Undo a `JoinUpstream`."""

    group: Address
    source: Address | None
