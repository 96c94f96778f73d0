"""Messages of the local interface: LOCAL-1 (syntax) and LOCAL-3 (MAC)."""

from __future__ import annotations

import hmac
from dataclasses import replace
from ipaddress import IPv6Address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.core.errors import DecodeError, LocalError, PeerError
from protocol.idpmike import (
    Credential,
    CredentialKind,
    EpochId,
    Frame,
    GroupStatus,
    LinkOpened,
    Resync,
    Side,
    Signal,
    SignalAck,
    SignalKind,
    Standing,
    StatusAck,
    decode,
    direction_key,
    encode,
)

SECRET = bytes(range(32))
KEYS = {side: direction_key(SECRET, side) for side in Side}

u64 = st.integers(0, 2**64 - 1)
serials = st.integers(1, 2**64 - 1)
addresses = st.ip_addresses(v=6)
signals = st.builds(Signal, st.sampled_from(SignalKind), addresses, u64, serials, u64)
statuses = st.builds(
    GroupStatus,
    serial=serials,
    epoch=st.builds(EpochId, u64, st.binary(min_size=8, max_size=8)),
    pointer=st.text("abcdefgh-.0123456789é", max_size=100),
    members=st.lists(addresses, max_size=20, unique=True).map(tuple),
    tm=addresses,
    sent_wall_ns=u64,
)
opened = st.builds(LinkOpened, serials)
resyncs = st.builds(Resync, st.integers(0, 2**63))
credentials = st.builds(
    Credential, st.sampled_from(CredentialKind), st.binary(max_size=2000), serials
)
standings = st.builds(Standing, addresses, st.text("abc é", max_size=100), serials)
from_idp = st.tuples(
    st.just(Side.IDP),
    st.one_of(signals, credentials, standings, opened, resyncs, st.builds(StatusAck, u64)),
)
from_mike = st.tuples(
    st.just(Side.MIKE), st.one_of(statuses, opened, resyncs, st.builds(SignalAck, u64))
)
sent = st.one_of(from_idp, from_mike)


def frame(message, instance=7, oldest=1) -> Frame:
    return Frame(instance, 7, 8, oldest, 9, message)


def authentic(body: bytes, side: Side = Side.IDP) -> bytes:
    """Any bytes under a valid MAC: what a faulty peer could send."""
    return body + hmac.digest(KEYS[side], body, "sha256")


@given(sent, st.integers(1, 2**63), u64)
def test_round_trip(case, instance, echo) -> None:
    side, message = case
    original = Frame(instance, 1, echo, 1, 9, message)
    assert decode(encode(original, KEYS[side]), KEYS[side], side) == original


@given(st.binary(max_size=400))
def test_any_bytes_raise_peer_error_only(data) -> None:
    with pytest.raises(PeerError):
        decode(data, KEYS[Side.IDP], Side.IDP)


@settings(max_examples=300)
@given(st.binary(max_size=120), st.sampled_from(Side))
def test_authentic_nonsense_raises_decode_error_only(data, side) -> None:
    for start in (b"", b"\x01", b"\x01\x04\x00\x00" + (bytes(7) + b"\x01") * 2 + bytes(32)):
        try:
            decoded = decode(authentic(start + data, side), KEYS[side], side)
        except DecodeError:
            continue
        assert encode(decoded, KEYS[side]) == authentic(start + data, side)


