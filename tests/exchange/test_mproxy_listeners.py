"""Listeners come and go: messages on the LAN against routes in the kernel and joins upstream."""

from __future__ import annotations

import pytest

from protocol.mproxy.messages import Query, RecordKind, Report
from tests.support.proxy import (
    FAR_SENDER,
    FAR_SENDER4,
    GROUP,
    GROUP4,
    HOST,
    HOST4,
    OTHER_HOST,
    OUR_ADDRESS,
    Proxy,
    device_config,
    general,
    join,
    leave,
    record,
    report,
    router_config,
)

LEAVE_MS = 2000
"""Robustness times the last listener interval."""


@pytest.mark.parametrize(
    ("host", "group", "sender"), [(HOST, GROUP, FAR_SENDER), (HOST4, GROUP4, FAR_SENDER4)]
)
def test_a_listener_gets_the_stream_until_it_leaves(host: str, group: str, sender: str) -> None:
    """MPROXY-5, MPROXY-10.

    host --- join ----------> proxy      the stream from upstream goes down
    host --- leave ---------> proxy
         <-- query(group) ---            still goes down
         <-- query(group) ---            (1 s later)
                                         nobody answers: after 2 s it stops
    """
    proxy = Proxy(device_config())
    assert proxy.packet("xfrm0", sender, group) == ()
    proxy.says(host, join(group))
    assert proxy.packet("xfrm0", sender, group) == ("red0",)
    proxy.queries.clear()
    proxy.says(host, leave(group))
    assert [(where, to, str(query.group)) for where, to, query in proxy.queries] == [
        ("red0", group, group)
    ]
    assert proxy.queries[0][2].response_ms == 1000
    proxy.advance(LEAVE_MS - 1)
    assert len(proxy.queries) == 2
    assert proxy.packet("xfrm0", sender, group) == ("red0",)
    proxy.advance(1)
    assert proxy.packet("xfrm0", sender, group) == ()
    assert proxy.status()["downstream"][0]["groups"] == []


def test_another_listener_that_answers_keeps_the_stream() -> None:
    """MPROXY-5."""
    proxy = Proxy(device_config())
    proxy.says(HOST, join())
    proxy.says(OTHER_HOST, join())
    proxy.packet("xfrm0", FAR_SENDER)
    proxy.queries.clear()
    proxy.says(HOST, leave())
    proxy.advance(500)
    proxy.says(OTHER_HOST, report(RecordKind.IS_EXCLUDE))
    proxy.advance(60_000)
    assert proxy.packet("xfrm0", FAR_SENDER) == ("red0",)
    # The repetition says that it was answered, so that no other router lowers its timer for it.
    assert [query.suppress for _, _, query in proxy.queries if query.group] == [False, True]


def test_a_listener_that_falls_silent_is_forgotten_after_the_membership_interval() -> None:
    proxy = Proxy(device_config())
    proxy.says(HOST, join())
    proxy.packet("xfrm0", FAR_SENDER)
    proxy.advance(2 * 125_000 + 10_000 - 1)
    assert proxy.status()["downstream"][0]["groups"] != []
    proxy.advance(1)
    assert proxy.status()["downstream"][0]["groups"] == []
    assert len(proxy.timers) == 3  # sweep, and a querier of each family


def test_a_listener_that_answers_every_query_stays() -> None:
    proxy = Proxy(device_config())
    proxy.says(HOST, join())
    for _ in range(20):
        proxy.advance(125_000)
        proxy.says(HOST, report(RecordKind.IS_EXCLUDE))
    assert proxy.status()["downstream"][0]["groups"][0]["sources"] == "any"


