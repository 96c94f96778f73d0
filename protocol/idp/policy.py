"""The common IPsec security policy of a domain: what every device keeps to, as one small document.

Written in TOML by people, in canonical bytes on the wire, signed by the policy's authority
(`protocol.identity.signed`). Field table: docs/idp.md section 13.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, TypeVar

from protocol.core.errors import LocalError
from protocol.core.wire import Reader, Writer
from protocol.idp.config import (
    HELLO_INTERVAL_MS_MAX,
    HELLO_INTERVAL_MS_MIN,
    IdpConfig,
    SaMode,
    Unicast,
)
from protocol.idp.messages import DIGEST_LENGTH
from protocol.ipsec.model import Suite

FORMAT = 2
DOMAIN_MAX = 63
LIFETIME_S_MAX = 30 * 86_400
LIFETIME_S_MIN = 10
LIFETIME_BYTES_MAX = 1 << 62
LIFETIME_BYTES_MIN = 1 << 20
KEY_BITS_MAX = 256

RULE_SYNTAX = "IDP-50"

_LABEL = b"idpmike policy digest v1\x00"

KEY_BITS: dict[Suite, int] = {
    Suite.AES_GCM_128: 128,
    Suite.AES_GCM_256: 256,
    Suite.AES_CBC_SHA256: 128,
    Suite.TDES_SHA1: 112,
}
"""Effective key length of each suite; 3DES: NIST SP 800-57 part 1, table 2."""

E = TypeVar("E", bound=StrEnum)


@dataclass(frozen=True, slots=True)
class DomainPolicy:
    """What every device of a domain keeps to.

    Attributes:
        domain: name of the domain.
        version: counts the policies of the domain from 1; the larger one replaces the smaller.
        suites: algorithms that the SAs may use.
        sa_modes: how the group's SAs may be laid out.
        unicast: where the keys of unicast SAs may come from.
        key_bits_min: effective key length that a suite must have.
        sa_lifetime_min_s: bounds of the lifetime of an SA, seconds.
        sa_lifetime_max_s: an SA is never used longer.
        sa_lifetime_min_bytes: bounds of what an SA carries, bytes.
        sa_lifetime_max_bytes: no SA ever carries more.
        hello_interval_min_ms: bounds of the hello interval.
        hello_interval_max_ms: the same.
    """

    domain: str
    version: int
    suites: tuple[Suite, ...]
    sa_modes: tuple[SaMode, ...]
    unicast: tuple[Unicast, ...]
    key_bits_min: int
    sa_lifetime_min_s: int
    sa_lifetime_max_s: int
    sa_lifetime_min_bytes: int
    sa_lifetime_max_bytes: int
    hello_interval_min_ms: int
    hello_interval_max_ms: int

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            LocalError: names the first that is wrong.
        """
        text = self.domain.encode()
        if not 1 <= len(text) <= DOMAIN_MAX or not self.domain.isprintable():
            raise LocalError(f"domain: not a printable text of 1 to {DOMAIN_MAX} bytes")
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise LocalError(f"{name}: {value!r} is not a whole number from {low} to {high}")
        for name, kind in _SETS:
            values = getattr(self, name)
            if not values or values != tuple(one for one in kind if one in values):
                raise LocalError(f"{name}: empty, or not in the order {', '.join(kind)}")
        for lower, upper in _PAIRS:
            if getattr(self, lower) > getattr(self, upper):
                raise LocalError(f"{lower}: larger than {upper}")
        if all(KEY_BITS[suite] < self.key_bits_min for suite in self.suites):
            raise LocalError(f"key_bits_min: no allowed suite has {self.key_bits_min} bits")

    # Bytes.

    def encode(self) -> bytes:
        """Return the canonical bytes."""
        writer = Writer()
        writer.push_u8(FORMAT, "format")
        writer.push_vector(self.domain.encode(), DOMAIN_MAX, "domain")
        writer.push_u32(self.version, "version")
        for name, kind in _SETS:
            writer.push_u16(_mask(getattr(self, name), kind), name)
        writer.push_u16(self.key_bits_min, "key_bits_min")
        for pair in _PAIRS:
            push = writer.push_u64 if pair in _LONG else writer.push_u32
            for name in pair:
                push(getattr(self, name), name)
        return writer.finish()

    @classmethod
    def decode(cls, content: bytes) -> DomainPolicy:
        """Read the canonical bytes; exactly one byte string stands for each policy.

        Raises:
            DecodeError: not a policy (rule IDP-50).
        """
        reader = Reader(content, RULE_SYNTAX)
        form = reader.pull_u8("format")
        if form != FORMAT:
            reader.fail("format", f"unknown format {form}")
        raw = reader.pull_vector(DOMAIN_MAX, "domain")
        try:
            values: dict[str, Any] = {"domain": raw.decode()}
        except UnicodeDecodeError:
            reader.fail("domain", "not UTF-8")
        values["version"] = reader.pull_u32("version")
        for name, kind in _SETS:
            mask = reader.pull_u16(name)
            if mask >> len(kind):
                reader.fail(name, f"unknown bits in {mask:#06x}")
            values[name] = tuple(one for bit, one in enumerate(kind) if mask & 1 << bit)
        values["key_bits_min"] = reader.pull_u16("key_bits_min")
        for pair in _PAIRS:
            pull = reader.pull_u64 if pair in _LONG else reader.pull_u32
            for name in pair:
                values[name] = pull(name)
        reader.finish()
        try:
            return cls(**values)
        except LocalError as error:
            reader.fail("policy", str(error))

    def digest(self) -> bytes:
        """Return what tells two policies apart in a hello."""
        return hashlib.sha256(_LABEL + self.encode()).digest()[:DIGEST_LENGTH]

    # TOML.

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> DomainPolicy:
        """Build a policy from what people write.

        Raises:
            LocalError: a field is missing, unknown, or wrong; one line that names it.
        """
        names = [item.name for item in fields(cls)]
        for name in table:
            if name not in names:
                raise LocalError(f"{name}: unknown (known: {', '.join(names)})")
        for name in names:
            if name not in table:
                raise LocalError(f"{name}: missing")
        values = dict(table)
        if not isinstance(values["domain"], str):
            raise LocalError("domain: not a text")
        for name, kind in _SETS:
            values[name] = _members(name, values[name], kind)
        return cls(**values)

    # Comparing.

    def defects(self, config: IdpConfig) -> list[tuple[str, str]]:
        """Say what a device's settings break: section and field, and how; empty: nothing."""
        found = []
        if config.suite not in self.suites:
            found.append(("[ipsec] suite", f"{config.suite} is not among {_list(self.suites)}"))
        elif KEY_BITS[config.suite] < self.key_bits_min:
            bits = KEY_BITS[config.suite]
            text = f"{config.suite} has {bits} bits, at least {self.key_bits_min} are required"
            found.append(("[ipsec] suite", text))
        if config.sa_mode not in self.sa_modes:
            text = f"{config.sa_mode} is not among {_list(self.sa_modes)}"
            found.append(("[ipsec] sa_mode", text))
        if config.unicast not in self.unicast:
            text = f"{config.unicast} is not among {_list(self.unicast)}"
            found.append(("[ipsec] unicast", text))
        for field, value, low, high in (
            (
                "[idp] hello_interval_ms",
                config.hello_interval_ms,
                self.hello_interval_min_ms,
                self.hello_interval_max_ms,
            ),
            (
                "[ipsec] sa_lifetime_s",
                config.sa_lifetime_s or self.sa_lifetime_max_s,
                self.sa_lifetime_min_s,
                self.sa_lifetime_max_s,
            ),
            (
                "[ipsec] sa_lifetime_bytes",
                config.sa_lifetime_bytes or self.sa_lifetime_max_bytes,
                self.sa_lifetime_min_bytes,
                self.sa_lifetime_max_bytes,
            ),
        ):
            if not low <= value <= high:
                found.append((field, f"{value} is not between {low} and {high}"))
        return found

    def differences(self, other: DomainPolicy) -> list[str]:
        """Say field by field what another policy says and what this one says."""
        found = []
        for item in fields(self):
            theirs, ours = getattr(other, item.name), getattr(self, item.name)
            if theirs != ours:
                found.append(f"{item.name} {_text(theirs)}, ours {_text(ours)}")
        return found

    def describe(self) -> dict[str, Any]:
        """Return the policy as plain JSON values."""
        return {
            item.name: list(value)
            if isinstance(value := getattr(self, item.name), tuple)
            else value
            for item in fields(self)
        }


