"""Cursors: every pull is bounded and only DecodeError leaves them."""

from __future__ import annotations

from enum import IntEnum
from ipaddress import IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.core.errors import DecodeError, LocalError
from protocol.core.wire import Reader, Writer


class Colour(IntEnum):
    RED = 1
    BLACK = 2


def test_round_trip_of_every_field() -> None:
    writer = Writer()
    writer.push_u8(1)
    writer.push_u16(2)
    writer.push_u32(3)
    writer.push_u64(4)
    writer.push_bytes(b"abc", 3)
    writer.push_vector(b"vector", 10)
    writer.push_address(IPv6Address("2001:db8::1"))
    writer.push_zero(2)
    writer.push_u8(Colour.BLACK)
    writer.push_count(5, 9)
    writer.push_bytes(b"rest")
    data = writer.finish()
    assert len(writer) == len(data)
    reader = Reader(data)
    assert reader.pull_u8("a") == 1
    assert reader.pull_u16("b") == 2
    assert reader.pull_u32("c") == 3
    assert reader.pull_u64("d") == 4
    assert reader.pull_bytes(3, "e") == b"abc"
    assert reader.pull_vector(10, "f") == b"vector"
    assert reader.pull_address("g") == IPv6Address("2001:db8::1")
    reader.pull_zero(2, "h")
    assert reader.pull_enum(Colour, "i") is Colour.BLACK
    assert reader.pull_count(9, "j") == 5
    assert reader.pull_rest("k") == b"rest"
    reader.finish()


def test_error_names_field_offset_and_rule() -> None:
    reader = Reader(b"\x00\x01\x02", "IDP-1")
    reader.pull_u8("version")
    with pytest.raises(DecodeError, match=r"IDP-1: sequence at byte 1: needs 8 bytes, 2 left") as e:
        reader.pull_u64("sequence")
    assert (e.value.field, e.value.offset, e.value.rule) == ("sequence", 1, "IDP-1")


def test_refuses_trailing_bytes_unknown_enum_reserved_and_long_vector() -> None:
    with pytest.raises(DecodeError, match="2 trailing bytes"):
        Reader(b"ab").finish()
    with pytest.raises(DecodeError, match="unknown value 3"):
        Reader(b"\x03").pull_enum(Colour, "colour")
    with pytest.raises(DecodeError, match="not zero"):
        Reader(b"\x00\x01").pull_zero(2, "reserved")
    with pytest.raises(DecodeError, match="length 5 above the maximum of 4"):
        Reader(b"\x00\x05hello").pull_vector(4, "vector")
    with pytest.raises(DecodeError, match="0 elements, not 1 to 4"):
        Reader(b"\x00\x00").pull_count(4, "count", minimum=1)


def test_our_own_mistakes_are_local_errors() -> None:
    writer = Writer()
    for attempt in (
        lambda: writer.push_u8(256),
        lambda: writer.push_u64(-1),
        lambda: writer.push_bytes(b"ab", 3),
        lambda: writer.push_vector(b"abc", 2),
        lambda: writer.push_count(3, 2),
        lambda: Reader(b"").pull_bytes(-1, "x"),
    ):
        with pytest.raises(LocalError):
            attempt()
    assert writer.finish() == b""


PULLS = (
    lambda r: r.pull_u8("f"),
    lambda r: r.pull_u16("f"),
    lambda r: r.pull_u32("f"),
    lambda r: r.pull_u64("f"),
    lambda r: r.pull_bytes(5, "f"),
    lambda r: r.pull_vector(100, "f"),
    lambda r: r.pull_address("f"),
    lambda r: r.pull_enum(Colour, "f"),
    lambda r: r.pull_zero(3, "f"),
    lambda r: r.pull_count(10, "f"),
    lambda r: r.finish(),
)


@given(st.binary(max_size=200), st.lists(st.sampled_from(PULLS), max_size=20))
def test_any_bytes_and_any_pulls_raise_decode_error_only(data, pulls) -> None:
    reader = Reader(data)
    try:
        for pull in pulls:
            pull(reader)
    except DecodeError:
        pass
    assert 0 <= reader.offset <= len(data)
