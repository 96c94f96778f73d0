"""The rules, one by one; and the specification says what the code does."""

from __future__ import annotations

import re
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from protocol.core.errors import DecodeError, PeerError
from protocol.core.transitions import to_mermaid
from protocol.mproxy import igmp, mld, rules
from protocol.mproxy.config import ConfigError, MproxyConfig
from protocol.mproxy.port import PORT
from tests.support.proxy import device_config, downstream, router_config

DOCUMENT = (Path(__file__).resolve().parents[3] / "docs" / "mproxy.md").read_text()


def test_rule_table_of_the_document_is_that_of_the_code() -> None:
    rows = dict(re.findall(r"^\| (MPROXY-\d+) \| (.+) \|$", DOCUMENT, re.MULTILINE))
    assert rows == rules.RULES


def test_diagram_of_the_document_is_drawn_from_the_table() -> None:
    assert f"```mermaid\n{to_mermaid(PORT)}```" in DOCUMENT
    assert PORT.unreachable() == []


def test_settings_of_the_document_are_the_defaults() -> None:
    config = device_config()
    rows = re.findall(r"^\| (\w+) \| (\d+) \| .+ \|$", DOCUMENT, re.MULTILINE)
    named = {name: int(value) for name, value in rows}
    assert named == {name: getattr(config, name) for name in named}
    assert len(named) == 14


def refused_as(rule: str) -> Any:
    return pytest.raises(PeerError, match=rf"^{rule}: ")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "8300",
        "83000000" + "00000000" + "fe800000000000000000000000000001",
        "81000000" + "00000000" + "ff0e0000000000000000000000000077",
        "8f000000" + "0000ffff" + "0400000000000000",
        "8f000000" + "00000001" + "09000000ff0e0000000000000000000000000077",
        "8f000000" + "00000001" + "04000001ff0e0000000000000000000000000077" + "ff" * 16,
        "82000000" + "03e80000" + "00" * 16 + "02" + "7d" + "0001" + "fd" * 16,
    ],
    ids=[
        "empty", "cut", "group not multicast", "other type", "records missing", "unknown record",
        "source multicast", "general query with sources",
    ],
)  # fmt: skip
def test_mproxy_1(text: str) -> None:
    """MPROXY-1."""
    with pytest.raises(DecodeError, match=r"^MPROXY-1: "):
        mld.decode(bytes.fromhex(text))


def with_checksum(data: bytes) -> bytes:
    return data[:2] + igmp.checksum(data).to_bytes(2, "big") + data[4:]


def test_mproxy_1_for_igmp() -> None:
    """MPROXY-1: version 1 reports and wrong checksums are refused."""
    good = with_checksum(bytes.fromhex("16000000ef010203"))
    igmp.decode(good)
    first = with_checksum(bytes.fromhex("12000000ef010203"))
    for bad in (first, good[:2] + b"\0\0" + good[4:]):
        with pytest.raises(DecodeError, match=r"^MPROXY-1: "):
            igmp.decode(bad)


def test_mproxy_2() -> None:
    """MPROXY-2."""
    rules.check_on_link(1, True, 6)
    rules.check_on_link(1, False, 4)
    for hop_limit, router_alert, version in ((64, True, 6), (1, False, 6), (2, True, 4)):
        with refused_as("MPROXY-2"):
            rules.check_on_link(hop_limit, router_alert, version)


def test_mproxy_3() -> None:
    """MPROXY-3."""
    prefixes = (ip_network("10.1.0.0/24"), ip_network("fd00:1::/64"))
    for fine in ("fe80::1", "10.1.0.9", "0.0.0.0"):
        rules.check_sender(ip_address(fine), prefixes)
    for bad in ("fd00:1::9", "::", "10.2.0.9"):
        with refused_as("MPROXY-3"):
            rules.check_sender(ip_address(bad), prefixes)


def test_mproxy_4() -> None:
    """MPROXY-4."""
    own = ip_address("10.1.0.5")
    assert rules.outranks(ip_address("10.1.0.4"), own)
    assert not rules.outranks(ip_address("10.1.0.6"), own)
    assert not rules.outranks(ip_address("0.0.0.0"), own)


def test_mproxy_5() -> None:
    """MPROXY-5: a timer is lowered, never raised."""
    assert rules.lowered_ns(500, 100, 20) == 120
    assert rules.lowered_ns(110, 100, 20) == 110


def test_mproxy_6() -> None:
    """MPROXY-6."""
    rules.check_rate(True, True)
    for host, lan in ((False, True), (True, False)):
        with refused_as("MPROXY-6"):
            rules.check_rate(host, lan)


