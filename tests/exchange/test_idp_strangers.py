"""Devices that do not have each other's certificates: they ask, prove their address, and learn.

What is forged, absurd or too much on the way there: IDP-50 to IDP-54.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from ipaddress import IPv6Address

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from protocol.core.engine import DatagramReceived, SendDatagram
from protocol.identity import PROTOCOL_IDP, Identity
from protocol.identity.envelope import decode
from protocol.idp.documents import (
    NO_COOKIE,
    Part,
    Request,
    Subject,
    encode_chain,
    split,
)
from protocol.idp.messages import Hello, MessageKind
from protocol.idp.strangers import ASKED_MAX, REFUSED_NS
from protocol.idpmike import Credential, CredentialKind
from tests.support.coalition import (
    AFTER,
    BEFORE,
    START,
    Authority,
    authority,
    certificate,
    der,
    issue,
    make_identity,
    revocation_list,
)
from tests.support.fakelink import MS, Device, Network
from tests.support.identities import address

A, B = address(0), address(1)


def sent(network: Network) -> list[tuple[str, str, str]]:
    """What was sent by unicast: (sender, kind, to)."""
    names = {device.address: device.name for device in network.devices}
    return [
        (device.name, said(effect), names.get(effect.destination, "nobody"))
        for device, effect in network.wire
        if effect.destination is not None
    ]


def said(effect: SendDatagram) -> str:
    envelope = decode(effect.payload)
    if envelope.kind != MessageKind.REQUEST:
        return MessageKind(envelope.kind).name.lower()
    request = Request.decode(envelope.body)
    if request.returned:
        return "cookie"
    return "request" if request.cookie == NO_COOKIE else "request with cookie"


def up(device: Device) -> list[str]:
    return [peer["name"] for peer in device.status()["peers"] if peer["state"] == "up"]


def strangers(size: int = 2) -> Network:
    return Network(size, identities=[make_identity(index) for index in range(size)])


def test_two_devices_without_each_others_certificates_find_each_other() -> None:
    network = strangers()
    a, b = network.devices
    a.start()
    network.run(50)
    b.start()
    network.run(20)
    # Seven milliseconds after its hello: three round trips; the hello was kept until then.
    assert up(a) == ["d2"]
    assert a.time_of("t_detect", name="d2") == 1050 + 5
    assert sent(network)[:5] == [
        ("d1", "request", "d2"),
        ("d2", "cookie", "d1"),
        ("d1", "request with cookie", "d2"),
        ("d2", "certificate", "d1"),
        ("d2", "request", "d1"),  # who returned the cookie is no forgery, but a stranger, too
    ]
    network.run(300)
    assert up(b) == ["d1"]
    for device, other in ((a, 1), (b, 0)):
        learned = certificate(other)
        fingerprint = network.identities[other].me.fingerprint
        assert device.kept == {("certificate", fingerprint): der(learned)}
        assert device.told_mike == [
            replace(Credential(CredentialKind.CERTIFICATE, der(learned)), serial=3)
        ]
        assert device.status()["trust"]["learned"] == 1
        assert device.status()["trust"]["operations"]["certificate_parsed"] == 1
    # Both stay up without another question.
    network.wire.clear()
    network.run(10_000)
    assert sent(network) == []
    assert (up(a), up(b)) == (["d2"], ["d1"])


def test_ten_devices_without_certificates_find_each_other() -> None:
    network = strangers(10)
    for device in network.devices:
        device.start()
        network.run(30)
    network.run(3000)
    for device in network.devices:
        assert len(up(device)) == 9
        assert device.status()["trust"]["operations"]["certificate_parsed"] == 9


def test_one_side_knows_the_other() -> None:
    network = Network(2, identities=[make_identity(0, knows=[certificate(1)]), make_identity(1)])
    a, b = network.devices
    a.start()
    network.run(50)
    b.start()
    network.run(1500)
    assert (up(a), up(b)) == (["d2"], ["d1"])
    assert ("d1", "request", "d2") not in sent(network)
    assert a.kept == {}


def test_a_mike_that_starts_anew_is_told_what_was_learned() -> None:
    network = strangers()
    a, b = network.devices
    a.start()
    b.start()
    network.run(1500)
    a.told_mike.clear()
    a.signals.clear()
    a.restart_mike()
    network.run(100)
    assert [type(told) for told in a.told_mike] == [Credential]
    assert a.signals == [("JOIN", A), ("JOIN", B)]


# Bad input. The attacker is a script that can send as anybody; A is the victim.


class Script:
    """Sends datagrams to one device in the name of an address."""

    def __init__(self, network: Network, identity: Identity, victim: Device) -> None:
        self.network, self.identity, self.victim = network, identity, victim
        identity.begin(network.now.wall_ns)

    def send(self, kind: int, body: bytes, source: IPv6Address | None = None) -> None:
        payload = self.identity.seal(PROTOCOL_IDP, kind, body, self.network.now)
        source = source or self.identity.me.address
        self.victim.feed(DatagramReceived("group", source, payload))

    def hello(self) -> None:
        self.send(MessageKind.HELLO, Hello(1000, 4).encode())

    def answer(self, *chain: bytes) -> None:
        for part in split(encode_chain(chain)):
            self.send(MessageKind.CERTIFICATE, part.encode())


@pytest.fixture
def victim() -> Device:
    network = strangers(1)
    (a,) = network.devices
    a.start()
    network.run(500)
    a.sent.clear()
    return a


def script(victim: Device, identity: Identity) -> Script:
    return Script(victim.net, identity, victim)


def asked(victim: Device) -> int:
    return sum(said(effect) == "request" for effect in victim.sent)


def refused(victim: Device, rule: str, reason: str) -> None:
    """Refused once, counted, one line in the log; nothing learned, nobody up."""
    status = victim.status()
    assert status["counters"][rule] == 1
    assert [r["reason"] for r in status["refused"] if r["rule"] == rule] == [reason]
    lines = [log.text for log in victim.logs if reason in log.text]
    assert len(lines) == 1
    assert status["trust"]["learned"] == 0
    assert status["peers"] == []
    assert victim.kept == {}


def parsed(victim: Device) -> int:
    return int(victim.status()["trust"]["operations"].get("certificate_parsed", 0))


NATION = authority("beta")
FOREIGN = Authority.create("delta", not_before=BEFORE, not_after=AFTER)
FORGED = Authority.create("beta", not_before=BEFORE, not_after=AFTER)
PAST = START - timedelta(hours=2)


@pytest.mark.parametrize(
    ("offered", "rule", "reason"),
    [
        (
            {"ca": FOREIGN, "nation": "delta"},
            "AUTH-5",
            "issued by 'delta CA' which is not among the trust anchors",
        ),
        ({"ca": FORGED}, "AUTH-5", "not signed by the 'beta CA' we trust"),
        (
            {"ca": authority("alpha")},
            "AUTH-5",
            "issued by 'alpha CA' which cannot vouch for nation 'beta'",
        ),
        ({"not_after": PAST}, "AUTH-6", f"certificate expired on {PAST:%Y-%m-%d %H:%M:%S} UTC"),
        (
            {"at": address(7)},
            "AUTH-8",
            "certificate for 2001:db8:b::8 sent from 2001:db8:b::2",
        ),
        (
            {"at": A},
            "AUTH-8",
            "certificate for 2001:db8:b::1 sent from 2001:db8:b::2",
        ),
        (
            {"key": ec.generate_private_key(ec.SECP256R1())},
            "AUTH-13",
            "certificate does not hold an Ed25519 key",
        ),
    ],
    ids=[
        "foreign nation",
        "forged authority",
        "other nation",
        "expired",
        "address",
        "ours",
        "key type",
    ],
)
def test_certificate_that_is_not_acceptable(
    victim: Device, offered: dict[str, object], rule: str, reason: str
) -> None:
    bad = issue(1, **offered)  # type: ignore[arg-type]
    attacker = script(victim, liar(bad))
    attacker.hello()
    assert asked(victim) == 1
    attacker.answer(der(bad))
    refused(victim, rule, reason)
    assert parsed(victim) == 1
    # For a minute it is not asked for again, and so not parsed again.
    victim.net.run(10_000)
    attacker.hello()
    attacker.answer(der(bad))
    assert (asked(victim), parsed(victim)) == (1, 1)
    assert victim.counter("IDP-52") == 1
    victim.net.run(REFUSED_NS / MS)
    attacker.hello()
    assert asked(victim) == 2


def test_certificate_that_is_revoked(victim: Device) -> None:
    bad = certificate(1)
    store = victim.identity.store
    assert store is not None
    store.learn_revocations(revocation_list("beta", [bad]), victim.net.now.wall_ns)
    attacker = script(victim, make_identity(1))
    attacker.hello()
    attacker.answer(der(bad))
    refused(victim, "AUTH-7", "revoked by 'beta CA' on 2027-01-15 08:00:00 UTC")


def liar(own: object) -> Identity:
    """An identity at B's address that seals under any certificate's fingerprint."""
    from protocol.identity.profile import fingerprint_of

    honest = make_identity(1)
    claimed = own if isinstance(own, bytes) else der(own)  # type: ignore[arg-type]
    honest.me = replace(honest.me, fingerprint=fingerprint_of(claimed))
    return honest


@pytest.mark.parametrize(
    ("chain", "rule", "reason"),
    [
        ([b"\x30\x03abc"], "AUTH-13", "not a well-formed certificate"),
        ([der(certificate(1))[:-1]], "AUTH-13", "not a well-formed certificate"),
        ([der(certificate(1)) + b"\0"], "AUTH-13", "not a well-formed certificate"),
        ([bytes(2049)], "AUTH-12", "certificate of 2049 bytes"),
        ([b""], "AUTH-12", "certificate of 0 bytes"),
        ([der(certificate(1))] * 3, "AUTH-12", "chain of 3 certificates"),
        (
            [der(certificate(1)), der(FOREIGN.certificate)],
            "AUTH-13",
            "its chain ends at none of our trust anchors",
        ),
    ],
)
def test_chain_that_is_none(victim: Device, chain: list[bytes], rule: str, reason: str) -> None:
    attacker = script(victim, liar(chain[0]))
    attacker.hello()
    attacker.answer(*chain)
    refused(victim, rule, reason)
    assert parsed(victim) <= 1
    assert rule != "AUTH-12" or parsed(victim) == 0, "refused before anything is parsed"


def test_another_certificate_than_the_one_asked_for(victim: Device) -> None:
    attacker = script(victim, make_identity(1))
    attacker.hello()
    attacker.answer(der(issue(1)))
    refused(victim, "AUTH-13", "not the certificate that was asked for")
    assert parsed(victim) == 0


def test_chain_of_a_hundred_certificates(victim: Device) -> None:
    """Does not even fit: more parts than a chain may have, more certificates than it may name."""
    attacker = script(victim, make_identity(1))
    attacker.hello()
    body = Part(bytes(16), 0, 26, bytes(1024)).encode()
    attacker.send(MessageKind.CERTIFICATE, body)
    assert victim.counter("IDP-50") == 1
    attacker.send(MessageKind.CERTIFICATE, Part(bytes(16), 0, 25, bytes(1024)).encode())
    assert victim.counter("IDP-54") == 1
    hundred = bytes([100]) + encode_chain([b"x"])[1:] * 100
    for part in split(hundred):
        attacker.send(MessageKind.CERTIFICATE, part.encode())
    assert victim.counter("IDP-50") == 2
    assert sum("(IDP-50)" in log.text for log in victim.logs) == 1
    assert parsed(victim) == 0


def test_parts_that_are_not_those_of_the_document(victim: Device) -> None:
    attacker = script(victim, make_identity(1))
    attacker.hello()
    attacker.send(MessageKind.CERTIFICATE, Part(bytes(16), 0, 1, b"x").encode())
    refused(victim, "IDP-54", "the parts are not those of the document they name")


def test_certificate_that_nobody_asked_for(victim: Device) -> None:
    attacker = script(victim, make_identity(1))
    attacker.answer(der(certificate(1)))
    refused(victim, "IDP-54", "a certificate that was not asked for")
    assert victim.sent == []


def test_certificate_that_comes_too_late(victim: Device) -> None:
    attacker = script(victim, make_identity(1))
    attacker.hello()
    victim.net.run(3100)
    attacker.answer(der(certificate(1)))
    refused(victim, "IDP-54", "a certificate that comes too late")


@pytest.mark.parametrize("reason", ["source", "age", "ours"])
def test_implausible_messages_are_no_reason_to_ask(victim: Device, reason: str) -> None:
    stranger = make_identity(
        0 if reason == "ours" else 1, own=issue(0) if reason == "ours" else None
    )
    attacker = script(victim, stranger)
    body = Hello(1000, 4).encode()
    payload = stranger.seal(PROTOCOL_IDP, MessageKind.HELLO, body, victim.net.now)
    if reason == "age":
        victim.net.run(31_000)
        victim.sent.clear()
    source = address(5) if reason == "source" else stranger.me.address
    victim.feed(DatagramReceived("group", source, payload))
    assert asked(victim) == 0
    assert attacker.victim.status()["trust"]["awaited"] == 0


def test_no_answer_is_longer_than_its_question(victim: Device) -> None:
    """Nobody is sent more in his name than was sent in his name (IDP-51, IDP-53)."""
    network = victim.net
    attacker = script(victim, make_identity(1))
    short = attacker.identity.seal(PROTOCOL_IDP, MessageKind.HELLO, b"", network.now)
    victim.feed(DatagramReceived("group", B, short))
    assert victim.sent == []
    assert victim.counter("IDP-51") == 1
    own = victim.identity.me.fingerprint
    for cookie in (NO_COOKIE, b"guessed cookie!!"):
        body = Request(Subject.CERTIFICATE, own, cookie).encode()
        question = attacker.identity.seal(PROTOCOL_IDP, MessageKind.REQUEST, body, network.now)
        victim.sent.clear()
        victim.feed(DatagramReceived("group", B, question))
        assert [said(effect) for effect in victim.sent] == ["cookie"]
        assert len(victim.sent[0].payload) == len(question)


def test_a_cookie_proves_one_address_and_certificate_for_a_while(victim: Device) -> None:
    network = victim.net
    b = script(victim, make_identity(1))
    own = victim.identity.me.fingerprint

    def ask(attacker: Script, cookie: bytes) -> list[str]:
        victim.sent.clear()
        attacker.send(MessageKind.REQUEST, Request(Subject.CERTIFICATE, own, cookie).encode())
        return [said(effect) for effect in victim.sent if said(effect) != "request"]

    assert ask(b, NO_COOKIE) == ["cookie"]
    cookie = Request.decode(decode(victim.sent[0].payload).body).cookie
    assert ask(b, cookie) == ["certificate"]
    assert ask(script(victim, make_identity(2)), cookie) == ["cookie"], "another address"
    assert ask(script(victim, make_identity(1, own=issue(1))), cookie) == ["cookie"]
    network.run(9000)
    assert ask(b, cookie) == ["certificate"]
    network.run(11_500)
    assert ask(b, cookie) == ["cookie"], "too old"


def test_an_unasked_cookie_is_not_returned(victim: Device) -> None:
    attacker = script(victim, make_identity(1))
    fingerprint = attacker.identity.me.fingerprint
    body = Request(Subject.CERTIFICATE, fingerprint, b"a cookie of mine", returned=True).encode()
    attacker.send(MessageKind.REQUEST, body)
    assert victim.sent == []
    attacker.hello()
    victim.sent.clear()
    for _ in range(5):
        attacker.send(MessageKind.REQUEST, body)
    assert [said(effect) for effect in victim.sent] == ["request with cookie"] * 2


def test_a_flood_of_unknown_certificates_costs_a_bounded_amount(victim: Device) -> None:
    network = victim.net
    body = Hello(1000, 4).encode()
    template = make_identity(1)
    template.begin(network.now.wall_ns)
    payload = bytearray(template.seal(PROTOCOL_IDP, MessageKind.HELLO, body, network.now))
    for number in range(5000):
        source = IPv6Address(int(address(0)) + 1000 + number)
        payload[4:20] = source.packed
        payload[20:36] = number.to_bytes(16, "big")
        victim.feed(DatagramReceived("group", source, bytes(payload)))
    assert asked(victim) == 200, "the burst: four seconds of 50"
    assert victim.counter("AUTH-4") == 5000
    assert victim.counter("IDP-52") == 4800
    assert victim.status()["trust"]["awaited"] == ASKED_MAX
    assert parsed(victim) == 0
    assert len(victim.logs) <= 33
    strangers_of = victim.engine._exchange._strangers
    assert len(strangers_of._last_asked) <= 256
    # One source alone, with ever new certificates, is asked twice a second.
    network.run(10_000)
    victim.sent.clear()
    for number in range(100):
        payload[4:20], payload[20:36] = B.packed, (9_000_000 + number).to_bytes(16, "big")
        payload[52:60] = network.now.wall_ns.to_bytes(8, "big")
        victim.feed(DatagramReceived("group", B, bytes(payload)))
        network.run(10)
    assert asked(victim) == 2


def test_a_certificate_never_takes_the_address_of_another(victim: Device) -> None:
    """AUTH-14: pre-deployed stays; what was learned gives way to a renewal of the same device."""
    network = Network(2, identities=[make_identity(0, knows=[certificate(1)]), make_identity(1)])
    (a, b) = network.devices
    a.start()
    b.start()
    network.run(1500)
    thief = script(a, make_identity(1, own=issue(1, name="thief")))
    thief.hello()
    thief.answer(der(thief.identity.store.own.certificate))  # type: ignore[union-attr]
    assert a.counter("AUTH-14") == 1
    assert up(a) == ["d2"]
    # The same device with a later certificate: refused too, for its present one is pre-deployed.
    renewed = issue(1, not_before=START - timedelta(hours=1))
    again = script(a, make_identity(1, own=renewed))
    network.run(1000)
    again.hello()
    again.answer(der(renewed))
    assert a.counter("AUTH-14") == 2
    assert a.status()["trust"]["learned"] == 0
    # Where the present one was learned, the renewal replaces it; never the other way round.
    script(victim, make_identity(1)).hello()
    script(victim, make_identity(1)).answer(der(certificate(1)))
    assert list(victim.kept.values()) == [der(certificate(1))]
    victim.net.run(1000)
    script(victim, make_identity(1, own=renewed)).hello()
    script(victim, make_identity(1, own=renewed)).answer(der(renewed))
    assert list(victim.kept.values()) == [der(renewed)]
    victim.net.run(1000)
    script(victim, make_identity(1)).hello()
    script(victim, make_identity(1)).answer(der(certificate(1)))
    assert list(victim.kept.values()) == [der(renewed)]
