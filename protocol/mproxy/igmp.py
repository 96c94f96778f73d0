"""IGMP as bytes: queries of versions 1 to 3, reports of versions 2 and 3 (RFC 2236, RFC 3376).

The checksum is ours, both ways: a raw IGMP socket gets packets before the kernel has looked at
them. Reports of version 1 (RFC 1112) are refused: their senders do not say when they leave, which
no host does any more. Reserved fields are ignored on receipt; bytes after the message are refused.
"""

from __future__ import annotations

from ipaddress import IPv4Address

from protocol.core.errors import LocalError
from protocol.core.wire import Reader, Writer
from protocol.mproxy.messages import (
    SYNTAX_RULE,
    Address,
    Family,
    Message,
    Query,
    Record,
    RecordKind,
    Report,
    code_of,
    pull_any,
    pull_group,
    pull_records,
    pull_sources,
    value_of,
)
from protocol.mproxy.mld import single_record

QUERY = 0x11
REPORT_V2 = 0x16
LEAVE = 0x17
REPORT_V3 = 0x22

ALL_SYSTEMS = IPv4Address("224.0.0.1")
ALL_ROUTERS = IPv4Address("224.0.0.2")
ALL_IGMPV3_ROUTERS = IPv4Address("224.0.0.22")

_QUERY_V2_LENGTH = 8
_MANTISSA_BITS = 4
_RESPONSE_UNIT_MS = 100
_V1_RESPONSE_MS = 10_000
"""What a query of version 1 means by a response time of 0 (RFC 2236 section 4)."""

_ANY = IPv4Address(0)


def checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071); 0 over a message that carries the right one."""
    if len(data) % 2:
        data += b"\0"
    total = sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def decode(data: bytes) -> Message:
    """Read one IGMP message, from the IGMP type on.

    Raises:
        DecodeError: it is none; under rule MPROXY-1.
    """
    reader = Reader(data, SYNTAX_RULE)
    kind = reader.pull_u8("type")
    code = reader.pull_u8("maximum response code")
    reader.pull_u16("checksum")
    if checksum(data):
        reader.fail("checksum", "is wrong")
    message: Message
    if kind == QUERY:
        message = _query(reader, code, len(data))
    elif kind == REPORT_V3:
        reader.pull_u16("reserved")
        count = reader.pull_u16("number of records")
        message = Report(pull_records(reader, Family.IPV4, count), version=3)
    elif kind in (REPORT_V2, LEAVE):
        group = pull_group(reader, Family.IPV4)
        what = RecordKind.IS_EXCLUDE if kind == REPORT_V2 else RecordKind.TO_INCLUDE
        message = Report((Record(what, group),), version=2)
    else:
        reader.fail("type", f"{kind:#x} is no IGMP message of version 2 or 3")
    reader.finish()
    return message


def _query(reader: Reader, code: int, length: int) -> Query:
    asked = pull_any(reader, Family.IPV4, "group")
    group = None if asked == _ANY else asked
    if group is not None and not group.is_multicast:
        reader.fail("group", f"{group} is not a multicast address")
    if length == _QUERY_V2_LENGTH:
        if code == 0:
            return Query(group, _V1_RESPONSE_MS, version=1)
        return Query(group, code * _RESPONSE_UNIT_MS, version=2)
    flags = reader.pull_u8("flags")
    interval_code = reader.pull_u8("querier's query interval code")
    sources = pull_sources(reader, Family.IPV4, reader.pull_u16("number of sources"))
    if sources and group is None:
        reader.fail("number of sources", "a general query with sources")
    return Query(
        group,
        value_of(code, _MANTISSA_BITS) * _RESPONSE_UNIT_MS,
        sources,
        suppress=bool(flags & 8),
        robustness=flags & 7,
        interval_s=value_of(interval_code, _MANTISSA_BITS),
        version=3,
    )


def encode(message: Message) -> bytes:
    """Return the bytes of a message with its checksum.

    Raises:
        LocalError: IGMP cannot say that.
    """
    writer = Writer()
    if isinstance(message, Query):
        _push_query(writer, message)
    elif message.version == 3:
        _push_header(writer, REPORT_V3, 0)
        writer.push_u16(0)
        writer.push_u16(len(message.records), "number of records")
        for record in message.records:
            writer.push_u8(record.kind)
            writer.push_u8(0)
            writer.push_u16(len(record.sources), "number of sources")
            _push_address(writer, record.group)
            for source in record.sources:
                _push_address(writer, source)
    else:
        record = single_record(message)
        kind = REPORT_V2 if record.kind is RecordKind.IS_EXCLUDE else LEAVE
        _push_header(writer, kind, 0)
        _push_address(writer, record.group)
    data = writer.finish()
    return data[:2] + checksum(data).to_bytes(2, "big") + data[4:]


def _push_header(writer: Writer, kind: int, code: int) -> None:
    writer.push_u8(kind)
    writer.push_u8(code, "maximum response code")
    writer.push_u16(0)


def _push_address(writer: Writer, address: Address) -> None:
    if not isinstance(address, IPv4Address):
        raise LocalError(f"{address} is not an IPv4 address")
    writer.push_bytes(address.packed)


def _push_query(writer: Writer, query: Query) -> None:
    tenths = query.response_ms // _RESPONSE_UNIT_MS
    if query.version == 3:
        code = code_of(tenths, _MANTISSA_BITS)
    else:
        # Zero means version 1 here, so the shortest time that version 2 can say is 100 ms.
        code = 0 if query.version == 1 else max(tenths, 1)
    _push_header(writer, QUERY, code)
    _push_address(writer, query.group or _ANY)
    if query.version != 3:
        return
    writer.push_u8(8 * query.suppress | (query.robustness if query.robustness <= 7 else 0))
    writer.push_u8(code_of(query.interval_s, _MANTISSA_BITS))
    writer.push_u16(len(query.sources), "number of sources")
    for source in query.sources:
        _push_address(writer, source)
