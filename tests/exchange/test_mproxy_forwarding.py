"""Where packets go, what is refused, and what a flood can do."""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address

import pytest

from protocol.mproxy.events import DeleteMfc, MessageReceived, SetMfc
from protocol.mproxy.messages import RecordKind, Report
from tests.support.proxy import (
    FAR_SENDER,
    GROUP,
    HOST,
    HOST4,
    OTHER_HOST,
    OWN_SENDER,
    OWN_SENDER4,
    Proxy,
    device_config,
    join,
    leave,
    record,
    report,
    router_config,
)


def test_red_goes_up_without_any_listener() -> None:
    """MPROXY-10."""
    proxy = Proxy(device_config())
    assert proxy.packet("red0", OWN_SENDER) == ("xfrm0",)
    assert proxy.packet("red0", OWN_SENDER4, "239.9.9.9") == ("xfrm0",)
    assert [point for point, _ in proxy.reports if point == "mproxy.forward"] == [
        "mproxy.forward",
        "mproxy.forward",
    ]


def test_red_goes_to_the_other_lan_only_if_somebody_listens() -> None:
    """MPROXY-10."""
    proxy = Proxy(router_config())
    assert proxy.packet("eth1", OWN_SENDER) == ("eth0",)
    proxy.says(HOST, join(), "eth1")
    assert proxy.packet("eth1", OWN_SENDER) == ("eth0",)
    proxy.says(HOST, join(), "eth2")
    assert proxy.packet("eth1", OWN_SENDER) == ("eth0", "eth2")


def test_a_route_is_the_first_effect_of_an_upcall() -> None:
    """The packet waits in the kernel."""
    proxy = Proxy(device_config(max_flows=1))
    proxy.packet("red0", OWN_SENDER)
    proxy.packet("red0", OWN_SENDER, "ff0e::78")
    kinds = [type(effect) for effect in proxy.log if isinstance(effect, SetMfc | DeleteMfc)]
    assert kinds == [SetMfc, SetMfc, DeleteMfc]


def test_a_red_host_cannot_speak_in_another_nations_name() -> None:
    """MPROXY-9: and does not keep that nation's stream out by trying."""
    proxy = Proxy(device_config())
    proxy.says(HOST, join())
    assert proxy.packet("red0", FAR_SENDER) == ()
    assert proxy.count("MPROXY-9") == 1
    assert proxy.status()["refused"][0]["peer"] == FAR_SENDER
    assert proxy.packet("xfrm0", FAR_SENDER) == ("red0",)


def test_our_own_red_does_not_come_back_from_upstream() -> None:
    """MPROXY-9."""
    proxy = Proxy(device_config())
    proxy.says(HOST, join())
    assert proxy.packet("xfrm0", OWN_SENDER) == ()
    assert proxy.packet("red0", OWN_SENDER) == ("xfrm0",)


def test_strays_on_a_known_route_are_counted_by_the_sweep() -> None:
    """MPROXY-9."""
    proxy = Proxy(device_config())
    proxy.packet("red0", OWN_SENDER)
    for _ in range(7):
        proxy.packet("xfrm0", OWN_SENDER)
    proxy.advance(10_000)
    assert proxy.count("MPROXY-9") == 7


@pytest.mark.parametrize("group", ["ff02::77", "ff0e::1", "ff01::5", "224.0.0.77"])
def test_a_group_that_must_not_pass_goes_nowhere(group: str) -> None:
    """MPROXY-8: even if somebody asks for it."""
    proxy = Proxy(device_config())
    six = ":" in group
    proxy.says(HOST if six else HOST4, join(group))
    assert proxy.packet("red0", OWN_SENDER if six else OWN_SENDER4, group) == ()
    assert proxy.packet("xfrm0", FAR_SENDER if six else "10.2.0.9", group) == ()
    assert proxy.count("MPROXY-8") == 2
    assert [port["groups"] for port in proxy.status()["downstream"]] == [[], []]


def test_a_flow_that_ends_is_removed_and_a_busy_one_is_not() -> None:
    """MPROXY-12."""
    proxy = Proxy(device_config())
    proxy.packet("red0", OWN_SENDER)
    for _ in range(7):
        proxy.packet("red0", OWN_SENDER, "ff0e::78")
        proxy.advance(10_000)
    assert set(proxy.routes) == {(OWN_SENDER, "ff0e::78")}
    assert [fields["group"] for point, fields in proxy.reports if point == "mproxy.expire"] == [
        GROUP
    ]


def test_a_route_the_kernel_lost_is_forgotten() -> None:
    proxy = Proxy(device_config())
    proxy.packet("red0", OWN_SENDER)
    proxy.routes.clear()
    proxy.counts.clear()
    proxy.advance(10_000)
    assert proxy.status()["flows"] == []
    assert proxy.packet("red0", OWN_SENDER) == ("xfrm0",)


