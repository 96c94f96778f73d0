"""Gateways on random graphs of partitions: nothing is lost, invented, said twice, or goes round."""

from __future__ import annotations

from collections import deque
from ipaddress import IPv6Address, ip_network
from itertools import combinations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocol.core.errors import DecodeError
from protocol.gateway import rules
from protocol.gateway.messages import (
    CHUNK_MAX,
    PARTS_MAX,
    Claim,
    Member,
    Part,
    decode_table,
    encode_table,
    fitted,
    split,
)
from protocol.gateway.prefixes import PrefixOwners
from protocol.gateway.protection import Sealed, seal, unseal
from protocol.idpmike import EpochId
from tests.support.gateways import World

NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,14}", fullmatch=True)
NETS = st.one_of(
    st.tuples(st.integers(0, 2**128 - 1), st.integers(0, 128)).map(
        lambda pair: ip_network((pair[0] >> (128 - pair[1]) << (128 - pair[1]), pair[1]))
    ).filter(lambda net: net.version == 6),
    st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)).map(
        lambda pair: ip_network((pair[0] >> (32 - pair[1]) << (32 - pair[1]), pair[1]))
    ),
)  # fmt: skip
MEMBERS = st.dictionaries(
    st.integers(0, 2**128 - 1).map(IPv6Address),
    st.text("abcdefgh-ä0", min_size=1, max_size=20),
    max_size=6,
).map(lambda found: tuple(sorted(Member(at, name) for at, name in found.items())))


def order(net):  # type: ignore[no-untyped-def]
    return net.version, int(net.network_address), net.prefixlen


CLAIMS = st.lists(
    st.builds(
        Claim,
        st.lists(NAMES, min_size=1, max_size=5).map(tuple),
        st.sets(NETS, max_size=8).map(lambda nets: tuple(sorted(nets, key=order))),
        MEMBERS,
    ),
    max_size=6,
    unique_by=lambda claim: claim.origin,
).map(lambda claims: tuple(sorted(claims, key=lambda claim: claim.origin)))


@given(CLAIMS)
def test_a_table_comes_back_as_it_was(claims: tuple[Claim, ...]) -> None:
    table = encode_table(claims)
    parts = split(table, 7)
    assert all(len(part.chunk) <= CHUNK_MAX for part in parts)
    back = b"".join(Part.decode(part.encode()).chunk for part in parts)
    assert decode_table(back) == claims


def test_GATE_11_a_table_that_is_too_long_loses_the_farthest_members_first() -> None:
    # GATE-11
    members = tuple(Member(IPv6Address(n), f"device-{n}") for n in range(256))
    claims = [Claim(tuple(f"p{n}-{hop}" for hop in range(n % 3 + 1)), (), members)
              for n in range(40)]  # fmt: skip
    kept, given_up = fitted(claims)
    assert len(kept) == 40
    assert 0 < given_up < 40
    assert len(encode_table(kept)) <= CHUNK_MAX * PARTS_MAX
    lengths = {len(claim.path) for claim in kept if claim.members}
    assert lengths == {1}
    assert fitted(claims[:2]) == (sorted(claims[:2], key=lambda claim: len(claim.path)), 0)
    assert len(fitted([Claim((f"q{n}",)) for n in range(80)])[0]) == 64


def refusal(decode, data: bytes):  # type: ignore[no-untyped-def]
    """Return what a decoder made of bytes, or the rule under which it refused them."""
    try:
        return decode(data), ""
    except DecodeError as error:
        return None, error.rule


@given(st.binary(max_size=200))
def test_any_bytes_are_a_table_in_its_only_form_or_refused(data: bytes) -> None:
    for decode, encode in ((decode_table, encode_table), (Part.decode, Part.encode)):
        found, rule = refusal(decode, data)
        assert rule == "GATE-1" if found is None else encode(found) == data  # type: ignore[operator]


@given(CLAIMS, st.integers(0, 10_000), st.integers(1, 255))
def test_a_damaged_table_is_refused_or_another_one(
    claims: tuple[Claim, ...], at: int, flip: int
) -> None:
    table = bytearray(encode_table(claims))
    table[at % len(table)] ^= flip
    found, rule = refusal(decode_table, bytes(table))
    assert rule == "GATE-1" if found is None else encode_table(found) == bytes(table)


