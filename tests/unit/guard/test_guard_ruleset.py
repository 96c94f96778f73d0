"""The guard as data: what is open, what is counted, and that everything else is dropped."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv6Address, IPv6Network

import pytest

from protocol.core.errors import LocalError
from protocol.guard.ruleset import RED_DROPS, Chain, GuardRules, chains, ruleset

RULES = GuardRules(
    black_address=IPv6Address("2001:db8:b::1"),
    idp_port=47500,
    mike_port=47510,
    idp_group=IPv6Address("ff0e::1d0"),
    mike_group=IPv6Address("ff0e::319e"),
    black_group=IPv6Address("ff0e::1"),
)


def chain(rules: GuardRules, hook: str, family: str = "inet") -> Chain:
    (found,) = (one for one in chains(rules) if (one.hook, one.family) == (hook, family))
    return found


def test_every_chain_drops_by_default_and_counts_what_it_drops() -> None:
    for hook in ("forward", "input", "output"):
        one = chain(RULES, hook)
        assert one.policy == "drop"
        assert one.rules[-1].endswith("drop")
    names = [name for one in chains(RULES) for name in one.counters]
    assert len(names) == len(set(names))
    drops = sum(rule.endswith("drop") for one in chains(RULES) for rule in one.rules)
    assert len(names) == drops
    assert set(RED_DROPS) <= set(names)
    text = ruleset(RULES)
    assert all(f"\tcounter {name} {{ }}\n" in text for name in names)


def test_only_red_and_tunnel_are_forwarded_between() -> None:
    accepts = [rule for rule in chain(RULES, "forward").rules if rule.endswith("accept")]
    assert accepts == [
        'iifname { "red0" } oifname "xfrm0" accept',
        'iifname "xfrm0" oifname { "red0" } accept',
    ]
    two = chain(replace(RULES, red=("red0", "red1")), "forward").rules
    assert 'iifname { "red0", "red1" } oifname { "red0", "red1" } accept' in two
    assert not any("black0" in rule for rule in two if rule.endswith("accept"))


def test_output_checks_source_and_destination_before_it_opens_anything() -> None:
    rules = chain(RULES, "output").rules
    first_open = rules.index("meta l4proto esp accept")
    for guard in (
        'ip6 saddr != 2001:db8:b::1 counter name "output_source" drop',
        'ip6 daddr { fc00::/7 } counter name "output_red_destination" drop',
        "ip6 daddr ff00::/8 ip6 daddr != { ff0e::1d0, ff0e::319e, ff0e::1 } "
        'counter name "output_group" drop',
        'meta nfproto ipv4 counter name "output_ipv4" drop',
    ):
        assert rules.index(guard) < first_open


def test_options_open_what_they_name_and_nothing_without_them() -> None:
    text = ruleset(RULES)
    assert "47503" not in text
    assert "echo" not in text
    more = ruleset(
        replace(
            RULES,
            extra_udp_ports=(47503,),
            echo=True,
            red_prefixes=(IPv6Network("fc00::/7"), IPv6Network("2001:db8:f::/48")),
        )
    )
    assert more.count("udp dport { 47503 } accept") == 2
    assert more.count("echo-request, echo-reply } accept") == 2
    assert "ip6 daddr { fc00::/7, 2001:db8:f::/48 } counter" in more


def test_it_is_never_loaded_on_top_of_another() -> None:
    lines = ruleset(RULES).splitlines()
    for family in ("inet", "arp"):
        start = lines.index(f"create table {family} guard")
        assert lines[start + 1] == f"table {family} guard {{"


@pytest.mark.parametrize(
    "wrong",
    [
        {"black": 'x" accept; "'},
        {"tunnel": ""},
        {"red": ("a-name-of-sixteen",)},
        {"red": ("black0",)},
        {"idp_port": 0},
        {"extra_udp_ports": (70000,)},
    ],
)
def test_what_nftables_would_misread_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(LocalError, match="guard: "):
        replace(RULES, **wrong)  # type: ignore[arg-type]


LEGS = (
    replace(RULES, red=()),
    replace(
        RULES,
        black_address=IPv6Address("2001:db8:c::1"),
        black="black1",
        tunnel="xfrm1",
        red=(),
    ),
)


def test_a_gateway_passes_packets_from_tunnel_to_tunnel_and_nothing_black() -> None:
    (forward, inward, outward, arp_in, _) = chains(*LEGS)
    accepts = [rule for rule in forward.rules if rule.endswith("accept")]
    assert accepts == [
        'iifname "xfrm0" oifname "xfrm1" accept',
        'iifname "xfrm1" oifname "xfrm0" accept',
    ]
    assert forward.policy == inward.policy == outward.policy == "drop"
    both = '{ "black0", "black1" }'
    assert f'oifname {both} counter name "forward_to_black" drop' in forward.rules
    assert arp_in.rules == (f'iifname {both} counter name "arp_in" drop',)


def test_each_leg_of_a_gateway_has_its_own_address_only() -> None:
    (_, inward, outward, _, _) = chains(*LEGS)
    for leg, other in zip(LEGS, LEGS[::-1], strict=True):
        here = [rule for rule in inward.rules if f'"{leg.black}" ' in rule and "!=" not in rule]
        assert any(str(leg.black_address) in rule for rule in here)
        assert not any(str(other.black_address) in rule for rule in here)
        assert here[-1].endswith('counter name "input_black" drop')
        source = f'oifname "{leg.black}" ip6 saddr != {leg.black_address}'
        assert any(rule.startswith(source) for rule in outward.rules)
    # Nothing that is said of one black interface holds for the other.
    first = inward.rules.index('iifname != { "black0", "black1" } counter name "input_other" drop')
    assert all(rule.startswith('iifname "black') for rule in inward.rules[first + 1 :])


def test_two_legs_on_one_interface_are_refused() -> None:
    with pytest.raises(LocalError, match="named twice"):
        chains(LEGS[0], replace(LEGS[1], black="black0"))
