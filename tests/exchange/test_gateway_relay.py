"""Gateways as message exchanges: what one partition learns of another, and who says it.

::

    A ──g1── B ──g3── C        g1 and g2 are redundant
      ──g2──
"""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import IPv6Address
from pathlib import Path

import pytest

from protocol.gateway.events import DeleteRoute, SetRoute
from protocol.gateway.messages import Claim, Member, encode_table, split
from protocol.gateway.protection import seal
from protocol.idpmike import EpochId
from tests.support.gateways import POLL_S, World, group_key, prefixes

ROW = {
    "a": {"d1": ["fd00:1::/64"], "d2": ["fd00:2::/64"]},
    "b": {"d3": ["fd00:3::/64"]},
    "c": {"d4": ["fd00:4::/64", "10.4.0.0/24"]},
}
GATEWAYS = {"g1": ("a", "b"), "g2": ("a", "b"), "g3": ("b", "c")}
SOURCE_A = IPv6Address("fd00:1::7")
SOURCE_C = IPv6Address("fd00:4::7")


def row(**settings: object) -> World:
    world = World(ROW, GATEWAYS, **settings)
    world.run(8)
    return world


def test_prefixes_and_members_of_one_end_are_known_at_the_other() -> None:
    world = row()
    # d1, d2 ==IDP==> g1 ==table==> g3: A by path A, B; g3 ==IDP==> d4: A's prefixes
    seen = world.partition_as_seen("g3", "a")
    assert seen is not None
    assert seen["path"] == ["a", "b"]
    assert seen["hops"] == 1
    assert seen["leg"] == "b"
    assert seen["gateway"] == "g1-b"
    assert [member["name"] for member in seen["members"]] == ["d1", "d2"]  # type: ignore[index]
    assert world.announcers("c") == {
        net: ["g3-c"] for net in prefixes("fd00:1::/64", "fd00:2::/64", "fd00:3::/64")
    }


def test_GATE_5_nothing_comes_back_to_where_it_came_from() -> None:
    # GATE-5
    world = row()
    for partition in ROW:
        assert not world.own_prefixes(partition) & world.announcers(partition).keys()


def test_GATE_6_and_GATE_7_of_two_gateways_the_lower_address_speaks() -> None:
    # GATE-6, GATE-7
    world = row()
    assert {tuple(who) for who in world.announcers("a").values()} == {("g1-a",)}
    assert all(who in (["g1-b"], ["g3-b"]) for who in world.announcers("b").values())
    legs = world.status("g2")["legs"]
    assert [leg["speaks_for"] for leg in legs] == [[], []]  # type: ignore[index]


@pytest.mark.parametrize(("start", "source"), [("a", SOURCE_A), ("c", SOURCE_C)])
def test_GATE_15_a_multicast_packet_is_carried_once_everywhere(
    start: str, source: IPv6Address
) -> None:
    # GATE-15
    world = row()
    assert world.multicast(start, source) == {"a": 1, "b": 1, "c": 1}


def test_GATE_15_a_source_in_the_wrong_partition_is_not_forwarded() -> None:
    # GATE-15
    world = row()
    assert world.multicast("c", SOURCE_A) == {"c": 1}
    assert world.multicast("a", IPv6Address("fd00:99::1")) == {"a": 1}
    assert any("GATE-15" in line for line in world.boxes["g1"].log)


def test_GATE_12_the_other_gateway_takes_over_when_one_dies() -> None:
    # GATE-12
    world = row()
    died_s = world.now_s
    world.multicast("a", SOURCE_A)
    world.kill("g1")
    world.run(4 + POLL_S)
    # IDP's LEAVE, and the next poll after it
    taken = [at for at, report in world.boxes["g2"].reports if report.point == "gateway.active"]
    assert taken
    assert max(taken) - died_s <= 4 + POLL_S
    world.run(1)
    assert {tuple(who) for who in world.announcers("a").values()} == {("g2-a",)}
    assert world.multicast("a", SOURCE_A) == {"a": 1, "b": 1, "c": 1}
    assert world.multicast("c", SOURCE_C) == {"a": 1, "b": 1, "c": 1}
    seen = world.partition_as_seen("g3", "a")
    assert seen is not None
    assert seen["gateway"] == "g2-b"


