"""When an epoch is used: notices that its SAs are there, lost, late, forged (docs/idp.md 8.1)."""

from __future__ import annotations

import re
from ipaddress import IPv6Address
from pathlib import Path

import pytest

from protocol.core.engine import DatagramReceived
from protocol.core.errors import DecodeError
from protocol.idp.confirming import SEND_PAUSE_MS
from protocol.idp.notice import HAVE, QUESTION_MAX, SEND, Notice, notice_key
from protocol.idpmike import EpochId
from tests.support.fakelink import Device, Network, epoch, group_key
from tests.support.identities import address

DOCUMENT = (Path(__file__).parents[2] / "docs" / "idp.md").read_text()


def in_epoch_1(count: int) -> tuple[Network, list[Device]]:
    """Return devices that send with epoch 1, and have for long."""
    network = Network(count)
    for device in network.devices:
        device.start()
    network.run(1500)
    rekey(network.devices, 1)
    network.run(3000)
    for device in network.devices:
        device.reports.clear()
        device.notices.clear()
    return network, network.devices


def rekey(devices: list[Device], number: int, members: list[Device] | None = None) -> None:
    for device in devices:
        device.status_from_mike(number, members or devices)


def waited_ms(device: Device, number: int) -> int:
    """Return how long an epoch was written before it was used."""
    used_ms = device.time_of("t_active", epoch=str(epoch(number)))
    return used_ms - device.time_of("t_written", epoch=str(epoch(number)))


def made(number: int, sender: Device, *, word: int = 0, key_of: int | None = None) -> bytes:
    key = notice_key(group_key(key_of or number), epoch(number))
    return Notice.made(key, epoch(number), sender.address, word=word).encode()


def said(device: Device) -> list[int]:
    return [Notice.decode(notice.payload).word for notice in device.notices]


def kept_ms(device: Device, number: int) -> int:
    """Return how long the SAs of the epoch before were kept when an epoch was used."""
    gone_ms = device.time_of("t_deleted", epoch=str(epoch(number - 1)))
    return gone_ms - device.time_of("t_active", epoch=str(epoch(number)))


def hear(device: Device, payload: bytes, source: Device) -> None:
    device.feed(DatagramReceived("group", source.address, payload))


def test_all_switch_as_soon_as_all_have_it() -> None:
    network, devices = in_epoch_1(4)
    # each --> all: notice(2, have), notice(2, send)
    rekey(devices, 2)
    network.run(100)
    assert [said(device) for device in devices] == [[HAVE]] * 4
    network.run(SEND_PAUSE_MS)
    assert [waited_ms(device, 2) <= 25 for device in devices] == [True] * 4
    assert [[notice.destination for notice in d.notices] for d in devices] == [[None, None]] * 4
    assert [said(device) for device in devices] == [[HAVE, SEND]] * 4
    assert [d.points("idp.confirmed")[0][1]["confirmed"] for d in devices] == [3] * 4


def test_idp_43_nobody_switches_before_the_slowest_has_it() -> None:
    """IDP-43."""
    network, devices = in_epoch_1(3)
    *others, slow = devices
    rekey(others, 2, devices)
    network.run(300)
    assert [d.status()["active_epoch"] for d in others] == [str(epoch(1))] * 2
    rekey([slow], 2, devices)
    network.run(100)
    assert [300 <= waited_ms(device, 2) <= 330 for device in others] == [True, True]
    # The two said that they have it before the slow one had the key to judge it.
    assert waited_ms(slow, 2) <= 1


def test_idp_43_who_never_confirms_is_not_waited_for_longer_than_the_delay() -> None:
    """IDP-43: B is up and has not the epoch; it is asked after 50, 150, 350 ms."""
    network, (a, b, c) = in_epoch_1(3)
    rekey([a, c], 2, [a, b, c])
    network.run(600 + SEND_PAUSE_MS)
    assert waited_ms(a, 2) == a.config.activation_delay_ms
    assert [notice.destination for notice in a.notices] == [None, *[b.address] * 3, None]
    assert said(a) == [HAVE, 1, 2, 3, SEND]
    assert a.counter("IDP-43") == 1
    network.run(2000)
    assert len(a.notices) == 5, "nobody is asked any more"


