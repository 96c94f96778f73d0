"""Every rule of the gateways, by its id: a row in docs/gateways.md, a check here, a test.

A check on what another gateway said raises `PeerError`; the engine counts it under the rule and
drops it. The other rules say what we do; their checks return the answer.

GATE-1 (syntax) is checked while a message is read, in `protocol.gateway.messages`; GATE-3 while it
is opened, in `protocol.gateway.protection`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network, IPv6Address, IPv6Network, collapse_addresses

from protocol.core.errors import PeerError
from protocol.gateway.config import GatewayConfig, Network
from protocol.gateway.messages import Claim
from protocol.identity import Peer
from protocol.mproxy.messages import Address
from protocol.mproxy.rules import may_pass

RULES: dict[str, str] = {
    "GATE-1": "A message is one part of a table, in its only form",
    "GATE-2": "Only a certificate marked as a gateway's speaks for other partitions",
    "GATE-3": "A message opens under an epoch's key of the partition in which it is said",
    "GATE-4": "A path names no partition twice, nor the one in which it is said",
    "GATE-5": "Nothing is said into a partition that is on its own path",
    "GATE-6": "The shortest path to an origin counts, then the lowest one, then the lowest address",
    "GATE-7": "Into a partition one gateway speaks for an origin: the one with the best claim",
    "GATE-8": "A summary covers exactly what was announced: prefixes are joined, none is added",
    "GATE-9": "No default route, no special range and nothing that holds a black address is said",
    "GATE-10": "A prefix of two origins is the nearer one's",
    "GATE-11": "Origins, paths, prefixes and members are bounded",
    "GATE-12": "A claim lives while its gateway is up in IDP and repeats it",
    "GATE-13": "A leg that has just come up listens before it speaks",
    "GATE-14": "A leg counts while its idpd runs and it holds the partition's group key",
    "GATE-15": "Multicast comes in from the leg that leads to its source, and goes where we speak",
    "GATE-16": "Link-local groups, groups outside the ranges and black groups never pass",
    "GATE-17": "A stopped gateway announces and forwards nothing",
    "GATE-18": "A gateway speaks only for prefixes that its leg's certificate authorises",
    "GATE-19": "A revocation list that one leg has learned is handed to the others",
}
"""One line for each rule; the test compares it with the table of docs/gateways.md."""

PREFIX_BITS_MIN = {4: 8, 6: 16}
"""Shorter prefixes take in what no nation can own: a mistake, or an attempt at a default route."""

Rank = tuple[int, tuple[str, ...], int]
"""What ways to an origin are compared by; the lowest is the best."""


def is_news(trust_digest: str, known: str | None) -> bool:
    """GATE-19: whether a leg has revocation lists that it had not when we looked last."""
    return bool(trust_digest.strip("0")) and trust_digest != known


def check_speaker(peer: Peer) -> None:
    """GATE-2: refuse a device that plays gateway."""
    if not peer.gateway:
        raise PeerError("GATE-2", "its certificate is not marked as a gateway's")


def check_path(path: Sequence[str], partition: str) -> None:
    """GATE-4: refuse a path that has been here before."""
    if len(set(path)) != len(path):
        raise PeerError("GATE-4", f"its path {'-'.join(path)} names a partition twice")
    if partition in path:
        raise PeerError("GATE-4", f"its path {'-'.join(path)} leads through {partition} itself")


def check_bounds(claims: Sequence[Claim], config: GatewayConfig) -> None:
    """GATE-11: refuse a table that takes too much room."""
    if len(claims) > config.max_origins:
        raise PeerError("GATE-11", f"claims about {len(claims)} partitions")
    for claim in claims:
        for what, count, most in (
            ("partitions on the path", len(claim.path), config.max_path),
            ("prefixes", len(claim.prefixes), config.max_prefixes),
            ("members", len(claim.members), config.max_members),
        ):
            if count > most:
                raise PeerError("GATE-11", f"{count} {what} to {claim.origin}")


def check_authority(claims: Sequence[Claim], peer: Peer) -> None:
    """GATE-18: refuse prefixes that the nation's CA has not given to the leg (RFC 3779)."""
    for claim in claims:
        for net in unauthorised(claim.prefixes, peer):
            raise PeerError("GATE-18", f"its certificate does not authorise {net}")


