"""The lifetime of SAs: a new epoch is asked for in time, and what is not renewed goes.

IDP-61, IDP-62 and IDP-63. MIKE is scripted (tests.support.fakelink).
"""

from __future__ import annotations

from dataclasses import replace

from protocol.idp.config import IdpConfig, SaMode, Unicast
from protocol.idp.events import SaExpired, TrustReread
from protocol.ipsec.backend import AddSa, ByteLimit
from protocol.ipsec.model import SaId, Suite
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


# By bytes: the kernel counts; here the test says what it would say.

BYTES = replace(CONFIG, sa_lifetime_s=0, sa_lifetime_bytes=1_000_000)
LIMIT = ByteLimit(800_000, 1_000_000)


def limits(device: Device) -> dict[SaId, ByteLimit]:
    """Return the limits of all SAs that were ever added."""
    return {
        operation.sa.id: operation.limit
        for batch in device.batches
        for operation in batch.operations
        if isinstance(operation, AddSa) and operation.limit is not None
    }


def own_sa(device: Device) -> SaId:
    """Return the newest SA with which a device sends to the group."""
    sas = [sa for sa in device.backend.dump_sas() if sa.destination == SA_GROUP]
    return next(sa.id for sa in reversed(sas) if sa.source == device.address)


def test_what_we_send_with_has_a_limit_and_what_we_receive_with_has_none() -> None:
    """IDP-63: the group's SA, and the pair's."""
    _, a, _b = pair(BYTES)
    sending = {sa.id for sa in a.backend.dump_sas() if sa.source == a.address}
    assert len(sending) == 2
    assert limits(a) == dict.fromkeys(sending, LIMIT)
    assert limits(pair()[1]) == {}
    shared = replace(
        BYTES, sa_mode=SaMode.PAPER, suite=Suite.TDES_SHA1, unicast=Unicast.OFF, if_id=None
    )
    assert list(limits(pair(shared)[1]).values()) == [LIMIT]


def under_policy(**changes: object) -> tuple[Network, Device, Device]:
    """Return two devices without a limit of their own that keep a policy."""
    everybody = [certificate(0), certificate(1)]
    identities = [make_identity(index, knows=everybody) for index in range(2)]
    network = Network(2, replace(BYTES, sa_lifetime_bytes=0), identities=identities)
    for device in network.devices:
        device.policy = own_policy(policy(**changes))
        device.new_engine()
    return form(network)


def test_the_policy_bounds_what_an_sa_carries() -> None:
    """IDP-63: as it bounds the time; the group's SA, and the pair's."""
    most = 10_000_000
    network, a, b = under_policy(sa_lifetime_min_bytes=1 << 20, sa_lifetime_max_bytes=most)
    sending = {sa.id for sa in a.backend.dump_sas() if sa.source == a.address}
    assert len(sending) == 2
    assert limits(a) == dict.fromkeys(sending, ByteLimit(8_000_000, most))
    b.feed(SaExpired(own_sa(b), hard=False))
    network.run(100)
    assert b.signals == [("RESTORE", B)]


def test_a_policy_that_is_adopted_bounds_the_next_sas() -> None:
    """IDP-60, IDP-63: those that are there keep what the kernel was told."""
    network, a, b = under_policy(sa_lifetime_max_bytes=20_000_000)
    newer = own_policy(policy(version=4, sa_lifetime_max_bytes=10_000_000))
    a.feed(TrustReread(policy=newer))
    network.run(4000)
    assert {limit.hard for limit in limits(b).values()} == {20_000_000}
    for device in (a, b):
        device.status_from_mike(2, [a, b])
    network.run(4000)
    assert limits(a)[own_sa(a)].hard == limits(b)[own_sa(b)].hard == 10_000_000


def test_a_worn_sa_makes_its_sender_ask_until_there_is_a_new_epoch() -> None:
    """IDP-63: whoever sends much, TM or not."""
    network, a, b = pair(BYTES)
    worn = own_sa(b)
    b.feed(SaExpired(worn, hard=False))
    network.run(100)
    assert (a.signals, b.signals) == ([], [("RESTORE", B)])
    assert b.counter("IDP-63") == 1
    network.run(2000)
    assert b.signals == [("RESTORE", B)] * 2
    for device in (a, b):
        device.status_from_mike(2, [a, b])
    b.signals.clear()
    network.run(100)
    # The old SA goes on for a while and may come to its end; the new one is there.
    b.feed(SaExpired(worn, hard=True))
    network.run(10_000)
    assert b.signals == []
    assert own_sa(b) != worn
    assert group_sas(a) == group_sas(b) == 2


def test_a_worn_sa_of_a_pair_asks_too() -> None:
    network, a, b = pair(BYTES)
    (worn,) = [sa.id for sa in a.backend.dump_sas() if sa.destination == b.address]
    a.feed(SaExpired(worn, hard=False))
    network.run(100)
    assert a.signals == [("RESTORE", A)]


def test_others_sas_and_foreign_ones_ask_for_nothing() -> None:
    network, a, b = pair(BYTES)
    for sa_id in (own_sa(b), SaId(SA_GROUP, 0x7777)):
        a.feed(SaExpired(sa_id, hard=False))
    a.stop()
    a.feed(SaExpired(own_sa(b), hard=False))
    network.run(5000)
    assert a.signals == [("LEAVE", A)]
    assert a.counter("IDP-63") == 0


def test_an_sa_that_came_to_its_end_is_said_aloud() -> None:
    """The kernel has removed it: nothing leaves, and the next epoch is asked for all the same."""
    network, a, b = pair(BYTES)
    worn = own_sa(a)
    a.feed(SaExpired(worn, hard=True))
    assert any("has carried all that it may" in log.text for log in a.logs)
    network.run(100)
    assert a.signals == [("RESTORE", A)]
    for device in (a, b):
        device.status_from_mike(2, [a, b])
    network.run(5000)
    assert own_sa(a) != worn
    assert a.counter("IDP-14") == 0