def test_idp_43_lost_device_is_not_waited_for() -> None:
    """IDP-43: a member that has fallen silent holds nobody up."""
    network, (a, b, c) = in_epoch_1(3)
    b.connected = False
    network.run(5000)
    rekey([a, c], 2, [a, b, c])
    network.run(100)
    assert waited_ms(a, 2) <= 25
    assert waited_ms(c, 2) <= 25


def test_device_that_is_lost_while_it_is_waited_for_holds_up_no_longer() -> None:
    network, (a, b, c) = in_epoch_1(3)
    b.connected = False
    network.run(3300)  # B is silent for some 3.3 to 4.3 s by now
    rekey([a, c], 2, [a, b, c])
    lost_ms = None
    while not a.points("t_active"):
        network.run(1)
        if lost_ms is None and a.points("t_detect"):
            lost_ms = waited_ms(a, 2)
    if lost_ms is None:
        assert waited_ms(a, 2) == a.config.activation_delay_ms
    else:
        assert waited_ms(a, 2) == lost_ms


def test_lost_notice_is_asked_for() -> None:
    network, (a, b) = in_epoch_1(2)
    a.connected = False
    rekey([a, b], 2)
    network.run(30)  # A hears nothing, nobody hears A
    a.connected = True
    # A --> B: notice(2, question 1); B --> A: notice(2); and the same from B to A
    network.run(100)
    assert 70 <= waited_ms(a, 2) <= 80
    assert 70 <= waited_ms(b, 2) <= 80
    asked = [Notice.decode(n.payload).question for d in (a, b) for n in d.notices if n.destination]
    assert sorted(asked) == [0, 0, 1, 1]


def test_where_notices_take_long_the_first_question_comes_later() -> None:
    """Notices that are on their way are not asked for: the last epoch's say how long they take."""
    network, (a, b, c) = in_epoch_1(3)
    network.latency_ns = 60_000_000
    rekey([a, b, c], 2)
    network.run(1000)
    assert 80 <= waited_ms(a, 2) <= 85
    assert [1 in said(device) for device in (a, b, c)] == [True, True, True], "50 ms were too short"
    network.drops = lambda sender, _: sender is b
    rekey([a, b, c], 3)
    before = len(said(a))
    network.run(20 + 2 * 80 - 2)
    assert said(a)[before:] == [HAVE]
    network.run(12)
    assert said(a)[before:] == [HAVE, 1]


def test_newcomer_sends_at_once_but_is_waited_for() -> None:
    network, (a, b, c) = in_epoch_1(3)
    rekey([a, b], 2, [a, b])  # C is out
    network.run(3000)
    for device in (a, b, c):
        device.reports.clear()
    rekey([a, b], 3, [a, b, c])
    network.run(200)
    assert a.points("t_active") == []
    c.stop()
    c.start()
    network.run(5)
    rekey([c], 3, [a, b, c])
    network.run(60)
    assert waited_ms(c, 3) == 0
    assert waited_ms(a, 3) >= 200
    assert waited_ms(b, 3) >= 200


def test_idp_42_notice_that_no_member_made_is_refused() -> None:
    """IDP-42."""
    network, (a, b, c) = in_epoch_1(3)
    rekey([a], 2, [a, b])
    network.run(1)
    for payload, source in (
        (made(2, b, key_of=3), b),  # another key
        (made(2, b), c),  # from another address than it was made for
        (made(2, c), c),  # with the right key, but no member
    ):
        hear(a, payload, source)
    assert a.counter("IDP-42") == 3
    assert a.points("t_active") == []
    hear(a, made(2, b), b)
    assert a.points("t_active")[0][1]["epoch"] == str(epoch(2))


