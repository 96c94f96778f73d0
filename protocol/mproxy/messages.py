"""What MLD and IGMP have in common: queries, reports, and the codes for long times.

Both protocols say the same things in other bytes; the engine knows only the forms here. The bytes
are in `protocol.mproxy.mld` (RFC 2710, RFC 3810) and `protocol.mproxy.igmp` (RFC 2236, RFC 3376).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum
from ipaddress import IPv4Address, IPv6Address

from protocol.core.wire import Reader

Address = IPv4Address | IPv6Address

SYNTAX_RULE = "MPROXY-1"
"""The rule under which every decoding error is counted."""


class Family(Enum):
    """Address family of a message, a group or a flow; the two never mix.

    Attributes:
        number: IP version, 4 or 6.
    """

    IPV4 = 4
    IPV6 = 6

    @property
    def number(self) -> int:
        """IP version."""
        return int(self.value)

    @classmethod
    def of(cls, address: Address) -> Family:
        """Return the family of an address."""
        return cls.IPV4 if address.version == 4 else cls.IPV6


class RecordKind(IntEnum):
    """Kinds of a group record (RFC 3810 section 5.2.12, RFC 3376 section 4.2.12)."""

    IS_INCLUDE = 1
    IS_EXCLUDE = 2
    TO_INCLUDE = 3
    TO_EXCLUDE = 4
    ALLOW = 5
    BLOCK = 6


@dataclass(frozen=True, slots=True)
class Record:
    """What a listener says of one group.

    Attributes:
        kind: see `RecordKind`.
        group: a multicast address.
        sources: unicast addresses of the group's family.
    """

    kind: RecordKind
    group: Address
    sources: tuple[Address, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """A listener's report.

    The older protocols' messages are reports of one record without sources: a report of MLDv1 or
    IGMPv2 is ``IS_EXCLUDE``, a Done or Leave is ``TO_INCLUDE``.

    Attributes:
        records: at least none, in the order received.
        version: 1 or 2 for MLD, 2 or 3 for IGMP.
    """

    records: tuple[Record, ...]
    version: int


@dataclass(frozen=True, slots=True)
class Query:
    """A querier's question.

    Attributes:
        group: the group asked about, None for a general query.
        response_ms: within what time listeners shall answer.
        sources: the sources asked about; empty asks about the group as a whole.
        suppress: the S flag: other routers shall not lower their timers.
        robustness: QRV, 0 if above 7 or (older versions) unknown.
        interval_s: QQI, 0 if unknown (older versions).
        version: 1 or 2 for MLD, 1 to 3 for IGMP.
    """

    group: Address | None
    response_ms: int
    sources: tuple[Address, ...] = ()
    suppress: bool = False
    robustness: int = 0
    interval_s: int = 0
    version: int = 2


Message = Query | Report


def code_of(value: int, mantissa_bits: int) -> int:
    """Return the code of a time, rounded down to what can be said.

    Values below the highest bit stand for themselves, larger ones are a 3-bit exponent and a
    mantissa (RFC 3810 sections 5.1.3 and 5.1.9: 12 and 4 bits; RFC 3376 section 4.1.1: 4 bits).
    """
    limit = 1 << (mantissa_bits + 3)
    if value < limit:
        return max(value, 0)
    top = (2 << mantissa_bits) - 1
    value = min(value, top << 10)
    exponent = value.bit_length() - mantissa_bits - 4
    mantissa = (value >> (exponent + 3)) & ((1 << mantissa_bits) - 1)
    return limit | exponent << mantissa_bits | mantissa


def value_of(code: int, mantissa_bits: int) -> int:
    """Return the time that a code stands for; see `code_of`."""
    limit = 1 << (mantissa_bits + 3)
    if code < limit:
        return code
    exponent = code >> mantissa_bits & 7
    mantissa = code & ((1 << mantissa_bits) - 1)
    return (mantissa | 1 << mantissa_bits) << (exponent + 3)


def pull_any(reader: Reader, family: Family, field: str) -> Address:
    """Read an address of the family."""
    if family is Family.IPV6:
        return reader.pull_address(field)
    return IPv4Address(reader.pull_bytes(4, field))


def pull_group(reader: Reader, family: Family, field: str = "group") -> Address:
    """Read a multicast address."""
    group = pull_any(reader, family, field)
    if not group.is_multicast:
        reader.fail(field, f"{group} is not a multicast address")
    return group


def pull_sources(reader: Reader, family: Family, count: int) -> tuple[Address, ...]:
    """Read the unicast addresses of a source list."""
    width = 4 if family is Family.IPV4 else 16
    if count * width > reader.remaining:
        reader.fail("sources", f"{count} sources do not fit in {reader.remaining} bytes")
    sources = tuple(pull_any(reader, family, "source") for _ in range(count))
    for source in sources:
        if source.is_multicast or source.is_unspecified:
            reader.fail("source", f"{source} is not a unicast address")
    return sources


def pull_records(reader: Reader, family: Family, count: int) -> tuple[Record, ...]:
    """Read the group records of a report; auxiliary data is skipped (RFC 3810 section 5.2.10)."""
    width = 4 if family is Family.IPV4 else 16
    if count * (4 + width) > reader.remaining:
        reader.fail("records", f"{count} records do not fit in {reader.remaining} bytes")
    records = []
    for _ in range(count):
        kind = reader.pull_enum(RecordKind, "record kind")
        auxiliary_words = reader.pull_u8("auxiliary data length")
        sources = reader.pull_u16("number of sources")
        group = pull_group(reader, family)
        records.append(Record(kind, group, pull_sources(reader, family, sources)))
        reader.pull_bytes(4 * auxiliary_words, "auxiliary data")
    return tuple(records)