@given(st.binary(max_size=100), st.integers(0, 2**64 - 1), st.integers(0, 400))
def test_what_is_sealed_opens_only_as_it_was_said(plain: bytes, number: int, at: int) -> None:
    epoch, key, sender = EpochId(3, bytes(8)), bytes(range(32)), (bytes(16), 5)
    body = seal(plain, epoch, key, sender, number)
    assert unseal(Sealed.decode(body), key, sender) == plain
    others = [(bytes(32), sender), (key, (bytes(15) + b"x", 5)), (key, (bytes(16), 6))]
    for other_key, other_sender in others:
        with pytest.raises(Exception, match="GATE-3"):
            unseal(Sealed.decode(body), other_key, other_sender)
    torn = bytearray(body)
    torn[16 + at % (len(body) - 16)] ^= 1  # number or ciphertext
    with pytest.raises(Exception, match="GATE-3"):
        unseal(Sealed.decode(bytes(torn)), key, sender)


SMALL = st.tuples(st.integers(0, 63), st.integers(120, 128)).map(
    lambda pair: ip_network((0xFD << 120 | pair[0] >> (128 - pair[1]) << (128 - pair[1]), pair[1]))
)


@given(st.lists(SMALL, max_size=12))
def test_GATE_8_a_summary_covers_what_was_announced_and_nothing_else(nets) -> None:  # type: ignore[no-untyped-def]
    # GATE-8
    def covered(those):  # type: ignore[no-untyped-def]
        return {int(at) for net in those for at in (net[0] + n for n in range(net.num_addresses))}

    joined = rules.summary(nets)
    assert covered(joined) == covered(nets)
    assert len(joined) <= len(set(nets))


@given(st.lists(st.tuples(SMALL, st.sampled_from("abc")), max_size=12))
def test_GATE_10_no_address_has_two_owners(claims) -> None:  # type: ignore[no-untyped-def]
    # GATE-10
    owners, kept = PrefixOwners(), []
    for net, origin in claims:
        if any(one == origin and net.overlaps(other) for other, one in kept):
            continue  # an origin's prefixes are summarised before
        clash = {one for other, one in kept if one != origin and net.overlaps(other)}
        answer = owners.claim(net, origin)
        assert (answer in clash) if clash else answer == ""
        if not answer:
            kept.append((net, origin))
    for number in range(0xFD << 120, (0xFD << 120) + 64):
        address = IPv6Address(number)
        holders = {origin for net, origin in kept if address in net}
        assert owners.find(address) == (holders.pop() if holders else None)


@st.composite
def graphs(draw):  # type: ignore[no-untyped-def]
    count = draw(st.integers(2, 5))
    partitions = [chr(ord("a") + n) for n in range(count)]
    pairs = list(combinations(partitions, 2)) + list(combinations(partitions, 3))
    joined = draw(st.lists(st.sampled_from(pairs), min_size=1, max_size=5))
    return partitions, {f"g{n}": pair for n, pair in enumerate(joined, 1)}


def connected(start: str, gateways: dict[str, tuple[str, ...]], alive: set[str]) -> set[str]:
    found, todo = {start}, deque([start])
    while todo:
        here = todo.popleft()
        for name, legs in gateways.items():
            if name in alive and here in legs:
                todo += [leg for leg in legs if leg not in found]
                found |= set(legs)
    return found


def agree(world: World, partitions: list[str], gateways: dict[str, tuple[str, ...]]) -> None:
    """Assert that every reachable prefix is announced once, and no other; multicast the same."""
    alive = {name for name, box in world.boxes.items() if box.alive}
    for at in partitions:
        reachable = connected(at, gateways, alive) - {at}
        wanted = {net for other in reachable for net in world.own_prefixes(other)}
        announced = world.announcers(at)
        assert set(announced) == wanted, f"{at}: {announced}, wanted {wanted}"
        assert all(len(who) == 1 for who in announced.values()), f"{at}: {announced}"
        for net in world.own_prefixes(at):
            carried = world.multicast(at, IPv6Address(int(net.network_address) + 7))
            assert carried == dict.fromkeys(reachable | {at}, 1)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(graphs(), st.data())
def test_random_networks_agree_also_after_failures(graph, data) -> None:  # type: ignore[no-untyped-def]
    partitions, gateways = graph
    world = World(
        {name: {f"d{n}": [f"fd00:{n:x}::/64"]} for n, name in enumerate(partitions, 1)}, gateways
    )
    world.run(9)
    agree(world, partitions, gateways)
    victims = data.draw(st.lists(st.sampled_from([*gateways, "d1"]), unique=True, max_size=3))
    for victim in victims:
        world.kill(victim)
    world.run(4 + len(partitions) + 2)
    agree(world, partitions, gateways)
    for victim in victims:
        if victim in gateways:
            world.revive(victim)
        else:
            world.device(victim).down_at = None
    world.run(4 + len(partitions) + 4)
    agree(world, partitions, gateways)
