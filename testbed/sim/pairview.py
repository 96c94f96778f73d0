"""Unicast between devices, looked at from outside: what SAD and SPD have for every pair."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from typing import TYPE_CHECKING

from protocol.ipsec.model import (
    Policy,
    PolicyDirection,
    Prefix,
    SaDirection,
    SaId,
    SecurityAssociation,
)
from protocol.ipsec.pairpolicy import PRIORITY

if TYPE_CHECKING:
    from testbed.sim.device import Device


@dataclass(frozen=True, slots=True)
class SaName:
    """One end of an SA of a pair: equal at both ends.

    Attributes:
        source: who sends with it.
        destination: who receives.
        spi: names it there.
        key: digest of its key.
    """

    source: IPv6Address
    destination: IPv6Address
    spi: int
    key: str


@dataclass(frozen=True, slots=True)
class PairsView:
    """What a device's kernel has for its pairs.

    Attributes:
        sas: of pairs.
        sends: for each other device, the SAs that policies to it pin; one of None is not there.
        policies: direction, the other device, and the network that lies behind it.
    """

    sas: frozenset[SaName] = frozenset()
    sends: Mapping[IPv6Address, frozenset[SaName | None]] = field(default_factory=dict)
    policies: frozenset[tuple[str, IPv6Address, Prefix]] = frozenset()

    @property
    def peers(self) -> frozenset[IPv6Address]:
        """Return every address that an SA or policy names, our own too if there is any."""
        named = {end for sa in self.sas for end in (sa.source, sa.destination)}
        return frozenset(named | {peer for _, peer, _ in self.policies})


def pairs_of(device: Device, group: IPv6Address) -> PairsView:
    """Look at a device.

    Args:
        device: any.
        group: of the SAs that belong to no pair.
    """
    sas = {sa.id: sa for sa in device.backend.dump_sas() if sa.destination != group}
    sends: dict[IPv6Address, set[SaName | None]] = {}
    policies = set()
    for policy in device.backend.dump_policies():
        led = led_by(policy)
        if led is None:
            continue
        peer, network = led
        policies.add((policy.direction.value, peer, network))
        if policy.direction is PolicyDirection.OUT:
            pinned = sas.get(SaId(peer, policy.template_spi))
            if pinned is not None and pinned.direction is SaDirection.IN:
                pinned = None
            sends.setdefault(peer, set()).add(None if pinned is None else _name(pinned))
    return PairsView(
        frozenset(map(_name, sas.values())),
        {peer: frozenset(found) for peer, found in sends.items()},
        frozenset(policies),
    )


def led_by(policy: Policy) -> tuple[IPv6Address, Prefix] | None:
    """Return the other device of a pair's policy and the network behind it; None of any other."""
    if policy.priority != PRIORITY:
        return None
    if policy.direction is PolicyDirection.OUT:
        return policy.template_destination, policy.selector.destination
    return policy.template_source, policy.selector.source


def _name(sa: SecurityAssociation) -> SaName:
    return SaName(sa.source, sa.destination, sa.spi, sa.key.digest)
