"""Devices without each other's certificates on a network that loses what they say at first."""

from __future__ import annotations

from protocol.core.engine import DatagramReceived, SendDatagram
from protocol.identity.envelope import OVERHEAD
from protocol.idp.documents import REQUEST_LENGTH
from protocol.idp.lighthello import HEADER, LIGHT_HELLO_LENGTH, LightHello
from tests.support.coalition import make_identity
from tests.support.fakelink import Device, Network
from tests.support.identities import address

QUESTION = OVERHEAD + REQUEST_LENGTH


def up(device: Device) -> list[str]:
    return [peer["name"] for peer in device.status()["peers"] if peer["state"] == "up"]


def is_light(effect: SendDatagram) -> bool:
    return effect.payload.startswith(HEADER)


def test_who_hears_light_hellos_only_asks_all_the_same() -> None:
    """IDP-51: nobody hears C's hellos, so A and B have no reason to sign theirs."""
    network = Network(3, identities=[make_identity(index) for index in range(3)])
    a, b, c = network.devices
    a.start()
    b.start()
    network.run(20_000)
    assert up(a) == ["d2"]
    transmit = network.transmit
    network.transmit = lambda sender, effect: (  # type: ignore[method-assign]
        None if sender is c and effect.destination is None else transmit(sender, effect)
    )
    c.start()
    network.wire.clear()
    network.run(5000)
    assert sorted(up(c)) == ["d1", "d2"]
    to_all = [effect for _, effect in network.wire if effect.destination is None]
    assert len(to_all) >= 8
    assert all(is_light(effect) for effect in to_all)


def test_a_question_is_never_longer_than_what_was_heard_in_that_name() -> None:
    network = Network(1, identities=[make_identity(0)])
    (a,) = network.devices
    a.start()
    network.run(500)
    a.sent.clear()
    light = LightHello(bytes(16), 1, 0, 1, bytes(32)).encode()
    assert len(light) == LIGHT_HELLO_LENGTH
    for number in range(1, 31):
        a.feed(DatagramReceived("group", address(5), light))
        network.run(600)
        questions = [effect for effect in a.sent if effect.destination == address(5)]
        assert len(questions) * QUESTION <= number * LIGHT_HELLO_LENGTH
    assert len(questions) == 10
    # A flood of invented sources is remembered within bounds.
    for number in range(1000):
        a.feed(DatagramReceived("group", address(1000 + number), light))
    strangers = a.engine._exchange._strangers
    assert len(strangers._received) == 256