@pytest.mark.parametrize("version", [1, 2])
def test_older_hosts_join_and_leave(version: int) -> None:
    """MLDv1 report and Done; IGMPv2 report and Leave."""
    six = version == 1
    host, group, sender = (HOST, GROUP, FAR_SENDER) if six else (HOST4, GROUP4, FAR_SENDER4)
    proxy = Proxy(device_config())
    proxy.says(host, Report((record(RecordKind.IS_EXCLUDE, group=group),), version))
    assert proxy.packet("xfrm0", sender, group) == ("red0",)
    proxy.says(host, Report((record(RecordKind.TO_INCLUDE, group=group),), version))
    proxy.advance(LEAVE_MS)
    assert proxy.packet("xfrm0", sender, group) == ()


def test_a_listener_of_one_source_gets_only_that() -> None:
    proxy = Proxy(device_config())
    other = "fd00:2::6"
    proxy.says(HOST, report(RecordKind.ALLOW, FAR_SENDER, group="ff3e::9"))
    assert proxy.packet("xfrm0", FAR_SENDER, "ff3e::9") == ("red0",)
    assert proxy.packet("xfrm0", other, "ff3e::9") == ()
    proxy.says(HOST, report(RecordKind.ALLOW, other, group="ff3e::9"))
    assert proxy.packet("xfrm0", other, "ff3e::9") == ("red0",)
    proxy.queries.clear()
    proxy.says(HOST, report(RecordKind.BLOCK, FAR_SENDER, group="ff3e::9"))
    assert [str(source) for source in proxy.queries[0][2].sources] == [FAR_SENDER]
    proxy.advance(LEAVE_MS)
    assert proxy.packet("xfrm0", FAR_SENDER, "ff3e::9") == ()
    assert proxy.packet("xfrm0", other, "ff3e::9") == ("red0",)


def test_who_excludes_sources_gets_the_whole_group() -> None:
    """RFC 5790: what is excluded is the host's own affair."""
    proxy = Proxy(device_config())
    proxy.says(HOST, report(RecordKind.TO_EXCLUDE, FAR_SENDER))
    assert proxy.packet("xfrm0", FAR_SENDER) == ("red0",)


def test_from_everything_to_one_source() -> None:
    proxy = Proxy(router_config())
    proxy.says(HOST, join())
    assert proxy.joined == {(GROUP, None)}
    proxy.says(HOST, report(RecordKind.TO_INCLUDE, FAR_SENDER))
    assert proxy.joined == {(GROUP, None)}
    proxy.advance(LEAVE_MS)
    assert proxy.joined == {(GROUP, FAR_SENDER)}
    proxy.says(HOST, report(RecordKind.TO_EXCLUDE))
    assert proxy.joined == {(GROUP, None)}


def test_upstream_is_joined_for_both_lans_once() -> None:
    """MPROXY-13."""
    proxy = Proxy(router_config())
    proxy.says(HOST, join(), "eth1")
    proxy.says(HOST, join(), "eth2")
    assert proxy.joined == {(GROUP, None)}
    assert proxy.packet("eth0", FAR_SENDER) == ("eth1", "eth2")
    proxy.says(HOST, leave(), "eth1")
    proxy.advance(LEAVE_MS)
    assert proxy.joined == {(GROUP, None)}
    assert proxy.packet("eth0", FAR_SENDER) == ("eth2",)
    proxy.says(HOST, leave(), "eth2")
    proxy.advance(LEAVE_MS)
    assert proxy.joined == set()


def test_a_tunnel_upstream_is_told_nothing() -> None:
    """MPROXY-13."""
    proxy = Proxy(device_config())
    proxy.says(HOST, join())
    assert proxy.joined == set()


def test_a_restarted_proxy_asks_at_once_and_knows_soon() -> None:
    proxy = Proxy(device_config())
    started = [(str(to), query) for _, to, query in proxy.queries if query.version == 2]
    assert started == [
        ("ff02::1", Query(None, 1000, robustness=2, interval_s=125, version=2)),
    ]
    proxy.advance(125_000 / 4)
    responses = [query.response_ms for _, _, query in proxy.queries if query.version == 2]
    assert responses == [1000, 1000]
    proxy.advance(125_000)
    responses = [query.response_ms for _, _, query in proxy.queries if query.version == 2]
    assert responses == [1000, 1000, 10_000]


