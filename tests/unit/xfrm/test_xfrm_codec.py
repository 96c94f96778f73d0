"""The codec's own rules: padding, bounds, and errors that show no key."""

from __future__ import annotations

import struct

import pytest

from protocol.core.errors import DecodeError, LocalError
from protocol.ipsec.model import SaDirection, Suite
from protocol.xfrm.codec import decode, encode
from protocol.xfrm.messages import (
    Ack,
    Done,
    DumpPolicies,
    DumpSas,
    FlushSa,
    Frame,
    NewPolicy,
    NewSa,
    Overrun,
    Unknown,
    request_flags,
)
from protocol.xfrm.structs import (
    XfrmSelector,
    XfrmUserpolicyId,
    XfrmUserpolicyInfo,
    XfrmUsersaId,
    XfrmUsersaInfo,
    XfrmUserTmpl,
)
from protocol.xfrm.translate import ForeignPolicy, ForeignSa
from tests.support.xfrm import make_sa


@pytest.mark.parametrize(
    ("structure", "size"),
    [
        (XfrmSelector(), 56),
        (XfrmUsersaInfo(), 224),
        (XfrmUsersaId(), 24),
        (XfrmUserTmpl(), 64),
        (XfrmUserpolicyInfo(), 168),
        (XfrmUserpolicyId(), 64),
    ],
    ids=lambda value: type(value).__name__,
)
def test_sizes_are_those_of_the_c_structures(structure: object, size: int) -> None:
    assert len(structure.pack()) == size  # type: ignore[attr-defined]


def test_several_messages_in_one_datagram() -> None:
    data = encode(NewSa(make_sa(0x1001)), 1) + encode(FlushSa(50), 2) + encode(Done(), 3)
    assert [(f.sequence, type(f.message)) for f in decode(data)] == [
        (1, NewSa),
        (2, FlushSa),
        (3, Done),
    ]


def test_dump_requests_are_told_from_gets_by_their_flags() -> None:
    for message in (DumpSas(), DumpPolicies()):
        assert decode(encode(message, 4)) == [Frame(message, 4, request_flags(message))]


def test_acknowledgements() -> None:
    assert decode(encode(Ack(17, "in words"), 9))[0].message == Ack(17, "in words")
    assert decode(encode(Ack(), 9))[0].message == Ack()


def test_a_refusal_that_echoes_the_request_is_read_past_it() -> None:
    request = encode(NewSa(make_sa(0x1001)), 5)
    words = struct.pack("=HH", 4 + 3, 1) + b"no\0" + b"\0"
    body = struct.pack("=i", -22) + request + words
    data = struct.pack("=IHHII", 16 + len(body), 2, 0x200, 5, 0) + body
    assert decode(data)[0].message == Ack(22, "no")


def test_unknown_types_are_named_and_noops_vanish() -> None:
    assert decode(struct.pack("=IHHII", 16, 0x17, 0, 0, 0))[0].message == Unknown(0x17)
    assert decode(struct.pack("=IHHII", 16, 1, 0, 0, 0)) == []
    assert decode(encode(Overrun(), 0))[0].message == Overrun()


@pytest.mark.parametrize("length", [0, 15, 17, 1 << 31])
def test_a_header_that_claims_what_is_not_there(length: int) -> None:
    with pytest.raises(DecodeError, match="nlmsg_len"):
        decode(struct.pack("=IHHII", length, 3, 0, 0, 0))


def test_every_truncation_is_an_error_without_key_bytes() -> None:
    sa = make_sa(0x1001, Suite.AES_CBC_SHA256, direction=SaDirection.IN, replay_window=64, if_id=9)
    data = encode(NewSa(sa), 1)
    for cut in range(1, len(data) - 3):  # the last attribute ends in three bytes of padding
        # The header tells the truth, so the cut reaches the attributes.
        short = struct.pack("=I", cut) + data[4:cut] if cut >= 16 else data[:cut]
        try:
            frames = decode(short)
        except DecodeError as error:
            shown = f"{error!r} {error} {error.__context__}"
            assert sa.key.encryption.hex() not in shown
            assert repr(sa.key.encryption)[2:-1] not in shown
        else:
            assert frames[0].message != NewSa(sa)


def test_no_repr_shows_a_key() -> None:
    sa = make_sa(0x1001)
    shown = repr(decode(encode(NewSa(sa), 1)))
    assert sa.key.digest in shown
    assert repr(sa.key.encryption)[2:-1] not in shown


def test_what_is_foreign_is_only_received() -> None:
    for message in (NewSa(ForeignSa(1, 50, "x")), NewPolicy(ForeignPolicy(3, "x")), Unknown(0x17)):
        with pytest.raises(LocalError):
            encode(message, 1)


def test_a_kernel_that_knows_more_algorithms_is_foreign_not_broken() -> None:
    data = bytearray(encode(NewSa(make_sa(0x1001)), 1))
    place = data.index(b"rfc4106(gcm(aes))")
    data[place : place + 7] = b"rfc9999"
    (frame,) = decode(bytes(data))
    assert isinstance(frame.message, NewSa)
    assert isinstance(frame.message.sa, ForeignSa)
