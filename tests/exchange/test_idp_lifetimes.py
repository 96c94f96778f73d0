"""The lifetime of SAs: a new epoch is asked for in time, and what is not renewed goes.

IDP-61 and IDP-62. MIKE is scripted (tests.support.fakelink).
"""

from __future__ import annotations

from dataclasses import replace

from protocol.idp.config import IdpConfig
from tests.support.coalition import certificate, make_identity, own_policy, policy
from tests.support.fakelink import SA_GROUP, Device, Network
from tests.support.identities import address

A, B = address(0), address(1)
CONFIG = IdpConfig(sa_group=SA_GROUP, news_delay_ms=0, sa_lifetime_s=100)


def pair(config: IdpConfig = CONFIG) -> tuple[Network, Device, Device]:
    """Two devices in an epoch; A is the TM."""
    network = Network(2, config)
    return form(network)


def form(network: Network) -> tuple[Network, Device, Device]:
    a, b = network.devices
    a.start()
    b.start()
    network.run(1000)
    for device in (a, b):
        device.status_from_mike(1, [a, b])
        device.signals.clear()
    network.run(1000)
    assert a.status()["active_epoch"] == b.status()["active_epoch"] is not None
    return network, a, b


def group_sas(device: Device) -> int:
    return sum(sa.destination == SA_GROUP for sa in device.backend.dump_sas())


def test_the_tm_asks_for_a_new_epoch_in_time() -> None:
    network, a, b = pair()
    network.run(78_500)
    assert (a.signals, b.signals) == ([], [])
    network.run(1000)
    assert (a.signals, b.signals) == ([("RESTORE", A)], [])
    for device in (a, b):
        device.status_from_mike(2, [a, b])
    a.signals.clear()
    # The time of the new epoch begins anew.
    network.run(78_000)
    assert (a.signals, b.signals) == ([], [])
    assert group_sas(a) == 2


def test_others_ask_if_the_tm_does_not() -> None:
    network, a, b = pair()
    a.mike_up = False
    network.run(88_500)
    assert b.signals == []
    network.run(6000)
    assert b.signals == [("RESTORE", B)]
    network.run(3900)
    assert ("RESTORE", B) in b.signals


def test_what_is_not_renewed_is_removed_and_stays_away() -> None:
    network, a, b = pair()
    network.run(98_500)
    assert group_sas(a) == 2
    network.run(1000)
    for device in (a, b):
        assert group_sas(device) == 0
        assert device.status()["active_epoch"] is None
        assert device.counter("IDP-62") == 1
        assert any("lifetime of epoch 1-" in log.text for log in device.logs)
    # MIKE repeats the status of the same epoch: it is over all the same.
    a.status_from_mike(1, [a, b])
    network.run(1000)
    assert group_sas(a) == 0
    assert a.counter("IDP-62") == 2
    a.status_from_mike(2, [a, b])
    network.run(1000)
    assert group_sas(a) == 2


def test_without_a_lifetime_nothing_ends() -> None:
    network, a, _b = pair(replace(CONFIG, sa_lifetime_s=0))
    network.run(500_000)
    assert a.signals == []
    assert group_sas(a) == 2


def test_the_policy_bounds_the_lifetime() -> None:
    everybody = [certificate(0), certificate(1)]
    identities = [make_identity(index, knows=everybody) for index in range(2)]
    network = Network(2, replace(CONFIG, sa_lifetime_s=0), identities=identities)
    for device in network.devices:
        device.policy = own_policy(policy(sa_lifetime_min_s=10, sa_lifetime_max_s=50))
        device.new_engine()
    _, a, _b = form(network)
    network.run(40_000)
    assert a.signals == [("RESTORE", A)]
    network.run(10_000)
    assert group_sas(a) == 0


def test_a_stopped_instance_takes_its_timer_along() -> None:
    network, a, _b = pair()
    a.stop()
    network.run(200_000)
    assert a.counter("IDP-62") == 0
