"""FRR's configuration of one black router, as text; pure functions of its plan.

zebra and ospf6d read theirs when they start. pim6d's is a list of commands for its vty, given when
the daemon knows its interfaces: in FRR 8.4 an interface in pim6d's start-up file gets number 0,
that of the register vif, so that nothing is ever forwarded on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from testbed.routing.plan import RouterInterface, RouterPlan

_FAR: Final = (" ipv6 ospf6 cost 10000",)
"""On all interfaces of a backup of the rendezvous point: its copy of the address is nobody's choice
while the other lives, and no way leads through it, where it would keep the joins for the other."""

AREA: Final = "0.0.0.0"  # noqa: S104  (OSPF's backbone area, not a socket address)
GROUPS: Final = "ff00::/8"
_MLD_RESPONSE_UNIT_MS: Final = 100  # RFC 3376's tenths of a second, in which FRR takes MLD's too


@dataclass(frozen=True, slots=True)
class RoutingTimers:
    """How fast the routing protocols notice; the defaults suit an emulated network.

    Attributes:
        hello_interval_s: OSPF, RFC 5340 (and RFC 2328, appendix C.3).
        dead_interval_s: OSPF: silence after which a neighbour is gone; a designated router is
            elected after as long.
        retransmit_interval_s: OSPF: until an announcement that was not acknowledged is repeated.
        min_arrival_ms: OSPF's MinLSArrival (RFC 2328, appendix B): a router that changes its
            announcement sooner is not heard until it repeats it. With the standard's 1 s and FRR's
            5 s for repeating, every first convergence waits for that.
        spf_delay_ms: from a change to the computation of routes.
        spf_initial_hold_ms: between two computations at first.
        spf_max_hold_ms: the same, after many changes.
        pim_hello_interval_s: RFC 7761, section 4.3.1; a neighbour is gone after 3.5 times as long.
        pim_join_interval_s: RFC 7761, section 4.11, t_periodic: a Join that was lost is repeated
            after as long, and until then nothing comes that way. The standard's 60 s is longer than
            a measurement over lossy links.
        register_suppress_s: RFC 7761, section 4.11: a source's router tells the rendezvous point so
            often that the source is alive; after its death, a backup learns of it as late.
        mld_query_interval_s: RFC 3810, section 9.2; a listener that vanishes without a word counts
            for twice as long.
        mld_response_ms: RFC 3810, section 9.3; listeners spread their answers over it. FRR takes
            tenths of a second.
    """

    hello_interval_s: int = 1
    dead_interval_s: int = 4
    retransmit_interval_s: int = 1
    min_arrival_ms: int = 0
    spf_delay_ms: int = 0
    spf_initial_hold_ms: int = 100
    spf_max_hold_ms: int = 500
    pim_hello_interval_s: int = 1
    pim_join_interval_s: int = 5
    register_suppress_s: int = 11
    mld_query_interval_s: int = 10
    mld_response_ms: int = 1000


def zebra_config(plan: RouterPlan) -> str:
    """Return ``zebra.conf``: interfaces, addresses and forwarding are the kernel's already."""
    return f"hostname {plan.name}\n"


def ospf6d_config(plan: RouterPlan, timers: RoutingTimers) -> str:
    """Return ``ospf6d.conf``: one area, edge LANs announced but silent."""
    lines = [f"hostname {plan.name}"]
    for interface in plan.interfaces:
        lines += [f"interface {interface.name}", f" ipv6 ospf6 area {AREA}"]
        lines += [f" {line}" for line in _ospf_interface(interface, timers)]
        lines += _FAR if plan.backup else []
    if plan.loopback is not None:
        lines += ["interface lo", f" ipv6 ospf6 area {AREA}"]
        lines += _FAR if plan.backup else []
    throttle = (timers.spf_delay_ms, timers.spf_initial_hold_ms, timers.spf_max_hold_ms)
    lines += [
        "router ospf6",
        f" ospf6 router-id {plan.router_id}",
        f" timers lsa min-arrival {timers.min_arrival_ms}",
        f" timers throttle spf {' '.join(map(str, throttle))}",
    ]
    return "\n".join(lines) + "\n"


def _ospf_interface(interface: RouterInterface, timers: RoutingTimers) -> list[str]:
    if interface.routers == 0:
        return ["ipv6 ospf6 passive"]
    network = "broadcast" if interface.broadcast else "point-to-point"
    return [
        f"ipv6 ospf6 network {network}",
        f"ipv6 ospf6 hello-interval {timers.hello_interval_s}",
        f"ipv6 ospf6 dead-interval {timers.dead_interval_s}",
        f"ipv6 ospf6 retransmit-interval {timers.retransmit_interval_s}",
    ]


def pim6d_config(plan: RouterPlan) -> str:
    """Return ``pim6d.conf``, which must not name an interface (see above)."""
    return f"hostname {plan.name}\n"


def pim6d_commands(plan: RouterPlan, timers: RoutingTimers) -> list[str]:
    """Return what pim6d is told when it knows its interfaces, in the words of its vty."""
    lines = ["enable", "configure terminal", f"ipv6 pim rp {plan.rp} {GROUPS}"]
    lines.append(f"ipv6 pim join-prune-interval {timers.pim_join_interval_s}")
    lines.append(f"ipv6 pim register-suppress-time {timers.register_suppress_s}")
    for interface in plan.interfaces:
        lines += [f"interface {interface.name}", "ipv6 pim"]
        lines.append(f"ipv6 pim hello {timers.pim_hello_interval_s}")
        # The first hello leaves with the default interval and promises the next in 30 s. A new
        # priority is what makes FRR send one at once; all routers have the same, so none gains.
        lines.append("ipv6 pim drpriority 2")
        if interface.devices:
            response = timers.mld_response_ms // _MLD_RESPONSE_UNIT_MS
            lines += [
                "ipv6 mld",
                f"ipv6 mld query-interval {timers.mld_query_interval_s}",
                f"ipv6 mld query-max-response-time {response}",
            ]
        lines.append("exit")
    if plan.loopback is not None:
        # A router is the RP only if PIM runs on the interface that has the address.
        lines += ["interface lo", "ipv6 pim", "exit"]
    return [*lines, "end"]
