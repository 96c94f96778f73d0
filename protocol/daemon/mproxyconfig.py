"""The section ``[mproxy]``: in the TOML file of an IPsec device, or in a LAN router's own.

A LAN router's file has two sections::

    [device]
    name = "alpha-lan"
    run_directory = "…/alpha-lan"
    [mproxy]
    upstream = "eth0"
    [[mproxy.downstream]]
    interface = "eth1"
    prefixes = ["fd00:1:1::/64", "10.1.1.0/24"]

In a device's file ``upstream`` is the xfrm interface of ``[ipsec]`` unless the section says
otherwise, nothing is signalled through it, and the black groups of the device's sections are never
forwarded.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path

from protocol.daemon.tables import RunFiles, TableReader, read_tables
from protocol.mproxy.config import RANGES, Downstream, MproxyConfig, Network
from protocol.mproxy.messages import Family

_SECTION = "mproxy"

_BLACK_GROUPS = (("ipsec", None), ("idp", "ff0e::1d0"), ("mike", "ff0e::319e"))
"""Sections of a device whose ``group`` is black, with the defaults of the daemons."""

_TUNNEL_DEFAULTS = {
    "max_groups": 1024,
    "max_groups_per_host": 256,
    "records_per_s": 1000,
    "host_records_per_s": 200,
}
"""Where upstream is a tunnel. A LAN router behind the device is one host to it, and must get all of
the groups in that a LAN router holds by default: 256, which it reports at once when asked."""


@dataclass(frozen=True, slots=True)
class MproxyFile:
    """Everything mproxyd is told.

    Attributes:
        files: whose proxy this is, and where its files lie.
        config: settings of the engine.
        injected_offset_us: shift of the wall clock, for tests of the clock measurement only.
    """

    files: RunFiles
    config: MproxyConfig
    injected_offset_us: int


def load(path: Path) -> MproxyFile:
    """Read and check what concerns mproxyd; the other sections are for idpd and miked to check.

    Raises:
        ConfigFileError: one line that names the file and, if it can be read, section and field.
    """
    return _Reader(path, read_tables(path)).mproxy_file()


class _Reader(TableReader):
    def mproxy_file(self) -> MproxyFile:
        files = self.run_files(_SECTION, "mproxyd")
        config = self._config()
        offset_us = self.integer("clock", "injected_offset_us", -3_600_000_000, 3_600_000_000, 0)
        return MproxyFile(files, config, offset_us)

    def _config(self) -> MproxyConfig:
        ipsec = self._tables.get("ipsec")
        tunnel = None if ipsec is None else str(ipsec.get("interface", "xfrm0"))
        upstream = self.interface(_SECTION, "upstream", tunnel)
        signals = self.boolean(_SECTION, "signal_upstream", default=upstream != tunnel)
        defaults: dict[str, int] = {} if signals else _TUNNEL_DEFAULTS
        return self.settings(
            _SECTION,
            MproxyConfig,
            RANGES,
            upstream=upstream,
            downstreams=self._downstreams(),
            signal_upstream=signals,
            families=tuple(
                family
                for family, key in ((Family.IPV6, "ipv6"), (Family.IPV4, "ipv4"))
                if self.boolean(_SECTION, key, default=True)
            ),
            groups=self.prefixes(_SECTION, "groups", []),
            never=self._never(),
            **defaults,
        )

    def _downstreams(self) -> tuple[Downstream, ...]:
        return tuple(
            Downstream(
                self.interface(section, "interface", None), self.prefixes(section, "prefixes")
            )
            for section in self.each(_SECTION, "downstream")
        )

    def _never(self) -> tuple[Network, ...]:
        found = list(self.prefixes(_SECTION, "never", []))
        if "ipsec" in self._tables:
            for section, default in _BLACK_GROUPS:
                group = self._tables.get(section, {}).get("group", default)
                if group is not None:
                    found.append(self._group(section, group))
        return tuple(found)

    def _group(self, section: str, group: object) -> Network:
        """Read a black group without taking it: its daemons check it."""
        try:
            return ip_network(group if isinstance(group, str) else "")
        except ValueError:
            self.fail(section, "group", f"has {group!r}, which is no prefix")