def test_a_sender_that_floods_groups_pushes_out_its_own_flows() -> None:
    """MPROXY-11."""
    proxy = Proxy(device_config(max_flows=100, max_flows_per_source=10))
    proxy.packet("red0", OWN_SENDER)
    for number in range(500):
        proxy.packet("red0", "fd00:1::666", str(IPv6Address("ff0e::") + number + 2))
    assert (OWN_SENDER, GROUP) in proxy.routes
    assert len(proxy.routes) == 11
    assert proxy.count("MPROXY-11") == 490


def test_invented_sources_push_out_only_one_another() -> None:
    """MPROXY-11."""
    proxy = Proxy(device_config(max_flows=20))
    for number in range(10):
        proxy.packet("red0", f"fd00:1::{number + 100}")
    for number in range(500):
        proxy.packet("red0", f"fd00:bad::{number:x}")
    own = {source for source, _ in proxy.routes if source.startswith("fd00:1:")}
    assert len(own) == 10
    assert len(proxy.routes) == 20
    for number in range(500, 520):
        proxy.packet("red0", f"fd00:1::{number}")
    assert len(proxy.routes) == 20


def test_a_suspect_flow_that_proves_proper_stays() -> None:
    """MPROXY-11."""
    proxy = Proxy(device_config(max_flows=2))
    proxy.packet("red0", FAR_SENDER)
    proxy.packet("xfrm0", FAR_SENDER)
    proxy.advance(10_000)
    proxy.packet("red0", "fd00:bad::1")
    proxy.packet("red0", "fd00:bad::2")
    assert (FAR_SENDER, GROUP) in proxy.routes


def test_a_host_that_floods_reports_does_not_silence_another() -> None:
    """MPROXY-6."""
    proxy = Proxy(device_config())
    for number in range(1000):
        proxy.says(OTHER_HOST, join(str(IPv6Address("ff0e::1000") + number)))
    assert proxy.count("MPROXY-6") == 800
    assert proxy.count("MPROXY-7") == 136
    proxy.says(HOST, join())
    assert proxy.packet("xfrm0", FAR_SENDER) == ("red0",)
    proxy.advance(1000)
    before = proxy.count("MPROXY-6")
    for number in range(100):
        proxy.says(OTHER_HOST, leave(str(IPv6Address("ff0e::1000") + number)))
    assert proxy.count("MPROXY-6") - before == 50


def test_many_hosts_that_flood_meet_the_limit_of_the_lan() -> None:
    """MPROXY-6, MPROXY-7."""
    proxy = Proxy(device_config())
    for number in range(3000):
        host = str(IPv6Address("fe80::1000") + number)
        proxy.says(host, join(str(IPv6Address("ff0e::1000") + number)))
    assert proxy.count("MPROXY-6") == 1000
    assert len(proxy.status()["downstream"][0]["groups"]) == 256
    assert proxy.count("MPROXY-7") == 2000 - 256


def test_every_record_of_a_long_report_costs() -> None:
    """MPROXY-6."""
    proxy = Proxy(device_config())
    records = [record(RecordKind.IS_EXCLUDE, group=str(IPv6Address("ff0e::1000") + n % 50))
               for n in range(300)]  # fmt: skip
    proxy.says(HOST, Report(tuple(records), 2))
    assert proxy.count("MPROXY-6") == 100


def test_too_many_sources_are_refused() -> None:
    """MPROXY-7."""
    proxy = Proxy(device_config(max_sources=3))
    sources = [f"fd00:2::{n}" for n in range(1, 5)]
    proxy.says(HOST, report(RecordKind.ALLOW, *sources, group="ff3e::9"))
    assert proxy.count("MPROXY-7") == 1
    proxy.says(HOST, report(RecordKind.ALLOW, *sources[:3], group="ff3e::9"))
    proxy.says(HOST, report(RecordKind.ALLOW, sources[3], group="ff3e::9"))
    assert proxy.count("MPROXY-7") == 2
    assert proxy.packet("xfrm0", sources[0], "ff3e::9") == ("red0",)


def test_messages_from_elsewhere_are_refused() -> None:
    """MPROXY-1, MPROXY-2, MPROXY-3."""
    proxy = Proxy(device_config())
    proxy.says(HOST, join(), hop_limit=64)
    proxy.says(HOST, join(), router_alert=False)
    proxy.says("fd00:1::20", join())
    proxy.says("10.2.0.9", join("239.1.1.1"))
    proxy.give(MessageReceived("red0", ip_address(HOST), 1, True, b"\x8f\0\0\0\0\0\0\x01"))
    counts = {rule: proxy.count(rule) for rule in ("MPROXY-1", "MPROXY-2", "MPROXY-3")}
    assert counts == {"MPROXY-1": 1, "MPROXY-2": 2, "MPROXY-3": 2}
    assert [port["groups"] for port in proxy.status()["downstream"]] == [[], []]


def test_a_family_that_is_off_is_ignored() -> None:
    six = tuple(f for f in device_config().families if f.number == 6)
    proxy = Proxy(device_config(families=six))
    proxy.says(HOST4, join("239.1.1.1"))
    assert len(proxy.status()["downstream"]) == 1
