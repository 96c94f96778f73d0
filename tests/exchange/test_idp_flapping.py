"""A link that flips faster than the dead interval: no device is lost, so nothing is rekeyed."""

from __future__ import annotations

import pytest

from protocol.core.engine import SendDatagram
from protocol.identity import envelope
from protocol.idp.messages import Hello
from tests.exchange.test_idp_light_hellos import INTERVAL_MS, settled, signed
from tests.support.fakelink import MS

PHASES_MS = range(0, INTERVAL_MS, 125)


@pytest.mark.parametrize("phase_ms", PHASES_MS)
@pytest.mark.parametrize("period_ms", [500, 1000, 2000])
def test_idp_36_cable_that_goes_out_and_in_loses_nobody(period_ms: int, phase_ms: int) -> None:
    network, devices = settled(5)
    *_, last = devices
    network.run(phase_ms)
    for _ in range(40_000 // period_ms):
        last.link(False)
        network.run(period_ms / 2)
        last.link(True)
        network.run(period_ms / 2)
    network.run(6 * INTERVAL_MS)
    assert [device.signals for device in devices] == [[]] * 5


@pytest.mark.parametrize("phase_ms", PHASES_MS)
@pytest.mark.parametrize("period_ms", [500, 1000])
def test_idp_36_link_that_flips_beyond_the_next_switch_loses_nobody(
    period_ms: int, phase_ms: int
) -> None:
    """No device sees a carrier go."""
    network, devices = settled(5)
    *_, last = devices
    begin_ns = network.now.mono_ns + phase_ms * MS
    network.drops = lambda sender, receiver: (
        (sender is last) != (receiver is last)
        and (network.now.mono_ns - begin_ns) % (period_ms * MS) < period_ms * MS // 2
    )
    network.run(40_000)
    network.drops = lambda sender, receiver: False
    network.run(6 * INTERVAL_MS)
    assert [device.signals for device in devices] == [[]] * 5


def test_idp_36_hello_with_the_carrier_asks_if_somebody_was_missed() -> None:
    """Asks all: with the carrier the kernel has lost whom it could send to alone."""
    network, (a, b) = settled()
    a.link(False)
    a.link(True)
    assert not asks(signed(a)[-1])
    network.drops = lambda sender, receiver: sender is b
    network.run(2500)
    network.drops = lambda sender, receiver: False
    a.link(False)
    a.sent.clear()
    b.sent.clear()
    # A --> all: hello, ASKING; B --> A: triggered hello
    a.link(True)
    (hello,) = signed(a)
    assert asks(hello)
    assert hello.destination is None
    network.run(5)
    assert [effect.destination for effect in signed(b)] == [a.address]
    assert a.status()["peers"][0]["last_hello_ms"] <= 5


def asks(effect: SendDatagram) -> bool:
    return Hello.decode(envelope.decode(effect.payload).body).asking
