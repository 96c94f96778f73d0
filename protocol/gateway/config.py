"""Settings of an IDP security gateway: each with its unit, its default and the reason for it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network

from protocol.core.errors import LocalError

Network = IPv4Network | IPv6Network

LEGS_MAX = 8
"""Partitions that one gateway joins; each costs it two daemons and a signature a second."""

PARTITION_NAME_MAX = 15
PARTITION_NAME = re.compile(r"[a-z][a-z0-9-]*")


class ConfigError(LocalError):
    """A setting is not allowed; the text names the field, the value and what would be allowed."""


@dataclass(frozen=True, slots=True)
class Leg:
    """One leg of a gateway: it is an IPsec device of one partition.

    Attributes:
        partition: name of the partition, the same on all of its gateways.
        address: black address there.
        tunnel: the leg's xfrm interface.
    """

    partition: str
    address: IPv6Address
    tunnel: str


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """Settings of one gateway; checked on construction.

    Attributes:
        legs: at least two, in different partitions.
        refresh_ms: period in which a gateway repeats what it says. 1000: as the hello.
        dead_factor: silent for this many periods, and what it said is forgotten. 4: the paper's.
        settle_ms: so long a leg listens before it speaks. 2000: who speaks already is heard twice.
        max_origins: partitions that we know of, our own among them.
        max_path: partitions on the way from one of them to us.
        max_prefixes: of one partition, after summarising.
        max_members: of one partition.
        groups: red multicast groups that pass; empty: those that rule GATE-16 allows.
        never: groups that never pass: the black ones.
        max_flows: multicast routes in the kernel.
        max_flows_per_source: of these, how many from one source.
        flow_idle_ms: a route that carried nothing for so long is removed.
        sweep_interval_ms: how often the kernel's counters are read.
    """

    legs: tuple[Leg, ...]
    refresh_ms: int = 1000
    dead_factor: int = 4
    settle_ms: int = 2000
    max_origins: int = 32
    max_path: int = 8
    max_prefixes: int = 256
    max_members: int = 256
    groups: tuple[Network, ...] = ()
    never: tuple[Network, ...] = ()
    max_flows: int = 1024
    max_flows_per_source: int = 128
    flow_idle_ms: int = 60_000
    sweep_interval_ms: int = 10_000

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            ConfigError: names the first field that is wrong.
        """
        if not 2 <= len(self.legs) <= LEGS_MAX:
            raise ConfigError(f"leg: {len(self.legs)} legs; a gateway has from 2 to {LEGS_MAX}")
        for leg in self.legs:
            if len(leg.partition) > PARTITION_NAME_MAX or not PARTITION_NAME.fullmatch(
                leg.partition
            ):
                raise ConfigError(
                    f"leg: partition {leg.partition!r} must be lower-case letters, digits and '-', "
                    f"a letter first, at most {PARTITION_NAME_MAX}"
                )
        for what in ("partition", "tunnel", "address"):
            values = [str(getattr(leg, what)) for leg in self.legs]
            if len(set(values)) != len(values):
                raise ConfigError(f"leg: {what} is the same twice in {', '.join(values)}")
        for name, low, high in RANGES:
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise ConfigError(f"{name}: {value!r} is not a whole number from {low} to {high}")
        for name in ("groups", "never"):
            for net in getattr(self, name):
                if not net.is_multicast:
                    raise ConfigError(f"{name}: {net} is not multicast")

    @property
    def dead_ns(self) -> int:
        """How long another gateway may be silent."""
        return self.refresh_ms * self.dead_factor * 1_000_000

    def leg(self, partition: str) -> Leg:
        """Return the leg in a partition."""
        return next(leg for leg in self.legs if leg.partition == partition)


RANGES: tuple[tuple[str, int, int], ...] = (
    ("refresh_ms", 100, 60_000),
    ("dead_factor", 2, 20),
    ("settle_ms", 0, 600_000),
    ("max_origins", LEGS_MAX, 64),
    ("max_path", 2, 16),
    ("max_prefixes", 1, 256),
    ("max_members", 1, 256),
    ("max_flows", 1, 65_536),
    ("max_flows_per_source", 1, 65_536),
    ("flow_idle_ms", 100, 3_600_000),
    ("sweep_interval_ms", 50, 3_600_000),
)
"""The whole numbers, with their bounds."""
