"""The TOML file of a gateway: section ``[gateway]`` with its legs, each with a file of its own.

[device]
name = "g1"
run_directory = "…/g1"
[gateway]
[[gateway.leg]]
partition = "a"
config = "…/g1-a.toml"
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_network
from itertools import pairwise
from pathlib import Path

from protocol.daemon import config
from protocol.daemon.config import DeviceConfig
from protocol.daemon.tables import RunFiles, TableReader, read_tables
from protocol.gateway.config import RANGES, GatewayConfig, Leg, Network

ROUTE_METRIC = 512
"""Of gatewayd's routes: before those of the legs' idpd, which do not know of one another."""

_SECTION = "gateway"


@dataclass(frozen=True, slots=True)
class GatewayFile:
    """Everything gatewayd is told.

    Attributes:
        files: whose gateway this is, and where its files lie.
        config: settings of the engine.
        legs: the files of the legs' daemons, by partition.
        poll_interval_ms: how often each leg's idpd is asked.
        tunnels: whether the legs have xfrm interfaces, so that there is something to forward: not
            with the memory backend.
        ipv4: whether IPv4 multicast is, too: every leg's SAs carry it.
    """

    files: RunFiles
    config: GatewayConfig
    legs: dict[str, DeviceConfig]
    poll_interval_ms: int
    tunnels: bool
    ipv4: bool


def load(path: Path) -> GatewayFile:
    """Read and check a gateway's file, and those of its legs.

    Raises:
        ConfigFileError: one line that names the file and, if it can be read, section and field.
    """
    return _Reader(path, read_tables(path)).gateway_file()


class _Reader(TableReader):
    def gateway_file(self) -> GatewayFile:
        files = self.run_files(_SECTION, "gatewayd")
        poll_interval_ms = self.integer(_SECTION, "poll_interval_ms", 50, 60_000, 500)
        legs = self._legs()
        self._check_apart(legs)
        settings = self.settings(
            _SECTION,
            GatewayConfig,
            RANGES,
            legs=tuple(
                Leg(partition, leg.device.address, leg.xfrm_interface)
                for partition, leg in legs.items()
            ),
            groups=self.prefixes(_SECTION, "groups", []),
            never=(*self.prefixes(_SECTION, "never", []), *_black_groups(legs)),
        )
        self.refuse_leftovers()
        tunnels = all(leg.backend != "memory" for leg in legs.values())
        ipv4 = all(leg.idp.ipv4 for leg in legs.values())
        return GatewayFile(files, settings, legs, poll_interval_ms, tunnels, ipv4)

    def _legs(self) -> dict[str, DeviceConfig]:
        found: dict[str, DeviceConfig] = {}
        for section in self.each(_SECTION, "leg"):
            partition = self.text(section, "partition")
            if partition in found:
                self.fail(section, "partition", f"is {partition!r} in two legs")
            found[partition] = config.load(self.path(section, "config"), with_psk=False)
        return found

    def _check_apart(self, legs: dict[str, DeviceConfig]) -> None:
        """Refuse legs that would take each other's packets, SAs or ports."""
        for what, values in (
            ("[black] interface", [leg.black_interface for leg in legs.values()]),
            ("[ipsec] if_id", [leg.idp.if_id for leg in legs.values()]),
            ("[ipsec] route_metric", [leg.route_metric for leg in legs.values()]),
            ("[local] idp_port", [leg.local.idp_port for leg in legs.values()]),
            ("[local] mike_port", [leg.local.mike_port for leg in legs.values()]),
            ("[device] run_directory", [leg.device.run_directory for leg in legs.values()]),
        ):
            if len(set(values)) != len(values):
                said = ", ".join(str(value) for value in values)
                self.fail("gateway.leg", "config", f"has the same {what} twice: {said}")

        reqids = sorted(leg.idp.reqid for leg in legs.values())
        if any(two - one < 2 for one, two in pairwise(reqids)):
            said = ", ".join(str(reqid) for reqid in reqids)
            self.fail("gateway.leg", "config", f"needs [ipsec] reqid at least 2 apart, not {said}")
        caches = {leg.identity.cache for leg in legs.values()}
        if len(caches) != 1:
            self.fail("gateway.leg", "config", "needs the same [identity] cache as the others")
        for partition, leg in legs.items():
            if leg.route_metric <= ROUTE_METRIC:
                self.fail(
                    "gateway.leg",
                    "config",
                    f"needs [ipsec] route_metric above {ROUTE_METRIC} for {partition}",
                )


def _black_groups(legs: dict[str, DeviceConfig]) -> list[Network]:
    groups = [
        group
        for leg in legs.values()
        for group in (leg.idp.sa_group, leg.idp_channel.group, leg.mike_channel.group)
    ]
    return [ip_network(f"{group}/128") for group in dict.fromkeys(groups)]
