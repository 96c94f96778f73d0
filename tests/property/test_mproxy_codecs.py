"""MLD and IGMP: what is written is read back; whatever arrives is a message or a DecodeError."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.core.errors import DecodeError
from protocol.mproxy import igmp, mld
from protocol.mproxy.messages import (
    Address,
    Message,
    Query,
    Record,
    RecordKind,
    Report,
    code_of,
    value_of,
)

GROUPS6 = st.integers(0xFF << 120, (0x100 << 120) - 1).map(IPv6Address)
SOURCES6 = st.integers(1, (0xFF << 120) - 1).map(IPv6Address)
GROUPS4 = st.integers(0xE0000000, 0xEFFFFFFF).map(IPv4Address)
SOURCES4 = st.integers(1, 0xDFFFFFFF).map(IPv4Address)
OLD_KINDS = st.sampled_from([RecordKind.IS_EXCLUDE, RecordKind.TO_INCLUDE])


def lists(addresses: st.SearchStrategy[Address]) -> st.SearchStrategy[tuple[Address, ...]]:
    return st.lists(addresses, max_size=5).map(tuple)


@st.composite
def messages(draw: st.DrawFn, six: bool) -> Message:
    """Every message that can be written exactly."""
    groups, sources = (GROUPS6, SOURCES6) if six else (GROUPS4, SOURCES4)
    newest = 2 if six else 3
    if draw(st.booleans()):
        records = st.builds(Record, st.sampled_from(RecordKind), groups, lists(sources))
        return Report(tuple(draw(st.lists(records, max_size=5))), newest)
    if draw(st.booleans()):
        return Report((Record(draw(OLD_KINDS), draw(groups)),), newest - 1)
    group = draw(st.none() | groups)
    unit_ms, mantissa = (1, 12) if six else (100, 4)
    code = draw(st.integers(0, (1 << (mantissa + 4)) - 1))
    if draw(st.booleans()):
        linear_ms = draw(st.integers(1, 0xFFFF if six else 0xFF)) * unit_ms
        return Query(group, linear_ms, version=newest - 1)
    return Query(
        group,
        value_of(code, mantissa) * unit_ms,
        () if group is None else draw(lists(sources)),
        suppress=draw(st.booleans()),
        robustness=draw(st.integers(0, 7)),
        interval_s=value_of(draw(st.integers(0, 255)), 4),
        version=newest,
    )


def outcome(codec: ModuleType, data: bytes) -> str:
    """What decoding came to; any other exception is the test's."""
    try:
        codec.decode(data)
    except DecodeError as error:
        return error.rule
    return "message"


@given(messages(six=True))
def test_mld_is_read_as_written(message: Message) -> None:
    assert mld.decode(mld.encode(message)) == message


@given(messages(six=False))
def test_igmp_is_read_as_written(message: Message) -> None:
    assert igmp.decode(igmp.encode(message)) == message


@given(messages(six=True), st.data())
def test_no_shortened_or_lengthened_mld_message_is_one(
    message: Message, data: st.DataObject
) -> None:
    whole = mld.encode(message)
    cut = data.draw(st.integers(0, len(whole) - 1))
    # A query of version 2 cut to 24 bytes is one of version 1: that is how the versions are told.
    if not (whole[0] == mld.QUERY and cut == 24):
        with pytest.raises(DecodeError, match="MPROXY-1"):
            mld.decode(whole[:cut])
    if not (isinstance(message, Query) and message.version == 1):
        with pytest.raises(DecodeError, match="MPROXY-1"):
            mld.decode(whole + b"\0")


@pytest.mark.parametrize("codec", [mld, igmp])
@given(data=st.binary(max_size=80))
def test_arbitrary_bytes_are_a_message_or_a_decode_error(codec: ModuleType, data: bytes) -> None:
    assert outcome(codec, data) in ("message", "MPROXY-1")


@given(st.sampled_from([130, 131, 132, 143]), st.binary(max_size=80))
def test_arbitrary_mld_bodies(kind: int, body: bytes) -> None:
    assert outcome(mld, bytes((kind, 0, 0, 0)) + body) in ("message", "MPROXY-1")


@given(st.sampled_from([0x11, 0x16, 0x17, 0x22]), st.binary(max_size=80))
def test_arbitrary_igmp_bodies_with_a_right_checksum(kind: int, body: bytes) -> None:
    data = bytes((kind, 7, 0, 0)) + body
    data = data[:2] + igmp.checksum(data).to_bytes(2, "big") + data[4:]
    assert outcome(igmp, data) in ("message", "MPROXY-1")


@given(messages(six=False), st.data())
def test_one_wrong_bit_in_igmp_is_refused(message: Message, data: st.DataObject) -> None:
    whole = bytearray(igmp.encode(message))
    bit = data.draw(st.integers(0, 8 * len(whole) - 1))
    whole[bit // 8] ^= 1 << bit % 8
    with pytest.raises(DecodeError, match="MPROXY-1"):
        igmp.decode(bytes(whole))


@pytest.mark.parametrize("mantissa_bits", [4, 12])
@given(value=st.integers(0, 1 << 30))
def test_a_coded_time_is_never_longer_and_at_most_a_sixteenth_shorter(
    mantissa_bits: int, value: int
) -> None:
    code = code_of(value, mantissa_bits)
    said = value_of(code, mantissa_bits)
    assert 0 <= code < 1 << (mantissa_bits + 4)
    assert said <= value
    longest = value_of((1 << (mantissa_bits + 4)) - 1, mantissa_bits)
    assert said == longest or said > value - value / 16 - 1