def test_mproxy_7() -> None:
    """MPROXY-7."""
    config = device_config(max_groups=10, max_groups_per_host=3, max_sources=2)
    rules.check_group_room(9, 2, config)
    rules.check_source_room(2, config)
    for groups, of_host in ((10, 0), (5, 3)):
        with refused_as("MPROXY-7"):
            rules.check_group_room(groups, of_host, config)
    with refused_as("MPROXY-7"):
        rules.check_source_room(3, config)


@pytest.mark.parametrize(
    ("group", "passes"),
    [
        ("ff0e::77", True), ("ff3e::8000:1", True), ("ff05::1", True), ("ff08::1", True),
        ("ff01::1", False), ("ff02::1", False), ("ff12::5", False), ("ff04::1", False),
        ("ff0f::1", False), ("ff00::1", False), ("ff0e::1", False),
        ("239.1.2.3", True), ("232.0.0.1", True), ("224.0.1.1", True),
        ("224.0.0.1", False), ("224.0.0.251", False),
    ],
)  # fmt: skip
def test_mproxy_8(group: str, passes: bool) -> None:
    """MPROXY-8."""
    assert rules.may_pass(ip_address(group), device_config()) is passes


def test_mproxy_8_with_ranges() -> None:
    """MPROXY-8: ranges restrict (and may admit a narrow scope), link-local stays out."""
    ranges = (ip_network("ff3e::/16"), ip_network("ff02::/16"), ip_network("ff04::/16"))
    config = device_config(groups=ranges)
    passing = [g for g in ("ff3e::1", "ff0e::77", "ff02::9", "ff04::9", "239.1.2.3")
               if rules.may_pass(ip_address(g), config)]  # fmt: skip
    assert passing == ["ff3e::1", "ff04::9"]


@pytest.mark.parametrize(
    ("source", "interface"),
    [("fd00:1::9", "eth1"), ("fd00:1:2::9", "eth2"), ("10.1.2.9", "eth2"), ("fd00:2::9", "eth0"),
     ("10.9.0.1", "eth0"), ("fe80::1", "eth0")],
)  # fmt: skip
def test_mproxy_9(source: str, interface: str) -> None:
    """MPROXY-9."""
    assert rules.rpf_interface(ip_address(source), router_config()) == interface


def test_mproxy_10() -> None:
    """MPROXY-10."""
    assert rules.outs_of("eth1", [], "eth0") == ("eth0",)
    assert rules.outs_of("eth1", ["eth1", "eth2"], "eth0") == ("eth0", "eth2")
    assert rules.outs_of("eth0", [], "eth0") == ()
    assert rules.outs_of("eth0", ["eth2"], "eth0") == ("eth2",)


def test_mproxy_11() -> None:
    """MPROXY-11."""
    assert rules.has_flow_room(4, 5)
    assert not rules.has_flow_room(5, 5)


def test_mproxy_12() -> None:
    """MPROXY-12."""
    assert not rules.is_idle(100, 149, 50)
    assert rules.is_idle(100, 150, 50)


def test_mproxy_13() -> None:
    """MPROXY-13."""
    one, two = ip_address("fd00:2::1"), ip_address("fd00:2::2")
    both = [frozenset({one}), frozenset({two})]
    assert rules.upstream_wish(both, True) == {one, two}
    assert rules.upstream_wish([*both, None], True) is None
    assert rules.upstream_wish([*both, None], False) == frozenset()
    assert rules.upstream_wish([], True) == frozenset()


def test_mproxy_14() -> None:
    """MPROXY-14."""
    assert rules.may_act(True)
    assert not rules.may_act(False)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"downstreams": ()}, "downstream: at least one"),
        ({"upstream": "red0"}, "named twice"),
        ({"downstreams": tuple(downstream(f"e{n}", f"fd00:{n}::/64") for n in range(1, 40))}, "31"),
        ({"families": ()}, "families: neither"),
        ({"robustness": 8}, "robustness: 8"),
        ({"robustness": True}, "robustness: True"),
        ({"query_response_ms": 10_000, "query_interval_ms": 10_000}, "query_response_ms: must be"),
        ({"downstreams": (downstream("red0"),)}, "prefixes: red0 has none"),
        ({"downstreams": (downstream("red0", "ff00::/8"),)}, "no unicast prefix"),
        ({"downstreams": (downstream("red0", "::/0"),)}, "no unicast prefix"),
        ({"downstreams": (downstream("red0", "fe80::/64"),)}, "no unicast prefix"),
        (
            {"downstreams": (downstream("a", "fd00::/32"), downstream("b", "fd00:0:1::/48"))},
            "overlaps fd00::/32 on a",
        ),
        ({"never": (ip_network("fd00::/8"),)}, "never: fd00::/8 is not multicast"),
    ],
)
def test_wrong_settings_are_named(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(text)):
        MproxyConfig(**{"upstream": "xfrm0", "downstreams": device_config().downstreams, **changes})
