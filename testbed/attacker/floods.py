"""Attacks whose purpose is the load: as many frames as the machine and the cable carry.

The frames of a flood are made beforehand and sent in turn. None of them is ever accepted, so none
becomes a replay, and every one costs its receivers what it costs when it comes for the first time.
"""

from __future__ import annotations

from ipaddress import IPv6Address
from random import Random
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.core.errors import DecodeError
from protocol.identity import PROTOCOL_IDP, PROTOCOL_MIKE, envelope
from protocol.identity.envelope import DATAGRAM_MAX, Envelope
from protocol.idp import lighthello, notice
from protocol.idp.documents import Request, Subject
from protocol.idp.messages import MessageKind
from protocol.idp.notice import Notice
from protocol.idpmike import EpochId
from testbed.attacker.weapons import EX_MEMBER, FOREIGN, OUTSIDER, Armoury, Make, Weapon, joins

POOL: Final = 400
"""Different frames in a flood."""

FAKE_DEVICES: Final = 1000

RENEW_S: Final = 20.0
"""What is signed stays fresh for 30 s."""


def join_flood(at: Armoury) -> list[bytes]:
    """Ask to join, with other nonces and keys each time."""
    senders = at.senders()
    found = []
    for number in range(POOL):
        found += joins(at, senders[number % len(senders)])
    return found


def fake_hellos(at: Armoury) -> list[bytes]:
    """Be a thousand devices: each with an address and a key of its own."""
    found = []
    body = at.hello(at.own).encode()
    key = Ed25519PrivateKey.generate()
    for number in range(FAKE_DEVICES):
        sender = fake_address(at.own, number)
        message = Envelope(
            protocol=PROTOCOL_IDP,
            kind=MessageKind.HELLO,
            sender=sender,
            fingerprint=at.draws.randbytes(16),
            startup_wall_ns=at.now_ns - 1_000_000_000,
            sequence=1,
            sent_wall_ns=at.now_ns,
            body=body,
        )
        unsigned = message.encode_unsigned()
        datagram = unsigned + key.sign(envelope.to_sign(unsigned))
        found += at.datagram(PROTOCOL_IDP, datagram, sender=sender)
    return found


def fake_address(own: IPv6Address, number: int) -> IPv6Address:
    """Return the address of one of a thousand devices on the attacker's wire."""
    return IPv6Address(int(own) & ~0xFFFFFFFF | 0xFA000000 | number)


def forged_hellos(at: Armoury) -> list[bytes]:
    """Be the known devices, restarted or not, with signatures that do not verify."""
    found = []
    senders = at.senders()
    for number in range(POOL):
        sender = senders[number % len(senders)]
        body = at.hello(sender).encode()
        newer = number % 2 == 1
        found += at.signed(PROTOCOL_IDP, MessageKind.HELLO, body, sender=sender, newer=newer)
    return found


def light_hellos(at: Armoury) -> list[bytes]:
    """Continue the known devices' chains, as far ahead as they go: the most hashes to check."""
    found = []
    lights = list(at.scene.lights.items())
    for number in range(POOL):
        if not lights:
            break
        sender, light = lights[number % len(lights)]
        forged = lighthello.LightHello(
            light.fingerprint,
            light.startup_wall_ns,
            light.chain,
            lighthello.CHAIN_LENGTH,
            at.draws.randbytes(lighthello.VALUE_LENGTH),
        )
        found += at.datagram(PROTOCOL_IDP, forged.encode(), sender=sender)
    return found


def notices(at: Armoury) -> list[bytes]:
    """Confirm this epoch and others in the name of the known devices, and ask for answers."""
    epoch = at.scene.epoch or EpochId(1, bytes(8))
    senders = at.senders()
    found = []
    for number in range(POOL):
        sender = senders[number % len(senders)]
        which = epoch if number % 2 else EpochId(epoch.number + number, at.draws.randbytes(8))
        made = Notice.made(at.key(), which, sender, word=number % (notice.SEND + 1))
        found += at.datagram(PROTOCOL_IDP, made.encode(), sender=sender)
    return found


def requests(at: Armoury) -> list[bytes]:
    """Ask for certificates as a stranger: is more sent back than was sent?"""
    found = []
    for number in range(POOL):
        victims = list(at.scene.known)
        victim = victims[number % len(victims)]
        print_ = at.scene.signed[PROTOCOL_IDP, victim].fingerprint
        cookie = at.draws.randbytes(16) if number % 2 else bytes(16)
        body = Request(Subject.CERTIFICATE, print_, cookie).encode()
        found += at.signed(
            PROTOCOL_IDP, MessageKind.REQUEST, body, sender=at.own, to=victim
        )  # fmt: skip
    return found


def oversized(at: Armoury) -> list[bytes]:
    """Send datagrams that are too long, whole and in fragments of which one is missing."""
    found = []
    for number, length in enumerate((DATAGRAM_MAX + 1, 16_000, 40_000, 1400, 65_000)):
        for protocol in (PROTOCOL_IDP, PROTOCOL_MIKE):
            head = bytes((1, protocol, 1, 0))
            datagram = head + at.draws.randbytes(length)
            for sender in [*at.senders()[:2], at.own]:
                made = at.datagram(protocol, datagram, sender=sender)
                found += made if number % 2 == 0 else made[:-1]
    return found


def malformed(at: Armoury) -> list[bytes]:
    """Send what was heard with flipped bits, cut off or longer, and noise, to every port."""
    found: list[bytes] = []
    heard = list(at.scene.signed.values())
    ports = at.scene.channels.other_ports
    while len(found) < POOL:
        message = at.draws.choice(heard)
        payload = damaged(at.draws, message.encode())
        found += at.datagram(message.protocol, payload, sender=message.sender)
        noise = at.draws.randbytes(at.draws.randrange(400))
        victim = at.draws.choice(at.scene.channels.devices)
        found += at.scene.way(at.own, victim).udp(at.draws.choice(ports), noise)
        found += at.datagram(message.protocol, noise, sender=message.sender)
    return found


def damaged(draws: Random, payload: bytes) -> bytes:
    """Return a datagram that no decoder accepts, as `testbed.sim.adversary` alters them."""
    while True:
        match draws.randrange(4):
            case 0:
                place = draws.randrange(8 * len(payload))
                whole = int.from_bytes(payload, "big") ^ 1 << place
                made = whole.to_bytes(len(payload), "big")
            case 1:
                made = payload[: draws.randrange(len(payload))]
            case 2:
                made = payload + draws.randbytes(draws.randint(1, 8))
            case _:
                made = draws.randbytes(len(payload))
        try:
            envelope.decode(made)
        except DecodeError:
            return made


def _flood(name: str, who: str, make: Make) -> Weapon:
    return Weapon(name, who, make, renew_s=RENEW_S, rate_pps=None)


FLOODS: Final[tuple[Weapon, ...]] = (
    _flood("join-flood-forged", OUTSIDER, join_flood),
    _flood("join-flood-foreign", FOREIGN, join_flood),
    _flood("join-flood-ex-member", EX_MEMBER, join_flood),
    _flood("hello-flood-fake", FOREIGN, fake_hellos),
    _flood("hello-flood-forged", OUTSIDER, forged_hellos),
    _flood("light-hello-flood", OUTSIDER, light_hellos),
    _flood("notice-flood", OUTSIDER, notices),
    _flood("request-flood", FOREIGN, requests),
    _flood("oversized-flood", OUTSIDER, oversized),
    _flood("malformed-flood", OUTSIDER, malformed),
)
"""The floods."""
