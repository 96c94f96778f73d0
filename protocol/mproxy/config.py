"""Settings of the multicast proxy: each with its unit, its default and the reason for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network

from protocol.core.errors import LocalError
from protocol.mproxy.messages import Family

Network = IPv4Network | IPv6Network

INTERFACES_MAX = 32
"""MAXMIFS of linux/mroute6.h, MAXVIFS of linux/mroute.h."""


class ConfigError(LocalError):
    """A setting is not allowed; the text names the field, the value and what would be allowed."""


@dataclass(frozen=True, slots=True)
class Downstream:
    """An interface towards listeners and senders.

    Attributes:
        interface: its name.
        prefixes: the red prefixes behind it, of both families: sources in them belong to this
            interface, and no other source does (rule MPROXY-9).
    """

    interface: str
    prefixes: tuple[Network, ...]


@dataclass(frozen=True, slots=True)
class MproxyConfig:
    """Settings of one proxy; checked on construction.

    Attributes:
        upstream: interface towards the rest of the network: the xfrm interface of an IPsec device,
            or a LAN router's interface towards the device.
        downstreams: interfaces on which we are querier.
        signal_upstream: join upstream what the downstream interfaces want. False for a group
            tunnel, through which every member of the group SA receives everything.
        families: which address families are forwarded.
        groups: forward only these; empty: every group that rule MPROXY-8 allows.
        never: never forward these: the black groups of this device.
        robustness: robustness variable (RFC 3810 section 9.1): so many messages less one may be
            lost.
        query_interval_ms: period of the general queries (RFC 3810 section 9.2).
        query_response_ms: within what time listeners answer a general query.
        startup_response_ms: the same for the queries after a start, so that a proxy that was
            restarted knows its listeners soon.
        last_listener_interval_ms: response time and period of the queries after a leave
            (RFC 3810 section 9.8); a stream stops at most `robustness` times this after the leave.
        max_groups: groups remembered on one interface for one family. 256: with 1 KiB each
            that is little memory, and more groups than clients.
        max_groups_per_host: of these, how many on the word of one host.
        max_sources: sources remembered for one group.
        records_per_s: group records taken in on one interface and family; more are dropped.
        host_records_per_s: the same for one host, so that one host that floods does not silence
            the others.
        max_flows: (S,G) entries in the kernel.
        max_flows_per_source: of these, how many from one source.
        flow_idle_ms: an entry that forwarded nothing for so long is removed.
        sweep_interval_ms: how often the kernel's counters are read.
    """

    upstream: str
    downstreams: tuple[Downstream, ...]
    signal_upstream: bool = True
    families: tuple[Family, ...] = (Family.IPV6, Family.IPV4)
    groups: tuple[Network, ...] = ()
    never: tuple[Network, ...] = ()
    robustness: int = 2
    query_interval_ms: int = 125_000
    query_response_ms: int = 10_000
    startup_response_ms: int = 1000
    last_listener_interval_ms: int = 1000
    max_groups: int = 256
    max_groups_per_host: int = 64
    max_sources: int = 16
    records_per_s: int = 500
    host_records_per_s: int = 50
    max_flows: int = 1024
    max_flows_per_source: int = 128
    flow_idle_ms: int = 60_000
    sweep_interval_ms: int = 10_000

    _owners: tuple[tuple[Network, str], ...] = field(init=False, repr=False, default=())

    def __post_init__(self) -> None:
        """Check every field, and those that depend on one another.

        Raises:
            ConfigError: names the first field that is wrong.
        """
        names = [self.upstream, *(port.interface for port in self.downstreams)]
        if len(names) < 2:
            raise ConfigError("downstream: at least one interface is needed")
        if len(set(names)) != len(names):
            raise ConfigError(f"downstream: an interface is named twice in {', '.join(names)}")
        if len(names) > INTERFACES_MAX:
            raise ConfigError(f"downstream: more than {INTERFACES_MAX - 1} interfaces")
        if not self.families:
            raise ConfigError("families: neither IPv6 nor IPv4 is on, nothing would be forwarded")
        for name, low, high in RANGES:
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise ConfigError(f"{name}: {value!r} is not a whole number from {low} to {high}")
        if self.query_response_ms >= self.query_interval_ms:
            raise ConfigError("query_response_ms: must be below query_interval_ms")
        owners = [(net, port.interface) for port in self.downstreams for net in port.prefixes]
        for at, (net, interface) in enumerate(owners):
            if net.is_multicast or net.is_link_local or net.prefixlen == 0:
                raise ConfigError(f"prefixes: {net} on {interface} is no unicast prefix of a LAN")
            for other, elsewhere in owners[:at]:
                if net.version == other.version and net.overlaps(other):
                    raise ConfigError(
                        f"prefixes: {net} on {interface} overlaps {other} on {elsewhere}"
                    )
        for port in self.downstreams:
            if not port.prefixes:
                raise ConfigError(f"prefixes: {port.interface} has none: no source would be heard")
        for name in ("groups", "never"):
            for net in getattr(self, name):
                if not net.is_multicast:
                    raise ConfigError(f"{name}: {net} is not multicast")
        object.__setattr__(self, "_owners", tuple(owners))

    @property
    def owners(self) -> tuple[tuple[Network, str], ...]:
        """Every red prefix with its interface; no two overlap."""
        return self._owners


RANGES: tuple[tuple[str, int, int], ...] = (
    ("robustness", 1, 7),
    ("query_interval_ms", 1000, 3_600_000),
    ("query_response_ms", 100, 60_000),
    ("startup_response_ms", 100, 60_000),
    ("last_listener_interval_ms", 100, 25_000),
    ("max_groups", 1, 65_536),
    ("max_groups_per_host", 1, 65_536),
    ("max_sources", 1, 256),
    ("records_per_s", 1, 100_000),
    ("host_records_per_s", 1, 100_000),
    ("max_flows", 1, 65_536),
    ("max_flows_per_source", 1, 65_536),
    ("flow_idle_ms", 100, 3_600_000),
    ("sweep_interval_ms", 50, 3_600_000),
)
"""The whole numbers, with their bounds."""
