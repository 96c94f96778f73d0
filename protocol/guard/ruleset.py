"""The nftables ruleset that keeps red and black apart in an IPsec device.

It is loaded before any interface of the device is up and never touched afterwards: no daemon knows
of it, so it holds before the first SA, after the last, and after a crash of everything else. All
chains drop by default; what passes is listed, what is dropped is counted by reason.

The data path that it leaves open is the one over the xfrm interface. A packet to be protected
passes the forward (or output) hook towards the tunnel interface; ``xfrm_output_resume``
(net/xfrm/xfrm_output.c) then sends the ESP packet through the output hook towards the black
interface. Inbound, ESP passes the input hook of the black interface and the decrypted packet comes
in again from the tunnel interface.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address, IPv6Network

from protocol.core.errors import LocalError

TABLE = "guard"

RED_DROPS = (
    "forward_to_black",
    "output_ipv4",
    "output_source",
    "output_red_destination",
    "output_group",
)
"""The counters of what would have carried something red onto the black wire."""

UNIQUE_LOCAL = IPv6Network("fc00::/7")
"""Addresses that are never routed on a public network (RFC 4193): no black destination."""


@dataclass(frozen=True, slots=True)
class GuardRules:
    """What the guard of one device must know, or that of one leg of a gateway (docs/gateways.md).

    Attributes:
        black_address: the only source of what leaves the black interface (besides link-local).
        idp_port: UDP port of IDP, source and destination.
        mike_port: the same for MIKE.
        idp_group: multicast group of IDP.
        mike_group: the same of MIKE.
        black_group: outer destination of multicast ESP.
        black: interface on the black network.
        red: interfaces on red networks.
        tunnel: the xfrm interface.
        red_prefixes: destinations that never appear on the black network.
        extra_udp_ports: UDP ports open on the black address, as server and as client.
        echo: whether the black address answers and sends ICMPv6 echo.

    Raises:
        LocalError: on construction: an interface name that nftables cannot take, a port out of
            range, or the same interface on two sides.
    """

    black_address: IPv6Address
    idp_port: int
    mike_port: int
    idp_group: IPv6Address
    mike_group: IPv6Address
    black_group: IPv6Address
    black: str = "black0"
    red: tuple[str, ...] = ("red0",)
    tunnel: str = "xfrm0"
    red_prefixes: tuple[IPv6Network, ...] = (UNIQUE_LOCAL,)
    extra_udp_ports: tuple[int, ...] = ()
    echo: bool = False

    def __post_init__(self) -> None:
        names = (self.black, *self.red, self.tunnel)
        for name in names:
            if not name or len(name) > 15 or not all(c.isalnum() or c in "-_." for c in name):
                raise LocalError(f"guard: {name!r} is no interface name")
        if len(set(names)) != len(names):
            raise LocalError(f"guard: an interface is named twice in {', '.join(names)}")
        for port in (self.idp_port, self.mike_port, *self.extra_udp_ports):
            if not 0 < port < 1 << 16:
                raise LocalError(f"guard: {port} is no UDP port")


@dataclass(frozen=True, slots=True)
class Chain:
    """One base chain.

    Attributes:
        family: ``inet`` or ``arp``.
        hook: netfilter hook; also the chain's name.
        policy: what happens to a packet that no rule decides.
        rules: nft syntax, one rule each.
    """

    family: str
    hook: str
    policy: str
    rules: tuple[str, ...]

    @property
    def counters(self) -> tuple[str, ...]:
        """Return the names of the counters that its rules use."""
        return tuple(rule.split()[-2].strip('"') for rule in self.rules if rule.endswith("drop"))


def ruleset(*legs: GuardRules) -> str:
    """Return the whole guard in nft syntax: one transaction, refused where there is a guard."""
    lines: list[str] = []
    of_rules = chains(*legs)
    for family in dict.fromkeys(chain.family for chain in of_rules):
        mine = [chain for chain in of_rules if chain.family == family]
        # Not replaced: that would make the kernel wait until no packet sees the old one any more.
        lines += [f"create table {family} {TABLE}", f"table {family} {TABLE} {{"]
        counters = dict.fromkeys(name for chain in mine for name in chain.counters)
        lines += [f"\tcounter {name} {{ }}" for name in counters]
        for chain in mine:
            hook = f"type filter hook {chain.hook} priority filter; policy {chain.policy};"
            lines += [f"\tchain {chain.hook} {{", f"\t\t{hook}"]
            lines += [f"\t\t{rule}" for rule in chain.rules]
            lines.append("\t}")
        lines.append("}")
    return "\n".join(lines) + "\n"


def chains(*legs: GuardRules) -> tuple[Chain, ...]:
    """Return the guard as data: of a device, or of a gateway with the rules of each leg.

    Raises:
        LocalError: two legs share an interface.
    """
    names = [name for leg in legs for name in (leg.black, leg.tunnel, *leg.red)]
    if len(set(names)) != len(names):
        raise LocalError(f"guard: an interface is named twice in {', '.join(names)}")
    trusted = _set(f'"{name}"' for leg in legs for name in ("lo", *leg.red, leg.tunnel))
    blacks = _either([f'"{leg.black}"' for leg in legs])
    return (
        _forward(legs),
        Chain("inet", "input", "drop", (f"iifname {trusted} accept", *_of_legs(legs, _input))),
        Chain("inet", "output", "drop", (f"oifname {trusted} accept", *_of_legs(legs, _output))),
        # Neither question nor answer on the black wire may name an IPv4 address of the red side.
        Chain("arp", "input", "accept", (f"iifname {blacks} {_drop('arp_in')}",)),
        Chain("arp", "output", "accept", (f"oifname {blacks} {_drop('arp_out')}",)),
    )


def _of_legs(
    legs: Sequence[GuardRules], lines_of: Callable[[GuardRules], tuple[str, str, list[str]]]
) -> list[str]:
    """Return the rules for the black interfaces: nothing else is left, then each leg's own."""
    where = _either([f'"{leg.black}"' for leg in legs])
    match, counter, _ = lines_of(legs[0])
    lines = [f"{match} != {where} {_drop(counter)}"]
    for leg in legs:
        here = f'{match} "{leg.black}" ' if len(legs) > 1 else ""
        lines += [here + line for line in lines_of(leg)[2]]
    return lines