def test_forged_notices_make_a_suspect_of_whom_they_name() -> None:
    """AUTH-19: what comes from there is read after what comes from others."""
    _, (a, b, c) = in_epoch_1(3)
    for _ in range(3):
        hear(a, made(1, b, key_of=7), b)
    assert a.counter("IDP-42") == 3
    assert a.engine._identity.shedding.suspects() == [b.address]
    hear(a, made(1, c), c)
    assert a.counter("IDP-42") == 3, "what others say is heard"


def test_notice_of_an_older_epoch_confirms_nothing() -> None:
    network, (a, b) = in_epoch_1(2)
    rekey([a], 2, [a, b])
    hear(a, made(1, b), b)
    network.run(100)
    assert a.points("t_active") == []
    assert a.counter("IDP-42") == 0


def test_early_notice_is_judged_when_the_key_is_there() -> None:
    _, (a, b, c) = in_epoch_1(3)
    hear(a, made(2, b), b)
    hear(a, made(2, c, key_of=5), c)  # forged
    assert a.counter("IDP-42") == 0, "nobody can tell yet"
    rekey([a], 2, [a, b, c])
    a.net.run(1)
    assert a.points("t_active") == []
    hear(a, made(2, c), c)
    assert len(a.points("t_active")) == 1


def test_notice_of_a_stranger_is_not_kept() -> None:
    _, (a, b) = in_epoch_1(2)
    before = a.counter("idp.notice_unknown")
    a.feed(DatagramReceived("group", IPv6Address("2001:db8:b::dead"), made(2, b)))
    assert a.counter("idp.notice_unknown") == before + 1


def test_idp_44_questions_are_answered_a_few_times() -> None:
    """IDP-44."""
    network, (a, b) = in_epoch_1(2)
    rekey([a, b], 2)
    network.run(100)
    a.notices.clear()
    for number in range(1, 21):
        hear(a, made(2, b, word=min(number, QUESTION_MAX)), b)
    assert len(a.notices) == QUESTION_MAX
    assert {notice.destination for notice in a.notices} == {b.address}
    assert a.counter("IDP-44") == 20 - QUESTION_MAX


@pytest.mark.parametrize("change", ["short", "long", "question", "kind"])
def test_idp_41_other_lengths_and_flags_are_refused(change: str) -> None:
    """IDP-41."""
    _, (a, b) = in_epoch_1(2)
    whole = made(2, b)
    payload = {
        "short": whole[:-1],
        "long": whole + b"\0",
        "question": whole[:3] + b"\x0a" + whole[4:],
        "kind": whole,
    }[change]
    if change == "kind":
        with pytest.raises(DecodeError):
            Notice.decode(b"\1\1\x08" + whole[3:])
        return
    hear(a, payload, b)
    assert a.counter("IDP-41") == 1


def test_vector_of_the_document() -> None:
    found = re.search(r"Vector: group key 32 times `07`[^`]+`([0-9a-f]+)`", DOCUMENT)
    assert found is not None
    payload = bytes.fromhex(found[1])
    notice = Notice.decode(payload)
    assert notice.encode() == payload
    assert notice.epoch == EpochId(5, bytes.fromhex("0102030405060708"))
    assert notice.question == 1
    key = notice_key(b"\x07" * 32, notice.epoch)
    assert notice.is_of(key, IPv6Address("2001:db8:b::1"))
    assert not notice.is_of(key, address(1))


# When the SAs of the epoch before go (IDP-46).


def test_idp_46_older_sas_go_when_everybody_has_switched() -> None:
    """IDP-46: near each other, the least time is what counts."""
    network, devices = in_epoch_1(4)
    # each --> all: notice(2, have), notice(2, send); a fifth of the delay later: the SAs go
    rekey(devices, 2)
    network.run(2000)
    least = SEND_PAUSE_MS + devices[0].config.deactivation_min_ms
    assert least < devices[0].config.deactivation_delay_ms
    assert [least <= kept_ms(device, 2) <= least + 5 for device in devices] == [True] * 4
    assert [d.points("idp.drained")[0][1]["senders"] for d in devices] == [3] * 4


