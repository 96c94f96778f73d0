"""XFRM and PF_KEY codecs: what goes in comes out; any bytes give messages or DecodeError."""

from __future__ import annotations

import struct
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.core.errors import DecodeError, LocalError
from protocol.ipsec.model import SecurityAssociation, Suite
from protocol.xfrm import pfkey_codec, template
from protocol.xfrm.codec import decode, encode
from protocol.xfrm.messages import (
    Ack,
    DelPolicy,
    DelSa,
    Done,
    DumpPolicies,
    DumpSas,
    ExpirePolicy,
    ExpireSa,
    FlushPolicy,
    FlushSa,
    Frame,
    GetPolicy,
    GetSa,
    Message,
    NewPolicy,
    NewSa,
    UpdPolicy,
    UpdSa,
    request_flags,
)
from protocol.xfrm.structs import XfrmLifetimeCfg
from protocol.xfrm.template import sa_body
from protocol.xfrm.translate import sa_to_kernel
from tests.support.xfrm import SA_IDS, U32, make_sa, policies, sas

U64 = st.integers(0, (1 << 64) - 1)
POLICY_IDS = policies().map(lambda policy: policy.id)
ERRNOS = st.integers(0, 4095)
WORDS = st.text(st.characters(blacklist_characters="\0", codec="utf-8"), max_size=200)
MESSAGES: st.SearchStrategy[Message] = st.one_of(
    st.builds(NewSa, sas(), st.builds(XfrmLifetimeCfg, *[U64] * 8)),
    st.builds(UpdSa, sas()),
    st.builds(DelSa, SA_IDS),
    st.builds(GetSa, SA_IDS),
    st.just(DumpSas()),
    st.builds(FlushSa, st.integers(0, 255)),
    st.builds(ExpireSa, SA_IDS, st.booleans()),
    st.builds(NewPolicy, policies()),
    st.builds(UpdPolicy, policies()),
    st.builds(DelPolicy, POLICY_IDS),
    st.builds(GetPolicy, POLICY_IDS),
    st.just(DumpPolicies()),
    st.just(FlushPolicy()),
    st.builds(ExpirePolicy, policies(), st.booleans()),
    st.builds(Ack, ERRNOS, WORDS),
    st.builds(Done, ERRNOS),
)


@given(MESSAGES, U32, U32)
def test_round_trip(message: Message, sequence: int, port: int) -> None:
    data = encode(message, sequence, port=port)
    assert len(data) % 4 == 0
    assert decode(data) == [Frame(message, sequence, request_flags(message), port)]


@given(st.lists(MESSAGES, max_size=5))
def test_round_trip_of_a_datagram(messages: list[Message]) -> None:
    data = b"".join(encode(message, number) for number, message in enumerate(messages))
    assert [frame.message for frame in decode(data)] == messages


def accept(data: bytes) -> None:
    """Decode; nothing but DecodeError may come."""
    with suppress(DecodeError):
        decode(data)


@given(st.binary(max_size=600))
def test_any_bytes(data: bytes) -> None:
    accept(data)


@given(st.integers(0, 0x30), U32.map(lambda flags: flags & 0xFFFF), st.binary(max_size=600))
def test_any_body_under_a_true_header(kind: int, flags: int, body: bytes) -> None:
    accept(struct.pack("=IHHII", 16 + len(body), kind, flags, 1, 0) + body)


@given(MESSAGES, st.data())
def test_damaged_messages(message: Message, data: st.DataObject) -> None:
    raw = bytearray(encode(message, 1))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    accept(bytes(raw))


@given(st.binary(max_size=200))
def test_any_bytes_from_pf_key(data: bytes) -> None:
    for attempt in (
        data,
        struct.pack("=BBBBHHII", 2, 10, 0, 3, 2 + len(data) // 8, 0, 1, 1) + data,
    ):
        with suppress(DecodeError):
            pfkey_codec.decode(attempt)


@given(sas(), st.integers(256, 0xFFFFFFFF), st.integers(0, 32), U32, U32)
def test_pf_key_round_trip(
    sa: SecurityAssociation, spi: int, window: int, sequence: int, pid: int
) -> None:
    """An added SA is a dumped SA under another type."""
    papers = make_sa(spi, Suite.TDES_SHA1)
    sa = replace(
        papers, source=sa.source, destination=sa.destination, mode=sa.mode, reqid=sa.reqid,
        replay_window=window,
    )  # fmt: skip
    data = bytearray(pfkey_codec.encode_add(sa, sequence, pid))
    data[1] = pfkey_codec.SADB_DUMP
    decoded = pfkey_codec.decode(bytes(data))
    assert decoded == pfkey_codec.SadbMessage(pfkey_codec.SADB_DUMP, 0, sequence, pid, sa)


@given(sas())
def test_pf_key_refuses_what_it_would_change(sa: SecurityAssociation) -> None:
    reason = pfkey_codec.inexpressible(sa)
    if reason:
        assert "netlink" in reason
        with pytest.raises(LocalError):
            pfkey_codec.encode_add(sa, 1, 1)


@given(sas(), st.data())
def test_a_template_gives_the_same_bytes_as_packing_anew(
    first: SecurityAssociation, data: st.DataObject
) -> None:
    """A second SA of the same kind is filled into the first one's template."""
    other = data.draw(sas().filter(lambda sa: sa.suite is first.suite))
    second = replace(
        first, source=other.source, destination=other.destination, spi=other.spi, key=other.key
    )
    lifetime = XfrmLifetimeCfg()
    for sa in (first, second, first):
        info, attributes = sa_to_kernel(sa, lifetime)
        assert sa_body(sa, lifetime) == b"".join((info.pack(), *attributes))
    with pytest.raises(LocalError):
        sa_body(replace(second, spi=1), lifetime)


def test_a_template_holds_no_key() -> None:
    sa = make_sa(0x1000, reqid=77)
    sa_body(sa, XfrmLifetimeCfg())
    templates = [kept.body for kept in template._templates]
    assert templates
    assert all(sa.key.encryption not in body for body in templates)