def _forward(legs: Sequence[GuardRules]) -> Chain:
    lines = []
    for leg in legs:
        if not leg.red:
            continue
        red, tunnel = _set(f'"{name}"' for name in leg.red), f'"{leg.tunnel}"'
        lines += [
            f"iifname {red} oifname {tunnel} accept",
            f"iifname {tunnel} oifname {red} accept",
        ]
        if len(leg.red) > 1:
            lines.append(f"iifname {red} oifname {red} accept")
    # A gateway takes red packets out of one tunnel and into another, and never back.
    for one in legs:
        for other in legs:
            if one is not other:
                lines.append(f'iifname "{one.tunnel}" oifname "{other.tunnel}" accept')
    blacks = _either([f'"{leg.black}"' for leg in legs])
    lines += [
        f"oifname {blacks} {_drop('forward_to_black')}",
        f"iifname {blacks} {_drop('forward_from_black')}",
        _drop("forward_other"),
    ]
    return Chain("inet", "forward", "drop", tuple(lines))


def _input(rules: GuardRules) -> tuple[str, str, list[str]]:
    own = str(rules.black_address)
    lines = [
        f"meta nfproto ipv4 {_drop('input_ipv4')}",
        f"ip6 daddr {_set([own, rules.black_group])} meta l4proto esp accept",
        f"ip6 daddr {_set([own, rules.idp_group])} {_both(rules.idp_port)} accept",
        f"ip6 daddr {_set([own, rules.mike_group])} {_both(rules.mike_port)} accept",
        # IPv6 reassembles behind the input hook. A later fragment has no ports to look at, and is
        # nothing without the first one, which has.
        f"ip6 daddr {_set([own, rules.idp_group, rules.mike_group])} "
        "frag frag-off > 0 meta l4proto udp accept",
        # RFC 4443 errors; RFC 2710 and 3810 MLD; RFC 4861 neighbour discovery without what would
        # change routes or addresses (router advertisement, redirect).
        "icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem, "
        "mld-listener-query, mld-listener-report, mld-listener-done, mld2-listener-report, "
        "nd-neighbor-solicit, nd-neighbor-advert } accept",
    ]
    if rules.extra_udp_ports:
        ports = _set(rules.extra_udp_ports)
        lines += [f"ip6 daddr {own} udp {side} {ports} accept" for side in ("dport", "sport")]
    if rules.echo:
        lines.append(f"ip6 daddr {own} icmpv6 type {{ echo-request, echo-reply }} accept")
    return "iifname", "input_other", [*lines, _drop("input_black")]


def _output(rules: GuardRules) -> tuple[str, str, list[str]]:
    own = str(rules.black_address)
    groups = _set([rules.idp_group, rules.mike_group, rules.black_group])
    protocols = sorted({rules.idp_port, rules.mike_port})
    lines = [
        f"meta nfproto ipv4 {_drop('output_ipv4')}",
        # No ICMPv6 errors: they would quote what was received, even from inside a tunnel.
        f"ip6 saddr {_set([own, '::', 'fe80::/10'])} icmpv6 type {{ mld-listener-report, "
        "mld-listener-done, mld2-listener-report, nd-neighbor-solicit, nd-neighbor-advert } accept",
        f"ip6 saddr != {own} {_drop('output_source')}",
        f"ip6 daddr {_set(rules.red_prefixes)} {_drop('output_red_destination')}",
        f"ip6 daddr ff00::/8 ip6 daddr != {groups} {_drop('output_group')}",
        "meta l4proto esp accept",
        *(f"{_both(port)} accept" for port in protocols),
    ]
    if rules.extra_udp_ports:
        ports = _set(rules.extra_udp_ports)
        lines += [f"udp {side} {ports} accept" for side in ("dport", "sport")]
    if rules.echo:
        lines.append("icmpv6 type { echo-request, echo-reply } accept")
    return "oifname", "output_other", [*lines, _drop("output_black")]


def _both(port: int) -> str:
    """Match UDP between equal ports, as the daemons bind them."""
    return f"udp sport {port} udp dport {port}"


def _drop(counter: str) -> str:
    return f'counter name "{counter}" drop'


def _either(values: Sequence[str]) -> str:
    return values[0] if len(values) == 1 else _set(values)


def _set(values: Iterable[object]) -> str:
    return f"{{ {', '.join(dict.fromkeys(str(value) for value in values))} }}"
