"""Every rule of the multicast proxy, by its id: a row in docs/mproxy.md, a check here, a test.

A check on what came from the network raises `PeerError`; the engine counts it under the rule and
drops the message, or the record. The other rules say what we do; their checks return the answer.

Rule MPROXY-1 (syntax) is checked while a message is read, in `protocol.mproxy.mld` and
`protocol.mproxy.igmp`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network, IPv6Address
from typing import Protocol

from protocol.core.errors import PeerError
from protocol.mproxy.config import MproxyConfig, Network
from protocol.mproxy.messages import Address

RULES: dict[str, str] = {
    "MPROXY-1": "A message is one whole MLD or IGMP message with valid addresses and checksum",
    "MPROXY-2": "A message comes from the link: hop limit 1, for MLD also a router alert",
    "MPROXY-3": "A sender is a neighbour: link-local for MLD, of the LAN or unspecified for IGMP",
    "MPROXY-4": "The router with the lowest address is the querier; it alone forwards to the LAN",
    "MPROXY-5": "Who leaves is asked after: a group goes only when no listener answers in time",
    "MPROXY-6": "A host, and a LAN, may say only so many records a second",
    "MPROXY-7": "Groups of a LAN, groups of one host and sources of a group are bounded",
    "MPROXY-8": "Link-local groups, groups outside the ranges and black groups never pass",
    "MPROXY-9": "A source is accepted only from the LAN whose prefixes hold it, else from upstream",
    "MPROXY-10": "Red goes up always; it goes down only to LANs with a listener, never back",
    "MPROXY-11": "Flows are bounded, in all and per source; the longest idle goes first",
    "MPROXY-12": "A flow that carried nothing for the idle time is removed",
    "MPROXY-13": "Upstream we join what the LANs want and no more; a tunnel is told nothing",
    "MPROXY-14": "A stopped proxy forwards nothing and is a member of nothing",
}
"""One line for each rule; the test compares it with the table of docs/mproxy.md."""

_LOCAL_IPV4 = IPv4Network("224.0.0.0/24")
"""The local network control block: never forwarded by any router (RFC 5771 section 4)."""

_SCOPE_LINK_LOCAL = 2
_SCOPE_RESERVED = 15
SCOPE_MIN = 5
"""Site-local, the narrowest scope that crosses routers by default (RFC 7346)."""


class GroupRanges(Protocol):
    """The settings that say which groups pass: a proxy's, or a gateway's."""

    @property
    def groups(self) -> tuple[Network, ...]:
        """Only these; empty: all that may."""
        ...

    @property
    def never(self) -> tuple[Network, ...]:
        """Never these."""
        ...


def check_on_link(hop_limit: int, router_alert: bool, version: int) -> None:
    """MPROXY-2: refuse what a router forwarded, or what is not marked for routers.

    RFC 3810 section 5 demands both of MLD; for IGMP older hosts leave the option out.
    """
    if hop_limit != 1:
        raise PeerError("MPROXY-2", f"hop limit {hop_limit}, not 1")
    if version == 6 and not router_alert:
        raise PeerError("MPROXY-2", "no router alert option")


def check_sender(source: Address, prefixes: Sequence[Network]) -> None:
    """MPROXY-3: refuse a sender from elsewhere (RFC 3810 section 5.1.14, RFC 3376 section 9)."""
    if isinstance(source, IPv6Address):
        if not source.is_link_local:
            raise PeerError("MPROXY-3", "the sender's address is not link-local")
    elif not source.is_unspecified and not any(_holds(net, source) for net in prefixes):
        raise PeerError("MPROXY-3", "the sender's address is not of this LAN")


def outranks(other: Address, own: Address) -> bool:
    """MPROXY-4: whether another router is to be the querier (RFC 3810 section 7.6.2).

    The unspecified address is that of a snooping switch, which is no router (RFC 4541).
    """
    return not other.is_unspecified and int(other) < int(own)


def lowered_ns(until_mono_ns: int, now_mono_ns: int, last_listener_ns: int) -> int:
    """MPROXY-5: until when a listener that may have gone is believed in."""
    return min(until_mono_ns, now_mono_ns + last_listener_ns)


def check_rate(host_allows: bool, interface_allows: bool) -> None:
    """MPROXY-6: refuse a record too many."""
    if not host_allows:
        raise PeerError("MPROXY-6", "more records a second than one host may send")
    if not interface_allows:
        raise PeerError("MPROXY-6", "more records a second than the LAN may send")


def check_group_room(groups: int, of_host: int, config: MproxyConfig) -> None:
    """MPROXY-7: refuse a new group when there is no room for it."""
    if groups >= config.max_groups:
        raise PeerError("MPROXY-7", f"{groups} groups on this LAN already")
    if of_host >= config.max_groups_per_host:
        raise PeerError("MPROXY-7", f"{of_host} groups of this host already")


def check_source_room(sources: int, config: MproxyConfig) -> None:
    """MPROXY-7: refuse new sources when there is no room for them."""
    if sources > config.max_sources:
        raise PeerError("MPROXY-7", f"more than {config.max_sources} sources of one group")


def may_pass(group: Address, config: GroupRanges) -> bool:
    """MPROXY-8: whether a group may be forwarded at all."""
    if isinstance(group, IPv6Address):
        scope = group.packed[1] & 15
        if scope <= _SCOPE_LINK_LOCAL or scope == _SCOPE_RESERVED:
            return False
        wide = scope >= SCOPE_MIN
    else:
        if group in _LOCAL_IPV4:
            return False
        wide = True
    if any(_holds(net, group) for net in config.never):
        return False
    if config.groups:
        return any(_holds(net, group) for net in config.groups)
    return wide


def rpf_interface(source: Address, config: MproxyConfig) -> str:
    """MPROXY-9: the only interface from which packets of this source are accepted.

    It depends on the source alone: a packet with another nation's source on a red LAN finds a
    route that accepts the source from upstream only, and one of our own sources that comes
    back from upstream finds one that accepts it from its LAN only. The kernel drops and
    counts both.
    """
    for net, interface in config.owners:
        if _holds(net, source):
            return interface
    return config.upstream


def outs_of(interface: str, listening: Iterable[str], upstream: str) -> tuple[str, ...]:
    """MPROXY-10: where a flow that comes in on ``interface`` goes (RFC 4605 section 4.3)."""
    outs = () if interface == upstream else (upstream,)
    return (*outs, *(name for name in listening if name != interface))


def has_flow_room(flows: int, limit: int) -> bool:
    """MPROXY-11: whether another flow fits without one that must go."""
    return flows < limit


def is_idle(active_mono_ns: int, now_mono_ns: int, idle_ns: int) -> bool:
    """MPROXY-12: whether a flow has ended."""
    return now_mono_ns - active_mono_ns >= idle_ns


def upstream_wish(
    wishes: Iterable[frozenset[Address] | None], signal: bool
) -> frozenset[Address] | None:
    """MPROXY-13: what to join upstream, as the LANs' wishes merged (RFC 4605 section 4.1).

    A wish is None for every source of the group, or the sources; empty is no wish.
    """
    if not signal:
        return frozenset()
    merged: frozenset[Address] = frozenset()
    for wish in wishes:
        if wish is None:
            return None
        merged |= wish
    return merged


def may_act(running: bool) -> bool:
    """MPROXY-14: whether events mean anything to us now."""
    return running


def _holds(network: Network, address: Address) -> bool:
    """Tell whether a network of the same family holds the address."""
    return network.version == address.version and address in network