_RANGES = (
    ("version", 1, 0xFFFFFFFF),
    ("key_bits_min", 0, KEY_BITS_MAX),
    ("sa_lifetime_min_s", LIFETIME_S_MIN, LIFETIME_S_MAX),
    ("sa_lifetime_max_s", LIFETIME_S_MIN, LIFETIME_S_MAX),
    ("sa_lifetime_min_bytes", LIFETIME_BYTES_MIN, LIFETIME_BYTES_MAX),
    ("sa_lifetime_max_bytes", LIFETIME_BYTES_MIN, LIFETIME_BYTES_MAX),
    ("hello_interval_min_ms", HELLO_INTERVAL_MS_MIN, HELLO_INTERVAL_MS_MAX),
    ("hello_interval_max_ms", HELLO_INTERVAL_MS_MIN, HELLO_INTERVAL_MS_MAX),
)
_SETS: tuple[tuple[str, type[StrEnum]], ...] = (
    ("suites", Suite),
    ("sa_modes", SaMode),
    ("unicast", Unicast),
)
_LONG = (("sa_lifetime_min_bytes", "sa_lifetime_max_bytes"),)
_PAIRS = (
    ("sa_lifetime_min_s", "sa_lifetime_max_s"),
    *_LONG,
    ("hello_interval_min_ms", "hello_interval_max_ms"),
)


def _mask(values: Iterable[StrEnum], kind: type[StrEnum]) -> int:
    """Return one bit for each value, the first of the kind lowest."""
    return sum(1 << bit for bit, one in enumerate(kind) if one in set(values))


def _members(name: str, values: object, kind: type[E]) -> tuple[E, ...]:
    """Read a list of words."""
    words = [str(one) for one in kind]
    if not isinstance(values, list) or not values or any(value not in words for value in values):
        raise LocalError(f"{name}: must be a list of some of {', '.join(words)}, not {values!r}")
    return tuple(one for one in kind if one in values)


def _list(values: Sequence[StrEnum]) -> str:
    return ", ".join(values)


def _text(value: object) -> str:
    return "+".join(value) if isinstance(value, tuple) else str(value)
