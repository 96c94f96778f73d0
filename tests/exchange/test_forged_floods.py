"""A device joins while thousands of messages are forged in everybody's name (AUTH-19).

::

    attacker                         A (TM)                     D (joins)
       |== JOINs of A, B, C and D ====>|                            |
       |== ... =====================================================>|
       |                               |<--------- JOIN ------------|   marked for A
       |== JOINs of D ================>|                            |
       |                               |---------- TREE ----------->|   marked for D
"""

from __future__ import annotations

from random import Random

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.core.engine import DatagramReceived, Instant
from protocol.identity import PROTOCOL_IDP, PROTOCOL_MIKE, Identity
from protocol.identity.shedding import CHECKS_BURST_S, CHECKS_IN_VAIN_PER_S
from protocol.idp.messages import Hello, MessageKind
from protocol.mike.messages import Join, Kind
from tests.exchange.test_idp_light_hellos import INTERVAL_MS, settled
from tests.support.identities import address, known_device
from tests.support.world import World

SIZE = 4
BURST = CHECKS_IN_VAIN_PER_S * CHECKS_BURST_S
FLOOD = 80
"""Forged messages at once, in all names together."""


def forgeries(
    protocol: int, kind: int, body: bytes, now: Instant, draws: Random
) -> list[tuple[int, bytes]]:
    """Return messages in everybody's name, with marks and signatures of another key."""
    everybody = [known_device(index) for index in range(SIZE)]
    found = []
    for index, claimed in enumerate(everybody):
        key = Ed25519PrivateKey.from_private_bytes(draws.randbytes(32))
        liar = Identity(claimed, key, everybody)
        liar.begin(now.wall_ns)
        found += [(index, liar.seal(protocol, kind, body, now)) for _ in range(FLOOD // SIZE)]
    return found


def test_auth_19_a_device_joins_under_a_flood_of_joins_in_its_own_name() -> None:
    world, draws = World(SIZE), Random(1)
    world.form(SIZE - 1)
    joiner, tm = world[SIZE - 1], world[0]
    body = Join(bytes(16), bytes([9]) + bytes(31), 0).encode()

    def flood() -> None:
        for index, datagram in forgeries(PROTOCOL_MIKE, Kind.JOIN, body, world.instant, draws):
            for device in (tm, joiner):
                if device.index != index:
                    world.deliver(device, address(index), datagram)

    began_ns = world.now_ns
    flood()
    world.join(SIZE - 1)
    for _ in range(20):
        flood()
        world.run(1)
    assert world.agreed(*range(SIZE))
    assert world.now_ns - began_ns < 50_000_000
    refused = tm.engine.identity.refusals
    assert refused["AUTH-9"] <= (SIZE - 1) * BURST
    assert refused["AUTH-19"] > 10 * FLOOD
    assert len(joiner.points("t_join_sent")) == 1


def test_auth_19_signed_hellos_count_under_a_flood_of_hellos_in_the_same_name() -> None:
    network, (a, b, c, _) = settled(3, 1)
    draws = Random(1)
    for epoch in range(7, 15):  # each begins a new chain, by a signed hello
        b.status_from_mike(epoch, [a, b, c])
        for _ in range(4):
            for index, datagram in forgeries(
                PROTOCOL_IDP, MessageKind.HELLO, Hello(1000, 4).encode(), network.now, draws
            ):
                a.feed(DatagramReceived("group", address(index), datagram))
            network.run(INTERVAL_MS // 4)
    assert a.signals == []
    assert a.status()["peers"][0]["epoch"] is not None
    assert a.counter("AUTH-9") <= 3 * (8 * CHECKS_IN_VAIN_PER_S + BURST)
    assert a.counter("AUTH-19") > 4 * FLOOD