def test_GATE_12_a_gateway_that_hangs_is_forgotten_too() -> None:
    # GATE-12
    world = row()
    world.boxes["g1"].alive = False  # its idpds go on
    world.run(4 + 1 + POLL_S)
    assert world.status("g2")["legs"][0]["speaks_for"] == ["b", "c"]  # type: ignore[index]


def test_GATE_13_a_gateway_that_returns_listens_first_and_takes_its_place_again() -> None:
    # GATE-13
    world = row()
    world.kill("g1")
    world.run(6)
    world.revive("g1")
    back_s = world.now_s
    world.run(6)
    spoke = [at for at, name, _, _ in world.sent if name == "g1" and at >= back_s]
    assert min(spoke) - back_s >= 2
    assert {tuple(who) for who in world.announcers("a").values()} == {("g1-a",)}
    assert world.multicast("a", SOURCE_A) == {"a": 1, "b": 1, "c": 1}


def test_a_gateway_with_one_cable_cut_gives_way() -> None:
    world = row()
    world.boxes["g1"].cut.add("b")
    world.boxes["g1"].idpds["b"].device.down_at = world.now_s
    world.run(6)
    assert {tuple(who) for who in world.announcers("a").values()} == {("g2-a",)}
    assert world.multicast("a", SOURCE_A) == {"a": 1, "b": 1, "c": 1}


def test_what_is_gone_in_one_partition_is_gone_in_all() -> None:
    world = row()
    world.kill("d4")
    world.run(4 + 2)
    assert world.partition_as_seen("g1", "c") is None
    assert not set(prefixes("fd00:4::/64", "10.4.0.0/24")) & world.announcers("a").keys()
    world.device("d4").down_at = None
    world.run(2)
    assert set(prefixes("fd00:4::/64", "10.4.0.0/24")) <= world.announcers("a").keys()


def test_GATE_8_adjacent_prefixes_are_joined_and_none_is_added() -> None:
    # GATE-8
    devices = {
        "a": {"d1": ["fd00:0:0:2::/64", "fd00:0:0:3::/64"], "d2": ["fd00:0:0:5::/64"]},
        "b": {"d3": []},
    }
    world = World(devices, {"g1": ("a", "b")})
    world.run(8)
    assert set(world.announcers("b")) == set(prefixes("fd00:0:0:2::/63", "fd00:0:0:5::/64"))


def test_GATE_9_what_no_red_network_can_have_is_not_relayed() -> None:
    # GATE-9
    bad = ["::/0", "0.0.0.0/0", "ff0e::/16", "fe80::/64", "2001:db8:2::/48"]
    world = World({"a": {"d1": [*bad, "fd00:1::/64"]}, "b": {"d2": []}}, {"g1": ("a", "b")})
    world.run(8)
    assert set(world.announcers("b")) == set(prefixes("fd00:1::/64"))
    assert any("GATE-9" in line for line in world.boxes["g1"].log)


def test_GATE_10_a_stolen_prefix_stays_with_the_nearer_owner() -> None:
    # GATE-10
    devices = {
        "a": {"d1": ["fd00:1::/64"]},
        "b": {"d2": ["fd00:2::/64"]},
        "c": {"thief": ["fd00:1::/48", "fd00:2::/65"]},
    }
    world = World(devices, {"g1": ("a", "b"), "g2": ("b", "c")})
    world.run(8)
    # g1 is in a, g2 in b: neither lets the thief's claim past the owner's own partition.
    assert set(world.announcers("a")) == set(prefixes("fd00:2::/64"))
    assert "fd00:2::/65" not in {str(net) for net in world.announcers("b")}
    assert any("GATE-10" in line for line in world.boxes["g1"].log)
    assert world.multicast("a", SOURCE_A)["b"] == 1