def unauthorised(prefixes: Iterable[Network], peer: Peer) -> list[Network]:
    """GATE-18: the prefixes that a leg's certificate, another's or our own, does not authorise."""
    own = {version: _sorted(peer.prefixes, version) for version in (4, 6)}
    return [net for net in prefixes if not _inside(net, own[net.version])]


def _sorted(prefixes: Iterable[Network], version: int) -> list[tuple[int, int]]:
    return sorted(
        (int(net.network_address), int(net.broadcast_address))
        for net in prefixes
        if net.version == version
    )


def _inside(net: Network, blocks: Sequence[tuple[int, int]]) -> bool:
    """Tell whether one of the blocks, which do not overlap, holds a prefix."""
    first, last = int(net.network_address), int(net.broadcast_address)
    place = bisect_right(blocks, (first, 1 << 128)) - 1
    return place >= 0 and blocks[place][1] >= last


def may_say(path: Sequence[str], partition: str) -> bool:
    """GATE-5: whether what came this way may be said in a partition (split horizon)."""
    return partition not in path


def rank(path: tuple[str, ...], speaker: IPv6Address | None) -> Rank:
    """GATE-6: what ways to an origin are compared by; our own partition's devices need no speaker.

    GATE-7 compares claims in one partition the same way.
    """
    return len(path), path, 0 if speaker is None else int(speaker)


def speaks(own: Rank, others: Iterable[Rank]) -> bool:
    """GATE-7: whether our claim is the best one in a partition."""
    return all(own < other for other in others)


def summary(prefixes: Iterable[Network]) -> tuple[Network, ...]:
    """GATE-8: the fewest prefixes that cover the same addresses."""
    wanted = list(prefixes)
    four = collapse_addresses(net for net in wanted if isinstance(net, IPv4Network))
    six = collapse_addresses(net for net in wanted if isinstance(net, IPv6Network))
    return (*four, *six)


def prefix_defect(net: Network, black: Iterable[IPv6Address]) -> str:
    """GATE-9: why a prefix may not be said, or an empty string."""
    if net.prefixlen < PREFIX_BITS_MIN[net.version]:
        return f"{net} is shorter than /{PREFIX_BITS_MIN[net.version]}"
    first = net.network_address
    if first.is_multicast or first.is_link_local or first.is_loopback or first.is_unspecified:
        return f"{net} is no range of a red network"
    for address in black:
        if net.version == address.version and address in net:
            return f"{net} holds the black address {address}"
    return ""


def is_alive(heard_mono_ns: int, up: bool, now_mono_ns: int, dead_ns: int) -> bool:
    """GATE-12: whether what a gateway said still holds."""
    return up and now_mono_ns - heard_mono_ns < dead_ns


def has_settled(since_mono_ns: int, now_mono_ns: int, settle_ns: int) -> bool:
    """GATE-13: whether a leg has listened for long enough."""
    return now_mono_ns - since_mono_ns >= settle_ns


def counts(running: bool, keyed: bool) -> bool:
    """GATE-14: whether a leg takes part."""
    return running and keyed


def outs_of(leg: str | None, arrived: str | None, spoken: Iterable[str]) -> tuple[str, ...]:
    """GATE-15: into which partitions a flow goes.

    Args:
        leg: the one that leads to the source, None if no partition has it.
        arrived: the leg from which the kernel accepts the flow.
        spoken: the partitions in which we speak for the source's origin.
    """
    if leg is None or leg != arrived:
        return ()
    return tuple(name for name in spoken if name != leg)


def passes(group: Address, config: GatewayConfig) -> bool:
    """GATE-16: whether a group may cross; the multicast proxy's rule (MPROXY-8)."""
    return may_pass(group, config)


def may_act(running: bool) -> bool:
    """GATE-17: whether events mean anything to us now."""
    return running
