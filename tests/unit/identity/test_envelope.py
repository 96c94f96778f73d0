"""The signed envelope as bytes (AUTH-1), and its vectors."""

from __future__ import annotations

import json
from ipaddress import IPv6Address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.core.errors import DecodeError, LocalError
from protocol.identity import envelope
from protocol.identity.envelope import BODY_MAX, DATAGRAM_MAX, OVERHEAD, Envelope
from tests.vectors.make_envelope import vectors

VECTORS = Path(__file__).parents[2] / "vectors" / "envelope.json"

u64 = st.integers(0, 2**64 - 1)
envelopes = st.builds(
    Envelope,
    protocol=st.integers(0, 255),
    kind=st.integers(0, 255),
    sender=st.ip_addresses(v=6),
    fingerprint=st.binary(min_size=16, max_size=16),
    startup_wall_ns=u64,
    sequence=u64,
    sent_wall_ns=u64,
    body=st.binary(max_size=300),
    signature=st.binary(min_size=64, max_size=64),
    marks=st.binary(min_size=12, max_size=12),
    mark_count=st.just(2),
)


def example(body: bytes = b"body") -> Envelope:
    return Envelope(1, 2, IPv6Address("2001:db8:b::1"), bytes(16), 3, 4, 5, body)


@given(envelopes)
def test_round_trip(message) -> None:
    assert envelope.decode(message.encode()) == message


@given(st.binary(max_size=400))
def test_any_bytes_raise_decode_error_only(data) -> None:
    try:
        message = envelope.decode(data)
    except DecodeError:
        return
    assert message.encode() == data


@given(envelopes, st.data())
def test_every_truncation_and_extension_is_refused(message, data) -> None:
    encoded = message.encode()
    cut = data.draw(st.integers(0, len(encoded) - 1))
    with pytest.raises(DecodeError):
        envelope.decode(encoded[:cut])
    with pytest.raises(DecodeError, match="trailing"):
        envelope.decode(encoded + b"\x00")


def test_sizes_at_their_limits() -> None:
    largest = example(bytes(BODY_MAX)).encode()
    assert len(largest) == DATAGRAM_MAX
    assert envelope.decode(largest).body == bytes(BODY_MAX)
    with pytest.raises(DecodeError, match="longer than 8192"):
        envelope.decode(largest + b"\x00")
    with pytest.raises(LocalError, match="body"):
        example(bytes(BODY_MAX + 1)).encode()
    assert envelope.BODY_RECOMMENDED + OVERHEAD + 48 == 1280
    assert len(example(b"").encode()) == OVERHEAD


def test_a_body_length_that_lies_is_refused() -> None:
    encoded = bytearray(example().encode())
    encoded[60:62] = (0xFFFF).to_bytes(2, "big")
    with pytest.raises(DecodeError, match=r"body at byte 62: length 65535 above"):
        envelope.decode(bytes(encoded))


@pytest.mark.parametrize(("offset", "field"), [(0, "version"), (3, "marks")])
def test_unknown_version_and_marks_that_are_not_there_are_refused(offset: int, field: str) -> None:
    encoded = bytearray(example().encode())
    encoded[offset] = 9
    with pytest.raises(DecodeError, match=field):
        envelope.decode(bytes(encoded))


def test_body_and_signature_are_not_in_the_repr() -> None:
    assert "body" not in repr(example())
    assert "signature" not in repr(example())


def test_vectors_are_what_the_generator_makes() -> None:
    assert json.loads(VECTORS.read_text()) == vectors()


@pytest.mark.parametrize(
    "vector", json.loads(VECTORS.read_text())["valid"], ids=lambda v: v["name"]
)
def test_valid_vectors_decode_to_their_fields(vector) -> None:
    datagram = bytes.fromhex(vector["datagram"])
    message = envelope.decode(datagram)
    assert message.encode() == datagram
    assert str(message.sender) == vector["sender"]
    assert message.fingerprint.hex() == vector["fingerprint"]
    assert message.body.hex() == vector["body"]
    for field in ("protocol", "kind", "startup_wall_ns", "sequence", "sent_wall_ns"):
        assert getattr(message, field) == vector[field]


@pytest.mark.parametrize(
    "vector", json.loads(VECTORS.read_text())["malformed"], ids=lambda v: v["name"]
)
def test_malformed_vectors_are_refused_at_their_field(vector) -> None:
    with pytest.raises(DecodeError) as refused:
        envelope.decode(bytes.fromhex(vector["datagram"]))
    assert refused.value.field == vector["field"]
