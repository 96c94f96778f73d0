"""Coalition networks built natively: routers, red LANs and clients are there and answer."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import topologies
from testbed import memory, session
from testbed.errors import TestbedError
from testbed.fleet import Fleet, FleetOptions
from testbed.isolation import call_isolated
from testbed.namespaces import NetNamespace, interface_names
from testbed.network import BLACK, RED, Network, NetworkError
from testbed.network_batch import attempt
from testbed.spec import Node, Topology
from testbed.wait import wait_until
from topologies.families import coalition, line, star

pytestmark = [
    pytest.mark.emulation,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces"),
]


def output(network: Network, node: str, *command: str) -> str:
    with network.namespace(node).entered():
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def sysctl(network: Network, node: str, name: str) -> int:
    with network.namespace(node).entered():
        return int(Path("/proc/sys/net", name).read_text())


def answers(network: Network, node: str, address: str) -> bool:
    with network.namespace(node).entered():
        command = ["ping", "-n", "-c", "1", "-W", "1", address]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


def reaches(network: Network, node: str, address: str) -> bool:
    try:
        return wait_until(lambda: answers(network, node, address), 10, f"{node} to {address}")
    except TestbedError:
        return False


def test_a_coalition_is_built_as_asked() -> None:
    def inside() -> dict[str, Any]:
        network = Network(coalition(2), with_xfrm=False)
        network.build()
        try:
            addresses = {}
            for node in ("r1", "d1", "l1", "c1a"):
                text = output(network, node, "ip", "-o", "addr", "show", "scope", "global")
                addresses[node] = [line.split()[1:4:2] for line in text.splitlines()]
            return {
                "addresses": addresses,
                "forwarding": {
                    node: (
                        sysctl(network, node, "ipv6/conf/all/forwarding"),
                        sysctl(network, node, "ipv4/ip_forward"),
                    )
                    for node in ("r1", "d1", "l1", "c1a")
                },
                "ports": sorted(interface_names()),
                "own": [network.namespace("w1").name, network.pid("w1") == os.getpid()],
                "links": [(end.link, end.node, end.interface) for end in network.black_links],
                "reached": {
                    (node, address): reaches(network, node, address)
                    for node, address in (
                        ("c1a", "fd00:1:0:1::12"),
                        ("c1a", "10.1.1.12"),
                        ("c1a", "fd00:1::1"),
                        ("c1a", "10.1.0.1"),
                        ("d1", "fd00:1:0:1::11"),
                        ("d1", "10.1.1.11"),
                        ("d1", "2001:db8:b:1::1"),
                        ("d1", "2001:db8:f::2"),
                        ("r1", "2001:db8:c::3"),
                    )
                },
                "multicast": output(
                    network, "d1", "ip", "-6", "route", "show", "table", "local", "ff0e::1"
                ).split()[:4],
            }
        finally:
            network.stop()

    seen = call_isolated(inside)
    assert seen["addresses"] == {
        "r1": [["lo", "2001:db8:f::2/128"], ["eth0", "2001:db8:c::2/64"],
               ["eth1", "2001:db8:b:1::1/64"]],
        "d1": [[BLACK, "2001:db8:b:1::2/64"], [RED, "10.1.0.1/24"], [RED, "fd00:1::1/64"]],
        "l1": [["eth0", "10.1.0.2/24"], ["eth0", "fd00:1::2/64"],
               ["eth1", "10.1.1.1/24"], ["eth1", "fd00:1:0:1::1/64"]],
        "c1a": [["eth0", "10.1.1.11/24"], ["eth0", "fd00:1:0:1::11/64"]],
    }  # fmt: skip
    assert seen["forwarding"] == {"r1": (1, 0), "d1": (1, 1), "l1": (1, 1), "c1a": (0, 0)}
    assert seen["ports"] == [
        "lo", "s1", "s1-r0", "s1-r1", "s1-r2", "s1-r3", "s1-rb",
        "w1", "w1-c1a", "w1-c1b", "w1-l1", "w2", "w2-c2a", "w2-c2b", "w2-l2",
    ]  # fmt: skip
    assert seen["own"] == ["own", True]
    assert seen["links"] == [
        ("r0-s1", None, "s1-r0"),
        ("r1-s1", None, "s1-r1"),
        ("r2-s1", None, "s1-r2"),
        ("r3-s1", None, "s1-r3"),
        ("rb-s1", None, "s1-rb"),
        ("r1-d1", "r1", "eth1"),
        ("r2-d2", "r2", "eth1"),
    ]
    assert [way for way, reached in seen["reached"].items() if not reached] == []
    assert seen["multicast"] == ["multicast", "ff0e::1", "dev", BLACK]


def test_a_device_without_a_red_lan_forwards_nothing() -> None:
    def inside() -> int:
        network = Network(star(1), with_xfrm=False)
        network.build()
        try:
            return sysctl(network, "d1", "ipv6/conf/all/forwarding")
        finally:
            network.stop()

    assert call_isolated(inside) == 0


def test_the_fence_is_there_before_any_interface_is_up() -> None:
    def inside() -> list[tuple[str, str, list[str]]]:
        called = []

        def fence(namespace: NetNamespace, node: Node) -> None:
            with namespace.entered():
                there = sorted(interface_names())
                up = subprocess.run(
                    ["ip", "-o", "link", "show", "up"], capture_output=True, text=True, check=True
                ).stdout
            called.append((node.name, up, there))

        network = Network(coalition(2), with_xfrm=False, fence=fence)
        network.build()
        network.stop()
        return called

    assert call_isolated(inside) == [("d1", "", ["lo"]), ("d2", "", ["lo"])]


@pytest.mark.parametrize(
    ("link", "node", "address"),
    [
        ("d1", "d1", "2001:db8:f::2"),  # its black cable; needs the default route
        ("l1-d1", "c1a", "fd00:1::1"),  # needs the LAN router's default route when it is back
        ("d1-l1", "c1a", "10.1.0.1"),
        ("w1-l1", "d1", "fd00:1:0:1::11"),  # needs the device's route to the LAN
        ("c1b", "c1a", "fd00:1:0:1::12"),
        ("s1-r2", "r1", "2001:db8:c::3"),
    ],
)
def test_any_link_is_cut_and_healed(link: str, node: str, address: str) -> None:
    def inside() -> list[bool]:
        network = Network(coalition(2), with_xfrm=False)
        network.build()
        try:
            before = reaches(network, node, address)
            network.link_down(link)
            cut = answers(network, node, address)
            network.link_up(link)
            return [before, cut, reaches(network, node, address)]
        finally:
            network.stop()

    assert call_isolated(inside) == [True, False, True]


def test_static_routes_come_back_with_the_link() -> None:
    def inside() -> tuple[str, str]:
        network = Network(coalition(1), with_xfrm=False)
        network.build()
        try:
            before = output(network, "l1", "ip", "-6", "route", "show", "default")
            network.link_down("d1-l1")
            network.link_up("d1-l1")
            return before, output(network, "l1", "ip", "-6", "route", "show", "default")
        finally:
            network.stop()

    before, after = call_isolated(inside)
    assert "via fd00:1::1" in before
    assert before.split()[:5] == after.split()[:5]


def test_unknown_links_and_nodes_are_told() -> None:
    def inside() -> list[str]:
        network = Network(coalition(1), with_xfrm=False)
        network.build()
        said = []
        for action in (
            lambda: network.link_down("r9-s1"),
            lambda: network.link_down("r1"),
            lambda: network.namespace("c9"),
            lambda: network.pid("c9"),
            lambda: network.set_link("d1", delay_ms=-1),
            lambda: network.set_link("d1", delay_ms=1, jitter_ms=2),
        ):
            with pytest.raises(TestbedError) as caught:
                action()
            said.append(str(caught.value))
        network.stop()
        return said

    first, ambiguous, *others = call_isolated(inside)
    assert first.startswith("there is no link 'r9-s1' in this network; it has: r0-s1, r1-s1")
    assert ambiguous.startswith("there is no link 'r1'")
    assert others == [
        "there is no node 'c9' in this network",
        "topology coalition(1,1) has no node 'c9'; it has: s1, r0, r1, r2, r3, rb, d1, l1, w1, "
        "c1a, c1b",
        "link r1-d1: delay_ms must be from 0 to 10000, is -1",
        "link r1-d1: jitter_ms must be from 0 to 1, is 2",
    ]


def with_links(topology: Topology, **values: Any) -> Topology:
    links = tuple(replace(link, **values) for link in topology.links)
    return replace(topology, links=links)


def test_links_have_the_mtu_that_is_asked_for() -> None:
    def inside() -> list[str]:
        network = Network(with_links(coalition(1), mtu=1400), with_xfrm=False)
        network.build()
        try:
            nodes = ("r1", "d1", "l1", "c1a", "w1")
            return [output(network, node, "ip", "-o", "link", "show") for node in nodes]
        finally:
            network.stop()

    for text in call_isolated(inside):
        cables = [line for line in text.splitlines() if " lo: " not in line]
        assert cables
        assert all("mtu 1400" in line for line in cables), text


def test_delay_without_netem_is_refused_before_anything_is_built() -> None:
    def inside() -> tuple[bool, str, set[str]]:
        has_netem = attempt("tc", ["qdisc add dev lo root netem delay 1ms"]).returncode == 0
        attempt("tc", ["qdisc del dev lo root"])
        network = Network(topologies.find("coalition-wan"), with_xfrm=False)
        try:
            network.build()
        except NetworkError as error:
            return has_netem, str(error), interface_names()
        network.stop()
        return has_netem, "", interface_names()

    has_netem, said, left = call_isolated(inside)
    assert left == {"lo"}
    if has_netem:
        assert said == ""
    else:
        assert said == (
            "link r1-r2 has a delay or loss, and this kernel has no netem (sch_netem); use --env vm"
        )


def test_a_network_that_does_not_fit_into_memory_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TESTBED_RUN_BASE", str(tmp_path))
    refused = []
    for free_mib, build in (
        (100, lambda: Network(line(149), with_xfrm=False).build()),
        (3072, lambda: Fleet(line(149), FleetOptions(sa_backend="memory")).__enter__()),
    ):
        monkeypatch.setattr(memory, "free_kib", lambda free_mib=free_mib: free_mib << 10)

        def inside(build: Callable[[], Any] = build) -> tuple[str, set[str]]:
            try:
                build()
            except TestbedError as error:
                return str(error), interface_names()
            return "built", set()

        refused.append(session.call(inside))
    (bare, nothing), (whole, nothing_either) = refused
    assert bare.startswith("299 nodes need about 583 MiB and 100 MiB are free; choose a smaller")
    assert whole.startswith("299 nodes and their daemons need about 6422 MiB and 3072 MiB are free")
    assert nothing == nothing_either == {"lo"}


def test_fifty_devices_with_their_lans_three_times_up_and_down() -> None:
    topology = coalition(50, 1, 1)
    assert len(topology.nodes) >= 150

    def inside() -> list[Any]:
        seen = []
        for _ in range(3):
            network = Network(topology, with_xfrm=False)
            network.build()
            reached = [
                reaches(network, "c50a", "fd00:32::1"),
                reaches(network, "d50", "2001:db8:b:32::1"),
                reaches(network, "r1", "2001:db8:c::5"),
            ]
            network.stop()
            processes = [path.name for path in Path("/proc").iterdir() if path.name.isdigit()]
            seen.append((all(reached), sorted(interface_names()), processes))
        return seen

    assert call_isolated(inside) == [(True, ["lo"], ["1"])] * 3
