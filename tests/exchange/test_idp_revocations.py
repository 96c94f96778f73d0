"""Revocation lists between devices: noticed by the digest in the hello, asked for, obeyed.

And what is wrong with them: AUTH-16, AUTH-17, IDP-50 to IDP-57.
"""

from __future__ import annotations

from datetime import timedelta

import pytest

from protocol.core.engine import DatagramReceived, SendDatagram
from protocol.identity import PROTOCOL_IDP, CrlEntry, RefusedError
from protocol.identity.envelope import decode
from protocol.idp.documents import Part, Request, Subject, split
from protocol.idp.events import TrustReread
from protocol.idp.lighthello import HEADER as LIGHT
from protocol.idp.messages import MessageKind
from protocol.idpmike import Credential, CredentialKind
from tests.support.coalition import (
    AFTER,
    BEFORE,
    NATIONS,
    START,
    Authority,
    certificate,
    make_identity,
    revocation_list,
)
from tests.support.fakelink import Device, Network
from tests.support.identities import address

A, B, C = address(0), address(1), address(2)


def coalition(size: int = 3) -> Network:
    """Devices that have each other's certificates and no revocation lists, all up."""
    everybody = [certificate(index) for index in range(size)]
    network = Network(
        size, identities=[make_identity(index, knows=everybody) for index in range(size)]
    )
    for device in network.devices:
        device.start()
    network.run(2000)
    for device in network.devices:
        device.signals.clear()
        device.sent.clear()
    network.wire.clear()
    return network


def up(device: Device) -> list[str]:
    return [peer["name"] for peer in device.status()["peers"] if peer["state"] == "up"]


def reread(device: Device, *lists: bytes) -> None:
    """The operator put lists into the directory and said `trust reload`."""
    store = device.identity.store
    assert store is not None
    found = [store.learn_revocations(der, device.net.now.wall_ns) for der in lists]
    device.identity.trust(store.devices())
    device.feed(TrustReread(revocations={item.issuer_id: item.der for item in found if item}))


def asked_for_lists(network: Network) -> list[str]:
    """Who asked for revocation lists, in order."""
    names = []
    for device, effect in network.wire:
        if effect.payload.startswith(LIGHT):
            continue
        envelope = decode(effect.payload)
        if envelope.kind == MessageKind.REQUEST:
            assert Request.decode(envelope.body).subject is Subject.REVOCATIONS
            names.append(device.name)
    return names


def test_a_revoked_device_is_excluded_everywhere_at_once() -> None:
    network = coalition()
    a, b, c = network.devices
    crl = revocation_list("gamma", [certificate(2)])
    reread(a, crl)
    network.run(5)
    for device in (a, b):
        assert len(up(device)) == 1
        assert device.signals == [("LEAVE", C)]
        # MIKE has the list before it is told of the departure, and refuses the device itself.
        assert [(told.kind, told.der) for told in device.told_mike] == [  # type: ignore[union-attr]
            (CredentialKind.REVOCATIONS, crl)
        ]
        assert device.counter("IDP-56") == 1
    assert list(b.kept.values()) == [crl]
    assert a.kept == {}, "the operator's file is there already"
    assert asked_for_lists(network) == [], "announced, not asked for"
    network.run(5000)
    assert b.counter("AUTH-7") >= 4
    assert len(up(b)) == 1
    assert b.signals == [("LEAVE", C)]
    reasons = [refusal["reason"] for refusal in b.status()["refused"]]
    assert "revoked by 'gamma CA' on 2027-01-15 08:00:00 UTC" in reasons
    assert b.status()["trust"]["revocation_lists"] == [
        {"issuer": "gamma CA", "number": 2, "revoked": 1}
    ]
    # The revoked device knows it, too, and says so.
    assert any("other devices will refuse us: revoked" in log.text for log in c.logs)


def test_who_was_not_there_is_told_by_the_digest() -> None:
    network = coalition()
    a, b, _c = network.devices
    b.link(up=False)
    network.run(100)
    reread(a, revocation_list("gamma", [certificate(2)]))
    network.run(500)
    assert up(b) == ["d1", "d3"]
    b.link(up=True)
    network.run(1600)
    assert "d2" in asked_for_lists(network)
    assert b.counter("idp.revocations_asked") == 1
    assert up(b) == ["d1"]
    assert ("LEAVE", C) in b.signals
    network.wire.clear()
    network.run(10_000)
    assert asked_for_lists(network) == [], "they agree"


def test_a_newcomer_with_older_lists_gets_the_newer_and_hands_on_its_own() -> None:
    network = coalition(4)
    new = network.devices[3]
    new.stop()
    network.run(5000)
    reread(new, revocation_list("alpha", number=7), revocation_list("beta", number=1))
    for device in network.devices[:3]:
        reread(device, revocation_list("beta", number=2), revocation_list("gamma", number=3))
    new.start()
    network.run(4000)
    for device in network.devices:
        lists = device.status()["trust"]["revocation_lists"]
        found = {item["issuer"]: item["number"] for item in lists}
        assert found == {"alpha CA": 7, "beta CA": 2, "gamma CA": 3}


