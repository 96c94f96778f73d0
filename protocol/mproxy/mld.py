"""MLD versions 1 and 2 as bytes: the ICMPv6 messages of RFC 2710 and RFC 3810.

The checksum is not ours: the kernel writes it into what a raw ICMPv6 socket sends and has checked
it in what such a socket receives (RFC 3542 section 3.1), so it is sent as zero and not read.
Reserved fields are ignored on receipt, as the standards say. Bytes after the message are refused.
"""

from __future__ import annotations

from ipaddress import IPv6Address

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

QUERY = 130
REPORT_V1 = 131
DONE = 132
REPORT_V2 = 143

ALL_NODES = IPv6Address("ff02::1")
ALL_ROUTERS = IPv6Address("ff02::2")
ALL_MLDV2_ROUTERS = IPv6Address("ff02::16")

_QUERY_V1_LENGTH = 24
_RESPONSE_MANTISSA_BITS = 12
_INTERVAL_MANTISSA_BITS = 4
_ANY = IPv6Address(0)


def decode(data: bytes) -> Message:
    """Read one MLD message, from the ICMPv6 type on.

    Raises:
        DecodeError: it is none; under rule MPROXY-1.
    """
    reader = Reader(data, SYNTAX_RULE)
    kind = reader.pull_u8("type")
    reader.pull_bytes(3, "code and checksum")
    message: Message
    if kind == QUERY:
        message = _query(reader, len(data))
    elif kind == REPORT_V2:
        reader.pull_u16("reserved")
        count = reader.pull_u16("number of records")
        message = Report(pull_records(reader, Family.IPV6, count), version=2)
    elif kind in (REPORT_V1, DONE):
        reader.pull_u32("response delay and reserved")
        group = pull_group(reader, Family.IPV6)
        what = RecordKind.IS_EXCLUDE if kind == REPORT_V1 else RecordKind.TO_INCLUDE
        message = Report((Record(what, group),), version=1)
    else:
        reader.fail("type", f"{kind} is no MLD message")
    reader.finish()
    return message


def _query(reader: Reader, length: int) -> Query:
    code = reader.pull_u16("maximum response code")
    reader.pull_u16("reserved")
    asked = pull_any(reader, Family.IPV6, "group")
    group = None if asked == _ANY else asked
    if group is not None and not group.is_multicast:
        reader.fail("group", f"{group} is not a multicast address")
    if length == _QUERY_V1_LENGTH:
        return Query(group, code, version=1)
    flags = reader.pull_u8("flags")
    interval_code = reader.pull_u8("querier's query interval code")
    sources = pull_sources(reader, Family.IPV6, reader.pull_u16("number of sources"))
    if sources and group is None:
        reader.fail("number of sources", "a general query with sources")
    return Query(
        group,
        value_of(code, _RESPONSE_MANTISSA_BITS),
        sources,
        suppress=bool(flags & 8),
        robustness=flags & 7,
        interval_s=value_of(interval_code, _INTERVAL_MANTISSA_BITS),
        version=2,
    )


def encode(message: Message) -> bytes:
    """Return the bytes of a message, checksum zero.

    Raises:
        LocalError: MLD cannot say that.
    """
    writer = Writer()
    if isinstance(message, Query):
        _push_query(writer, message)
    elif message.version == 2:
        _push_header(writer, REPORT_V2)
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
        _push_header(writer, REPORT_V1 if record.kind is RecordKind.IS_EXCLUDE else DONE)
        writer.push_u32(0)
        _push_address(writer, record.group)
    return writer.finish()


def single_record(report: Report) -> Record:
    """Return the record of an older version's report.

    Raises:
        LocalError: the older versions cannot say that.
    """
    known = (RecordKind.IS_EXCLUDE, RecordKind.TO_INCLUDE)
    if len(report.records) != 1 or report.records[0].sources:
        raise LocalError("an older report has one record without sources")
    if report.records[0].kind not in known:
        raise LocalError(f"an older report cannot say {report.records[0].kind.name}")
    return report.records[0]


def _push_header(writer: Writer, kind: int) -> None:
    writer.push_u8(kind)
    writer.push_zero(3)


def _push_address(writer: Writer, address: Address) -> None:
    if not isinstance(address, IPv6Address):
        raise LocalError(f"{address} is not an IPv6 address")
    writer.push_address(address)


def _push_query(writer: Writer, query: Query) -> None:
    _push_header(writer, QUERY)
    if query.version == 1:
        writer.push_u16(query.response_ms, "maximum response delay")
    else:
        writer.push_u16(code_of(query.response_ms, _RESPONSE_MANTISSA_BITS))
    writer.push_u16(0)
    _push_address(writer, query.group or _ANY)
    if query.version == 1:
        return
    writer.push_u8(8 * query.suppress | (query.robustness if query.robustness <= 7 else 0))
    writer.push_u8(code_of(query.interval_s, _INTERVAL_MANTISSA_BITS))
    writer.push_u16(len(query.sources), "number of sources")
    for source in query.sources:
        _push_address(writer, source)
