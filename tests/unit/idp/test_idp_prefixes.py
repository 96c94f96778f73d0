"""Which prefixes are accepted, and the table that knows whose they are."""

from __future__ import annotations

import time
from ipaddress import IPv6Address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.core.errors import PeerError
from protocol.idp import rules
from protocol.idp.prefixes import PrefixTable
from tests.support.identities import address

BLACK = (ip_network("2001:db8:b::/64"),)


@pytest.mark.parametrize(
    ("prefix", "why"),
    [
        ("0.0.0.0/0", "default route"),
        ("::/0", "default route"),
        ("::/1", "unicast"),
        ("::1/128", "unicast"),
        ("ff0e::1/128", "unicast"),
        ("8000::/1", "unicast"),
        ("fe80::/64", "unicast"),
        ("224.0.0.0/8", "unicast"),
        ("127.0.0.0/8", "unicast"),
        ("169.254.7.0/24", "unicast"),
        ("128.0.0.0/1", "unicast"),
        ("2001:db8:b::/64", "black network"),
        ("2001:db8::/32", "black network"),
        ("2001:db8:b::7/128", "black network"),
    ],
)
def test_idp_22(prefix: str, why: str) -> None:
    """IDP-22."""
    with pytest.raises(PeerError, match=rf"^IDP-22: .*{why}"):
        rules.check_kind(ip_network(prefix), BLACK)  # type: ignore[arg-type]


@pytest.mark.parametrize("prefix", ["fd00:1::/64", "2001:db8:c::/48", "10.0.0.0/8", "fc00::/7"])
def test_red_networks_are_fine(prefix: str) -> None:
    rules.check_kind(ip_network(prefix), BLACK)  # type: ignore[arg-type]


def test_a_certificate_authorises_what_lies_within_its_blocks() -> None:
    with pytest.raises(PeerError, match="IDP-21"):
        rules.check_authorised(ip_network("fd00:9::/64"), ())
    with pytest.raises(PeerError, match="IDP-21"):
        rules.check_authorised(ip_network("fd00:8::/31"), [ip_network("fd00:9::/32")])
    rules.check_authorised(ip_network("fd00:9::/64"), [ip_network("fd00:9::/32")])


def test_overlap_with_our_own() -> None:
    with pytest.raises(PeerError, match="overlaps our own fd00:1::/64"):
        rules.check_overlap(ip_network("fd00:1::/48"), [ip_network("fd00:1::/64")], None)


small = st.builds(
    lambda bits, length: ip_network(
        (0xFD << 120 | bits >> (8 - length) << (128 - 16 + 8 - length), 8 + length)
    ),
    st.integers(0, 255),
    st.integers(1, 8),
)


@given(st.lists(st.tuples(st.integers(0, 3), st.sets(small, max_size=5)), max_size=12), small)
def test_table_agrees_with_looking_at_every_entry(
    changes: list[tuple[int, set[object]]], asked: object
) -> None:
    table, plain = PrefixTable(), {}
    for index, wanted in changes:
        owner = address(index)
        kept = [
            prefix
            for prefix in wanted
            if not any(
                prefix.overlaps(o)
                for other, had in plain.items()  # type: ignore[attr-defined]
                if other != owner
                for o in had
            )
        ]
        for prefix in wanted:
            assert (table.overlap(prefix, owner) is None) == (prefix in kept)  # type: ignore[arg-type]
        table.assign(owner, kept)  # type: ignore[arg-type]
        plain[owner] = kept
    assert len(table) == sum(map(len, plain.values()))
    found = table.overlap(asked, address(9))  # type: ignore[arg-type]
    holders = {o for o, had in plain.items() if any(asked.overlaps(p) for p in had)}  # type: ignore[attr-defined]
    assert (found in holders) if holders else found is None


def test_ten_thousand_look_ups_are_cheap() -> None:
    table = PrefixTable()
    for index in range(16):
        table.assign(address(index), [ip_network(f"fd00:{index:x}:{n:x}::/64") for n in range(256)])
    asked = [ip_network(f"fd00:{n % 16:x}:{n % 256:x}::/64") for n in range(10_000)]
    begin = time.process_time()
    found = [table.overlap(prefix, IPv6Address("::9")) for prefix in asked]
    assert None not in found
    assert time.process_time() - begin < 1.0
