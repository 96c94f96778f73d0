"""Static routes computed from the plans: shortest unicast paths, one tree for all multicast.

Both are found by breadth-first search over routers and wires, in the order of the plans, so the
same network always gets the same routes. A wire is named by its prefixes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address, IPv6Network

from testbed.routing.plan import RouterInterface, RouterPlan

Wire = frozenset[IPv6Network]


@dataclass(frozen=True, slots=True)
class Route:
    """A static unicast route."""

    destination: IPv6Network
    via: IPv6Address
    interface: str


@dataclass(frozen=True, slots=True)
class Tree:
    """The multicast tree.

    Attributes:
        interfaces: of each router those that are part of it; what comes in on one goes out on all
            others. Wires without a further router or device are left out.
    """

    interfaces: Mapping[str, tuple[str, ...]]


def unicast_routes(plans: Sequence[RouterPlan]) -> dict[str, list[Route]]:
    """Return each router's routes to every prefix that is not its own."""
    return {plan.name: _routes_from(plan, plans) for plan in plans}


def multicast_tree(plans: Sequence[RouterPlan]) -> Tree:
    """Return the tree, rooted at the rendezvous point's router.

    Every wire hangs below the router that reaches it first, and every router below the wire that
    reaches it first: so there is exactly one way between any two, and no packet comes twice.
    """
    if not plans:
        return Tree({})
    by_rp = [plan for plan in plans if plan.loopback and plan.loopback.ip == plan.rp]
    root = by_rp[0] if by_rp else plans[0]
    attached: dict[str, list[tuple[RouterInterface, bool]]] = {plan.name: [] for plan in plans}
    reached_wires: set[Wire] = set()
    reached = {root.name}
    queue = deque([root])
    while queue:
        plan = queue.popleft()
        for interface in plan.interfaces:
            wire = _wire(interface)
            if wire in reached_wires:
                continue
            reached_wires.add(wire)
            below = [
                (other, theirs)
                for other in plans
                if other.name not in reached
                for theirs in other.interfaces
                if _wire(theirs) == wire
            ]
            attached[plan.name].append((interface, bool(below) or interface.devices > 0))
            for other, theirs in below:
                if other.name not in reached:
                    reached.add(other.name)
                    attached[other.name].append((theirs, True))
                    queue.append(other)
    return Tree(
        {
            name: tuple(interface.name for interface, needed in interfaces if needed)
            for name, interfaces in attached.items()
        }
    )


def _wire(interface: RouterInterface) -> Wire:
    return frozenset(address.network for address in interface.addresses)


def _routes_from(start: RouterPlan, plans: Sequence[RouterPlan]) -> list[Route]:
    own = {network for interface in start.interfaces for network in _wire(interface)}
    if start.loopback is not None:
        own.add(start.loopback.network)
    routes: dict[IPv6Network, Route] = {}
    first_hop: dict[str, tuple[IPv6Address, str]] = {}
    reached = {start.name}
    queue = deque([start])
    while queue:
        plan = queue.popleft()
        for interface in plan.interfaces:
            for other, theirs in _across(interface, plans):
                if other.name in reached:
                    continue
                reached.add(other.name)
                hop = (theirs.addresses[0].ip, interface.name)
                first_hop[other.name] = first_hop.get(plan.name, hop)
                queue.append(other)
                for network in _announced(other):
                    if network not in own and network not in routes:
                        routes[network] = Route(network, *first_hop[other.name])
    return list(routes.values())


def _across(
    interface: RouterInterface, plans: Sequence[RouterPlan]
) -> list[tuple[RouterPlan, RouterInterface]]:
    wire = _wire(interface)
    return [
        (other, theirs)
        for other in plans
        for theirs in other.interfaces
        if theirs != interface and _wire(theirs) == wire
    ]


def _announced(plan: RouterPlan) -> list[IPv6Network]:
    networks = [network for interface in plan.interfaces for network in sorted(_wire(interface))]
    return networks + ([plan.loopback.network] if plan.loopback else [])
