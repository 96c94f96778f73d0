"""Which partition is reached by which leg, and what a gateway says of it into which partition.

A function of what the legs know at one moment: nothing here has a memory, so nothing lives on by
having been heard before. Every gateway says only its best way to an origin, never into a partition
on that way, and only while it has the best claim there: so for one origin each partition hears
exactly one gateway, and the ways form a tree (docs/gateways.md section 5).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv6Address

from protocol.gateway import rules
from protocol.gateway.config import GatewayConfig, Network
from protocol.gateway.legs import LegState
from protocol.gateway.messages import Claim, Member
from protocol.gateway.prefixes import PrefixOwners

ANNOUNCED_MAX = 256
"""Prefixes that a leg's idpd announces (PREFIXES_MAX of `protocol.idp.messages`), nearest first."""


@dataclass(frozen=True, slots=True)
class Way:
    """How an origin is reached.

    Attributes:
        path: partitions from the origin to that of the leg, both included.
        speaker: the gateway that claims it there; None: the leg is in the origin itself.
        prefixes: red prefixes of the origin that are its own (GATE-9, GATE-10), summarised.
        members: its devices.
    """

    path: tuple[str, ...]
    speaker: IPv6Address | None
    prefixes: tuple[Network, ...]
    members: tuple[Member, ...]

    @property
    def origin(self) -> str:
        """Return the partition that it leads to."""
        return self.path[0]

    @property
    def leg(self) -> str:
        """Return the leg by which it leads there."""
        return self.path[-1]

    @property
    def rank(self) -> rules.Rank:
        """GATE-6: what it is compared by."""
        return rules.rank(self.path, self.speaker)


@dataclass(slots=True)
class Reach:
    """What follows from what the legs know.

    Attributes:
        ways: the best way to each origin.
        spoken: per leg, the ways that we say there (GATE-7).
        owners: whose each prefix is.
        left_out: what was: rule, origin and reason.
    """

    ways: dict[str, Way] = field(default_factory=dict)
    spoken: dict[str, dict[str, Way]] = field(default_factory=dict)
    owners: PrefixOwners = field(default_factory=PrefixOwners)
    left_out: list[tuple[str, str, str]] = field(default_factory=list)

    def leg_of(self, origin: str | None) -> str | None:
        """Return the leg that leads to an origin."""
        way = None if origin is None else self.ways.get(origin)
        return None if way is None else way.leg

    def claims(self, partition: str) -> list[Claim]:
        """Return what is said in a partition."""
        return [
            Claim(way.path, way.prefixes, way.members)
            for way in self.spoken.get(partition, {}).values()
        ]

    def prefixes(self, partition: str) -> set[Network]:
        """Return what the leg's idpd is to announce in a partition."""
        return {net for way in self.spoken.get(partition, {}).values() for net in way.prefixes}


def reach(legs: Mapping[str, LegState], config: GatewayConfig, settled: Sequence[str]) -> Reach:
    """Return what follows from what the legs know.

    Args:
        legs: all of them, by partition.
        config: bounds, and our own black addresses.
        settled: legs that may speak (GATE-13).
    """
    found = Reach()
    best: dict[str, Way] = {}
    for leg in legs.values():
        if leg.counts:
            for way in _ways(leg):
                known = best.get(way.origin)
                if known is None or way.rank < known.rank:
                    best[way.origin] = way
    _settle_prefixes(best, legs, config, found)
    for partition in settled:
        own, said = legs[partition].leg.address, _ranks(legs[partition])
        room = ANNOUNCED_MAX
        spoken = found.spoken.setdefault(partition, {})
        for origin, best_way in found.ways.items():
            if (
                rules.may_say(best_way.path, partition)
                and len(best_way.path) <= config.max_path
                and rules.speaks(rules.rank(best_way.path, own), said.get(origin, ()))
            ):
                way = _authorised(best_way, legs[partition], found)
                if len(way.prefixes) > room:
                    reason = f"more than {ANNOUNCED_MAX} prefixes to be announced in {partition}"
                    found.left_out.append(("GATE-11", origin, reason))
                    way = replace(way, prefixes=way.prefixes[:room])
                room -= len(way.prefixes)
                spoken[origin] = way
    return found


def _authorised(way: Way, leg: LegState, found: Reach) -> Way:
    """GATE-18: leave out what our certificate does not authorise: a table with it is refused."""
    wrong = rules.unauthorised(way.prefixes, leg.identity.me)
    if not wrong:
        return way
    reason = f"the certificate of our leg {leg.name} does not authorise {wrong[0]}"
    found.left_out.append(("GATE-18", way.origin, reason))
    return replace(way, prefixes=tuple(net for net in way.prefixes if net not in wrong))


def _ways(leg: LegState) -> list[Way]:
    """Return every way by one leg; that into its own partition only if somebody is there."""
    found = []
    members, prefixes = leg.members(), leg.prefixes()
    if members or prefixes:
        found.append(Way((leg.name,), None, prefixes, members))
    for speaker, claim in leg.heard():
        found.append(Way((*claim.path, leg.name), speaker, claim.prefixes, claim.members))
    return found


def _ranks(leg: LegState) -> dict[str, list[rules.Rank]]:
    """Return the ranks of what the other gateways claim in a leg's partition, by origin."""
    found: dict[str, list[rules.Rank]] = {}
    for speaker, claim in leg.heard():
        found.setdefault(claim.origin, []).append(rules.rank(claim.path, speaker))
    return found


def _settle_prefixes(
    best: Mapping[str, Way], legs: Mapping[str, LegState], config: GatewayConfig, found: Reach
) -> None:
    """Give each prefix to one origin, the nearest first, as long as there is room."""
    black = [address for leg in legs.values() for address in _black(leg)]
    for way in sorted(best.values(), key=lambda way: way.rank):
        origin = way.origin
        # The nearest come first, so our own partitions always have room.
        if len(found.ways) >= config.max_origins:
            found.left_out.append(("GATE-11", origin, f"more than {config.max_origins} partitions"))
            continue
        defects = {net: rules.prefix_defect(net, black) for net in way.prefixes}
        found.left_out += [("GATE-9", origin, defect) for defect in defects.values() if defect]
        proper = []
        for net in rules.summary(net for net, defect in defects.items() if not defect):
            if other := found.owners.claim(net, origin):
                found.left_out.append(("GATE-10", origin, f"{net} is announced in {other} too"))
            else:
                proper.append(net)
        kept = tuple(proper[: config.max_prefixes])
        if len(kept) < len(proper):
            found.left_out.append(("GATE-11", origin, f"{len(proper)} prefixes after summarising"))
        members = way.members[: config.max_members]
        found.ways[origin] = Way(way.path, way.speaker, kept, members)


def _black(leg: LegState) -> list[IPv6Address]:
    up = () if leg.view is None else leg.view.up
    return [leg.leg.address, *(member.address for member in up)]
