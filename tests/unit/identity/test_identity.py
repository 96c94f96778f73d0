"""Sealing and opening: every rule of docs/identity.md, AUTH-1 to AUTH-10."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv6Address

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.core.engine import Instant, Log
from protocol.core.errors import LocalError, PeerError
from protocol.identity import (
    PROTOCOL_IDP,
    PROTOCOL_MIKE,
    Identity,
    RefusedError,
    ValidityWindow,
    envelope,
)
from tests.support.identities import address, known_device, make_identities, missigned, signing_key

WALL = 1_790_000_000_000_000_000
S = 1_000_000_000
NOW = Instant(0, WALL)


def later(seconds: float) -> Instant:
    return Instant(int(seconds * S), WALL + int(seconds * S))


def pair() -> tuple[Identity, Identity]:
    sender, receiver = make_identities(2)
    sender.begin(WALL)
    receiver.begin(WALL)
    return sender, receiver


def refused(
    receiver: Identity, datagram: bytes, rule: str, *, now: Instant = NOW, source: int = 0
) -> RefusedError:
    before = receiver.refusals.get(rule, 0)
    with pytest.raises(RefusedError) as error:
        receiver.open(datagram, PROTOCOL_IDP, address(source), now)
    assert error.value.rule == rule
    assert receiver.refusals[rule] == before + 1
    return error.value


def test_opens_what_a_trusted_device_sealed() -> None:
    sender, receiver = pair()
    sender.seal(PROTOCOL_IDP, 1, b"first", NOW)
    datagram = sender.seal(PROTOCOL_IDP, 7, b"second", NOW)
    opened = receiver.open(datagram, PROTOCOL_IDP, address(0), later(1))
    assert opened is not None
    assert opened.peer == sender.me
    assert (opened.kind, opened.body, opened.sequence) == (7, b"second", 1)
    assert (opened.startup_wall_ns, opened.sent_wall_ns) == (WALL, WALL)
    assert receiver.refusals == {}


def test_own_messages_and_unwanted_kinds_are_dropped_silently() -> None:
    sender, receiver = pair()
    datagram = sender.seal(PROTOCOL_IDP, 7, b"", NOW)
    assert sender.open(datagram, PROTOCOL_IDP, address(0), NOW) is None
    assert receiver.open(datagram, PROTOCOL_IDP, address(0), NOW, wanted=(1, 2)) is None
    assert sender.refusals == receiver.refusals == {}
    assert receiver.open(datagram, PROTOCOL_IDP, address(0), NOW, wanted={7}) is not None


@settings(max_examples=300)
@given(st.data())
def test_any_flipped_bit_is_refused(data) -> None:
    sender, receiver = pair()
    datagram = bytearray(sender.seal(PROTOCOL_IDP, 7, b"the body", NOW))
    bit = data.draw(st.integers(0, envelope.marks_offset(datagram) * 8 - 1))
    datagram[bit // 8] ^= 1 << bit % 8
    with pytest.raises(PeerError):
        receiver.open(bytes(datagram), PROTOCOL_IDP, address(0), NOW)
    assert receiver._streams == {}


@given(st.binary(max_size=300))
def test_any_bytes_raise_peer_error_only(data) -> None:
    receiver = make_identities(2)[1]
    with pytest.raises(PeerError):
        receiver.open(data, PROTOCOL_IDP, address(0), NOW)


def test_auth_1_not_an_envelope() -> None:
    _, receiver = pair()
    refusal = refused(receiver, b"\x01junk", "AUTH-1")
    assert refusal.peer == str(address(0))
    refused(receiver, bytes(9000), "AUTH-1")


def test_auth_2_another_protocols_message() -> None:
    sender, receiver = pair()
    refused(receiver, sender.seal(PROTOCOL_MIKE, 1, b"", NOW), "AUTH-2")


def test_auth_3_only_fresh_messages() -> None:
    sender, receiver = pair()
    datagrams = [sender.seal(PROTOCOL_IDP, 1, b"", NOW) for _ in range(4)]
    refusal = refused(receiver, datagrams[0], "AUTH-3", now=later(30.1))
    assert refusal.reason == "message is 30.1 s old"
    refusal = refused(receiver, datagrams[1], "AUTH-3", now=later(-31))
    assert refusal.reason == "message is 31.0 s ahead of our clock"
    assert receiver.open(datagrams[2], PROTOCOL_IDP, address(0), later(30)) is not None
    assert receiver.open(datagrams[3], PROTOCOL_IDP, address(0), later(-30)) is not None


def test_auth_3_a_start_up_in_the_future() -> None:
    sender, receiver = make_identities(2)
    sender.begin(WALL + 31 * S)
    refused(receiver, sender.seal(PROTOCOL_IDP, 1, b"", NOW), "AUTH-3")


def test_auth_4_unknown_certificate() -> None:
    stranger = make_identities(3)[2]
    receiver = make_identities(2)[1]
    stranger.begin(WALL)
    refusal = refused(receiver, stranger.seal(PROTOCOL_IDP, 1, b"", NOW), "AUTH-4", source=2)
    assert refusal.reason == f"unknown certificate {stranger.me.fingerprint.hex()}"


def with_device(**changes: object) -> tuple[Identity, Identity]:
    """A sender, and a receiver that knows something else of it."""
    sender = make_identities(2)[0]
    sender.begin(WALL)
    known = replace(known_device(0), **changes)
    return sender, Identity(known_device(1), signing_key(1), [known, known_device(1)])


@pytest.mark.parametrize("rule", ["AUTH-5", "AUTH-7"])
def test_auth_5_and_7_what_verifying_the_chain_found(rule: str) -> None:
    sender, receiver = with_device(refusal=(rule, "revoked by 'alpha CA' on some day"))
    refusal = refused(receiver, sender.seal(PROTOCOL_IDP, 1, b"", NOW), rule)
    assert refusal.peer == "d1"
    assert refusal.effects == [
        Log("warning", f"refused a message of d1: revoked by 'alpha CA' on some day ({rule})")
    ]
    assert receiver.trusted_peers() == ()
    assert receiver.peer_by_address(address(0)) is None


def test_auth_6_validity_is_checked_at_every_message() -> None:
    window = ValidityWindow("certificate", WALL - S, WALL + S)
    sender, receiver = with_device(validity=(window,))
    datagrams = [sender.seal(PROTOCOL_IDP, 1, b"", NOW) for _ in range(4)]
    refusal = refused(receiver, datagrams[0], "AUTH-6", now=later(-2))
    assert refusal.reason.startswith("certificate not valid before 2026-09-21 14:13:19 UTC")
    assert receiver.open(datagrams[1], PROTOCOL_IDP, address(0), later(1)) is not None
    refusal = refused(receiver, datagrams[2], "AUTH-6", now=later(1.1))
    assert refusal.reason == "certificate expired on 2026-09-21 14:13:21 UTC"
    assert receiver.trusted_peers(later(2)) == ()
    assert [peer.name for peer in receiver.trusted_peers()] == ["d1"]


def test_auth_8_source_and_sender_must_be_the_certificates() -> None:
    sender, receiver = pair()
    datagram = sender.seal(PROTOCOL_IDP, 1, b"", NOW)
    refused(receiver, datagram, "AUTH-8", source=5)
    elsewhere = replace(known_device(0).peer, address=address(5))
    sender, receiver = with_device(peer=elsewhere)
    refused(receiver, sender.seal(PROTOCOL_IDP, 1, b"", NOW), "AUTH-8", source=0)


def test_auth_9_signature_of_another_key() -> None:
    sender, receiver = with_device(verify_key=signing_key(7).public_key())
    refused(receiver, sender.seal(PROTOCOL_IDP, 1, b"", NOW), "AUTH-9")
    assert receiver._streams == {}


def test_the_signature_covers_the_label_and_every_byte_before_it() -> None:
    sender, _ = pair()
    datagram = sender.seal(PROTOCOL_IDP, 1, b"body", NOW, marked=False)
    signed = b"idpmike signed envelope v1\x00" + datagram[:-64]
    signing_key(0).public_key().verify(datagram[-64:], signed)


def test_auth_10_each_message_once() -> None:
    sender, receiver = pair()
    first, second = (sender.seal(PROTOCOL_IDP, 1, b"", NOW) for _ in range(2))
    assert receiver.open(second, PROTOCOL_IDP, address(0), NOW) is not None
    assert receiver.open(first, PROTOCOL_IDP, address(0), NOW) is not None
    refused(receiver, second, "AUTH-10")
    refused(receiver, first, "AUTH-10")


def test_auth_10_what_is_repeated_costs_no_signature_check() -> None:
    sender, receiver = pair()
    datagram = sender.seal(PROTOCOL_IDP, 1, b"", NOW)
    assert receiver.open(datagram, PROTOCOL_IDP, address(0), NOW) is not None
    damaged = missigned(datagram)
    refused(receiver, damaged, "AUTH-10")
    assert "AUTH-9" not in receiver.refusals


def test_auth_10_a_later_start_restarts_the_window_and_an_earlier_one_is_refused() -> None:
    sender, receiver = pair()
    old, older = (sender.seal(PROTOCOL_IDP, 1, b"old", NOW) for _ in range(2))
    assert receiver.open(old, PROTOCOL_IDP, address(0), NOW) is not None
    sender.begin(WALL + 1)
    new = sender.seal(PROTOCOL_IDP, 1, b"new", NOW)
    opened = receiver.open(new, PROTOCOL_IDP, address(0), NOW)
    assert opened is not None
    assert (opened.sequence, opened.startup_wall_ns) == (0, WALL + 1)
    assert refused(receiver, older, "AUTH-10").reason == "message of an earlier instance"


def test_replay_windows_are_per_protocol() -> None:
    idp, mike = make_identities(2)[0], make_identities(2)[0]
    receiver = make_identities(2)[1]
    idp.begin(WALL)
    mike.begin(WALL - S)
    for identity, protocol in ((idp, PROTOCOL_IDP), (mike, PROTOCOL_MIKE)):
        datagram = identity.seal(protocol, 1, b"", NOW)
        assert receiver.open(datagram, protocol, address(0), NOW) is not None


def test_a_forged_message_never_touches_the_replay_window() -> None:
    sender, receiver = pair()
    datagram = sender.seal(PROTOCOL_IDP, 1, b"", NOW)
    forged = bytearray(datagram)
    forged[36:52] = (WALL + 20 * S).to_bytes(8, "big") + (2**63).to_bytes(8, "big")
    refused(receiver, bytes(forged), "AUTH-9")
    assert receiver.open(datagram, PROTOCOL_IDP, address(0), NOW) is not None


def test_a_flood_of_unknown_certificates_stays_bounded_and_hides_nothing() -> None:
    sender, receiver = with_device(refusal=("AUTH-5", "foreign"))
    refused(receiver, sender.seal(PROTOCOL_IDP, 1, b"", NOW), "AUTH-5")
    good = sender.seal(PROTOCOL_IDP, 1, b"", NOW)
    lines = 0
    for i in range(5000):
        forged = good[:20] + i.to_bytes(16, "big") + good[36:]
        with pytest.raises(RefusedError) as error:
            receiver.open(forged, PROTOCOL_IDP, IPv6Address(i + 1), later(i / 1000))
        lines += len(error.value.effects)
    assert receiver.refusals == {"AUTH-4": 5000, "AUTH-5": 1}
    assert lines <= 33
    recent = receiver.recent_refusals
    assert len(recent) <= 33
    assert {"d1"} == {entry["peer"] for entry in recent if entry["rule"] == "AUTH-5"}
    assert len(receiver._streams) == 0


def test_cheap_checks_come_before_the_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    sender, receiver = pair()
    datagram = sender.seal(PROTOCOL_IDP, 1, b"", NOW)

    class Explosive:
        def verify(self, signature: bytes, data: bytes) -> None:
            raise AssertionError("verified too early")

    explosive: Ed25519PublicKey = Explosive()  # type: ignore[assignment]
    receiver.trust([replace(known_device(0), verify_key=explosive)])
    refused(receiver, datagram, "AUTH-3", now=later(60))
    refused(receiver, datagram, "AUTH-8", source=3)
    assert receiver.open(datagram, PROTOCOL_IDP, address(0), NOW, wanted=()) is None


def test_begin_and_seal_are_guarded() -> None:
    device = make_identities(1)[0]
    with pytest.raises(LocalError, match="seal before begin"):
        device.seal(PROTOCOL_IDP, 1, b"", NOW)
    device.begin(WALL)
    for bad in (WALL, WALL - 1):
        with pytest.raises(LocalError, match="larger start-up time-stamp"):
            device.begin(bad)
    with pytest.raises(LocalError, match="64 bits"):
        device.begin(2**64)
    with pytest.raises(LocalError, match="body"):
        device.seal(PROTOCOL_IDP, 1, bytes(9000), NOW)
    assert device.startup_wall_ns == WALL


def test_names_peers_in_order_of_address() -> None:
    device = make_identities(5)[2]
    assert [peer.name for peer in device.trusted_peers()] == ["d1", "d2", "d4", "d5"]
    found = device.peer_by_address(address(3))
    assert found is not None
    assert found.name == "d4"
    assert device.peer_by_address(device.me.address) == device.me
    assert device.peer_by_address(IPv6Address("::1")) is None
    assert device.own_problem(NOW) is None


def test_trusting_anew_keeps_windows_of_those_still_known() -> None:
    sender, receiver = pair()
    datagram = sender.seal(PROTOCOL_IDP, 1, b"", NOW)
    receiver.open(datagram, PROTOCOL_IDP, address(0), NOW)
    receiver.trust([known_device(0), replace(known_device(1), refusal=("AUTH-7", "revoked"))])
    refused(receiver, datagram, "AUTH-10")
    assert receiver.own_problem(NOW) == "revoked"
    receiver.trust([])
    refused(receiver, datagram, "AUTH-4")
    assert receiver._streams == {}


def test_reprs_and_errors_show_no_key() -> None:
    device = make_identities(1)[0]
    secret = signing_key(0).private_bytes_raw()
    text = repr(device) + str(device) + repr(known_device(0))
    assert secret.hex() not in text
    assert repr(secret) not in text
