"""How many announcements a join takes, and that none is said to who cannot read it yet.

newcomer N                       device D, there before
  | epoch's SAs, then the pair's    | epoch's SAs, then the pair's
  |<------------ notice ------------|
  |--- prefixes (pair) ------------>|
  |<----------- prefixes (pair) ----|  at once; both have all now
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from protocol.core.engine import DatagramReceived, SendDatagram
from protocol.idp.notice import Notice, notice_key
from protocol.idp.unicast import PEERS_AT_ONCE
from tests.support.fakelink import MS, Device, Network, epoch, group_key
from tests.support.pairs import GROUP, PSK, keyed, routes, started

CALM = replace(GROUP, hello_interval_ms=2000, news_delay_ms=500)
LONG_MS = 12_000  # after four hello intervals without a change nobody announces


def with_newcomer(size: int) -> tuple[Network, list[Device], Device]:
    """All but the last are a group and quiet; the last one has started."""
    red = {index: (f"fd00:{index + 1:x}::/64",) for index in range(size)}
    network = Network(size, CALM, red)
    *old, new = network.devices
    for device in old:
        device.start()
    network.run(20)
    keyed(network, 1, old, LONG_MS)
    new.start()
    network.run(20)
    for device in network.devices:
        device.announced.clear()
    return network, old, new


def made(number: int, sender: Device) -> bytes:
    key = notice_key(group_key(number), epoch(number))
    return Notice.made(key, epoch(number), sender.address, word=0).encode()


def said(devices: list[Device]) -> list[SendDatagram]:
    return [one for device in devices for one in device.announced]


def test_a_join_takes_one_announcement_each_way() -> None:
    network, old, new = with_newcomer(10)
    keyed(network, 2, network.devices, 500)
    assert len(routes(new)) == 9
    assert all(len(routes(device)) == 9 for device in old)
    assert len(said([new])) == 9
    assert len(said(old)) == 9
    # The newcomer says that it has the lists, too; then only what four hello intervals want.
    network.run(1000)
    assert len(said([new])) == 18


def test_the_newcomer_waits_for_a_slower_ones_notice() -> None:
    network, (slow, *others), new = with_newcomer(4)
    for device in (*others, new):
        device.status_from_mike(2, network.devices)
    network.run(70)
    assert {one.destination for one in new.announced} == {device.address for device in others}
    slow.status_from_mike(2, network.devices)
    network.run(40)
    assert len(routes(new)) == 3
    assert [one.destination for one in new.announced].count(slow.address) == 1


@pytest.mark.parametrize("repeated_epoch", [1, 2])
def test_a_repeated_notice_hurries_nobody(repeated_epoch: int) -> None:
    """Anybody on the wire can repeat one, and invent one of another epoch: that does nothing."""
    network, (slow, *others), new = with_newcomer(4)
    for device in (*others, new):
        device.status_from_mike(2, network.devices)
    network.run(40)
    first = made(2, slow)
    # slow --> new: notice(2), and the newcomer will speak at once
    new.feed(DatagramReceived("group", slow.address, first))
    # wire --> new: the same once more, or an older one, before it did
    repeated = first if repeated_epoch == 2 else made(1, slow)
    again = DatagramReceived("group", slow.address, repeated)
    assert new.engine.handle(again, network.now) == []
    network.run(20)
    assert [one.destination for one in new.announced].count(slow.address) == 1


def test_without_the_notice_it_speaks_after_a_pause() -> None:
    network, (deaf_to, *_), new = with_newcomer(4)
    network.drops = lambda sender, receiver: sender is deaf_to and receiver is new
    keyed(network, 2, network.devices, 60)
    assert deaf_to.address not in {one.destination for one in new.announced}
    network.run(60)
    assert len(routes(new)) == 3, "announcements in the pair's SA are not what was dropped"


@pytest.mark.parametrize("lost", ["the newcomer's", "the answer"])
def test_a_lost_announcement_is_repaired_by_the_newcomer(
    lost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, (old,), new = with_newcomer(2)
    victim = new if lost == "the newcomer's" else old
    carried = network.transmit_inside
    dropped: list[Any] = []

    def lossy(sender: Device, effect: SendDatagram) -> None:
        if sender is victim and not dropped:
            dropped.append(network.now)
        else:
            carried(sender, effect)

    monkeypatch.setattr(network, "transmit_inside", lossy)
    keyed(network, 2, network.devices, 60)
    assert dropped
    assert not routes(new)
    network.run((dropped[0].mono_ns - network.now.mono_ns) / MS + 110)
    assert len(routes(new)) == len(routes(old)) == 1
    assert len(new.announced) == 2


def test_of_many_newcomers_the_first_have_their_sas_before_the_last_are_met() -> None:
    _, devices = started(8, PSK, dict.fromkeys(range(8), ()))
    for device in devices:
        with_sas = [fields["peers"] for _, fields in device.points("t_unicast_written")]
        assert with_sas == [PEERS_AT_ONCE, 7]
