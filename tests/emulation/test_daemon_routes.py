"""Routes in a real routing table, in a namespace of the test's own."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from ipaddress import IPv6Address, ip_interface, ip_network

import pytest

from protocol.core.errors import LocalError
from protocol.daemon.reconcile import remove_own_routes
from protocol.daemon.routes import KernelRoutes, MemoryRoutes, Routes
from protocol.daemon.sockets import interface_index
from protocol.idp.events import AddRoute, RemoveRoute, RouteOperation
from protocol.xfrm.namespace import in_namespace
from tests.support import netlink
from tests.support.netns import Namespace, namespace

pytestmark = pytest.mark.emulation

PREFIXES = tuple(map(ip_network, ("fd00:1::/64", "fd00:2::/48", "10.1.0.0/16")))


@pytest.fixture
def here() -> Iterator[Namespace]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with namespace() as made:
        made.ip("link add xfrm0 type veth peer name other")
        for interface in ("xfrm0", "other"):
            made.ip(f"link set {interface} up")
        with in_namespace(made.path):
            yield made


def add(*prefixes: object) -> list[RouteOperation]:
    return [AddRoute(prefix) for prefix in prefixes]  # type: ignore[arg-type]


def test_routes_come_and_go_and_only_ours_are_found(here: Namespace) -> None:
    here.ip("route add 10.9.0.0/16 dev xfrm0")
    here.ip("-6 route add fd00:9::/64 dev xfrm0 proto 29 table 7")
    here.ip("-6 route add fd00:8::/64 dev other proto 29")
    routes = KernelRoutes(interface_index("xfrm0"))
    try:
        assert routes.dump() == []
        assert all(outcome.ok for outcome in routes.apply(add(*PREFIXES)))
        assert set(routes.dump()) == set(PREFIXES)
        listed = netlink.routes(protocol=29)
        assert {net for net, through in listed.items() if through == "xfrm0"} == set(PREFIXES)
        (again,) = routes.apply(add(PREFIXES[0]))
        assert again.errno == errno.EEXIST
        outcomes = routes.apply([RemoveRoute(PREFIXES[0]), RemoveRoute(PREFIXES[0])])
        assert [outcome.errno for outcome in outcomes] == [0, errno.ESRCH]
        assert routes.apply([RemoveRoute(ip_network("10.9.0.0/16"))])[0].errno == errno.ESRCH
        assert remove_own_routes(routes) == 2
        assert routes.dump() == []
        assert netlink.routes()[ip_network("10.9.0.0/16")] == "xfrm0"
        assert netlink.routes()[ip_network("fd00:8::/64")] == "other"
    finally:
        routes.close()


def test_a_static_route_is_not_replaced(here: Namespace) -> None:
    here.ip("-6 route add fd00:1::/64 dev other")
    routes = KernelRoutes(interface_index("xfrm0"))
    try:
        assert routes.apply(add(PREFIXES[0]))[0].errno == errno.EEXIST
    finally:
        routes.close()


def test_many_routes_in_one_batch(here: Namespace) -> None:
    routes = KernelRoutes(interface_index("xfrm0"))
    many = [ip_network(f"fd00:{n:x}::/64") for n in range(300)]
    try:
        assert all(outcome.ok for outcome in routes.apply(add(*many)))
        assert set(routes.dump()) == set(many)
        assert remove_own_routes(routes) == 300
    finally:
        routes.close()


def test_the_link_local_address_is_usable_at_once(here: Namespace) -> None:
    routes = KernelRoutes(interface_index("xfrm0"))
    address = IPv6Address("fe80::1234")
    try:
        for _ in range(2):
            routes.add_address(address)
        assert ip_interface("fe80::1234/64") in netlink.addresses("xfrm0")
    finally:
        routes.close()
    nowhere = KernelRoutes(9999)
    with pytest.raises(LocalError, match="cannot set the address"):
        nowhere.add_address(address)
    nowhere.close()


def test_memory_answers_as_the_kernel(here: Namespace) -> None:
    kernel = KernelRoutes(interface_index("xfrm0"))
    operations = [*add(*PREFIXES), *add(PREFIXES[0]), *map(RemoveRoute, PREFIXES * 2)]
    tables: tuple[Routes, Routes] = (kernel, MemoryRoutes())
    try:
        numbers = [[outcome.errno for outcome in table.apply(operations)] for table in tables]
        assert numbers[0] == numbers[1]
    finally:
        kernel.close()
