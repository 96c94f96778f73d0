"""Coalition networks: files and families, their rules, and what follows from them."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv6Address
from pathlib import Path

import pytest

import topologies
from testbed.errors import TestbedError
from testbed.routing.plan import router_plans
from testbed.spec import Link, Node, NodeKind, RendezvousPoint, Side, Topology
from testbed.speccheck import checked
from testbed.specreader import load_topology
from testbed.tomllines import SpecError
from testbed.wiring import Wiring
from topologies.families import coalition, line

COALITION = topologies.FOLDER / "coalition" / "topology.toml"
NATION = """
[[node]]
name = "d5"
kind = "device"
nation = "echo"
black = "2001:db8:b:5::2/64"
red = "fd00:5::1/64"

[[node]]
name = "c5"
kind = "client"
red = "fd00:5::2/64"

[[link]]
ends = ["r2", "d5"]

[[link]]
ends = ["d5", "c5"]
"""
ROUTER_LINE = 'towards.d2 = "2001:db8:b:2::1/64"\n'


def load(tmp_path: Path, text: str) -> Topology:
    path = tmp_path / "topology.toml"
    path.write_text(text)
    return load_topology(path)


def line_of(text: str, part: str) -> int:
    return text[: text.index(part)].count("\n") + 1


def test_the_coalition_file_is_the_family_of_four_nations() -> None:
    found, family = topologies.find("coalition"), coalition(4)
    assert {node.name: node for node in found.nodes} == {node.name: node for node in family.nodes}
    assert set(found.links) == set(family.links)
    assert found.group == family.group


def test_the_wide_area_network_differs_only_in_its_core() -> None:
    wan, lan = topologies.find("coalition-wan"), topologies.find("coalition")
    core = {node.name for node in lan.routers} | {"s1"}
    assert [n for n in wan.nodes if n.name not in core] == [
        n for n in lan.nodes if n.name not in core
    ]
    long = [link for link in wan.links if set(link.ends) <= core]
    assert len(long) == 9
    assert all(link.impaired and link.delay_ms and link.bandwidth_mbit for link in long)
    assert any(link.loss_percent for link in long)


def test_a_nation_more_in_the_file_is_a_nation_more_in_all_that_follows(tmp_path: Path) -> None:
    text = COALITION.read_text().replace(
        ROUTER_LINE, ROUTER_LINE + 'towards.d5 = "2001:db8:b:5::1/64"\n'
    )
    topology = load(tmp_path, text + NATION)
    wiring = Wiring(topology)
    assert [str(route.via.ip) for route in wiring.routes("d5")] == ["2001:db8:b:5::1"]
    assert [str(route.via.ip) for route in wiring.routes("c5")] == ["fd00:5::1"]
    before = {plan.name: len(plan.interfaces) for plan in router_plans(load_topology(COALITION))}
    after = {plan.name: len(plan.interfaces) for plan in router_plans(topology)}
    assert after == before | {"r2": before["r2"] + 1}


@pytest.mark.parametrize(
    ("old", "new", "place", "field", "words"),
    [
        ('["d1", "l1"]', '["r1", "l1"]', "", "link 7: ends", "only an IPsec device stands"),
        ('["c1a", "w1"]', '["c1a", "s1"]', "", "link 9: ends", "red c1a (client)"),
        ('["d1", "l1"]', '["d1", "d2"]', "", "link 7: ends", "neither black nor red"),
        ('["l1", "w1"]', '["s1", "w1"]', "", "link 8: ends", "two switches"),
        ('["d1", "l1"]', '["d1", "d1"]', "", "link 7: ends", "to itself"),
        ('["d1", "l1"]', '["d1", "w1"]', "towards.d1 = [", "node l1: towards.d1", "no [[link]]"),
        ('["c1b", "w1"]', '["c1a", "l1"]', "", "link 10: ends", "joined by link 9 already"),
        ('["d2", "l2"]', '["d1", "l2"]', "", "link 12: ends", "red cable in link 7 already"),
        ('side = "red"', 'side = "pink"', "", "node w1: side", "black or red"),
        ('side = "red"\n', "", 'ends = ["l1", "w1"]', "link 8: ends", "black w1"),
        ("f::1/128", "f::1/64", "", "node r0: loopback", "must be one address"),
        ("rendezvous_point = true\n", "", 'name = "r0"', "node r0: rendezvous_point",
         "no router is the rendezvous point"),
        ('loopback = "2001:db8:f::1/128"\n', "", "rendezvous_point = true",
         "node r0: rendezvous_point", "loopback"),
        ("f::2/128", "f::2/128\"\nrendezvous_point = true # \"", "point = true #",
         "node r1: rendezvous_point", "r0 is the rendezvous point already"),
        ('rendezvous_point = "backup"', "rendezvous_point = true # two", "",
         "node rb: rendezvous_point", "already; a second one is \"backup\""),
        ('rendezvous_point = "backup"', 'rendezvous_point = "spare"', "",
         "node rb: rendezvous_point", "must be true, false or \"backup\""),
        ("f::3/128", "f::3/128\"\nrendezvous_point = \"backup\" # \"", "point = \"backup\" #",
         "node r2: rendezvous_point", "no IPsec device"),
        ('loopback = "2001:db8:f::ff/128"\n', "", 'rendezvous_point = "backup"',
         "node rb: rendezvous_point", "loopback"),
        ('towards.d1 = "2001:db8:b:1::1/64"\n', "", 'name = "r1"', "node r1: towards.d1",
         "address of r1 on link 6"),
        ("b:1::1/64", "b:9::1/64", 'black = "2001:db8:b:1::2', "node d1: black",
         "not in 2001:db8:b:9::/64, the prefix of r1"),
        ("c::3/64\"", "c::2/64\" # twice", "", "node r2: towards.s1",
         "belongs to node r1 (towards.s1)"),
        ("c::3/64", "cc::3/64", "", "node r2: towards.s1", "the prefix of r0"),
        ('red4 = "10.1.1.11/24"\n', "", 'name = "c1a"', "node c1a: red4", "l1 on its LAN has one"),
        ("10.1.1.11/24", "fd00::1/64", "", "node c1a: red4", "not an IPv4 address"),
        ("10.1.1.11/24", "10.9.1.11/24", "", "node c1a: red4", "10.1.1.0/24"),
        ("fd00:1:0:1::11/64", "fd00:1:0:2::11/64", "", "node c1a: red", "prefix of l1"),
        ('"2001:db8:c::1/64"', '["2001:db8:c::1/64", "10.0.0.1/8"]', "", "node r0: towards.s1",
         "one IPv6 address"),
        ('= "2001:db8:c::1/64"', "= 5", "", "node r0: towards.s1", "an address or a list"),
        ('towards.s1 = "2001:db8:c::1/64"', 'towards = "2001:db8:c::1/64"', "", "node r0: towards",
         "name the neighbour"),
        ('kind = "lan_router"', 'kind = "lan-router"', "", "node l1: kind", "lan_router"),
        ('kind = "client"', 'kind = "client"\nblack = "2001:db8::1/64"', "black = \"2001:db8::1/",
         "node c1a: black", "unknown"),
        ("bandwidth_mbit = 100", "mtu = 1279", "", "link 1: mtu", "from 1280"),
        ("bandwidth_mbit = 100", "mtu = 1399", "", "link 1: mtu", "needs at least 1400"),
        ("bandwidth_mbit = 100", "mtu = 1400", "link 2", "link 2: mtu", "switch s1 need the same"),
        ("bandwidth_mbit = 100", "bandwidth_mbit = 0", "", "link 1: bandwidth_mbit", "above 0"),
        ("bandwidth_mbit = 100", "delay_ms = -1", "", "link 1: delay_ms", "from 0 to 10000"),
        ("bandwidth_mbit = 100", "loss_percent = 101", "", "link 1: loss_percent", "to 100"),
        ("bandwidth_mbit = 100", "jitter_ms = 5", "", "link 1: jitter_ms", "more than the delay"),
        ('nation = "alpha"', 'nation = "Alpha"', "", "node d1: nation", "lower-case"),
    ],
)  # fmt: skip
def test_a_mistake_names_line_and_field(
    tmp_path: Path, old: str, new: str, place: str, field: str, words: str
) -> None:
    good = COALITION.read_text()
    assert old in good
    text = good.replace(old, new, 1)
    if place == "link 2":
        expected = line_of(text, 'ends = ["rb", "s1"]') - 1
    else:
        expected = line_of(text, place or new)
        if place.startswith("name = "):
            expected -= 1  # what is missing is told at the node's own line
    with pytest.raises(SpecError) as caught:
        load(tmp_path, text)
    assert caught.value.field == field
    assert words in str(caught.value)
    assert caught.value.line == expected, str(caught.value)
    assert "\n" not in str(caught.value)


def test_red_lans_of_two_nations_must_not_meet(tmp_path: Path) -> None:
    text = COALITION.read_text().replace('"fd00:2::1/64"', '"fd00:1::3/64"')
    text = text.replace("10.2.0.1/24", "10.1.0.3/24").replace('["d2", "l2"]', '["l2", "w1"]')
    text = text.replace('towards.d2 = ["fd00:2::2/64", "10.2.0.2/24"]',
                        'towards.w1 = ["fd00:1:0:1::2/64", "10.1.1.2/24"]')  # fmt: skip
    two = text.replace("[[link]]", '[[link]]\nends = ["d2", "w1"]\n\n[[link]]', 1)
    two = two.replace('"fd00:1::3/64"', '"fd00:1:0:1::3/64"').replace("10.1.0.3", "10.1.1.3")
    with pytest.raises(SpecError, match="node d2: shares the red LAN of d1, which is of nation al"):
        load(tmp_path, two)


def small(*nodes: Node, links: tuple[tuple[str, str], ...]) -> Topology:
    return checked(Topology("small", "", nodes, tuple(Link(ends) for ends in links)))


def test_the_rules_hold_for_computed_networks_too() -> None:
    with pytest.raises(TestbedError, match="node: at least one"):
        small(links=())
    with pytest.raises(TestbedError, match="small: node r1: has no"):
        small(Node("r1", NodeKind.ROUTER), links=())
    switches = (Node("w1", NodeKind.SWITCH, side=Side.RED), Node("c1", NodeKind.CLIENT))
    with pytest.raises(TestbedError, match="node c1: no red link leads to an IPsec device"):
        small(*switches, links=(("c1", "w1"),))


def test_prefixes_that_overlap_are_refused(tmp_path: Path) -> None:
    text = COALITION.read_text().replace("2001:db8:b:3::2/64", "2001:db8:b:3::2/47")
    text = text.replace("2001:db8:b:3::1/64", "2001:db8:b:3::1/47")
    with pytest.raises(SpecError, match="overlap") as caught:
        load(tmp_path, text)
    assert caught.value.line == line_of(text, 'towards.d1 = "2001:db8:b:1::1/64"')
    assert caught.value.field == "node r1: towards.d1"


def test_a_router_has_as_many_links_as_the_kernel_forwards_multicast_between() -> None:
    with pytest.raises(TestbedError, match="node s: "):
        small(Node("s", NodeKind.CLIENT), Node("s", NodeKind.CLIENT), links=())
    topology = coalition(33, 1, 1)
    crowd = [node.name for node in topology.devices]
    towards = {name: peers for router in topology.routers for name, peers in router.towards.items()}
    nodes = [
        *(n for n in topology.nodes if n.kind is not NodeKind.ROUTER and n.name != "s1"),
        Node("r1", NodeKind.ROUTER, loopback=topology.routers[0].loopback,
             rendezvous_point=RendezvousPoint.PRIMARY,
             towards={name: towards[name] for name in crowd}),
    ]  # fmt: skip
    links = [link for link in topology.links if "s1" not in link.ends]
    links = [Link(("r1", link.ends[1])) if link.ends[0][0] == "r" else link for link in links]
    with pytest.raises(TestbedError, match="node r1: has 33 links"):
        checked(Topology("crowd", "", tuple(nodes), tuple(links)))


def test_red_routes_lead_up_to_the_device_and_down_to_every_prefix() -> None:
    wiring = Wiring(coalition(2))
    routes = {
        name: [(str(route.destination), str(route.via.ip), route.interface) for route in found]
        for name in ("c2a", "l2", "d2", "r2")
        if (found := wiring.routes(name)) is not None
    }
    assert routes == {
        "c2a": [("::/0", "fd00:2:0:1::1", "eth0"), ("0.0.0.0/0", "10.2.1.1", "eth0")],
        "l2": [("::/0", "fd00:2::1", "eth0"), ("0.0.0.0/0", "10.2.0.1", "eth0")],
        "d2": [
            ("fd00:2:0:1::/64", "fd00:2::2", "red0"),
            ("10.2.1.0/24", "10.2.0.2", "red0"),
            ("::/0", "2001:db8:b:2::1", "black0"),
        ],
        "r2": [],
    }
    upstream = {name: wiring.upstream(name) for name in ("c2a", "l2", "d2", "r2")}
    assert [port.interface if port else None for port in upstream.values()] == [
        "eth0", "eth0", None, None,
    ]  # fmt: skip


def test_a_lan_router_behind_another_is_reached_through_it(tmp_path: Path) -> None:
    text = COALITION.read_text().replace(
        'towards.w1 = ["fd00:1:0:1::1/64", "10.1.1.1/24"]',
        'towards.w1 = ["fd00:1:0:1::1/64", "10.1.1.1/24"]\ntowards.x1 = "fd00:1:0:2::1/64"',
    ) + """
