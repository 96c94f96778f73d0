"""The one TOML file of a device, checked and turned into data (docs/ARCHITECTURE.md, Daemons).

Both daemons read the same file. Every mistake is one line that names file, section and field::

    d3.toml: [idp] hello_interval_ms must be a whole number from 50 to 60000, not 'x'

Relative paths are relative to the file. The protocols' own settings are checked by their own
classes (`protocol.idp.config.IdpConfig`, `protocol.mike.config.MikeConfig`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

from protocol.core.errors import LocalError
from protocol.daemon.tables import (
    ConfigFileError,
    RunFiles,
    TableReader,
    read_tables,
)
from protocol.identity.files import load_secret
from protocol.idp.config import PSK_LENGTH, IdpConfig
from protocol.mike.config import MikeConfig

BACKENDS = ("netlink", "command", "pfkey", "memory")

IDP_GROUP, IDP_PORT = "ff0e::1d0", 47500
MIKE_GROUP, MIKE_PORT = "ff0e::319e", 47510
"""The black multicast channels, where a file does not say otherwise."""


@dataclass(frozen=True, slots=True)
class DeviceSection(RunFiles):
    """``[device]``: who this device is and where its daemons keep their files."""

    nation: str
    address: IPv6Address


@dataclass(frozen=True, slots=True)
class IdentitySection:
    """``[identity]``: where certificates, keys and CRLs lie, and where what is learned goes."""

    certificate: Path
    key: Path
    anchors: Path
    peers: Path
    revocations: Path | None
    freshness_ms: int
    cache: Path | None


@dataclass(frozen=True, slots=True)
class PolicySection:
    """``[policy]``: the signed domain policy, and the CA whose signer it must be from."""

    file: Path
    authority: Path


@dataclass(frozen=True, slots=True)
class LocalSection:
    """``[local]``: the interface between the two daemons on ::1."""

    secret: bytes = field(repr=False)
    idp_port: int
    mike_port: int


@dataclass(frozen=True, slots=True)
class ChannelSection:
    """Multicast group and port of one protocol."""

    group: IPv6Address
    port: int


@dataclass(frozen=True, slots=True)
class DeviceConfig:
    """Everything the daemons of one device are told.

    Attributes:
        policy: the domain policy to keep to, or None.
        black_interface: interface on the black network.
        multicast_hops: hop limit of the protocols' multicast.
        idp_channel: group and port of IDP.
        mike_channel: group and port of MIKE.
        idp: settings of the IDP engine, from ``[idp]`` and ``[ipsec]``.
        mike: settings of the MIKE engine.
        backend: ``netlink``, ``command``, ``pfkey`` or ``memory``.
        xfrm_interface: name of the xfrm interface.
        route_metric: of the routes to others' prefixes, 0 for the kernel's default. The legs of a
            gateway need one each: they may know the same prefix.
        responder_port: port of the NTP on-wire responder, 0 for none.
        injected_offset_us: shift of the wall clock, for tests of the clock measurement only.
        emulated_clock: whether the control socket may set the wall clock of this daemon (testbed).
        park: wait for ``start`` on the control socket.
        state_directory: on a disk: what must not be forgotten, or None.
    """

    device: DeviceSection
    identity: IdentitySection
    policy: PolicySection | None
    local: LocalSection
    black_interface: str
    multicast_hops: int
    idp_channel: ChannelSection
    mike_channel: ChannelSection
    idp: IdpConfig
    mike: MikeConfig
    backend: str
    xfrm_interface: str
    route_metric: int
    responder_port: int
    injected_offset_us: int
    emulated_clock: bool
    park: bool
    state_directory: Path | None

    @property
    def key_directory(self) -> Path:
        """Where miked leaves group keys for idpd."""
        return self.device.run_directory / "keys"


def load(path: Path, *, with_psk: bool = True) -> DeviceConfig:
    """Read and check the file of one device.

    Args:
        path: of the file.
        with_psk: False: leave the pre-shared key where it is and take zeros in its place. Only
            idpd uses it, and only idpd can read it where the daemons are two users.

    Raises:
        ConfigFileError: one line that names the file and, if it can be read, section and field.
    """
    tables = read_tables(path)
    tables.pop("mproxy", None)
    tables.pop("users", None)
    return _DeviceReader(path, tables, with_psk=with_psk).device_config()


_CHANNEL_KEYS = frozenset({"group", "port"})


class _DeviceReader(TableReader):
    """Reads the sections of idpd and miked; [mproxy] is checked by mproxyd alone."""

    def __init__(self, path: Path, tables: Mapping[str, Any], *, with_psk: bool) -> None:
        super().__init__(path, tables)
        self._with_psk = with_psk

    def device_config(self) -> DeviceConfig:
        """Read every section; refuse what is left over."""
        device = DeviceSection(
            name=self.text("device", "name"),
            nation=self.text("device", "nation"),
            address=self.address("device", "address", multicast=False),
            run_directory=self.directory("device", "run_directory"),
        )
        config = DeviceConfig(
            device=device,
            identity=self.identity(),
            policy=self.policy(),
            local=self.local(),
            black_interface=self.interface("black", "interface", None),
            multicast_hops=self.integer("black", "multicast_hops", 1, 255, 32),
            idp_channel=self.channel("idp", IDP_GROUP, IDP_PORT),
            mike_channel=self.channel("mike", MIKE_GROUP, MIKE_PORT),
            backend=self.choice("ipsec", "backend", BACKENDS, "netlink"),
            xfrm_interface=self.interface("ipsec", "interface", "xfrm0"),
            route_metric=self.integer("ipsec", "route_metric", 0, (1 << 31) - 1, 0),
            idp=self.idp(),
            mike=self.mike(),
            responder_port=self.integer("clock", "responder_port", 0, 65535, 0),
            injected_offset_us=self.integer(
                "clock", "injected_offset_us", -3_600_000_000, 3_600_000_000, 0
            ),
            emulated_clock=self.boolean("clock", "emulated", default=False),
            park=self.boolean("start", "park", default=True),
            state_directory=self.path("state", "directory") if "state" in self._tables else None,
        )
        self.refuse_leftovers()
        if config.idp.ipv4 and config.backend == "pfkey":
            self.fail("ipsec", "ipv4", "needs SAs for both families, which PF_KEY cannot write")
        return config

    def identity(self) -> IdentitySection:
        given = self._tables.get("identity", {})
        has_revocations, has_cache = "revocations" in given, "cache" in given
        return IdentitySection(
            certificate=self.path("identity", "certificate"),
            key=self.path("identity", "key"),
            anchors=self.directory("identity", "anchors"),
            peers=self.directory("identity", "peers"),
            revocations=self.directory("identity", "revocations") if has_revocations else None,
            freshness_ms=self.integer("identity", "freshness_ms", 100, 3_600_000, 30_000),
            cache=self.path("identity", "cache") if has_cache else None,
        )

    def policy(self) -> PolicySection | None:
        if "policy" not in self._tables:
            return None
        return PolicySection(self.path("policy", "file"), self.path("policy", "authority"))

    def local(self) -> LocalSection:
        path = self.path("local", "secret")
        try:
            secret = load_secret(path)
        except LocalError as error:
            self.fail("local", "secret", f"is not usable: {error}")
        section = LocalSection(
            secret=secret,
            idp_port=self.integer("local", "idp_port", 1, 65535, 47501),
            mike_port=self.integer("local", "mike_port", 1, 65535, 47502),
        )
        if section.idp_port == section.mike_port:
            self.fail("local", "mike_port", "must differ from idp_port")
        return section

    def channel(self, section: str, group: str, port: int) -> ChannelSection:
        return ChannelSection(
            self.address(section, "group", multicast=True, default=group),
            self.integer(section, "port", 1, 65535, port),
        )

    def idp(self) -> IdpConfig:
        idp = self._tables.pop("idp", {})
        psk = self.psk() if "psk" in self._tables.get("ipsec", {}) else None
        ipsec = self._tables.pop("ipsec", {})
        try:
            return IdpConfig.from_tables(idp, ipsec, psk)
        except LocalError as error:
            text = str(error)
            if not text.startswith("["):
                section = "ipsec" if text.partition(":")[0] in {*ipsec, "sa_group"} else "idp"
                text = f"[{section}] {text}"
            raise ConfigFileError(f"{self._path.name}: {text}") from error

    def psk(self) -> bytes:
        path = self.path("ipsec", "psk")
        if not self._with_psk:
            return bytes(PSK_LENGTH)
        try:
            return load_secret(path)
        except LocalError as error:
            self.fail("ipsec", "psk", f"is not usable: {error}")

    def mike(self) -> MikeConfig:
        table = self._tables.pop("mike", {})
        known = [item.name for item in fields(MikeConfig)]
        for key in table:
            if key not in known:
                names = ", ".join(sorted([*known, *_CHANNEL_KEYS]))
                self.fail("mike", key, f"is not a setting (known: {names})")
        try:
            return MikeConfig(**table)
        except LocalError as error:
            text = str(error).removeprefix("mike.")
            raise ConfigFileError(f"{self._path.name}: [mike] {text}") from error
