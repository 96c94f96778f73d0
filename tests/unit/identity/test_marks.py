"""Marks, and what is shed for the lack of one (AUTH-19)."""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from protocol.core.engine import Instant
from protocol.identity import PROTOCOL_MIKE, Identity, RefusedError, envelope
from protocol.identity.envelope import MARK_LENGTH, MARKS_MAX
from protocol.identity.marks import MARKED_MAX, Marks, static_secret
from protocol.identity.shedding import CHECKS_BURST_S, CHECKS_IN_VAIN_PER_S, REASONS_PER_S
from tests.support.identities import (
    address,
    known_device,
    make_identities,
    missigned,
    signing_key,
)

VECTORS = Path(__file__).parents[2] / "vectors" / "envelope.json"
WALL = 1_790_000_000_000_000_000
NOW = Instant(10**9, WALL)
DEVICES = 4
BURST = CHECKS_IN_VAIN_PER_S * CHECKS_BURST_S


class Counting:
    """A public key that counts its uses."""

    def __init__(self, index: int) -> None:
        self.checked = 0
        self.key = signing_key(index).public_key()

    def verify(self, signature: bytes, data: bytes) -> None:
        self.checked += 1
        self.key.verify(signature, data)


def after(seconds: float) -> Instant:
    return Instant(NOW.mono_ns + int(seconds * 1e9), NOW.wall_ns + int(seconds * 1e9))


def group(size: int = DEVICES) -> list[Identity]:
    made = make_identities(size)
    for identity in made:
        identity.begin(WALL)
    return made


def victim() -> tuple[Identity, Counting]:
    """Return d2, and the key with which it checks what d1 is said to have signed."""
    key = Counting(0)

    def agree(own: object, other: object) -> bytes | None:
        real = key.key if other is key else other
        return static_secret(own, real)  # type: ignore[arg-type]

    devices = [replace(known_device(0), verify_key=key), *(known_device(i) for i in range(1, 4))]
    return Identity(devices[1], signing_key(1), devices, agree=agree), key


def sealed(sender: Identity, *, to: int | None = None, marked: bool = True) -> bytes:
    where = None if to is None else address(to)
    return sender.seal(PROTOCOL_MIKE, 1, b"body", NOW, where, marked=marked)


def forged(draws: Random, sender: Identity) -> bytes:
    """Return a message in the sender's name, with marks for everybody that are worth nothing."""
    good = sealed(sender)
    end = envelope.marks_offset(good)
    marks = b"".join(
        known_device(index).peer.fingerprint[:2] + draws.randbytes(4) for index in range(DEVICES)
    )
    return missigned(good[:end]) + marks[: len(good) - end]


def receive(receiver: Identity, datagram: bytes, at: Instant = NOW) -> str:
    """Return "" if it was believed, else the rule that refused it, or what became of it."""
    before = dict(receiver.refusals)
    try:
        opened = receiver.open(datagram, PROTOCOL_MIKE, address(0), at)
    except RefusedError as error:
        return error.rule
    if opened is not None:
        return ""
    grown = [rule for rule, n in receiver.refusals.items() if n != before.get(rule, 0)]
    return f"shed by {grown[0]}"


def test_the_secret_is_that_of_both_ends_and_of_no_third() -> None:
    secrets = {
        (a, b): static_secret(signing_key(a), signing_key(b).public_key())
        for a in range(3)
        for b in range(3)
        if a != b
    }
    assert secrets[0, 1] == secrets[1, 0]
    assert len(set(secrets.values())) == 3