[[node]]
name = "x1"
kind = "lan_router"
towards.l1 = "fd00:1:0:2::2/64"
towards.y1 = "fd00:1:0:3::1/64"

[[node]]
name = "y1"
kind = "client"
red = "fd00:1:0:3::2/64"

[[link]]
ends = ["x1", "l1"]

[[link]]
ends = ["x1", "y1"]
"""  # fmt: skip
    wiring = Wiring(load(tmp_path, text))
    down = {str(route.destination): str(route.via.ip) for route in wiring.routes("d1")}
    assert down["fd00:1:0:3::/64"] == down["fd00:1:0:2::/64"] == "fd00:1::2"
    assert {str(r.destination): str(r.via.ip) for r in wiring.routes("l1")} == {
        "::/0": "fd00:1::1",
        "0.0.0.0/0": "10.1.0.1",
        "fd00:1:0:3::/64": "fd00:1:0:2::2",
    }


def test_router_plans_say_who_is_on_each_wire() -> None:
    r0, rb, r1, *_ = router_plans(topologies.find("coalition"))
    assert (r0.backup, rb.backup, r1.backup) == (False, True, False)
    assert str(rb.loopback) == "2001:db8:f::ff/128"
    assert (r0.name, str(r0.router_id), r0.rp) == ("r0", "0.0.0.1", IPv6Address("2001:db8:f::1"))
    assert {plan.rp for plan in router_plans(topologies.find("coalition"))} == {r0.rp}
    assert [(i.name, i.broadcast, i.routers, i.devices) for i in r1.interfaces] == [
        ("eth0", True, 4, 0),
        ("eth1", False, 0, 1),
        ("eth2", False, 0, 1),
    ]
    assert [str(i.addresses[0]) for i in r1.interfaces] == [
        "2001:db8:c::2/64", "2001:db8:b:1::1/64", "2001:db8:b:4::1/64",
    ]  # fmt: skip
    ends = [plan.interfaces[0] for plan in router_plans(line(3))]
    assert [(i.broadcast, i.routers) for i in ends] == [(False, 1)] * 4
    assert router_plans(topologies.find("measurement")) == ()


def test_families_are_found_by_their_numbers() -> None:
    assert topologies.find("coalition(5,2)") == coalition(5, 2)
    assert topologies.find("coalition(5, 2)").name == "coalition(5,2)"
    assert topologies.find("coalition-5-2-1").name == "coalition(5,2,1)"
    assert topologies.find("line(3)") == topologies.find("line-3") == line(3)
    devices = topologies.find("coalition(12,2,1)").devices
    assert [d.nation for d in devices[18:22]] == ["juliett", "juliett", "nation11", "nation11"]
    for name, words in (
        ("coalition(1,1,1,1)", r"it is written coalition\(nations\[,devices\[,clients\]\]\)"),
        ("coalition(0)", "are needed"),
        ("coalition(9999)", "more than 300 are refused"),
        ("line(0)", "are possible"),
        ("line(150)", "are possible"),
        ("ring(3)", "unknown topology"),
    ):
        with pytest.raises(TestbedError, match=words):
            topologies.find(name)


@pytest.mark.parametrize("name", ["coalition(25,2)", "coalition(50,1,1)", "line(149)"])
def test_large_networks_keep_the_rules(name: str) -> None:
    assert len(topologies.find(name).nodes) <= 300


def test_the_tunnel_fits_through_the_smallest_black_link() -> None:
    topology = coalition(2)

    def mtu(red: int | None, black: int | None) -> int:
        mtus = {"d1-l1": red, "r2-d2": black}
        links = tuple(replace(link, mtu=mtus.get(link.name)) for link in topology.links)
        changed = checked(replace(topology, links=links))
        assert changed.as_json()["group"]["mtu"] == changed.fitted_group.mtu
        return changed.fitted_group.mtu

    assert mtu(None, None) == topology.group.mtu == 1380
    assert (mtu(1300, 1500), mtu(1300, 1450), mtu(None, 1400)) == (1380, 1330, 1280)
    assert mtu(None, 9000) == 1380
    with pytest.raises(TestbedError, match="a black link needs at least 1400"):
        mtu(None, 1399)


def test_part_of_a_coalition_has_only_the_lans_of_its_devices() -> None:
    part = coalition(4).limited_to(2)
    assert [client.name for client in part.clients] == ["c1a", "c1b", "c2a", "c2b"]
    assert [router.name for router in part.routers] == ["r0", "r1", "r2", "r3", "rb"]
    assert checked(part).switches[-1].name == "w2"


def test_json_says_all_that_the_file_says() -> None:
    data = topologies.find("coalition-wan").as_json()
    nodes = {node["name"]: node for node in data["nodes"]}
    assert [nodes[name]["rendezvous_point"] for name in ("r0", "rb", "r1")] == [
        "primary", "backup", None,
    ]  # fmt: skip
    assert nodes["r0"]["loopback"] == "2001:db8:f::1/128"
    assert nodes["l1"]["towards"] == {
        "d1": ["fd00:1::2/64", "10.1.0.2/24"],
        "w1": ["fd00:1:0:1::1/64", "10.1.1.1/24"],
    }
    assert (nodes["w1"]["side"], nodes["d1"]["red4"]) == ("red", "10.1.0.1/24")
    assert data["links"][0] == {
        "ends": ["r1", "r2"],
        "side": "black",
        "bandwidth_mbit": 20.0,
        "delay_ms": 20.0,
        "jitter_ms": 1.0,
        "loss_percent": 0.1,
        "mtu": None,
    }
