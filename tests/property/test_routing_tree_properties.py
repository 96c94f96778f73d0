"""Static routes on random networks: unicast arrives, multicast arrives once and never circles."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from testbed.routing.plan import RouterPlan
from testbed.routing.tree import multicast_tree, unicast_routes
from tests.support.routers import Wire, loopback, router_plans, wires


@st.composite
def networks(draw: st.DrawFn) -> tuple[list[Wire], tuple[RouterPlan, ...]]:
    """Connected routers, cables and switches among them, edge LANs, hosts on any wire."""
    count = draw(st.integers(1, 7))
    descriptions = [
        f"r{draw(st.integers(1, number - 1))} r{number}" for number in range(2, count + 1)
    ]
    routers = st.sets(st.integers(1, count), min_size=1, max_size=4)
    for members in draw(st.lists(routers, max_size=5)):
        descriptions.append(" ".join(f"r{number}" for number in sorted(members)))
    hosts = draw(st.lists(st.booleans(), min_size=len(descriptions), max_size=len(descriptions)))
    layout = wires(
        *(f"{text} h1" if host else text for text, host in zip(descriptions, hosts, strict=True)),
        "r1 h1",
    )
    return layout, router_plans(layout, rp=f"r{draw(st.integers(1, count))}")


def flood(plans: Sequence[RouterPlan], start: Wire, layout: Sequence[Wire]) -> Counter[int]:
    """Return how often a packet that a host sends on a wire is on each wire."""
    tree = multicast_tree(plans).interfaces
    wire_of = {
        (plan.name, interface.name): wire.number
        for plan in plans
        for interface in plan.interfaces
        for wire in layout
        if wire.address(plan.name) in interface.addresses
    }
    seen: Counter[int] = Counter([start.number])
    pending: list[tuple[int, str]] = [(start.number, "")]
    while pending:
        wire, sender = pending.pop()
        for plan in plans:
            ports = tree[plan.name]
            if plan.name == sender or wire not in {wire_of[plan.name, port] for port in ports}:
                continue
            for port in ports:
                out = wire_of[plan.name, port]
                if out != wire:
                    seen[out] += 1
                    assert seen[out] < 3, "it circles"
                    pending.append((out, plan.name))
    return seen


@given(networks())
def test_a_packet_is_once_on_every_wire_with_devices(
    network: tuple[list[Wire], tuple[RouterPlan, ...]],
) -> None:
    layout, plans = network
    with_devices = [wire for wire in layout if len(wire.nodes) > len(wire.routers)]
    for start in with_devices:
        seen = flood(plans, start, layout)
        assert set(seen.values()) == {1}
        assert {wire.number for wire in with_devices} <= set(seen)


@given(networks())
def test_following_the_routes_reaches_every_router(
    network: tuple[list[Wire], tuple[RouterPlan, ...]],
) -> None:
    _, plans = network
    routes = unicast_routes(plans)
    owner = {
        address.ip: plan.name
        for plan in plans
        for interface in plan.interfaces
        for address in interface.addresses
    }
    for plan in plans:
        for target in plans:
            at, hops = plan.name, 0
            while at != target.name:
                table = {route.destination: route for route in routes[at]}
                at = owner[table[loopback(target.name).network].via]
                hops += 1
                assert hops < len(plans)
        assert len({route.destination for route in routes[plan.name]}) == len(routes[plan.name])