@given(sent, st.data())
def test_local_3_any_flipped_bit_is_refused(case, data) -> None:
    side, message = case
    datagram = bytearray(encode(frame(message), KEYS[side]))
    bit = data.draw(st.integers(0, len(datagram) * 8 - 1))
    datagram[bit // 8] ^= 1 << bit % 8
    with pytest.raises(PeerError, match="LOCAL-3"):
        decode(bytes(datagram), KEYS[side], side)


@given(sent, st.data())
def test_truncated_and_extended_messages_are_refused(case, data) -> None:
    side, message = case
    protected = encode(frame(message), KEYS[side])[:-32]
    cut = data.draw(st.integers(0, len(protected) - 1))
    with pytest.raises(DecodeError, match="LOCAL-1"):
        decode(authentic(protected[:cut], side), KEYS[side], side)
    with pytest.raises(DecodeError, match="LOCAL-1"):
        decode(authentic(protected + b"\x00", side), KEYS[side], side)


def test_each_direction_has_its_own_key() -> None:
    datagram = encode(frame(LinkOpened(1)), KEYS[Side.IDP])
    with pytest.raises(PeerError, match="LOCAL-3"):
        decode(datagram, KEYS[Side.MIKE], Side.MIKE)
    assert KEYS[Side.IDP] != KEYS[Side.MIKE]
    with pytest.raises(LocalError, match="31 bytes"):
        direction_key(bytes(31), Side.IDP)


def test_key_vector() -> None:
    """HKDF-Expand (RFC 5869) of one block, against the library's."""
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

    info = b"idpmike local interface v1: idp to mike"
    assert KEYS[Side.IDP] == HKDFExpand(SHA256(), 32, info).derive(SECRET)


STATUS = GroupStatus(1, EpochId(1, bytes(8)), "p", (IPv6Address(1),), IPv6Address(1))


def test_local_1_messages_of_the_other_daemon_and_contradictions() -> None:
    member = IPv6Address(1)
    cases = [
        (Side.IDP, frame(STATUS), "not for IDP"),
        (Side.IDP, frame(SignalAck(1)), "not for IDP"),
        (Side.MIKE, frame(StatusAck(1)), "not for MIKE"),
        (Side.MIKE, frame(Signal(SignalKind.JOIN, member, 0, 1)), "not for MIKE"),
        (Side.MIKE, frame(replace(STATUS, members=(member, member))), "listed twice"),
        (Side.MIKE, frame(replace(STATUS, pointer="a\nb")), "not printable"),
        (Side.IDP, frame(LinkOpened(1), instance=6), "origin"),
        (Side.IDP, frame(LinkOpened(1), instance=2**63 + 1), "above the maximum"),
        (Side.IDP, frame(Resync(2**63 + 1)), "above the maximum"),
        (Side.IDP, frame(LinkOpened(1), oldest=2), "not between 1 and the serial"),
        (Side.IDP, frame(LinkOpened(1), oldest=0), "not between 1 and the serial"),
    ]
    for side, contradiction, reason in cases:
        with pytest.raises(DecodeError, match=reason):
            decode(encode(contradiction, KEYS[side]), KEYS[side], side)


def test_a_resync_with_a_serial_is_refused() -> None:
    """Found by fuzzing: two datagrams stood for the same Resync."""
    protected = bytearray(encode(frame(Resync(4)), KEYS[Side.IDP])[:-32])
    protected[51] = 1
    with pytest.raises(DecodeError, match="a Resync has none"):
        decode(authentic(bytes(protected)), KEYS[Side.IDP], Side.IDP)


def test_what_does_not_fit_is_our_own_error() -> None:
    many = tuple(IPv6Address(i) for i in range(1, 1026))
    for message in (replace(STATUS, members=many), replace(STATUS, pointer="x" * 256)):
        with pytest.raises(LocalError):
            encode(frame(message), KEYS[Side.MIKE])
    for told in (
        Credential(CredentialKind.REVOCATIONS, bytes(24 * 1024 + 1), 1),
        Standing(IPv6Address(1), "x" * 256, 1),
    ):
        with pytest.raises(LocalError):
            encode(frame(told), KEYS[Side.IDP])
    fits = Credential(CredentialKind.REVOCATIONS, bytes(24 * 1024), 1)
    datagram = encode(frame(fits), KEYS[Side.IDP])
    assert decode(datagram, KEYS[Side.IDP], Side.IDP).message == fits
    largest = encode(frame(replace(STATUS, members=many[:1024], pointer="x" * 255)), bytes(32))
    assert len(largest) < 32 * 1024
    with pytest.raises(DecodeError, match="LOCAL-1"):
        decode(bytes(32 * 1024 + 1), KEYS[Side.IDP], Side.IDP)


def test_epoch_ids_print_parse_and_order() -> None:
    epoch = EpochId(7, bytes.fromhex("00112233445566ff"))
    assert str(epoch) == "7-00112233445566ff"
    assert EpochId.parse(str(epoch)) == epoch
    assert epoch < EpochId(8, bytes(8))
    for bad in (
        "",
        "7",
        "-1-00112233445566ff",
        "7-0011",
        "x-00112233445566ff",
        "7-0011223344556 6f",
    ):
        with pytest.raises(LocalError, match="not an epoch"):
            EpochId.parse(bad)
    with pytest.raises(LocalError):
        EpochId.parse("99999999999999999999-00112233445566ff")
    with pytest.raises(LocalError):
        EpochId(1, b"short")