def test_the_lowest_address_is_querier_and_alone_forwards_to_the_lan() -> None:
    """MPROXY-4.

    proxy  fe80::10 --- query -->
    router fe80::2  --- query -->        the proxy watches, remembers listeners, forwards up only
                                         the router falls silent: the proxy asks again
    """
    proxy = Proxy(device_config())
    proxy.says(HOST, join())
    assert proxy.packet("xfrm0", FAR_SENDER) == ("red0",)
    proxy.says("fe80::11", general())
    assert proxy.packet("xfrm0", FAR_SENDER) == ("red0",)
    proxy.says("fe80::2", general(robustness=2, interval_s=10))
    assert proxy.packet("xfrm0", FAR_SENDER) == ()
    assert proxy.packet("red0", "fd00:1::5") == ("xfrm0",)
    port = proxy.status()["downstream"][0]
    assert (port["state"], port["querier"]) == ("watching", "fe80::2")
    proxy.queries.clear()
    proxy.says(HOST, report(RecordKind.IS_EXCLUDE))
    proxy.says(HOST, leave())
    assert proxy.queries == []
    proxy.says(HOST, report(RecordKind.IS_EXCLUDE))
    proxy.advance(2 * 10_000 + 5000)
    assert proxy.status()["downstream"][0]["state"] == "querier"
    assert [to for _, to, query in proxy.queries if query.version == 2] == ["ff02::1"]
    assert proxy.packet("xfrm0", FAR_SENDER) == ("red0",)


def test_a_watching_proxy_follows_the_queriers_questions() -> None:
    proxy = Proxy(router_config())
    proxy.says("fe80::2", general(robustness=2, interval_s=100))
    proxy.says(HOST, join())
    proxy.says("fe80::2", Query(record(RecordKind.ALLOW).group, 1000, suppress=True, version=2))
    proxy.advance(5000)
    assert proxy.joined == {(GROUP, None)}
    proxy.says("fe80::2", Query(record(RecordKind.ALLOW).group, 1000, version=2))
    proxy.advance(LEAVE_MS)
    assert proxy.joined == set()


def test_an_unspecified_querier_is_a_switch_not_a_router() -> None:
    """MPROXY-4."""
    proxy = Proxy(device_config())
    proxy.says("0.0.0.0", general(version=3))
    assert [port["state"] for port in proxy.status()["downstream"]] == ["querier", "querier"]


def test_an_interface_that_loses_its_address_serves_nobody_until_it_is_back() -> None:
    proxy = Proxy(device_config())
    proxy.says(HOST, join())
    proxy.packet("xfrm0", FAR_SENDER)
    proxy.address("red0", None, next(f for f in proxy.config.families if f.number == 6))
    assert proxy.packet("xfrm0", FAR_SENDER) == ()
    proxy.says(HOST, join())
    assert proxy.count("mproxy.ignored_port_down") == 1
    proxy.queries.clear()
    proxy.address("red0", OUR_ADDRESS)
    assert [query.response_ms for _, _, query in proxy.queries] == [1000]
    assert proxy.packet("xfrm0", FAR_SENDER) == ("red0",)


def test_our_own_reports_are_not_listeners() -> None:
    """The kernel of the proxy is a listener on the LAN too, and its reports may come back."""
    proxy = Proxy(device_config())
    proxy.says(OUR_ADDRESS, join())
    assert proxy.status()["downstream"][0]["groups"] == []


def test_a_stopped_proxy_is_as_new() -> None:
    """MPROXY-14."""
    proxy = Proxy(router_config())
    proxy.says(HOST, join())
    proxy.says(HOST, report(RecordKind.ALLOW, FAR_SENDER, group="ff3e::9"))
    proxy.packet("eth0", FAR_SENDER)
    proxy.stop()
    assert proxy.routes == {}
    assert proxy.joined == set()
    assert len(proxy.timers) == 0
    assert proxy.says(HOST, join()) == []
