"""A device that begins anew, and what MIKE is told of it at once."""

from __future__ import annotations

from protocol.idp.config import IdpConfig, Unicast
from tests.support.fakelink import SA_GROUP, Network
from tests.support.identities import address

A, B, C, D = (address(index) for index in range(4))


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


def test_idp_16_a_newcomer_tells_mike_soon_of_the_first_device_in_a_group() -> None:
    network = Network(4, IdpConfig(sa_group=SA_GROUP, unicast=Unicast.OFF, news_delay_ms=2000))
    *group, newcomer = network.devices
    for device in group:
        device.start()
    network.run(3000)
    for device in group[1:]:
        device.status_from_mike(1, group)
    for device in group:
        device.signals.clear()
    newcomer.start()
    network.run(199)
    assert newcomer.signals == [("JOIN", D)]
    network.run(251)
    assert {("JOIN", B), ("JOIN", C)} & set(newcomer.signals)  # A has no key to name
    assert all(not device.signals for device in group)
    network.run(2500)
    assert {who for _, who in newcomer.signals} == {A, B, C, D}
    assert len(newcomer.signals) == 4
    assert all(device.signals == [("JOIN", D)] for device in group)
