"""FRR in namespaces: it converges, multicast follows PIM-SM, faults are routed around."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from contextlib import ExitStack
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

import pytest

from testbed import session
from testbed.errors import DaemonDiedError, DeadlineError
from testbed.namespaces import interface_names
from testbed.processes import ProcessTable
from testbed.routing.choose import make_routing
from testbed.routing.kernel import RoutingError, multicast_interfaces
from testbed.routing.programs import find_frr
from testbed.wait import wait_until
from tests.support import netlink
from tests.support.netlink import OSPF
from tests.support.routers import GROUP, RoutedNetwork, read_all, routed, wires

pytestmark = [
    pytest.mark.emulation,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces"),
    pytest.mark.skipif(find_frr() is None, reason="FRR is not built: run 'make setup'"),
]

ADDRESS = IPv6Address(GROUP)
# A switch with four routers, hosts behind three, the rendezvous point on the fourth.
COALITION = wires("r1 r2 r3 r4", "r1 h1", "r2 h2", "r3 h3")
# r1 and r3 are neighbours; the way around is r2, which is the rendezvous point.
TRIANGLE = wires("r1 r2", "r2 r3", "r1 r3", "r1 h1", "r3 h3")


def delivered(network: RoutedNetwork, sender: str, receiver: socket.socket) -> bool:
    """Wait until a stream from a host arrives somewhere."""

    def arrives() -> bool:
        network.send(sender, b"\0\0\0\7")
        return bool(read_all(receiver))

    return wait_until(arrives, 30, f"nothing from {sender} arrives")


def test_four_routers_deliver_to_all_who_joined_and_a_lost_rendezvous_point_is_named(
    tmp_path: Path,
) -> None:
    def inside() -> dict[str, Any]:
        seen: dict[str, Any] = {}
        with routed(COALITION, "r4", tmp_path) as (network, routing, _):
            seen["report"] = routing.wait_ready()
            seen["neighbours"] = {name: routing.pim_neighbours(name) for name in routing.routers}
            answer = routing.vty("r1", "pim6d").ask("show ipv6 pim neighbor")
            seen["hold times"] = [entry["holdTimeMax"] for entry in answer["eth0"].values()]
            seen["mifs"] = multicast_interfaces(network.namespaces["r1"])
            seen["before"] = routing.group_joined(ADDRESS)
            with network.listener("h2") as two:
                wait_until(lambda: routing.group_joined(ADDRESS), 20, "MLD has heard of nobody")
                seen["one joined"] = routing.group_joined(ADDRESS)
                with network.listener("h1") as one, network.listener("h3") as three:
                    seen["groups"] = routing.wait_ready([ADDRESS]).groups_s
                    # The first packets travel to the RP in registers, and may be lost on the way.
                    delivered(network, "h1", three)
                    for receiver in (one, two, three):
                        read_all(receiver)
                    seen["heard"] = network.stream("h1", [two, three], 100)
                    seen["mroutes"] = routing.mroutes("r1")[GROUP]
            wait_until(
                lambda: not routing.group_joined(ADDRESS),
                30,
                lambda: f"MLD still knows {routing.group_joined(ADDRESS)}",
            )
            modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
            seen["modes"] = modes
            routing.kill_router("r4")
            with pytest.raises(RoutingError, match="the rendezvous point r4 is dead"):
                routing.wait_ready()
        return seen

    seen = session.call(inside)
    report = seen["report"]
    assert report.kind == "frr"
    assert 0 < report.daemons_s <= report.adjacencies_s <= report.routes_s <= report.pim_s
    assert seen["neighbours"]["r4"] == {"eth0": 3}
    assert seen["neighbours"]["r1"] == {"eth0": 3, "eth1": 0}
    # Not 105 s: the default interval, with which FRR sends its very first hello.
    assert seen["hold times"] == [3, 3, 3]
    assert {"eth0", "eth1"} <= seen["mifs"]
    assert seen["before"] == {}
    assert seen["one joined"] == {"r2": ("eth1",)}
    assert list(seen["groups"]) == [GROUP]
    for heard in seen["heard"]:
        assert len(heard) >= 98, "packets are lost on an idle network"
        assert len(heard) == len(set(heard)), "packets come twice"
    assert "2001:db8:2::101" in seen["mroutes"]
    assert seen["modes"] == dict.fromkeys(("r1", "r2", "r3", "r4"), 0o700)


def test_a_cut_cable_is_routed_around(tmp_path: Path) -> None:
    def inside() -> list[str]:
        with routed(TRIANGLE, "r2", tmp_path) as (network, routing, _), ExitStack() as stack:
            routing.wait_ready()
            receiver = stack.enter_context(network.listener("h3"))
            delivered(network, "h1", receiver)
            seen = [interface_towards(network, "r1", "2001:db8:5::103")]
            for change, interface in ((network.cut, "eth0"), (network.plug, "eth1")):
                change("r1", 3)
                wait_until(
                    lambda: interface_towards(network, "r1", "2001:db8:5::103") == interface,  # noqa: B023
                    30,
                    lambda: f"r1's neighbours: {routing.ospf_neighbours('r1')}",
                )
                read_all(receiver)
                delivered(network, "h1", receiver)
                seen.append(interface)
            routing.wait_ready()
            return seen

    assert session.call(inside) == ["eth1", "eth0", "eth1"]


def interface_towards(network: RoutedNetwork, router: str, target: str) -> str:
    """Return the interface by which a router reaches an address, empty if it does not."""
    with network.namespaces[router].entered():
        command = ["ip", "-6", "-j", "route", "get", target]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    return str(json.loads(done.stdout)[0]["dev"]) if done.returncode == 0 else ""


def test_a_killed_router_is_routed_around_and_its_own_are_cut_off(tmp_path: Path) -> None:
    layout = wires("r1 r2", "r2 r3", "r3 r4", "r4 r1", "r1 h1", "r3 h3", "r2 h2")

    def inside() -> dict[str, Any]:
        with routed(layout, "r4", tmp_path) as (network, routing, processes):
            routing.wait_ready()
            with network.listener("h3") as three, network.listener("h2") as two:
                for receiver in (three, two):
                    delivered(network, "h1", receiver)
                routing.kill_router("r2")
                seen: dict[str, Any] = {"report": routing.wait_ready(), "names": processes.names()}
                for receiver in (three, two):
                    read_all(receiver)
                delivered(network, "h1", three)
                seen["cut off"] = read_all(two)
            seen["routers"] = routing.routers
            with pytest.raises(RoutingError, match="r2 is dead already"):
                routing.kill_router("r2")
            return seen

    seen = session.call(inside)
    assert seen["report"].routes_s < 20
    assert seen["cut off"] == []
    assert seen["routers"] == ("r1", "r3", "r4")
    assert not [name for name in seen["names"] if name.startswith("r2/")]


@pytest.mark.parametrize("daemon", ["zebra", "ospf6d", "pim6d"])
def test_a_daemon_that_dies_is_named(tmp_path: Path, daemon: str) -> None:
    def inside() -> str:
        with routed(wires("r1 r2"), "r2", tmp_path) as (_, routing, processes):
            os.kill(processes[f"r1/{daemon}"].pid, signal.SIGKILL)
            with pytest.raises(DaemonDiedError) as caught:
                routing.wait_ready()
            return str(caught.value)

    assert session.call(inside).startswith(f"r1/{daemon} was killed by signal 9 unasked")


def test_what_is_lacking_is_said(tmp_path: Path) -> None:
    def inside() -> str:
        with routed(wires("r1 r2", "r2 r3"), "r2", tmp_path, deadline_s=3) as (network, routing, _):
            network.cut("r3", 2)
            with pytest.raises(DeadlineError) as caught:
                routing.wait_ready()
            return str(caught.value)

    said = session.call(inside)
    assert said.startswith("OSPF: ")
    assert "r2 wants 1 neighbours Full on eth1, has none" in said
    assert "r3 wants 1 neighbours Full on eth0, has none" in said
    assert "r1" not in said.replace("r1 ", "", 0).partition("OSPF: ")[2]


def test_a_listener_that_is_missing_is_said(tmp_path: Path) -> None:
    def inside() -> str:
        layout = wires("r1 r2", "r1 h1", "r2 h2")
        with (
            routed(layout, "r2", tmp_path, deadline_s=20) as (network, routing, _),
            network.listener("h1"),
        ):
            routing.wait_ready()
            object.__setattr__(routing.options, "deadline_s", 1.0)
            with pytest.raises(DeadlineError) as caught:
                routing.wait_ready([ADDRESS])
            return str(caught.value)

    assert session.call(inside).startswith(f"group {GROUP}: r2 knows no listener on eth1")


def test_the_end_leaves_no_process_route_or_interface(tmp_path: Path) -> None:
    def inside() -> dict[str, Any]:
        network = RoutedNetwork(wires("r1 r2", "r2 h2"), "r2")
        processes = ProcessTable("20200101T000000Z-beef")
        before = own_processes()
        with network.namespaces["r1"].entered():
            interfaces = interface_names()
        left = []
        for _ in range(2):
            routing = make_routing(
                network.plans, network.namespaces, network.pid, processes, tmp_path
            )
            routing.start()
            routing.wait_ready()
            routing.stop()
            routing.stop()
            with network.namespaces["r1"].entered():
                routes = netlink.routes(protocol=OSPF)
                left.append((routes, interface_names() - interfaces, own_processes() - before))
        network.close()
        last = next(tmp_path.rglob("r1/pim.txt")).read_text()
        return {"left": left, "names": processes.names(), "last": last}

    seen = session.call(inside)
    assert seen["left"] == [({}, set(), set())] * 2
    assert seen["names"] == []
    assert "# show ipv6 mroute\n" in seen["last"]


def own_processes() -> set[int]:
    """Return the processes of our PID namespace: what the run has started."""
    return {int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()}
