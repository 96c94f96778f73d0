"""Discovery: who is found, lost and restored, and what MIKE is told. A and B, later C."""

from __future__ import annotations

import pytest

from protocol.idp.config import IdpConfig, Unicast
from protocol.idp.lighthello import HEADER as LIGHT
from protocol.idp.messages import Hello
from tests.support.fakelink import SA_GROUP, Device, Network
from tests.support.identities import address

A, B, C = address(0), address(1), address(2)
DEAD_MS = 4000


def started(size: int, config: IdpConfig | None = None) -> tuple[Network, list[Device]]:
    """Return devices that know each other."""
    network = Network(size, config)
    for device in network.devices:
        device.start()
        network.run(10)
    network.run(1500)
    for device in network.devices:
        assert device.status()["refused"] == []
        device.signals.clear()
        device.reports.clear()
    return network, network.devices


def test_newcomer_and_the_others_find_each_other_within_a_fraction_of_an_interval() -> None:
    network = Network(3)
    a, b, c = network.devices
    a.start()
    b.start()
    network.run(5000)
    a.signals.clear()
    b.signals.clear()

    # C --> all: hello
    c.start()
    # A --> MIKE(A): JOIN(C)      B --> MIKE(B): JOIN(C)      C --> MIKE(C): JOIN(C)
    network.run(2)
    assert a.signals == [("JOIN", C)]
    assert b.signals == [("JOIN", C)]
    assert c.signals[0] == ("JOIN", C)
    # A --> C: triggered hello    B --> C: triggered hello
    network.run(260)
    assert sorted(c.signals[1:]) == [("JOIN", A), ("JOIN", B)]
    # and that is all: nobody answers an answer.
    network.run(200)
    assert len(c.sent) == 1
    network.run(5000)
    assert len(a.signals) == len(b.signals) == 1
    assert len(c.signals) == 3


def test_start_signals_join_before_it_says_hello_and_hello_before_policies() -> None:
    network = Network(1)
    (a,) = network.devices
    a.start()
    assert a.sent == []
    network.run(1)
    assert [point for point, _ in a.points("t_start", "t_hello", "t_signal")] == [
        "t_start",
        "t_signal",
        "t_hello",
    ]
    assert a.points("t_start")[0][1] == {"trigger_wall_ns": network.now.wall_ns - 1_000_000}
    assert a.labels == ["policies"]
    assert len(a.backend.dump_policies()) == 3
    assert a.backend.dump_sas() == []


def test_hellos_are_periodic_with_jitter() -> None:
    network, (a, _) = started(2)
    a.sent.clear()
    network.run(20_000)
    assert 19 <= len(a.sent) <= 21
    assert all(hello.destination is None for hello in a.sent)


def test_idp_8_answers_are_unicast_to_one_newcomer_and_merged_for_many() -> None:
    network = Network(6)
    first = network.devices[0]
    first.start()
    network.run(3300)
    first.sent.clear()

    network.devices[1].start()
    network.run(250)
    assert [hello.destination for hello in first.sent] == [B]

    network.run(300)
    first.sent.clear()
    for device in network.devices[2:]:
        device.start()
    network.run(260)
    signed = [hello for hello in first.sent if not hello.payload.startswith(LIGHT)]
    assert [hello.destination for hello in signed] == [None]


