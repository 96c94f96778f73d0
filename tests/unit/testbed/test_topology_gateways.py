"""Topologies with gateways: legs, partitions, certificates, and what is refused."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from ipaddress import IPv6Interface, ip_network
from pathlib import Path

import pytest

import topologies
from testbed.device import DeviceSettings, device_specs, render
from testbed.errors import TestbedError
from testbed.guard import Fence
from testbed.proxies import gateways_of
from testbed.spec import Link, Node, NodeKind, Topology, TopologyError
from testbed.speccheck import checked
from testbed.wiring import Wiring
from topologies.families import partitions


def test_the_folder_is_the_family_of_three_with_two_devices() -> None:
    found, family = topologies.find("partitions"), partitions(3, 2)
    assert (found.nodes, found.links, found.group) == (family.nodes, family.links, family.group)


def test_legs_are_devices_of_their_partitions() -> None:
    topology = partitions(3)
    legs = {leg.name: leg for leg in topology.legs}
    assert list(legs) == ["g1-a", "g1-b", "g2-a", "g2-b", "g3-b", "g3-c"]
    assert legs["g1-b"].host == "g1"
    assert legs["g1-b"].leg == 1
    assert str(legs["g1-b"].black) == "2001:db8:b::f1/64"
    assert topology.host("g1-b") == "g1"
    assert topology.host("d1") == "d1"
    wiring = Wiring(topology)
    assert wiring.partitions == {
        "a": ("d1", "g1-a", "g2-a"),
        "b": ("d2", "g1-b", "g2-b", "g3-b"),
        "c": ("d3", "g3-c"),
    }
    assert wiring.black_port("g1-b").interface == "black1"
    assert topologies.find("coalition").legs == ()
    assert list(Wiring(topologies.find("coalition")).partitions) == ["s1"]


def test_a_leg_s_certificate_names_what_lies_beyond_it() -> None:
    specs = {spec.name: spec for spec in device_specs(partitions(3))}
    assert specs["g1-a"].gateway
    assert set(specs["g1-a"].prefixes) == {ip_network("fd00:b::/64"), ip_network("fd00:c::/64")}
    assert set(specs["g3-b"].prefixes) == {ip_network("fd00:a::/64"), ip_network("fd00:c::/64")}
    assert not specs["d1"].gateway


def test_legs_share_nothing_in_their_files(tmp_path: Path) -> None:
    topology = partitions(2)
    settings = DeviceSettings("netlink", "per-sender", "aes-gcm-128")
    files = [
        tomllib.loads(render(leg, topology, settings, tmp_path, tmp_path / leg.name))
        for leg in topology.legs[:2]
    ]
    for section, keys in (
        ("black", ["interface"]),
        ("ipsec", ["interface", "if_id", "reqid", "route_metric"]),
        ("local", ["idp_port", "mike_port"]),
        ("device", ["name", "address", "run_directory"]),
    ):
        for key in keys:
            assert files[0][section][key] != files[1][section][key], key
    assert "prefixes" not in files[0]["idp"]
    (first, _) = gateways_of(topology, tmp_path)
    legs = tomllib.loads(first.config)["gateway"]["leg"]
    assert [leg["partition"] for leg in legs] == ["a", "b"]
    assert legs[0]["config"] == str(tmp_path / "g1-a.toml")


def test_a_leg_s_guard_knows_its_own_interfaces() -> None:
    topology = partitions(2)
    first, second = (Fence(topology).rules(leg) for leg in topology.legs[:2])
    assert (first.black, first.tunnel, first.red) == ("black0", "xfrm0", ())
    assert (second.black, second.tunnel, second.red) == ("black1", "xfrm1", ())
    assert str(second.black_address) == "2001:db8:b::f1"


def changed(topology: Topology, gateway: Node, *links: Link) -> Topology:
    nodes = tuple(gateway if node.name == gateway.name else node for node in topology.nodes)
    others = tuple(link for link in topology.links if gateway.name not in link.ends)
    return replace(topology, nodes=nodes, links=(*others, *links))


def towards(**addresses: str) -> Node:
    return Node(
        "g2",
        NodeKind.GATEWAY,
        nation="alpha",
        towards={peer: (IPv6Interface(text),) for peer, text in addresses.items()},
    )


@pytest.mark.parametrize(
    ("gateway", "links", "words"),
    [
        (towards(a="2001:db8:a::f2/64"), [("g2", "a")], "from 2 to 8 legs, this has 1"),
        (
            towards(a="2001:db8:a::f2/64", d2="2001:db8:b::f2/64"),
            [("g2", "a"), ("g2", "d2")],
            "joins IPsec devices directly",
        ),
        (towards(a="2001:db8:a::f2/64"), [("g2", "a"), ("g2", "b")], "towards.b: is missing"),
        (
            towards(a="2001:db8:a::f2/64", b="2001:db8:a::f3/64"),
            [("g2", "a"), ("g2", "b")],
            "is not in 2001:db8:b::/64",
        ),
    ],
)
def test_what_a_gateway_cannot_be(gateway: Node, links: list[tuple[str, str]], words: str) -> None:
    topology = changed(partitions(2), gateway, *(Link(ends) for ends in links))
    with pytest.raises(TopologyError, match=words):
        checked(topology)


def test_two_legs_in_one_partition_are_refused() -> None:
    topology = topologies.find("line(2)")
    switch = [Node(name, NodeKind.SWITCH) for name in ("x", "y")]
    routers = {
        "r1": {"x": (IPv6Interface("2001:db8:1::1/64"),)},
        "r2": {"y": (IPv6Interface("2001:db8:2::1/64"),)},
    }
    nodes = [
        replace(node, towards={**node.towards, **routers.get(node.name, {})})
        for node in topology.nodes
    ]
    gateway = towards(x="2001:db8:1::2/64", y="2001:db8:2::2/64")
    links = [Link(ends) for ends in (("r1", "x"), ("r2", "y"), ("g2", "x"), ("g2", "y"))]
    wrong = replace(topology, nodes=(*nodes, *switch, gateway), links=(*topology.links, *links))
    with pytest.raises(TopologyError, match="its legs g2-x and g2-y are in one partition"):
        checked(wrong)


@pytest.mark.parametrize(("count", "devices"), [(1, 1), (11, 1), (2, 0), (2, 21)])
def test_the_family_has_limits(count: int, devices: int) -> None:
    with pytest.raises(TestbedError, match=r"partitions\("):
        partitions(count, devices)