def test_a_list_of_many_parts_and_one_lost() -> None:
    network = coalition(2)
    a, b = network.devices
    revoked = [certificate(2)] + [certificate(index) for index in range(10, 90)]
    crl = revocation_list("gamma", revoked)
    assert len(split(crl)) == 4
    transmit = network.transmit

    def lose_third(sender: Device, effect: SendDatagram) -> None:
        if sender.net.now.mono_ns < reread_ns + 10_000_000:
            envelope = decode(effect.payload)
            if envelope.kind == MessageKind.REVOCATIONS and Part.decode(envelope.body).index == 2:
                return
        transmit(sender, effect)

    network.transmit = lose_third  # type: ignore[method-assign]
    reread_ns = network.now.mono_ns
    reread(a, crl)
    network.run(100)
    assert b.kept == {}
    network.run(1900)
    assert list(b.kept.values()) == [crl]


def test_a_list_too_long_to_hand_on_counts_here_and_is_said() -> None:
    network = coalition(2)
    a = network.devices[0]
    long = revocation_list("gamma", serials=range(1000, 1700))
    assert len(long) > 24 * 1024
    store = a.identity.store
    assert store is not None
    from cryptography import x509

    from protocol.identity.profile import inspect_revocations

    item = inspect_revocations(x509.load_der_x509_crl(long), store.anchors)
    store.add_revocations(item)
    a.feed(TrustReread(revocations={item.issuer_id: long}))
    network.run(5000)
    assert a.told_mike == []
    texts = [log.text for log in a.logs if log.level == "error"]
    assert len([text for text in texts if "too long to hand to MIKE" in text]) == 1
    assert any("too long to hand on" in text for text in texts)
    assert a.status()["trust"]["revocation_lists"][0]["revoked"] == 700


def test_devices_that_can_never_agree_ask_ever_more_rarely() -> None:
    """IDP-55: B has no anchor of gamma, so gamma's list is not for it (AUTH-16)."""
    known = [certificate(0), certificate(1)]
    narrow = make_identity(1, knows=known, nations=("alpha", "beta"))
    network = Network(2, identities=[make_identity(0, knows=known), narrow])
    a, b = network.devices
    reread(a, revocation_list("gamma"))
    a.start()
    b.start()
    network.run(60_000)
    minute = len(asked_for_lists(network))
    assert up(b) == ["d1"]
    assert 4 <= b.counter("AUTH-16") <= 6
    assert len([log for log in b.logs if "not among the trust anchors" in log.text]) == 1
    network.wire.clear()
    network.run(600_000)
    assert minute <= 12
    assert len(asked_for_lists(network)) <= 2 * 12


# Bad input, from a device that is known.


def hand(device: Device, sender: int, document: bytes) -> None:
    """A member sends a document as a revocation list."""
    parts = [part.encode() for part in split(document)]
    say(device, sender, *((MessageKind.REVOCATIONS, body) for body in parts))


_clock = [0]


def say(device: Device, sender: int, *messages: tuple[int, bytes]) -> None:
    """A member says something; each call is a new instance of it."""
    identity = make_identity(sender)
    _clock[0] += 1
    identity.begin(device.net.now.wall_ns + _clock[0])
    for kind, body in messages:
        payload = identity.seal(PROTOCOL_IDP, kind, body, device.net.now)
        device.feed(DatagramReceived("group", address(sender), payload))


FORGED = Authority.create("gamma", not_before=BEFORE, not_after=AFTER)
FOREIGN = Authority.create("delta", not_before=BEFORE, not_after=AFTER)


@pytest.mark.parametrize(
    ("document", "rule", "reason"),
    [
        (b"\x30\x03abc", "AUTH-16", "not a well-formed revocation list"),
        (revocation_list("gamma")[:-1], "AUTH-16", "not a well-formed revocation list"),
        (
            revocation_list("delta", ca=FOREIGN),
            "AUTH-16",
            "issuer 'delta CA' is not among the trust anchors",
        ),
        (
            revocation_list("gamma", [certificate(2)], ca=FORGED),
            "AUTH-16",
            "CRL is not signed by 'gamma CA'",
        ),
        (
            revocation_list("gamma", issued=START + timedelta(minutes=6)),
            "AUTH-16",
            "revocation list of the future",
        ),
        (bytes(24 * 1024 + 1), "AUTH-16", "revocation list of 24577 bytes"),
        (
            revocation_list("alpha", number=1),
            "AUTH-17",
            "revocation list 1 of 'alpha CA' is older than ours, 2",
        ),
    ],
    ids=["junk", "truncated", "foreign", "forged", "future", "long", "older"],
)
def test_list_that_does_not_count(document: bytes, rule: str, reason: str) -> None:
    network = coalition()
    a = network.devices[0]
    reread(a, revocation_list("alpha", number=2))
    network.run(10)
    a.told_mike.clear()
    before = a.status()["trust"]["digest"]
    for _ in range(2):
        hand(a, 1, document)
    assert a.counter(rule) == 2
    assert [r["reason"] for r in a.status()["refused"] if r["rule"] == rule] == [reason]
    assert len([log for log in a.logs if reason in log.text]) == 1
    assert a.status()["trust"]["digest"] == before
    assert up(a) == ["d2", "d3"]
    assert a.kept == {}
    network.run(10)
    assert a.told_mike == []


