"""Which devices are in which partition, and between which partitions gateways stand.

A scenario counts its devices through, then its gateways. Devices are dealt out to the partitions in
turn; in a partition its own devices come first, then one leg of each gateway.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from testbed.sim.faults import ADVERSARY, PACKETS, RED, Fault, Kind
from testbed.sim.people import People
from testbed.sim.scenario import Scenario

PARTITIONS = ("a", "b", "c")

TOPOLOGIES: dict[str, tuple[tuple[int, ...], ...]] = {
    "line": ((0, 1), (0, 1), (1, 2), (1, 2)),
    "chain": ((0, 1), (0, 1), (1, 2)),
    "ring": ((0, 1), (1, 2), (0, 2)),
    "star": ((0, 1, 2), (0, 1, 2)),
}
"""The partitions of each gateway. In all but the chain the loss of any one of them is survived; the
last one of the chain takes a partition with it."""

ONE_LEG = frozenset({Kind.KILL_IDPD, Kind.KILL_MIKED, Kind.CARRIER})
"""Faults that hit one leg of a gateway only."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Who is where.

    Attributes:
        devices: how many.
        gateways: the partitions of each.
    """

    devices: int
    gateways: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, scenario: Scenario) -> Layout:
        """Return that of a scenario."""
        return cls(scenario.members, TOPOLOGIES[scenario.topology])

    def people(self, partition: int) -> People:
        """Return the devices of a partition, legs last."""
        beyond = tuple(
            tuple(other for other in range(len(PARTITIONS)) if other != partition)
            for joined in self.gateways
            if partition in joined
        )
        size = len(self._plain(partition)) + len(beyond)
        return People(size, partition, f"{PARTITIONS[partition]}.", beyond)

    def _plain(self, partition: int) -> list[int]:
        return [n for n in range(self.devices) if n % len(PARTITIONS) == partition]

    def place(self, number: int, partition: int) -> int | None:
        """Return the index in a partition of a device, or of a gateway's leg; None: it has none."""
        if number < self.devices:
            there = number % len(PARTITIONS) == partition
            return number // len(PARTITIONS) if there else None
        gateway = number - self.devices
        if partition not in self.gateways[gateway]:
            return None
        before = sum(partition in joined for joined in self.gateways[:gateway])
        return len(self._plain(partition)) + before

    def everybody(self, partition: int) -> list[int]:
        """Return the numbers of all that are in a partition, in the order of their indices."""
        gateways = [
            self.devices + n for n, joined in enumerate(self.gateways) if partition in joined
        ]
        return self._plain(partition) + gateways

    # Faults.

    def faults(self, fault: Fault, partition: int) -> tuple[Fault, ...]:
        """Return what a fault is in a partition: it, with other indices, or nothing."""
        if not fault.devices:
            return (fault,)
        gateway = fault.devices[0] - self.devices
        if gateway >= 0 and fault.kind in ONE_LEG:
            joined = self.gateways[gateway]
            if joined[fault.start_ms % len(joined)] != partition:
                return ()
        places = [self.place(number, partition) for number in fault.devices]
        here = tuple(place for place in places if place is not None)
        if fault.kind is Kind.KILL_GATEWAYD or not here:
            return ()
        if fault.kind is Kind.PARTITION:
            whole = len(here) == len(self.everybody(partition))
            return () if whole else (replace(fault, devices=tuple(sorted(here))),)
        if fault.kind in (Kind.ONE_WAY, Kind.CLOG, Kind.HANDOVER):
            return (replace(fault, devices=here),) if places[0] is not None and here[1:] else ()
        if fault.kind in RED and gateway >= 0:
            return ()
        return (replace(fault, devices=here),)

    def scenario(self, whole: Scenario, partition: int) -> Scenario:
        """Return what a partition sees of a scenario."""
        everybody = self.everybody(partition)
        return replace(
            whole,
            seed=whole.seed * len(PARTITIONS) + partition,
            topology="",
            members=len(everybody),
            starts_ms=tuple(whole.starts_ms[number] for number in everybody),
            faults=tuple(f for fault in whole.faults for f in self.faults(fault, partition)),
            # Groups that all renew their keys would never rest at the same time.
            rekey_interval_ms=whole.rekey_interval_ms if partition == 0 else 0,
        )

    def joins(self, number: int) -> tuple[int, ...]:
        """Return the partitions of a gateway by its number in the scenario."""
        return self.gateways[number - self.devices]

    def is_gateway(self, fault: Fault) -> bool:
        """Say whether a fault hits a gateway itself."""
        if fault.kind in PACKETS | ADVERSARY or not fault.devices:
            return False
        return fault.devices[0] >= self.devices
