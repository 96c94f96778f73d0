"""Settings of an IDP instance: each with its unit, its default and the reason for it.

The paper fixes the dead factor (four) and gives no hello interval; everything else here is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from ipaddress import IPv6Address, ip_network
from typing import Any

from protocol.core.errors import LocalError
from protocol.idp.messages import PREFIXES_MAX, prefix_order
from protocol.ipsec.model import Prefix, Suite

HELLO_INTERVAL_MS_MIN = 50
HELLO_INTERVAL_MS_MAX = 60_000
"""Bounds of a hello interval, our own and a peer's announced one (rule IDP-2). Below 50 ms a peer
would make all others verify more than 20 signatures a second; above a minute a dead peer would be
believed for more than four."""

DEAD_FACTOR_MIN = 2
DEAD_FACTOR_MAX = 20
"""Bounds of a dead factor (rule IDP-3): with 1, one late hello would cost a rekey."""


class SaMode(StrEnum):
    """How the group's SAs are laid out and replaced.

    ``per-sender``: one SA for each sender, new ones written before old ones go. ``paper``: one SA
    that all share, the old one deleted before the new one is written.
    """

    PER_SENDER = "per-sender"
    PAPER = "paper"


class Unicast(StrEnum):
    """Where the keys of the unicast SAs between each two devices come from.

    ``group``: the group key of the epoch and an ephemeral X25519 key of each instance. ``psk``: a
    pre-shared key (the paper) and these X25519 keys. ``off``: no unicast SAs, no prefixes.
    """

    GROUP = "group"
    PSK = "psk"
    OFF = "off"


PSK_LENGTH = 32
"""Bytes of the pre-shared key."""


class ConfigError(LocalError):
    """A setting is not allowed; the text names the field, the value and what would be allowed."""


@dataclass(frozen=True, slots=True)
class IdpConfig:
    """Settings of one IDP instance; checked on construction.

    Attributes:
        sa_group: black multicast group of the ESP packets (outer destination of the group's SAs).
        if_id: id of the xfrm interface; None selects the policy-based path, which protects only
            traffic that the device itself sends.
        reqid: ties the group's SAs to its policies. Any non-zero value that nothing else uses.
        sa_mode: see `SaMode`.
        suite: algorithms of the group's SAs. In mode ``paper`` an AEAD is refused: many senders
            on one key would repeat nonces (RFC 6054).
        ipv4: protect IPv4 red multicast too, in the same SAs, with policies of its own.
        sa_directions: let the kernel enforce the direction of an SA (Linux 6.10 and newer).
        hello_interval_ms: period of the hello. 1000: a dead device is noticed within 4 to 5 s and
            ten devices cost each other nine signature checks a second.
        dead_factor: silent for this many of a peer's hello intervals means down (the paper: 4).
        jitter_ms: each hello is earlier than announced by a random time below twice this, never
            later (as in RFC 5880 section 6.8.7), so that devices started by one trigger do not
            stay in step and `dead_factor` - 1 lost hellos in a row never look like absence. At
            most a quarter of the hello interval.
        full_hello_every: one hello of so many is signed, the others are light (docs/idp.md section
            3.1); 1: all are signed. 16 saves fifteen of sixteen signature checks; a device that
            has no signed hello of ours and cannot make us answer waits for one that long.
        hello_budget_per_s: hellos a second of all devices together; when there are more devices
            than that allows, every hello interval grows (IDP-38). 200 begin to matter at 200
            devices with the default interval and cost a receiver about 1 % of one core.
        triggered_hello_spread_ms: a device that meets a new one answers with a hello after a
            random time below this. 250, a quarter of the default interval: nine answers are
            25 ms apart on average, and do not compete with the key agreement, which starts at
            the same moment.
        triggered_hello_gap_ms: at least this long between two triggered hellos of ours, however
            many devices appear (their answers are merged into one).
        news_delay_ms: another device's JOIN or RESTORE is signalled to MIKE so long after it was
            noticed, with all others of that time (IDP-16). 500: MIKE does nothing at once with
            it, and a group that is busy with the join itself is not woken for it.
        activation_delay_ms: at the longest so long after "SAs of the new epoch written" our policy
            uses them (RFC 5374 section 4.2.1); as soon as all members have confirmed that they
            have them (docs/idp.md section 8.1).
        deactivation_delay_ms: at the longest so long after that the SAs of the older epochs are
            removed. Another sender may switch up to an activation delay later than we, and packets
            may still be under way: twice the activation delay.
        deactivation_min_ms: when all members have said that they have switched, the older SAs stay
            as long as that took, and at least so long (IDP-46): for packets that were overtaken.
            200: above the reordering inside one network.
        max_peers: size of the connectivity table. 256: the paper's network has "a few dozens".
        max_epochs: epochs of SAs kept side by side when rekeys come faster than the delays; the
            SPI's two epoch bits (protocol.ipsec.schedule) keep four apart.
        retry_ms: pause before the one repetition of a key fetch or of a batch that failed.
        unicast: see `Unicast`. Needs an xfrm interface.
        psk: the pre-shared key, `PSK_LENGTH` bytes, in mode ``psk`` only.
        prefixes: the red prefixes that we announce from the start, sorted.
        max_routes: red prefixes of all other devices together.
        sa_lifetime_s: the group's SAs are not used longer (IDP-61, IDP-62); 0: as long as the
            domain policy allows, without one for ever.
        sa_lifetime_bytes: no SA that we send with carries more (IDP-63); the kernel counts. 0: as
            much as the domain policy allows, without one any number.
    """

    sa_group: IPv6Address
    if_id: int | None = 66
    reqid: int = 7
    sa_mode: SaMode = SaMode.PER_SENDER
    suite: Suite = Suite.AES_GCM_128
    ipv4: bool = False
    sa_directions: bool = True
    hello_interval_ms: int = 1000
    dead_factor: int = 4
    jitter_ms: int = 20
    full_hello_every: int = 16
    hello_budget_per_s: int = 200
    triggered_hello_spread_ms: int = 250
    triggered_hello_gap_ms: int = 100
    news_delay_ms: int = 1000
    activation_delay_ms: int = 500
    deactivation_delay_ms: int = 1000
    deactivation_min_ms: int = 200
    max_peers: int = 256
    max_epochs: int = 4
    retry_ms: int = 100
    unicast: Unicast = Unicast.GROUP
    psk: bytes | None = field(default=None, repr=False)
    prefixes: tuple[Prefix, ...] = ()
    max_routes: int = 4096
    sa_lifetime_s: int = 0
    sa_lifetime_bytes: int = 0

    def __post_init__(self) -> None:
        """Check every field, and those that depend on one another.

        Raises:
            ConfigError: names the first field that is wrong.
        """
        if not self.sa_group.is_multicast:
            raise ConfigError(f"sa_group: {self.sa_group} is not a multicast address")
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise ConfigError(f"{name}: {value!r} is not a whole number")
            if not low <= value <= high:
                raise ConfigError(f"{name}: {value} is not between {low} and {high}")
        if self.if_id is not None and not 1 <= self.if_id <= 0xFFFFFFFF:
            raise ConfigError(f"if_id: {self.if_id} is not between 1 and 4294967295")
        if self.jitter_ms * 4 > self.hello_interval_ms:
            raise ConfigError(
                f"jitter_ms: {self.jitter_ms} is more than a quarter of hello_interval_ms"
                f" ({self.hello_interval_ms})"
            )
        if self.triggered_hello_spread_ms > self.hello_interval_ms:
            raise ConfigError(
                f"triggered_hello_spread_ms: {self.triggered_hello_spread_ms} is more than"
                f" hello_interval_ms ({self.hello_interval_ms}): the hello itself would be earlier"
            )
        if self.sa_mode is SaMode.PAPER and self.suite in _AEAD:
            raise ConfigError(
                f"suite: {self.suite.value} with sa_mode paper would repeat nonces (RFC 6054):"
                " use 3des-sha1 or aes-cbc-sha256"
            )
        self._check_unicast()

    def _check_unicast(self) -> None:
        if self.unicast is not Unicast.OFF and self.if_id is None:
            raise ConfigError(f"unicast: {self.unicast} needs an xfrm interface (if_id)")
        if (self.unicast is Unicast.PSK) != (self.psk is not None):
            raise ConfigError("psk: to be given in mode unicast = psk, and only there")
        if self.psk is not None and len(self.psk) != PSK_LENGTH:
            raise ConfigError(f"psk: {len(self.psk)} bytes, not {PSK_LENGTH}")
        if self.prefixes and self.unicast is Unicast.OFF:
            raise ConfigError("prefixes: of no use with unicast = off")
        if len(self.prefixes) > PREFIXES_MAX:
            raise ConfigError(f"prefixes: {len(self.prefixes)}, at most {PREFIXES_MAX} are allowed")
        if list(self.prefixes) != sorted(set(self.prefixes), key=prefix_order):
            raise ConfigError("prefixes: one is named twice")

    @property
    def unicast_reqid(self) -> int:
        """What ties the pairs' SAs to their policies; never the group's."""
        return self.reqid % 0xFFFFFFFF + 1

    @property
    def dead_interval_ms(self) -> int:
        """How long others wait for our next hello before they take us for down."""
        return self.dead_factor * self.hello_interval_ms

    @classmethod
    def from_tables(
        cls, idp: Mapping[str, Any], ipsec: Mapping[str, Any], psk: bytes | None = None
    ) -> IdpConfig:
        """Build the settings from the tables ``[idp]`` and ``[ipsec]`` of a device's TOML file.

        Keys that belong to the daemon's sockets, to the choice of the backend and to files are left
        to the daemon (``group`` and ``port`` of ``[idp]``; ``backend``, ``interface`` and ``psk``,
        whose content it hands in, of ``[ipsec]``).

        Raises:
            ConfigError: an unknown key, a wrong type, or a value that is not allowed.
        """
        values: dict[str, Any] = {} if psk is None else {"psk": psk}
        for table, content in (("idp", idp), ("ipsec", ipsec)):
            for key, value in content.items():
                if key in _DAEMON_KEYS[table]:
                    continue
                name = _FIELD_OF[table].get(key)
                if name is None:
                    known = ", ".join(sorted({*_FIELD_OF[table], *_DAEMON_KEYS[table]}))
                    raise ConfigError(f"[{table}] {key}: unknown (known: {known})")
                values[name] = _convert(f"[{table}] {key}", name, value)
        if "sa_group" not in values:
            raise ConfigError("[ipsec] group: missing (black multicast group of the ESP packets)")
        return cls(**values)


_AEAD = (Suite.AES_GCM_128, Suite.AES_GCM_256)

_RANGES: tuple[tuple[str, int, int], ...] = (
    ("reqid", 1, 0xFFFFFFFF),
    ("hello_interval_ms", HELLO_INTERVAL_MS_MIN, HELLO_INTERVAL_MS_MAX),
    ("dead_factor", DEAD_FACTOR_MIN, DEAD_FACTOR_MAX),
    ("jitter_ms", 0, HELLO_INTERVAL_MS_MAX),
    ("full_hello_every", 1, 256),
    ("hello_budget_per_s", 1, 100_000),
    ("triggered_hello_spread_ms", 0, HELLO_INTERVAL_MS_MAX),
    ("triggered_hello_gap_ms", 0, HELLO_INTERVAL_MS_MAX),
    ("news_delay_ms", 0, 60_000),
    ("activation_delay_ms", 0, 60_000),
    ("deactivation_delay_ms", 0, 300_000),
    ("deactivation_min_ms", 0, 300_000),
    ("max_peers", 1, 4096),
    ("max_epochs", 2, 4),
    ("retry_ms", 1, 60_000),
    ("sa_lifetime_s", 0, 30 * 86_400),
    ("sa_lifetime_bytes", 0, 1 << 62),
    ("max_routes", 0, 65_536),
)

_IPSEC_FIELDS = {
    "group": "sa_group",
    "if_id": "if_id",
    "reqid": "reqid",
    "sa_mode": "sa_mode",
    "suite": "suite",
    "ipv4": "ipv4",
    "sa_directions": "sa_directions",
    "activation_delay_ms": "activation_delay_ms",
    "deactivation_delay_ms": "deactivation_delay_ms",
    "deactivation_min_ms": "deactivation_min_ms",
    "max_epochs": "max_epochs",
    "sa_lifetime_s": "sa_lifetime_s",
    "sa_lifetime_bytes": "sa_lifetime_bytes",
    "unicast": "unicast",
}
_FIELD_OF: dict[str, dict[str, str]] = {
    "ipsec": _IPSEC_FIELDS,
    "idp": {
        item.name: item.name
        for item in fields(IdpConfig)
        if item.name not in {*_IPSEC_FIELDS.values(), "psk"}
    },
}
_DAEMON_KEYS: dict[str, frozenset[str]] = {
    "idp": frozenset({"group", "port"}),
    "ipsec": frozenset({"backend", "interface", "psk"}),
}


def _prefixes(label: str, value: object) -> tuple[Prefix, ...]:
    """Read a list of prefixes; their order does not matter."""
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ConfigError(f"{label}: {value!r} is not a list of texts")
    return tuple(sorted((ip_network(item) for item in value), key=prefix_order))


def _convert(label: str, name: str, value: object) -> object:
    """Turn a TOML value into the field's type where TOML has none for it."""
    try:
        if name == "sa_group":
            return IPv6Address(str(value))
        if name == "sa_mode":
            return SaMode(str(value))
        if name == "suite":
            return Suite(str(value))
        if name == "unicast":
            return Unicast(str(value))
        if name == "prefixes":
            return _prefixes(label, value)
    except ValueError as error:
        raise ConfigError(f"{label}: {error}") from None
    if name in ("sa_directions", "ipv4"):
        if not isinstance(value, bool):
            raise ConfigError(f"{label}: {value!r} is not true or false")
    elif isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{label}: {value!r} is not a whole number")
    return value