def test_leave_after_four_intervals_and_not_before() -> None:
    network, (a, b) = started(2)
    b.connected = False
    network.run(DEAD_MS - 1050)
    assert a.signals == []
    # ... A hears nothing from B for four intervals
    # A --> MIKE(A): LEAVE(B)
    network.run(1100)
    assert a.signals == [("LEAVE", B)]
    assert a.points("t_detect")[-1][1]["kind"] == "leave"
    silent_ms = a.time_of("t_signal", kind="LEAVE") - (network.now.mono_ns // 1_000_000)
    assert -1100 <= silent_ms <= 0
    assert a.status()["peers"][0]["state"] == "lost"


def test_idp_7_dead_interval_is_exact() -> None:
    network, (a, b) = started(2)
    (entry,) = a.status()["peers"]
    last_ms = network.now.mono_ns // 1_000_000 - entry["last_hello_ms"]
    b.connected = False
    network.run(6000)
    assert a.time_of("t_signal", kind="LEAVE") - last_ms in range(DEAD_MS - 1, DEAD_MS + 2)


def test_flap_shorter_than_the_dead_interval_causes_nothing() -> None:
    network, devices = started(3)
    c = devices[2]
    for _ in range(10):
        c.connected = False
        network.run(2500)
        c.connected = True
        network.run(1500)
    assert [device.signals for device in devices] == [[], [], []]


def flap(carrier: bool, period_ms: int, flaps: int) -> list[list[tuple[str, object]]]:
    """Let C's link flip with this period, half of it down; return all signals it caused."""
    network, devices = started(3)
    network.run(DEAD_MS)
    c = devices[2]
    for _ in range(flaps):
        for up in (False, True):
            if carrier:
                c.link(up)
            c.connected = up
            network.run(period_ms / 2)
    network.run(2 * DEAD_MS)
    return [device.signals for device in devices]


@pytest.mark.parametrize("carrier", [True, False], ids=["carrier", "no-carrier-event"])
@pytest.mark.parametrize("intervals", [0.5, 1, 1.5, 2, 3, 4, 5])
def test_link_that_flips_faster_than_the_dead_interval_causes_nothing(
    intervals: float, carrier: bool
) -> None:
    """IDP-7, IDP-36: also if it flips in step with the hellos, which then are all lost."""
    period_ms = int(intervals * 1000)
    assert flap(carrier, period_ms, max(6, 20_000 // period_ms)) == [[], [], []]


@pytest.mark.parametrize("carrier", [True, False], ids=["carrier", "no-carrier-event"])
def test_link_that_is_down_for_the_dead_interval_is_noticed_each_time(carrier: bool) -> None:
    a, b, c = flap(carrier, 12_000, 2)
    assert a == b == [("LEAVE", C), ("RESTORE", C)] * 2
    assert c.count(("RESTORE", C)) == 2


def test_idp_9_device_that_was_cut_off_restores_itself() -> None:
    network, (a, b, c) = started(3)
    # C is cut off by a failure that its own link does not show.
    c.connected = False
    network.run(DEAD_MS + 1000)
    assert a.signals == b.signals == [("LEAVE", C)]
    assert sorted(c.signals) == [("LEAVE", A), ("LEAVE", B)]
    assert c.status()["cut_off"]
    for device in (a, b, c):
        device.signals.clear()

    c.connected = True
    network.run(2000)
    # A, B --> MIKE: RESTORE(C); C --> MIKE(C): RESTORE(C), then A and B
    assert a.signals == b.signals == [("RESTORE", C)]
    assert c.signals[0] == ("RESTORE", C)
    assert sorted(c.signals[1:]) == [("RESTORE", A), ("RESTORE", B)]
    assert not c.status()["cut_off"]


def test_link_event_makes_restore_fast() -> None:
    network, (a, _, c) = started(3)
    c.link(False)
    network.run(DEAD_MS + 1000)
    a.signals.clear()
    c.signals.clear()
    c.link(True)
    network.run(2)
    assert a.signals == [("RESTORE", C)]
    network.run(260)
    assert c.signals[0] == ("RESTORE", C)
    assert len(c.signals) == 3


def test_idp_9_inaudible_for_the_dead_interval_is_cut_off_even_if_nobody_was_lost() -> None:
    """Others measure from our last hello: they may have lost us while we have not lost them."""
    config = IdpConfig(sa_group=SA_GROUP, unicast=Unicast.OFF, dead_factor=4, news_delay_ms=0)
    network = Network(3, config)
    a, b, c = network.devices
    a.start()
    b.start()
    network.run(500)
    c.start()
    network.run(2000)
    for device in (a, b, c):
        device.signals.clear()
    c.sent.clear()
    while not c.sent:
        network.run(1)
    network.run(960)
    c.link(False)
    network.run(3100)
    assert a.signals == b.signals == [("LEAVE", C)]
    assert c.signals == []
    c.link(True)
    network.run(260)
    assert c.signals == [("RESTORE", C)]
    assert a.signals == [("LEAVE", C), ("RESTORE", C)]


def test_link_flap_shorter_than_the_dead_interval_causes_nothing() -> None:
    network, (a, b, c) = started(3)
    for _ in range(5):
        c.link(False)
        network.run(1500)
        c.link(True)
        network.run(1500)
    assert a.signals == b.signals == c.signals == []


def test_link_events_cannot_make_a_flood_of_hellos() -> None:
    _network, (_, _, c) = started(3)
    c.sent.clear()
    for _ in range(100):
        c.link(False)
        c.link(True)
    assert len(c.sent) <= 1


def test_restart_is_a_join_again() -> None:
    network, (a, b) = started(2)
    # B's idpd is killed and starts again at once: later start-up time-stamp.
    b.stop()
    network.run(100)
    b.start()
    network.run(5)
    assert a.signals == [("JOIN", B)]
    assert a.points("t_detect")[-1][1]["kind"] == "restart"

    # B stops and starts after A has lost it: still JOIN, not RESTORE.
    b.stop()
    network.run(6000)
    b.start()
    network.run(5)
    assert a.signals == [("JOIN", B), ("LEAVE", B), ("JOIN", B)]


def test_device_left_alone_by_restarts_does_not_restore_itself() -> None:
    network, (a, b) = started(2)
    b.stop()
    network.run(6000)
    b.start()
    network.run(3000)
    assert ("RESTORE", A) not in a.signals
    assert a.signals == [("LEAVE", B), ("JOIN", B)]


def test_stop_tells_mike_and_is_silent_on_the_wire() -> None:
    network, (a, b) = started(2)
    b.sent.clear()
    b.stop()
    # B --> MIKE(B): LEAVE(B)
    network.run(1)
    assert b.signals == [("LEAVE", B)]
    assert b.sent == []
    assert b.status()["state"] == "parked"
    assert b.status()["peers"] == []
    assert b.backend.dump_policies() == []
    assert set(b.timers) <= {"local.retransmit"}
    network.run(6000)
    assert b.sent == []
    assert a.signals == [("LEAVE", B)]
    # stop again, and timers that were on their way: nothing
    before = len(b.batches)
    b.stop()
    network.run(1000)
    assert len(b.batches) == before


def test_leave_reaches_mike_although_a_datagram_is_lost() -> None:
    network, (_, b) = started(2)
    b.mike_up = False
    b.stop()
    network.run(20)
    b.mike_up = True
    network.run(200)
    assert b.signals == [("LEAVE", B)]


def test_idp_15_parked_instance_reads_and_says_nothing() -> None:
    network = Network(2)
    a, b = network.devices
    a.start()
    network.run(3000)
    assert b.counter("IDP-15") >= 3
    assert b.sent == []
    assert b.status()["peers"] == []


def test_start_twice_is_ignored() -> None:
    _network, (a, _) = started(2)
    stamp = a.status()["startup_wall_ns"]
    a.start()
    assert a.status()["startup_wall_ns"] == stamp
    assert a.logs[-1].text == "start ignored: already running"


def test_startup_time_stamp_grows_although_the_clock_was_set_back() -> None:
    network, (_a, b) = started(2)
    stamp = b.status()["startup_wall_ns"]
    b.stop()
    network.wall_ahead_ns -= 3_600_000_000_000
    b.start()
    assert b.status()["startup_wall_ns"] == stamp + 1


def test_idp_10_frozen_device_does_not_call_the_others_lost() -> None:
    network, (a, _b) = started(2)
    # Nobody runs for ten seconds (a stopped or starved machine); then all is late at once.
    network.freeze(10_000)
    network.run(3000)
    assert ("LEAVE", B) not in a.signals
    assert a.counter("idp.excused") == 1


def test_restarted_mike_hears_who_is_there() -> None:
    network, (a, _b) = started(2)
    a.restart_mike()
    network.run(50)
    assert a.signals == [("JOIN", A), ("JOIN", B)]


def test_mike_that_opens_later_hears_the_join_once() -> None:
    network = Network(1)
    (a,) = network.devices
    a.mike_up = False
    a.start()
    network.run(200)
    a.restart_mike()
    network.run(2000)
    assert a.signals == [("JOIN", A)]


def test_silent_mike_is_counted() -> None:
    network = Network(1)
    (a,) = network.devices
    a.mike_up = False
    a.start()
    network.run(20_000)
    assert a.counter("idp.signal_given_up") == 2


def test_each_peer_is_judged_by_its_own_interval() -> None:
    network = Network(2)
    a, b = network.devices
    fast = IdpConfig(
        sa_group=SA_GROUP,
        unicast=Unicast.OFF,
        hello_interval_ms=100,
        jitter_ms=5,
        triggered_hello_spread_ms=50,
        dead_factor=3,
    )
    network.devices[1] = b = Device(network, 1, fast)
    a.start()
    b.start()
    network.run(1000)
    a.signals.clear()
    b.connected = False
    network.run(350)
    assert a.signals == [("LEAVE", B)]
    network.run(4000)
    assert b.signals[-1] == ("LEAVE", A)


def test_hello_announces_the_epoch() -> None:
    network, (a, b) = started(2)
    for device in (a, b):
        device.status_from_mike(7, [a, b])
    network.run(1200)
    assert a.status()["peers"][0]["epoch"].startswith("7-")
    assert Hello(1000, 4).epoch is None


def test_fast_device_among_slow_ones_is_lost_on_time() -> None:
    network = Network(3)
    fast = IdpConfig(
        sa_group=SA_GROUP,
        unicast=Unicast.OFF,
        hello_interval_ms=100,
        jitter_ms=5,
        triggered_hello_spread_ms=50,
    )
    network.devices[2] = c = Device(network, 2, fast)
    a, b, _ = network.devices
    a.start()
    b.start()
    network.run(1500)
    c.start()
    network.run(300)
    a.signals.clear()
    c.connected = False
    network.run(410)
    assert a.signals == [("LEAVE", C)]


def test_idp_16_news_of_others_goes_together_and_a_leave_takes_its_news_along() -> None:
    network = Network(
        3,
        IdpConfig(
            sa_group=SA_GROUP, unicast=Unicast.OFF, hello_interval_ms=250, news_delay_ms=2000
        ),
    )
    a, b, c = network.devices
    a.start()
    network.run(10)
    # Our own JOIN never waits.
    assert a.signals == [("JOIN", A)]
    b.start()
    c.start()
    network.run(1900)
    assert [report[1]["kind"] for report in a.points("t_detect")] == ["join", "join"]
    assert a.signals == [("JOIN", A)]
    network.run(200)
    assert a.signals == [("JOIN", A), ("JOIN", B), ("JOIN", C)]

    # B restarts and falls silent while the news waits: LEAVE at once, and no JOIN after it.
    b.stop()
    b.start()
    network.run(50)
    b.connected = False
    network.run(5000)
    assert a.signals[3:] == [("LEAVE", B)]


def test_idp_40_a_member_that_was_never_there_is_signalled_as_left_until_mike_knows() -> None:
    net = Network(3)
    a, b, ghost = net.devices
    a.start()
    b.start()
    net.run(1500)
    a.status_from_mike(1, [a, b, ghost])
    net.run(3500)
    assert ("LEAVE", ghost.address) not in a.signals
    net.run(1000)
    assert a.signals.count(("LEAVE", ghost.address)) == 1
    net.run(4000)
    # MIKE has not excluded it: it is told again, and of nobody else.
    assert a.signals.count(("LEAVE", ghost.address)) == 2
    assert ("LEAVE", b.address) not in a.signals
    assert a.counter("IDP-40") == 2
    a.status_from_mike(2, [a, b])
    net.run(9000)
    assert a.signals.count(("LEAVE", ghost.address)) == 2


def test_idp_40_a_late_hello_and_a_group_without_us_are_no_reason() -> None:
    net = Network(3)
    a, b, late = net.devices
    a.start()
    net.run(100)
    a.status_from_mike(1, [a, late])
    net.run(3000)
    late.start()
    net.run(6000)
    a.status_from_mike(2, [b, late])
    net.run(6000)
    assert not [signal for signal in a.signals if signal[0] == "LEAVE"]