def test_GATE_11_a_table_that_takes_too_much_room_is_refused() -> None:
    # GATE-11
    many = [f"fd00:{n:x}::/64" for n in range(2, 12, 2)]
    devices = {"a": {"d1": many}, "b": {"d2": []}, "c": {"d3": []}}
    world = World(devices, {"g1": ("a", "b"), "g2": ("b", "c")})
    object.__setattr__(world.boxes["g2"].engine._config, "max_prefixes", 4)
    world.run(8)
    assert world.partition_as_seen("g2", "a") is None
    assert any("GATE-11" in line for line in world.boxes["g2"].log)


def test_GATE_2_a_device_that_plays_gateway_is_refused() -> None:
    # GATE-2
    world = row()
    leg = world.boxes["g1"].engine._legs["b"]
    entry = world.everybody["g1-b"]
    plain = replace(entry, peer=replace(entry.peer, gateway=False))
    for box in ("g2", "g3"):
        world.boxes[box].engine._legs["b"].identity.trust(
            [plain if name == "g1-b" else one for name, one in world.everybody.items()]
        )
    assert leg.counts
    world.run(6)
    assert world.partition_as_seen("g3", "a")["gateway"] == "g2-b"  # type: ignore[index]
    assert any("GATE-2" in line for line in world.boxes["g3"].log)


def test_GATE_3_who_lacks_the_partition_s_key_is_not_heard() -> None:
    # GATE-3
    world = row()
    leg = world.boxes["g1"].engine._legs["b"]
    stranger = world.epochs["b"]
    leg._keys[stranger] = group_key("elsewhere", stranger)
    world.run(6)
    assert world.partition_as_seen("g3", "a")["gateway"] == "g2-b"  # type: ignore[index]
    assert any("GATE-3" in line for line in world.boxes["g3"].log)


def test_GATE_14_a_leg_without_a_group_key_says_nothing() -> None:
    # GATE-14
    world = World(ROW, {"g1": ("a", "b")})
    for box in world.boxes.values():
        for leg in box.engine._legs.values():
            leg.learn = lambda *_: None  # type: ignore[method-assign]
    world.run(8)
    assert world.sent == []
    assert world.announcers("b") == {}


def test_GATE_4_a_table_that_leads_back_is_refused() -> None:
    # GATE-4
    world = row()
    engine = world.boxes["g1"].engine
    body = engine._legs["b"].say([Claim(("c", "b", "a"), prefixes("fd00:4::/64"))])[1][0]
    payload = engine._legs["b"].identity.seal(1, 16, body, world.instant())
    world.wire.append(("b", "g1", payload))
    world.deliver()
    assert any("GATE-4" in line for line in world.boxes["g3"].log)


def test_GATE_16_local_and_black_groups_do_not_cross() -> None:
    # GATE-16
    from protocol.mproxy.events import FlowKey, Upcall

    world = row()
    box = world.boxes["g1"]
    for text in ("ff02::5", "ff03::5"):
        world.feed(box, Upcall("xa", SOURCE_A, IPv6Address(text)))
        assert box.mfc[FlowKey(SOURCE_A, IPv6Address(text))][1] == ()


def test_GATE_17_a_gateway_that_stops_withdraws_everything() -> None:
    # GATE-17
    world = row()
    world.multicast("a", SOURCE_A)
    world.stop("g1")
    box = world.boxes["g1"]
    assert box.mfc == {}
    assert all(idpd.told == set() for idpd in box.idpds.values())
    assert box.timers == {}
    world.deliver()  # its last word: nothing
    assert {tuple(who) for who in world.announcers("a").values()} == {("g2-a",)}
    assert world.multicast("a", SOURCE_A) == {"a": 1, "b": 1, "c": 1}


def test_red_prefixes_are_nowhere_in_what_is_said_on_the_black_wire() -> None:
    world = row()
    red = [IPv6Address(f"fd00:{number}::").packed[:8] for number in range(1, 5)]
    assert len(world.sent) > 20
    assert not any(octets in payload for _, _, _, payload in world.sent for octets in red)


