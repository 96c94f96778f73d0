"""Light hellos: A and B, later C. Between two signed hellos a chain of hashes says "still here"."""

from __future__ import annotations

from itertools import pairwise

import pytest

from protocol.core.engine import DatagramReceived, SendDatagram
from protocol.identity.identity import RULE_REVOKED
from protocol.identity.known import KnownDevice
from protocol.idp.config import IdpConfig
from protocol.idp.lighthello import HEADER, LIGHT_HELLO_LENGTH, LightHello
from tests.support.fakelink import MS, SA_GROUP, Device, Network
from tests.support.identities import address, known_device

A, B, C = address(0), address(1), address(2)
INTERVAL_MS, JITTER_MS, DEAD_MS = 1000, 20, 4000
SIGNED_FIRST = 4
"""So many hellos of an instance are signed whatever they say."""


def settled(size: int = 2, parked: int = 0) -> tuple[Network, list[Device]]:
    """Return devices whose periodic hellos have become light, and some that are parked."""
    network = Network(size + parked)
    devices = network.devices[:size]
    for device in devices:
        device.start()
        network.run(10)
    network.run(SIGNED_FIRST * INTERVAL_MS + 1000)
    for device in devices:
        assert is_light(device.sent[-1])
        device.signals.clear()
        device.sent.clear()
    return network, network.devices


def is_light(effect: SendDatagram) -> bool:
    return effect.payload.startswith(HEADER)


def signed(device: Device) -> list[SendDatagram]:
    return [effect for effect in device.sent if not is_light(effect)]


def light(device: Device) -> list[LightHello]:
    return [LightHello.decode(effect.payload) for effect in device.sent if is_light(effect)]


def feed(device: Device, payload: bytes, source: object = B) -> None:
    device.feed(DatagramReceived("group", source, payload))  # type: ignore[arg-type]


def test_fifteen_of_sixteen_hellos_are_light_and_nobody_misses_a_signature() -> None:
    network, (a, b) = settled()
    network.run(32 * (INTERVAL_MS - JITTER_MS))
    assert len(b.sent) in (32, 33)
    assert len(signed(b)) == 2
    assert all(len(effect.payload) == LIGHT_HELLO_LENGTH for effect in b.sent if is_light(effect))
    assert a.counter("idp.hello_light") > 30
    assert a.signals == b.signals == []
    assert a.status()["peers"][0]["last_hello_ms"] < INTERVAL_MS
    assert a.status()["refused"] == []


