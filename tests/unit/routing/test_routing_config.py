"""FRR's configuration, against the text that a person would write."""

from __future__ import annotations

from ipaddress import IPv6Address

from protocol.daemon.memberships import is_source_specific
from testbed.routing.config import (
    RoutingTimers,
    ospf6d_config,
    pim6d_commands,
    pim6d_config,
    zebra_config,
)
from testbed.routing.static import smcroute_config
from tests.support.routers import router_plans, wires

PLANS = router_plans(wires("r1 r2", "r1 r2 r3", "r1 h1", "r3 r4"), rp="r4")
R1, _, _, R4 = PLANS


def test_zebra_takes_everything_from_the_kernel() -> None:
    assert zebra_config(R1) == "hostname r1\n"


def test_ospf_on_a_cable_a_switch_an_edge_and_the_loopback() -> None:
    assert (
        ospf6d_config(R1, RoutingTimers())
        == """\
hostname r1
interface eth0
 ipv6 ospf6 area 0.0.0.0
 ipv6 ospf6 network point-to-point
 ipv6 ospf6 hello-interval 1
 ipv6 ospf6 dead-interval 4
 ipv6 ospf6 retransmit-interval 1
interface eth1
 ipv6 ospf6 area 0.0.0.0
 ipv6 ospf6 network broadcast
 ipv6 ospf6 hello-interval 1
 ipv6 ospf6 dead-interval 4
 ipv6 ospf6 retransmit-interval 1
interface eth2
 ipv6 ospf6 area 0.0.0.0
 ipv6 ospf6 passive
interface lo
 ipv6 ospf6 area 0.0.0.0
router ospf6
 ospf6 router-id 0.0.0.1
 timers lsa min-arrival 0
 timers throttle spf 0 100 500
"""
    )


def test_a_backup_of_the_rendezvous_point_is_far_away_on_every_interface() -> None:
    r3 = router_plans(wires("r1 r2", "r1 r3", "r1 h1"), rp="r2", backup="r3")[2]
    far = " ipv6 ospf6 cost 10000\n"
    text = ospf6d_config(r3, RoutingTimers())
    assert text.count(far) == text.count("\ninterface ") == 2
    assert far not in ospf6d_config(R1, RoutingTimers())
    assert "ipv6 pim rp 2001:db8:ff::2 ff00::/8" in pim6d_commands(r3, RoutingTimers())


def test_timers_are_parameters() -> None:
    timers = RoutingTimers(hello_interval_s=2, dead_interval_s=9, pim_hello_interval_s=7)
    text = ospf6d_config(R4, timers)
    assert " ipv6 ospf6 hello-interval 2\n ipv6 ospf6 dead-interval 9\n" in text
    assert "ipv6 pim hello 7" in pim6d_commands(R4, timers)


def test_no_interface_in_the_start_up_file_of_pim6d() -> None:
    assert pim6d_config(R1) == "hostname r1\n"


def test_pim_everywhere_and_mld_only_where_devices_are() -> None:
    on_every_interface = ["ipv6 pim", "ipv6 pim hello 1", "ipv6 pim drpriority 2"]
    assert pim6d_commands(R1, RoutingTimers()) == [
        "enable",
        "configure terminal",
        "ipv6 pim rp 2001:db8:ff::4 ff00::/8",
        "ipv6 pim join-prune-interval 5",
        "ipv6 pim register-suppress-time 11",
        *("interface eth0", *on_every_interface, "exit"),
        *("interface eth1", *on_every_interface, "exit"),
        *("interface eth2", *on_every_interface),
        *("ipv6 mld", "ipv6 mld query-interval 10", "ipv6 mld query-max-response-time 10", "exit"),
        *("interface lo", "ipv6 pim", "exit"),
        "end",
    ]


def test_mld_runs_on_a_wire_with_routers_and_devices_too() -> None:
    (plan, _) = router_plans(wires("r1 r2 h1"), rp="r2")
    assert "ipv6 mld" in pim6d_commands(plan, RoutingTimers())
    assert "network point-to-point" in ospf6d_config(plan, RoutingTimers())


def test_smcroute_sends_what_comes_in_out_on_all_others() -> None:
    assert (
        smcroute_config(["eth0", "eth2", "eth3"])
        == """\
phyint eth0 enable
phyint eth2 enable
phyint eth3 enable
mroute from eth0 group ff00::/8 to eth2 eth3
mroute from eth2 group ff00::/8 to eth0 eth3
mroute from eth3 group ff00::/8 to eth0 eth2
"""
    )
    assert smcroute_config(["eth0"]) == "phyint eth0 enable\n"


def test_source_specific_groups_are_those_of_rfc_4607() -> None:
    assert is_source_specific(IPv6Address("ff3e::8000:1"))
    assert is_source_specific(IPv6Address("ff35::1"))
    assert not is_source_specific(IPv6Address("ff0e::1"))
    # A unicast-prefix-based group (RFC 3306) has a prefix length in the second half.
    assert not is_source_specific(IPv6Address("ff3e:30:2001:db8::1"))