def test_an_idpd_that_was_restarted_is_told_again() -> None:
    world = row()
    idpd = world.boxes["g3"].idpds["c"]
    idpd.startup += 1
    idpd.told.clear()
    world.run(2)
    assert set(idpd.told) == set(prefixes("fd00:1::/64", "fd00:2::/64", "fd00:3::/64"))


def test_a_rekey_is_followed() -> None:
    from protocol.idpmike import EpochId

    world = row()
    world.epochs["b"] = EpochId(2, b"b-------")
    world.run(6)
    assert world.multicast("a", SOURCE_A) == {"a": 1, "b": 1, "c": 1}
    assert world.status("g3")["legs"][0]["epoch"].startswith("2-")  # type: ignore[index]


def test_GATE_18_a_captured_gateway_cannot_speak_for_what_its_certificate_lacks() -> None:
    # GATE-18
    world = row()
    engine = world.boxes["g1"].engine
    body = engine._legs["b"].say([Claim(("a",), prefixes("fd00:3::/64"))])[1][0]
    world.wire.append(("b", "g1", engine._legs["b"].identity.seal(1, 16, body, world.instant())))
    world.deliver()
    assert any("GATE-18" in line for line in world.boxes["g3"].log)
    assert world.partition_as_seen("g3", "a")["prefixes"] != ["fd00:3::/64"]  # type: ignore[index]


def test_GATE_6_each_prefix_is_routed_by_the_best_way() -> None:
    # GATE-6
    world = row()
    routes = {}
    for effect in world.boxes["g2"].effects:
        if isinstance(effect, SetRoute):
            routes[str(effect.prefix)] = effect.leg
        elif isinstance(effect, DeleteRoute):
            assert routes.pop(str(effect.prefix)) == effect.leg
    # Also where it stands by: its leg a hears b's prefixes from g1, and b's own devices are nearer.
    assert routes == {
        "fd00:1::/64": "a",
        "fd00:2::/64": "a",
        "fd00:3::/64": "b",
        "fd00:4::/64": "b",
        "10.4.0.0/24": "b",
    }


def test_GATE_2_who_is_known_by_no_certificate_is_no_member_and_has_no_prefix() -> None:
    # GATE-2
    world = row()
    others = [one for name, one in world.everybody.items() if name != "d1"]
    for box in ("g1", "g2"):
        world.boxes[box].engine._legs["a"].identity.trust(others)
    world.device("d2").prefixes = prefixes("fd00:7::/64")  # something changes, all is judged anew
    world.run(2)
    seen = world.partition_as_seen("g3", "a")
    assert seen is not None
    assert [member["name"] for member in seen["members"]] == ["d2"]  # type: ignore[index]
    assert not set(prefixes("fd00:1::/64")) & world.announcers("b").keys()


def test_GATE_11_a_leg_announces_so_many_prefixes_and_the_nearest_first() -> None:
    # GATE-11
    many = {where: [f"fd00:{where}{n:x}::/64" for n in range(0, 400, 2)] for where in ("1", "2")}
    devices = {"a": {"d1": many["1"]}, "b": {"d2": many["2"]}, "c": {"d3": []}}
    world = World(devices, {"g1": ("a", "b"), "g2": ("b", "c")})
    world.run(8)
    announced = {str(net) for net in world.announcers("c")}
    assert len(announced) == 256
    assert set(many["2"]) <= announced
    assert any("GATE-11" in line for line in world.boxes["g2"].log)


def test_vector_of_the_document() -> None:
    document = (Path(__file__).resolve().parents[2] / "docs/gateways.md").read_text()
    found = re.search(r"Vector: .*?Part\s+`(\w+)`, body\s+`(\w+)`", document, re.DOTALL)
    assert found is not None
    member = Member(IPv6Address("2001:db8:b::1"), "d1")
    (part,) = split(encode_table([Claim(("a",), prefixes("fd00:a::/64"), (member,))]), 3)
    assert part.encode().hex() == found[1]
    epoch = EpochId(5, bytes.fromhex("0102030405060708"))
    body = seal(part.encode(), epoch, b"\x07" * 32, (b"\x01" * 16, 2), 4)
    assert body.hex() == found[2]