def test_idp_37_hellos_are_never_further_apart_than_announced_nor_much_closer() -> None:
    network, (_, b) = settled()
    times = []
    for _ in range(70_000):
        before = len(b.sent)
        network.run(1)
        times += [network.now.mono_ns // MS] * (len(b.sent) - before)
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert len(gaps) > 69
    assert max(gaps) <= INTERVAL_MS
    assert min(gaps) >= INTERVAL_MS - 2 * JITTER_MS


def test_idp_37_changed_content_is_signed_and_the_old_chain_is_never_continued() -> None:
    network, (a, b) = settled()
    network.run(2000)
    old = light(b)[-1]
    # B has the key of a new epoch.
    b.status_from_mike(7, [a, b])
    b.sent.clear()
    # B --> all: hello (signed, another epoch, another chain)
    network.run(1000)
    assert len(signed(b)) == 1
    assert a.status()["peers"][0]["epoch"].startswith("7-")
    network.run(20_000)
    assert {message.chain for message in light(b)} == {old.chain + 1}
    assert a.signals == []


def test_idp_37_a_device_that_did_not_run_leaves_values_out_and_need_not_sign() -> None:
    network, (a, b) = settled()
    chain = light_chain(network, b)
    index = light(b)[-1].index
    network.freeze(3 * INTERVAL_MS + 300)
    b.sent.clear()
    network.run(1500)
    assert (light(b)[0].chain, light(b)[0].index) == (chain, index + 3)
    assert a.signals == []


def light_chain(network: Network, device: Device) -> int:
    network.run(1000)
    return light(device)[-1].chain


def test_newcomer_follows_the_running_chain_after_one_answer() -> None:
    network, (a, _, c) = settled(2, parked=1)
    network.run(1500)
    c.start()
    # A --> C: triggered hello (unicast: the chain that all follow, at its present value)
    network.run(300)
    answers = [effect for effect in signed(a) if effect.destination == C]
    assert len(answers) == 1
    a.sent.clear()
    # A --> all: light hellos only, for longer than the dead interval
    network.run(DEAD_MS + 1000)
    assert signed(a) == []
    assert c.counter("idp.hello_light") >= 8
    assert sorted(c.signals) == [("JOIN", A), ("JOIN", B), ("JOIN", C)]


def test_idp_33_value_counts_once_and_reordering_only_costs_the_older_one() -> None:
    network, (a, b) = settled()
    b.connected = False
    network.run(2500)
    first, second = [effect.payload for effect in b.sent if is_light(effect)][-2:]
    before = a.counter("idp.hello_light")
    feed(a, second)
    feed(a, first)
    feed(a, second)
    assert a.counter("idp.hello_light") == before + 1
    assert a.counter("IDP-33") == 2


def test_idp_34_forged_value_is_refused_and_changes_nothing() -> None:
    network, (a, b) = settled()
    network.run(1100)
    genuine = light(b)[-1]
    before = a.status()["peers"]
    for index in (genuine.index + 1, genuine.index + 2):
        forged = LightHello(
            genuine.fingerprint, genuine.startup_wall_ns, genuine.chain, index, genuine.value
        )
        feed(a, forged.encode())
    assert a.counter("IDP-34") == 2
    assert a.status()["peers"] == before
    a.sent.clear()
    # The genuine one still counts.
    network.run(1100)
    assert a.status()["peers"][0]["last_hello_ms"] < INTERVAL_MS
    assert a.signals == []


def test_idp_31_index_beyond_the_chain_costs_no_hash() -> None:
    network, (a, b) = settled()
    network.run(1100)
    genuine = light(b)[-1]
    forged = LightHello(
        genuine.fingerprint, genuine.startup_wall_ns, genuine.chain, 2**32 - 1, bytes(32)
    )
    feed(a, forged.encode())
    assert a.counter("IDP-31") == 1


def test_idp_35_withheld_hellos_keep_a_dead_device_one_dead_interval_longer_at_most() -> None:
    network, (a, b) = settled()
    # Somebody between B and A withholds all, and lets the newest through as late as it counts.
    network.run(500)
    network.drops = lambda sender, receiver: (sender, receiver) == (b, a)
    b.sent.clear()
    network.run(2.5 * INTERVAL_MS)
    newest = light(b)[-1]
    # B dies.
    b.stop()
    died_ms = network.now.mono_ns // MS
    while not is_last_moment(network, a, newest):
        network.run(1)
    feed(a, newest.encode())
    assert a.status()["peers"][0]["last_hello_ms"] == 0
    assert network.now.mono_ns // MS - died_ms <= DEAD_MS + JITTER_MS + 1
    # A had lost B meanwhile, takes it for back, and loses it again.
    network.run(DEAD_MS + 10)
    of_b = [kind for kind, who in a.signals if who == B]
    assert of_b == ["LEAVE", "RESTORE", "LEAVE"]
    lost_ms = max(at_ns for at_ns, report in a.reports if report.point == "t_detect") // MS
    assert lost_ms - died_ms <= 2 * DEAD_MS + JITTER_MS + 1


def is_last_moment(network: Network, device: Device, message: LightHello) -> bool:
    """Whether this hello counts now and will not one millisecond later."""
    known = device.engine.followers._known[message.fingerprint]
    end_ns = known.began_mono_ns + message.index * known.step_ns + known.slack_ns
    return network.now.mono_ns <= end_ns < network.now.mono_ns + MS


def test_idp_35_late_hello_does_not_count() -> None:
    network, (a, b) = settled()
    b.connected = False
    network.run(1200)
    late = light(b)[-1].encode()
    b.stop()
    network.run(DEAD_MS + 200)
    feed(a, late)
    assert a.counter("IDP-35") == 1
    network.run(3000)
    assert a.signals == [("LEAVE", B)]


@pytest.mark.parametrize(("hears_a_later_one", "rule"), [(True, "IDP-39"), (False, "IDP-35")])
def test_signed_hello_of_a_known_chain_is_no_way_round_it(
    hears_a_later_one: bool, rule: str
) -> None:
    """IDP-35, IDP-39."""
    network, (a, b) = settled()
    network.drops = lambda sender, receiver: (sender, receiver) == (b, a)
    # A --> B: hello, ASKING; B --> A: triggered hello, withheld
    while not signed(b):
        network.run(10)
    (withheld,) = (effect.payload for effect in signed(b))
    if hears_a_later_one:
        network.drops = lambda sender, receiver: False
        while len(signed(b)) < 2:
            network.run(10)
        network.run(10)
    b.stop()
    network.run(DEAD_MS + 300)
    before = a.status()["peers"][0]["last_hello_ms"]
    feed(a, withheld)
    assert a.counter(rule) == 1
    assert a.status()["peers"][0]["last_hello_ms"] == before
    network.run(4000)
    assert a.signals[-1] == ("LEAVE", B)


def test_idp_32_light_hello_alone_makes_nobody_known_and_causes_nothing() -> None:
    network = Network(2)
    a, b = network.devices
    b.start()
    network.run(SIGNED_FIRST * INTERVAL_MS)
    b.engine._table.heard(known_device(0).peer, 1, _hello(), network.now.mono_ns)
    network.run(3000)
    a.start()
    a.sent.clear()
    flood = light(b)
    for message in flood:
        effects = a.engine.handle(DatagramReceived("group", B, message.encode()), network.now)
        assert [type(effect).__name__ for effect in effects] in ([], ["Log"])
    assert a.counter("IDP-32") == len(flood) > 0
    assert a.status()["peers"] == []
    assert a.sent == []


def _hello() -> object:
    from protocol.idp.messages import Hello

    return Hello(INTERVAL_MS, 4)


def test_light_hello_of_an_unknown_or_revoked_certificate_or_another_address() -> None:
    network, (a, b) = settled()
    network.run(1100)
    genuine = light(b)[-1]
    feed(a, LightHello(bytes(16), 1, 0, 1, bytes(32)).encode())
    assert a.counter("AUTH-4") == 1
    feed(a, genuine.encode(), C)
    assert a.counter("AUTH-8") == 1
    device = known_device(1)
    revoked = KnownDevice(device.peer, device.verify_key, refusal=(RULE_REVOKED, "revoked"))
    a.engine._identity.trust([known_device(0), revoked])
    network.run(6000)
    assert a.counter("AUTH-7") >= 3
    assert a.signals == [("LEAVE", B)]


@pytest.mark.parametrize("length", [4, 67, 69, 200])
def test_idp_30_only_68_bytes_are_a_light_hello(length: int) -> None:
    _network, (a, _) = settled()
    feed(a, HEADER + bytes(length - 4))
    assert a.counter("IDP-30") == 1
    assert a.signals == []


def test_idp_36_device_whose_signed_hello_was_lost_is_asked_before_it_is_taken_for_down() -> None:
    network, (a, b) = settled()
    b.status_from_mike(7, [a, b])
    # B --x all: hello (signed, new content) is lost
    b.connected = False
    while not signed(b):
        network.run(10)
    b.connected = True
    # B --> all: light hellos that A cannot check
    network.run(1500)
    assert a.counter("IDP-32") >= 1
    # A --> B: hello, ASKING; B --> A: triggered hello
    network.run(2000)
    assert [effect.destination for effect in signed(a)] == [B]
    assert signed(b)[-1].destination == A
    assert a.signals == []
    assert a.status()["peers"][0]["epoch"].startswith("7-")
    network.run(10_000)
    assert a.signals == b.signals == []


def test_idp_36_member_that_was_never_heard_is_asked_before_it_is_signalled_as_left() -> None:
    network = Network(2)
    a, b = network.devices
    b.start()
    network.run(500)
    b.engine._table.heard(known_device(0).peer, 1, _hello(), network.now.mono_ns)
    network.run(1500)
    # B takes A for up and answers nothing; B is beyond its first signed hellos.
    b.engine._hellos._sent_count = SIGNED_FIRST
    network.run(1000)
    a.start()
    b.sent.clear()
    b.connected = False
    network.run(300)
    b.connected = True
    a.status_from_mike(1, [a, b])
    network.run(2500)
    assert a.signals == [("JOIN", A), ("JOIN", B)]


def test_idp_36_many_silent_devices_are_asked_by_one_hello() -> None:
    network, devices = settled(12)
    a = devices[0]
    for device in devices[1:]:
        device.connected = False
    network.run(3200)
    asked = signed(a)
    assert 1 <= len(asked) <= 2
    assert {effect.destination for effect in asked} == {None}


def test_idp_38_hello_interval_grows_with_the_devices_and_is_announced() -> None:
    config = IdpConfig(sa_group=SA_GROUP, news_delay_ms=0, hello_budget_per_s=2)
    network = Network(5, config)
    for device in network.devices:
        device.start()
    network.run(20_000)
    # 5 devices, 2 hellos a second: one every 2.5 s.
    for device in network.devices:
        assert device.status()["hello_interval_ms"] == 2500
        device.signals.clear()
    before = len(network.wire)
    network.run(50_000)
    assert 90 <= len(network.wire) - before <= 110
    a, *_, e = network.devices
    assert a.signals == []
    e.connected = False
    network.run(7_000)
    assert a.signals == []
    network.run(3_100)
    assert a.signals == [("LEAVE", e.address)]
    network.run(5_000)
    assert a.status()["hello_interval_ms"] == 2000


def test_light_hello_restores_a_device_that_was_lost() -> None:
    network, (a, b, c) = settled(3)
    c.connected = False
    network.run(DEAD_MS + 200)
    assert a.signals == b.signals == [("LEAVE", C)]
    c.sent.clear()
    c.connected = True
    network.run(5000)
    assert a.signals == b.signals == [("LEAVE", C), ("RESTORE", C)]
    assert c.signals.count(("RESTORE", C)) == 1
