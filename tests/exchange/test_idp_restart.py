"""A device that begins anew, and what MIKE is told of it at once."""

from __future__ import annotations

from protocol.idp.config import IdpConfig, Unicast
from tests.support.fakelink import SA_GROUP, Network
from tests.support.identities import address

B, C = address(1), address(2)


def test_idp_16_a_restart_of_the_tm_is_no_news_that_waits() -> None:
    network = Network(3, IdpConfig(sa_group=SA_GROUP, unicast=Unicast.OFF, news_delay_ms=2000))
    a, b, c = network.devices
    for device in (a, b, c):
        device.start()
    network.run(3000)
    a.status_from_mike(1, [b, a, c])  # B is the TM
    a.signals.clear()
    for device in (c, b):
        device.stop()
        device.start()
    network.run(50)
    assert a.signals == [("JOIN", B)]
    network.run(2500)
    assert a.signals == [("JOIN", B), ("JOIN", C)]
