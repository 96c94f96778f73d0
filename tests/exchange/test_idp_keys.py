"""From MIKE's status to SAs: IDP engine, scripted MIKE, SAD in memory, checked after each step."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from protocol.idp.config import IdpConfig, SaMode, Unicast
from protocol.idp.events import KeyFetched
from protocol.ipsec.backend import AddSa, DeletePolicy, DeleteSa, Operation, PutPolicy
from protocol.ipsec.model import PolicyDirection, SaDirection, Suite
from protocol.ipsec.snapshot import SadSnapshot
from tests.support.fakelink import SA_GROUP, Device, Network, epoch, group_key
from tests.support.identities import address

POINTS = ("t_status", "t_deleted", "t_written", "t_active")
PAPER = IdpConfig(
    sa_group=SA_GROUP, unicast=Unicast.OFF, sa_mode=SaMode.PAPER, suite=Suite.TDES_SHA1
)


def pair(config: IdpConfig | None = None) -> tuple[Network, Device, Device]:
    network = Network(2, config)
    a, b = network.devices
    a.start()
    b.start()
    network.run(1500)
    a.reports.clear()
    a.batches.clear()
    return network, a, b


def spis(device: Device) -> set[int]:
    return {sa.spi for sa in device.backend.dump_sas()}


def pinned(device: Device) -> int:
    policies = device.backend.dump_policies()
    return next(p.template_spi for p in policies if p.direction is PolicyDirection.OUT)


def own_spi(device: Device) -> int:
    return next(sa.spi for sa in device.backend.dump_sas() if sa.direction is SaDirection.OUT)


def test_first_epoch_is_written_and_used_at_once() -> None:
    network, a, b = pair()
    # MIKE --> IDP: status(1, pointer); IDP reads the key, writes the SAs, pins its policy
    for device in (a, b):
        device.status_from_mike(1, [a, b])
    network.run(1)
    assert [point for point, _ in a.points(*POINTS)] == ["t_status", "t_written", "t_active"]
    assert a.points("t_written") == [("t_written", {"epoch": str(epoch(1)), "sas": 2})]
    assert a.labels == [f"write:{epoch(1)}"]
    assert spis(a) == spis(b)
    assert pinned(a) == own_spi(a) != own_spi(b) == pinned(b)
    assert SadSnapshot.of(a.backend.dump_sas()) == SadSnapshot.of(b.backend.dump_sas())
    assert a.status()["epoch"] == a.status()["active_epoch"] == str(epoch(1))


def test_per_sender_makes_before_it_breaks() -> None:
    network, a, b = pair()
    a.status_from_mike(1, [a, b])
    network.run(2000)
    old_spis, old_own = spis(a), own_spi(a)
    a.reports.clear()

    # MIKE --> IDP: status(2): both epochs are in the SAD, we still send with the old one
    a.status_from_mike(2, [a, b])
    network.run(1)
    written_ms = a.time_of("t_written", epoch=str(epoch(2)))
    assert len(spis(a)) == 4
    assert spis(a) > old_spis
    assert pinned(a) == old_own
    assert (a.status()["epoch"], a.status()["active_epoch"]) == (str(epoch(2)), str(epoch(1)))

    # activation delay, for B never confirms: the policy moves
    network.run(500)
    assert a.time_of("t_active", epoch=str(epoch(2))) - written_ms == 500
    assert pinned(a) not in old_spis
    assert len(spis(a)) == 4

    # deactivation delay: the old SAs go
    network.run(1000)
    assert a.time_of("t_deleted", epoch=str(epoch(1))) - written_ms == 1500
    assert len(spis(a)) == 2
    assert not spis(a) & old_spis
    assert a.backend.errors == []
    assert a.labels[-3:] == [f"write:{epoch(2)}", f"activate:{epoch(2)}", f"delete:{epoch(1)}"]


def test_paper_deletes_then_writes() -> None:
    network, a, b = pair(PAPER)
    for device in (a, b):
        device.status_from_mike(1, [a, b])
    network.run(2000)
    assert [point for point, _ in a.points(*POINTS)] == ["t_status", "t_written", "t_active"]
    assert len(spis(a)) == 1
    assert spis(a) == spis(b)
    assert pinned(a) == 0
    old = spis(a)
    a.reports.clear()
    a.batches.clear()

    a.status_from_mike(2, [a, b])
    network.run(1)
    assert a.points(*POINTS) == [
        ("t_status", {"epoch": str(epoch(2)), "members": 2}),
        ("t_deleted", {"epoch": str(epoch(2))}),
        ("t_written", {"epoch": str(epoch(2)), "sas": 1}),
        ("t_active", {"epoch": str(epoch(2))}),
    ]
    assert a.labels == [f"delete:{epoch(2)}", f"write:{epoch(2)}"]
    assert len(spis(a)) == 1
    assert spis(a) != old
    network.run(5000)
    assert len(a.batches) == 2


def test_rekeys_faster_than_the_delays_leave_nothing_behind() -> None:
    network, a, b = pair()
    for number in range(1, 12):
        a.status_from_mike(number, [a, b])
        network.run(50)
        assert len(spis(a)) <= 2 * 4
    network.run(3000)
    assert len(spis(a)) == 2
    assert pinned(a) == own_spi(a)
    assert a.status()["active_epoch"] == str(epoch(11))
    assert a.backend.errors == []


def test_repeated_status_changes_nothing() -> None:
    network, a, b = pair()
    for _ in range(3):
        a.status_from_mike(1, [a, b])
        network.run(5)
    assert a.labels == [f"write:{epoch(1)}"]
    assert a.counter("idp.status_repeated") == 2


def test_idp_12_excluded_device_removes_every_sa() -> None:
    network, a, b = pair()
    a.status_from_mike(1, [a, b])
    network.run(50)
    a.status_from_mike(2, [a, b])
    network.run(5)
    a.status_from_mike(3, [b], key=False)
    network.run(5)
    assert spis(a) == set()
    assert pinned(a) == 0
    assert len(a.backend.dump_policies()) == 3
    assert a.status()["excluded"]
    assert a.status()["epoch"] is None
    network.run(5000)
    assert a.backend.errors == []
    # and comes back
    a.status_from_mike(4, [b, a])
    network.run(5)
    assert len(spis(a)) == 2
    assert pinned(a) == own_spi(a)


@pytest.mark.parametrize("config", [None, PAPER])
def test_stop_removes_sas_and_policies(config: IdpConfig | None) -> None:
    network, a, b = pair(config)
    a.status_from_mike(1, [a, b])
    network.run(50)
    a.status_from_mike(2, [a, b])
    network.run(5)
    a.stop()
    assert a.backend.dump_sas() == []
    assert a.backend.dump_policies() == []
    assert a.backend.errors == []
    network.run(5000)
    assert a.labels[-1] == "remove"
    # the next instance starts from nothing
    a.start()
    a.status_from_mike(3, [a, b])
    network.run(50)
    assert len(a.backend.dump_policies()) == 3
    assert a.status()["active_epoch"] == str(epoch(3))


def test_idp_14_key_that_comes_late_is_fetched_once_more() -> None:
    network, a, b = pair()
    a.status_from_mike(1, [a, b], key=False)
    network.run(5)
    assert a.backend.dump_sas() == []
    a.key_directory[str(epoch(1))] = bytes(32)
    network.run(100)
    assert a.status()["active_epoch"] == str(epoch(1))
    assert a.counter("IDP-14") == 1


def test_idp_14_without_the_new_key_the_old_sas_run_out() -> None:
    network, a, b = pair()
    a.status_from_mike(1, [a, b])
    network.run(500)
    a.status_from_mike(2, [a, b], key=False)
    network.run(105)
    assert a.counter("IDP-14") == 2
    assert a.logs[-1].level == "error"
    assert "no group key" in a.status()["last_failure"]
    assert len(spis(a)) == 2
    network.run(1000)
    assert spis(a) == set()
    # a newer epoch heals it
    a.status_from_mike(3, [a, b])
    network.run(5)
    assert a.status()["active_epoch"] == str(epoch(3))
    assert a.status()["last_failure"] == ""


def test_key_of_an_epoch_that_was_overtaken_is_not_used() -> None:
    network, a, b = pair()
    a.status_from_mike(1, [a, b], key=False)
    network.run(5)
    a.status_from_mike(2, [a, b])
    network.run(500)
    assert a.labels == [f"write:{epoch(2)}"]


def test_key_that_arrives_after_a_newer_status_is_dropped() -> None:
    """A slow reader: the answers come when the next status has already been heard."""
    network, a, b = pair()
    a.status_from_mike(1, [a, b], key=False)
    network.run(5)
    a.status_from_mike(2, [a, b], key=False)
    network.run(5)
    a.feed(KeyFetched(str(epoch(1)), group_key(1)))
    assert a.batches == []
    a.feed(KeyFetched(str(epoch(2)), group_key(2)))
    assert a.labels == [f"write:{epoch(2)}"]
    a.feed(KeyFetched(str(epoch(2)), group_key(2)))
    assert a.labels == [f"write:{epoch(2)}"]


def test_idp_13_group_key_of_another_length() -> None:
    network, a, b = pair()
    a.key_directory[str(epoch(1))] = bytes(31)
    a.status_from_mike(1, [a, b], key=False)
    network.run(500)
    assert a.counter("IDP-13") == 2
    assert a.backend.dump_sas() == []


def test_idp_11_status_that_contradicts_itself() -> None:
    network, a, b = pair(IdpConfig(sa_group=SA_GROUP, unicast=Unicast.OFF, max_peers=1))
    a.status_from_mike(1, [a, b, Device(Network(3), 2, PAPER)])
    network.run(5)
    assert a.counter("IDP-11") == 1
    assert a.batches == []


Refusal = Callable[[Operation], bool]


def once(refuse: Refusal) -> Refusal:
    """Refuse the first operation that fits."""
    done: list[Operation] = []

    def first(operation: Operation) -> bool:
        if done or not refuse(operation):
            return False
        done.append(operation)
        return True

    return first


def adds_from(source: object) -> Refusal:
    return lambda operation: isinstance(operation, AddSa) and operation.sa.source == source


A, B = address(0), address(1)


@pytest.mark.parametrize(
    "refuse",
    [
        adds_from(A),
        adds_from(B),
        lambda o: isinstance(o, PutPolicy),
        lambda o: isinstance(o, DeleteSa),
    ],
    ids=["own SA", "SA of B", "policy", "deletion"],
)
@pytest.mark.parametrize("config", [None, PAPER])
def test_idp_14_one_failure_is_repaired(refuse: Refusal, config: IdpConfig | None) -> None:
    network, a, b = pair(config)
    a.status_from_mike(1, [a, b])
    network.run(500)
    a.backend.refuse = once(refuse)
    a.status_from_mike(2, [a, b])
    network.run(3000)
    assert len(spis(a)) == (1 if config else 2)
    assert a.status()["active_epoch"] == str(epoch(2))
    assert a.time_of("t_written", epoch=str(epoch(2)))
    failed = a.status()["sa_failures"]
    assert a.counter("IDP-14") == failed
    if failed:
        assert any(label.startswith("repair:") for label in a.labels)
        assert a.points("idp.sas_failed")


def test_missing_sa_of_a_peer_is_reported_not_hidden() -> None:
    network, a, b = pair()
    a.backend.refuse = adds_from(B)
    a.status_from_mike(1, [a, b])
    network.run(5)
    assert a.points("t_written") == []
    assert a.points("idp.sas_missing")[0][1]["missing"] == 1
    assert a.points("t_active")
    assert "add SA" in a.status()["last_failure"]
    assert a.logs[-1].level == "error"


def test_own_sa_that_cannot_be_written_never_becomes_active() -> None:
    network, a, b = pair()
    a.status_from_mike(1, [a, b])
    network.run(500)
    a.backend.refuse = adds_from(A)
    a.status_from_mike(2, [a, b])
    network.run(500)
    assert a.points("t_active")[-1][1] == {"epoch": str(epoch(1))}
    # fail closed: the old epoch runs out
    network.run(1000)
    assert own_spis(a) == set()
    a.backend.refuse = lambda operation: False
    a.status_from_mike(3, [a, b])
    network.run(3000)
    assert len(spis(a)) == 2
    assert pinned(a) == own_spi(a)


def own_spis(device: Device) -> set[int]:
    return {sa.spi for sa in device.backend.dump_sas() if sa.direction is SaDirection.OUT}


def test_removal_at_stop_is_tried_once_more() -> None:
    network, a, b = pair()
    a.status_from_mike(1, [a, b])
    network.run(50)
    a.backend.refuse = once(lambda o: isinstance(o, DeletePolicy))
    a.stop()
    assert a.labels[-2:] == ["remove", "repair:remove"]
    assert a.backend.dump_policies() == []
    assert a.counter("IDP-14") == 1


def test_removal_that_fails_for_good_is_an_error_in_the_log() -> None:
    _network, a, _b = pair()
    a.backend.refuse = lambda o: isinstance(o, DeletePolicy)
    a.stop()
    assert a.logs[-1].level == "error"
    assert a.labels[-2:] == ["remove", "repair:remove"]


def test_policies_come_first_without_an_xfrm_interface() -> None:
    network = Network(1, IdpConfig(sa_group=SA_GROUP, if_id=None, unicast=Unicast.OFF))
    (a,) = network.devices
    order: list[str] = []
    original = a._perform
    a._perform = lambda effect: (order.append(type(effect).__name__), original(effect))[1]  # type: ignore[method-assign]
    a.start()
    assert order.index("ApplySas") < order.index("SendDatagram")


def test_a_mike_that_lives_on_may_be_quicker_than_our_beginning() -> None:
    """The fault campaign found it: idpd alone was killed; MIKE answered before the policies."""
    network, a, b = pair()
    a.stop()
    network.run(10)
    a.start()
    begin_ns = a.timers.pop("idp.begin")  # the process is held up between two events
    a.status_from_mike(1, [a, b])
    network.run(1)
    assert a.labels[-2:] == ["policies", f"write:{epoch(1)}"]
    assert pinned(a) == own_spi(a)
    a._set_timer("idp.begin", begin_ns)
    network.run(1)
    assert a.labels.count("policies") == 1