def test_a_revoked_device_cannot_hand_out_lists() -> None:
    network = coalition()
    a = network.devices[0]
    reread(a, revocation_list("gamma", [certificate(2)]))
    refused = a.counter("AUTH-7")
    hand(a, 2, revocation_list("gamma", number=9))
    assert a.counter("AUTH-7") == refused + 1
    assert up(a) == ["d2"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        Request(Subject.REVOCATIONS).encode() + b"\0",
        Request(Subject.REVOCATIONS).encode()[:-1],
        bytes([9]) + Request(Subject.REVOCATIONS).encode()[1:],
        Request(Subject.REVOCATIONS, fingerprint=b"x" * 16).encode(),
        Request(Subject.CERTIFICATE, entries=(CrlEntry(bytes(8), 1, 1),)).encode(),
        Request(
            Subject.REVOCATIONS, entries=(CrlEntry(b"b" * 8, 1, 1), CrlEntry(b"a" * 8, 1, 1))
        ).encode(),
        Request(Subject.REVOCATIONS, entries=(CrlEntry(b"b" * 8, 1, 1),) * 2).encode(),
    ],
)
def test_absurd_request(body: bytes) -> None:
    network = coalition(2)
    a = network.devices[0]
    say(a, 1, (MessageKind.REQUEST, body))
    assert a.counter("IDP-50") == 1
    assert a.sent == []


def test_many_questions_of_one_device_are_not_all_answered() -> None:
    network = coalition(2)
    a = network.devices[0]
    reread(a, revocation_list("alpha"))
    a.sent.clear()
    body = Request(Subject.REVOCATIONS).encode()
    say(a, 1, *[(MessageKind.REQUEST, body)] * 1000)
    assert len(a.sent) == 400, "the burst: four seconds of 100"
    assert a.counter("IDP-57") == 600


def test_unfinished_documents_take_bounded_memory() -> None:
    everybody = [certificate(index) for index in range(40)]
    network = Network(1, identities=[make_identity(0, knows=everybody)])
    (a,) = network.devices
    a.start()
    for sender in range(1, 40):
        part = Part(bytes([sender]) * 16, 0, 25, bytes(1024))
        say(a, sender, (MessageKind.REVOCATIONS, part.encode()))
    assembler = a.engine._exchange._assembler
    assert len(assembler) == 16
    assert assembler.held_bytes == 16 * 1024


def test_miked_refuses_whom_the_list_revokes() -> None:
    """The identity of miked is another one; the local interface keeps it in step."""
    from protocol.idpmike import LocalLink, Side
    from protocol.mike.config import MikeConfig
    from protocol.mike.engine import MikeEngine
    from tests.support.fakelink import LOOPBACK, SeededKeys

    network = coalition(3)
    now = network.now
    identity = make_identity(0, knows=[certificate(1)])
    mike = MikeEngine(MikeConfig(), identity, bytes(32), SeededKeys("mike"))
    from protocol.core.engine import SendDatagram, Started

    mike.handle(Started(now.wall_ns), now)
    idp = LocalLink(bytes(32), Side.IDP)

    def tell(credential: Credential) -> None:
        for effect in idp.send(credential, now):
            if isinstance(effect, SendDatagram):
                mike.handle(DatagramReceived("local", LOOPBACK, effect.payload), now)

    def sees(index: int) -> str:
        sender = make_identity(index)
        _clock[0] += 1
        sender.begin(now.wall_ns + _clock[0])
        try:
            identity.open(sender.seal(1, 1, b"", now), 1, address(index), now)
        except RefusedError as error:
            return error.rule
        return "fine"

    from tests.support.coalition import der

    assert (sees(1), sees(2)) == ("fine", "AUTH-4")
    tell(Credential(CredentialKind.CERTIFICATE, der(certificate(2))))
    assert (sees(1), sees(2)) == ("fine", "fine")
    tell(Credential(CredentialKind.REVOCATIONS, revocation_list("beta", [certificate(1)])))
    assert (sees(1), sees(2)) == ("AUTH-7", "fine")
    tell(Credential(CredentialKind.REVOCATIONS, b"junk"))
    assert mike.counters["AUTH-16"] == 1
    assert (sees(1), sees(2)) == ("AUTH-7", "fine")
    assert NATIONS