@pytest.mark.parametrize("way_ms", [40, 150])
def test_idp_46_the_farther_the_members_the_longer_they_are_kept(way_ms: int) -> None:
    """IDP-46: the last to write sees that its word travels, and waits as long again."""
    network, (a, b, last) = in_epoch_1(3)
    network.latency_ns = way_ms * 1_000_000
    rekey([a, b], 2, [a, b, last])
    network.run(2 * way_ms + 40)
    rekey([last], 2, [a, b, last])
    network.run(2000)
    # last --> all: notice(2, send), 20 ms after it wrote, or when it is asked; all --> last: the
    # same. As long again has what they sent before.
    assert waited_ms(last, 2) <= 1
    least, there_and_back = last.config.deactivation_min_ms, 2 * way_ms
    took_ms = last.points("idp.drained")[0][1]["spread_ms"]
    assert there_and_back <= took_ms <= 20 + there_and_back + 5
    waited = SEND_PAUSE_MS + took_ms + max(took_ms, least)
    assert kept_ms(last, 2) == pytest.approx(min(waited, last.config.deactivation_delay_ms), abs=2)
    # What the last one sent with the older epoch was there before its notice.
    kept = [kept_ms(one, 2) - SEND_PAUSE_MS for one in (a, b)]
    assert [least <= ms <= least + 2 * way_ms + 5 for ms in kept] == [True, True]


def test_idp_46_who_says_nothing_is_waited_for_until_the_delay_is_over() -> None:
    """IDP-46: B has the SAs, and its word that it sends with them is lost."""
    network, (a, b) = in_epoch_1(2)
    rekey([a, b], 2)
    while not b.notices:
        network.run(0.1)
    network.drops = lambda sender, _: sender is b
    network.run(20 + SEND_PAUSE_MS)
    network.drops = lambda *_: False
    assert said(b) == [HAVE, SEND]
    network.run(3000)
    assert kept_ms(a, 2) == a.config.deactivation_delay_ms
    assert a.points("idp.drained") == []


def test_idp_46_who_still_sends_with_the_older_epoch_is_heard() -> None:
    """IDP-46: C confirms, B does not: the two that switch keep what B sends with."""
    network, (a, b, c) = in_epoch_1(3)
    rekey([a, c], 2, [a, b, c])
    network.run(a.config.activation_delay_ms + a.config.deactivation_delay_ms)
    assert a.points("t_deleted") == []
    rekey([b], 2, [a, b, c])
    network.run(100)
    assert [kept_ms(one, 2) for one in (a, c)] == [a.config.deactivation_delay_ms] * 2


def test_idp_46_lost_member_keeps_no_older_sas() -> None:
    """IDP-46: a member that has fallen silent sends with nothing."""
    network, (a, b, c) = in_epoch_1(3)
    b.connected = False
    network.run(5000)
    rekey([a, c], 2, [a, b, c])
    network.run(2000)
    least = SEND_PAUSE_MS + a.config.deactivation_min_ms
    assert [least <= kept_ms(one, 2) <= least + 5 for one in (a, c)] == [True, True]


def test_idp_46_word_of_the_next_epoch_counts_for_the_next_epoch() -> None:
    """IDP-46: that B sends with epoch 3 is kept until A has it, and judged then."""
    network, (a, b) = in_epoch_1(2)
    rekey([a, b], 2)
    network.run(2000)
    hear(a, made(3, b, word=SEND), b)
    rekey([a], 3, [a, b])
    network.run(100)
    assert waited_ms(a, 3) <= 1, "who sends with an epoch has its SAs"
    assert a.points("idp.drained")[-1][1]["epoch"] == str(epoch(3))


def test_idp_46_sas_of_three_epochs_go_together() -> None:
    """IDP-46: rekeys faster than any delay leave nothing behind."""
    network, devices = in_epoch_1(3)
    for number in (2, 3):
        rekey(devices, number)
        network.run(60)
    network.run(SEND_PAUSE_MS + 300)
    assert [sum(row["sas"] for row in device.status()["sas"]) for device in devices] == [3] * 3