def test_the_secret_is_x25519_on_the_equivalent_curve() -> None:
    """RFC 7748 section 4.1 maps the base points to each other."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    a, b = signing_key(0), signing_key(1)
    scalars = [
        X25519PrivateKey.from_private_bytes(hashlib.sha512(key.private_bytes_raw()).digest()[:32])
        for key in (a, b)
    ]
    expected = scalars[0].exchange(scalars[1].public_key())
    assert static_secret(a, b.public_key()) == expected


@pytest.mark.parametrize("y", [0, 1, (1 << 255) - 20, (1 << 255) - 19 + 1])
def test_a_weak_key_makes_no_secret(y: int) -> None:
    weak = Ed25519PublicKey.from_public_bytes(y.to_bytes(32, "little"))
    assert static_secret(signing_key(0), weak) is None


def test_every_receiver_finds_its_mark_and_only_its_own() -> None:
    sender = group()[0]
    for to in (None, 2):
        datagram = sealed(sender, to=to)
        end = envelope.marks_offset(datagram)
        assert len(datagram) - end == MARK_LENGTH * (DEVICES - 1 if to is None else 1)
        for index in range(1, DEVICES):
            marks = Marks(known_device(index), signing_key(index), static_secret)
            assert marks.is_marked(datagram, known_device(0)) == (to in (None, index))
            assert not marks.is_marked(datagram, known_device(3 if index != 3 else 2))


@given(st.integers(0, 10_000), st.integers(0, 7))
def test_a_mark_covers_every_byte_before_it(place: int, bit: int) -> None:
    sender = group(2)[0]
    datagram = bytearray(sealed(sender))
    end = envelope.marks_offset(datagram)
    datagram[place % end] ^= 1 << bit
    marks = Marks(known_device(1), signing_key(1), static_secret)
    assert not marks.is_marked(bytes(datagram), known_device(0))


@given(st.binary(max_size=600))
def test_any_bytes_are_unmarked(data: bytes) -> None:
    marks = Marks(known_device(1), signing_key(1), static_secret)
    assert not marks.is_marked(data, known_device(0))


def test_marks_do_not_make_a_message_too_long_and_take_turns() -> None:
    many = group(MARKS_MAX + 40)
    hits = []
    for body in (bytes(57), bytes(57), bytes(900), bytes(1106), bytes(5000)):
        datagram = many[0].seal(PROTOCOL_MIKE, 1, body, NOW)
        assert len(datagram) <= max(MARKED_MAX, len(body) + envelope.OVERHEAD)
        hits.append(
            {
                index
                for index in range(1, len(many))
                if Marks(known_device(index), signing_key(index), static_secret).is_marked(
                    datagram, known_device(0)
                )
            }
        )
    assert [len(found) for found in hits] == [64, 64, 34, 0, 0]
    assert hits[0] != hits[1]


def test_auth_19_forgeries_cost_a_few_checks_a_second_and_the_device_is_heard() -> None:
    sender, (receiver, key), draws = group()[0], victim(), Random(1)
    said = [receive(receiver, forged(draws, sender)) for _ in range(1000)]
    assert said.count("AUTH-9") == BURST
    assert said.count("shed by AUTH-19") == 1000 - BURST
    assert key.checked == BURST
    # The device itself is heard, as often as it speaks, to all or to us alone.
    assert [receive(receiver, sealed(sender, to=to)) for to in (None, 1) * 50] == [""] * 100
    # Its unmarked messages wait for the forger to end.
    assert receive(receiver, sealed(sender, marked=False)) == "shed by AUTH-19"
    assert receive(receiver, sealed(sender, marked=False), after(1.0)) == ""


def test_auth_19_forgeries_in_one_name_do_nothing_to_another() -> None:
    sender, other = group()[0], group()[2]
    (receiver, _), draws = victim(), Random(1)
    for _ in range(100):
        receive(receiver, forged(draws, sender))
    datagram = other.seal(PROTOCOL_MIKE, 1, b"body", NOW, marked=False)
    assert receiver.open(datagram, PROTOCOL_MIKE, address(2), NOW) is not None


def test_auth_19_a_device_is_suspect_while_too_much_is_forged_in_its_name() -> None:
    sender, (receiver, _), draws = group()[0], victim(), Random(1)
    changes = receiver.shedding.changes
    receive(receiver, forged(draws, sender))
    assert receiver.shedding.suspects() == [], "one may be an accident"
    for _ in range(100):
        receive(receiver, forged(draws, sender))
    assert receiver.shedding.suspects() == [address(0)]
    assert receiver.shedding.changes == changes + 1, "who keeps something of it looks again"
    # What it says itself does not clear it while the forger goes on, nor does time alone.
    assert receive(receiver, sealed(sender), after(1.0)) == ""
    assert receiver.shedding.suspects() == [address(0)]
    assert receive(receiver, sealed(sender), after(CHECKS_BURST_S + 1.0)) == ""
    assert receiver.shedding.suspects() == []
    assert receiver.shedding.changes == changes + 2
    for number in range(2):
        assert receive(receiver, forged(draws, sender), after(9.0)) == "AUTH-9", number
    assert receiver.shedding.suspects() == [address(0)]


def test_auth_19_a_suspect_whose_certificate_is_gone_is_none() -> None:
    sender, (receiver, _), draws = group()[0], victim(), Random(1)
    for _ in range(10):
        receive(receiver, forged(draws, sender))
    receiver.trust([known_device(1), known_device(2)])
    assert receiver.shedding.suspects() == []


def test_auth_19_without_forgeries_nothing_is_shed_marked_or_not() -> None:
    sender, (receiver, _) = group()[0], victim()
    assert {receive(receiver, sealed(sender, marked=False)) for _ in range(1000)} == {""}


def test_a_mark_replaces_no_signature() -> None:
    """Who knows the key of the mark is the sender or ourselves; the signature is checked anyway."""
    (receiver, key), sender = victim(), group()[0]
    good = sealed(sender, to=1)
    bad = missigned(good[: envelope.marks_offset(good)])
    marks = Marks(known_device(0), signing_key(0), static_secret)
    assert receive(receiver, bad + marks.made(bad, [known_device(1)])) == "AUTH-9"
    with pytest.raises(InvalidSignature):
        key.verify(bad[-64:], envelope.signed_part(bad))


def test_noise_is_refused_with_a_reason_now_and_then_and_counted_always() -> None:
    receiver, draws = group(2)[1], Random(1)
    said = [receive(receiver, draws.randbytes(200)) for _ in range(1000)]
    assert said.count("AUTH-1") == REASONS_PER_S
    assert receiver.refusals == {"AUTH-1": 1000}
    assert receive(receiver, draws.randbytes(200), after(1.0)) == "AUTH-1"


@given(st.binary(max_size=700))
def test_what_may_be_decoded_is_what_has_the_form(data: bytes) -> None:
    from protocol.core.errors import DecodeError

    try:
        envelope.decode(data)
        decoded = True
    except DecodeError:
        decoded = False
    assert envelope.may_decode(data) == decoded


def test_the_vector_follows_from_the_text_of_the_document() -> None:
    """docs/identity.md, computed without our code but for the envelope's length."""
    vector = json.loads(VECTORS.read_text())["marked"]
    low, high = sorted(bytes.fromhex(one) for one in vector["fingerprints"].split())
    info = b"idpmike v1 envelope mark key" + low + high
    secret = bytes.fromhex(vector["secret"])
    extracted = hmac.digest(bytes(32), secret, "sha256")
    key = hmac.digest(extracted, info + b"\x01", "sha256")
    assert key.hex() == vector["mark_key"]
    datagram = bytes.fromhex(vector["datagram"])
    before, mark = datagram[:-6], datagram[-6:]
    content = hashlib.blake2b(b"idpmike v1 envelope mark\x00" + before, digest_size=32).digest()
    receiver = bytes.fromhex(vector["fingerprints"].split()[1])
    assert mark == receiver[:2] + hashlib.blake2b(content, key=key, digest_size=4).digest()
    assert len(before) == envelope.OVERHEAD + len(b"body")
