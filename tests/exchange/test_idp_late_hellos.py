"""Hellos that come late: A and B, and what makes them late (IDP-35).

A queue in a starved machine's own socket, a queue in the network, a machine that was suspended.
"""

from __future__ import annotations

from protocol.core.engine import DatagramReceived
from tests.exchange.test_idp_light_hellos import (
    DEAD_MS,
    INTERVAL_MS,
    SIGNED_FIRST,
    A,
    B,
    settled,
    signed,
)
from tests.support.fakelink import MS, Device, Network
from tests.support.identities import address

STEP_MS = 200


def grow(network: Network, attribute: str, to: int, by: int, unit: int = 1) -> None:
    """Let a queue grow (or shrink) while time passes."""
    for value in range(getattr(network, attribute), to * unit, by * unit):
        setattr(network, attribute, value)
        network.run(STEP_MS)
    setattr(network, attribute, to * unit)


def up(device: Device) -> list[str]:
    return [peer["address"] for peer in device.status()["peers"] if peer["state"] == "up"]


def test_idp_35_backlog_of_two_dead_intervals_in_our_own_sockets_parts_nobody() -> None:
    network, (a, b) = settled()
    grow(network, "backlog_ms", 2 * DEAD_MS, STEP_MS // 2)
    network.run(40_000)
    # B has a new epoch's key: another chain begins while the backlog stands.
    b.status_from_mike(7, [a, b])
    network.run(80_000)
    assert a.counter("idp.hello_light") > 50
    assert [a.counter(rule) for rule in ("IDP-35", "IDP-7")] == [0, 0]
    # The machine has time again.
    network.backlog_ms = 0
    network.run(10_000)
    assert a.signals == b.signals == []
    assert a.status()["peers"][0]["last_hello_ms"] < INTERVAL_MS
    assert a.counter("IDP-35") == b.counter("IDP-35") == 0


def test_idp_10_devices_that_read_at_an_eighth_of_the_speed_lose_nobody() -> None:
    network = Network(6)
    for device in network.devices:
        device.start()
        network.run(INTERVAL_MS / 6)
    network.run(SIGNED_FIRST * INTERVAL_MS)
    # Each device's hellos are read eight intervals apart, for nearly two minutes.
    for device in network.devices:
        device.signals.clear()
    grow(network, "backlog_ms", 105_000, STEP_MS * 7 // 8)
    network.backlog_ms = 0
    network.run(10_000)
    for device in network.devices:
        assert device.signals == []
        assert device.counter("idp.excused") == 0


def test_idp_7_backlog_in_our_sockets_keeps_a_dead_device_no_longer_than_the_backlog_is() -> None:
    network, (a, b) = settled()
    grow(network, "backlog_ms", 2 * DEAD_MS, STEP_MS // 2)
    b.stop()
    network.run(3 * DEAD_MS - INTERVAL_MS - 50)
    assert a.signals == []
    network.run(INTERVAL_MS + 100)
    assert a.signals == [("LEAVE", B)]
    assert a.status()["peers"][0]["last_hello_ms"] >= 3 * DEAD_MS - INTERVAL_MS


def test_idp_35_delay_of_less_than_a_dead_interval_in_the_network_parts_nobody() -> None:
    network, (a, b) = settled()
    grow(network, "latency_ns", DEAD_MS - 500, STEP_MS // 2, MS)
    network.run(100_000)
    b.status_from_mike(7, [a, b])
    network.run(100_000)
    network.latency_ns = MS
    network.run(20_000)
    assert a.signals == b.signals == []
    assert a.counter("IDP-35") == b.counter("IDP-35") == 0


def test_idp_35_delay_of_two_dead_intervals_in_the_network_parts_until_it_ends() -> None:
    network, (a, b) = settled()
    grow(network, "latency_ns", 2 * DEAD_MS, STEP_MS // 2, MS)
    network.run(10_000)
    assert a.counter("IDP-35") > 0
    assert ("LEAVE", B) in a.signals
    assert ("LEAVE", A) in b.signals
    # The queue in the network is gone, but not what was in it.
    network.latency_ns = MS
    network.run(2 * INTERVAL_MS)
    assert (up(a), up(b)) == ([str(B)], [str(A)])
    a.signals.clear()
    b.signals.clear()
    network.run(60_000)
    assert a.signals == b.signals == []


def test_idp_35_device_whose_machine_was_suspended_is_back_with_its_next_signed_hello() -> None:
    network, (a, b) = settled()
    network.run(2000)
    a.sent.clear()
    b.sent.clear()
    b.suspend(3 * DEAD_MS)
    assert a.signals == [("LEAVE", B)]
    # B --> all: light hellos, too late by their chain; then a signed one, signed just now
    while not signed(b):
        assert up(a) == []
        network.run(100)
    assert a.counter("IDP-35") > 0
    assert up(a) == [str(B)]
    assert a.counter("idp.chain_moved") == 1
    # B --> all: light hellos of the same chain
    before = a.counter("idp.hello_light")
    network.run(5 * INTERVAL_MS)
    assert a.counter("idp.hello_light") >= before + 4
    # To A, left alone, it was itself that was cut off (IDP-9).
    assert a.signals == [("LEAVE", B), ("RESTORE", A), ("RESTORE", B)]
    assert len(signed(b)) <= 2


def test_idp_10_a_stranger_s_datagram_does_not_say_that_we_have_read_all_the_others() -> None:
    """Strangers wait in a socket of their own: read at once, while known devices' hellos wait."""
    network, (a, b) = settled()
    for _ in range(4 * DEAD_MS // STEP_MS):
        network.backlog_ms += STEP_MS // 2
        network.run(STEP_MS)
        a.feed(DatagramReceived("group", address(77), b"noise"))
    network.run(40_000)
    assert a.counter("idp.hello_light") > 20
    assert a.signals == b.signals == []
