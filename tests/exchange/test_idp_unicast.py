"""Unicast between red networks: pair SAs after the group's, prefixes through them, routes.

A                                             C
|-- hello (pair key) ------------------------>|
|<------------------------ hello (pair key) --|
|   status, key: group SA written             |  the same
|   pair SAs written                          |
|== prefixes (answer wanted) ================>|  in the pair's SA
|<=============== prefixes (heard A's) =======|
|   policies and routes                       |
"""

from __future__ import annotations

from ipaddress import IPv6Address, ip_network
from typing import Any

import pytest

from protocol.core.engine import DatagramReceived
from protocol.identity import PROTOCOL_IDP
from protocol.idp.messages import NO_PAIR_KEY, Hello, MessageKind
from protocol.ipsec import pairschedule
from protocol.ipsec.backend import AddSa, DeleteSa, PutPolicy
from protocol.ipsec.model import PolicyDirection, SecurityAssociation, Suite
from protocol.ipsec.pairpolicy import link_local
from protocol.ipsec.pairschedule import PairEnd, psk_context
from tests.support.fakelink import Device, Network, epoch
from tests.support.identities import make_identities
from tests.support.pairs import (
    GROUP,
    PSK,
    RED,
    joined,
    keyed,
    pair_sas,
    peer,
    routes,
    started,
)


def test_pairs_follow_the_group_and_prefixes_follow_the_pairs() -> None:
    network, (a, b, c) = joined(3)
    for device in (a, b, c):
        labels = device.labels
        write = labels.index(f"write:{epoch(1)}")
        assert labels[write + 1] == "pairs:1"
        assert len(pair_sas(device)) == 4
    assert routes(a) == ["fd00:2::/64", "fd00:3::/64"]
    assert routes(b) == ["10.1.0.0/24", "fd00:1::/64", "fd00:3::/64"]
    assert a.points("t_written")[0][1]["epoch"] == str(epoch(1))
    order = [r.point for _, r in a.reports if r.point in ("t_written", "t_unicast_written")]
    assert order[:2] == ["t_written", "t_unicast_written"]
    last = a.points("t_unicast_written")[-1][1]
    assert (last["peers"], last["sas"], last["routes"]) == (2, 4, 2)
    assert b.status()["prefixes"][0] == {"prefix": "10.1.0.0/24", "peer": str(a.address)}
    assert peer(b, a)["prefixes"] == ["10.1.0.0/24", "fd00:1::/64"]
    assert peer(b, a)["unicast"]["state"] == "active"
    assert network.now.mono_ns < 1_100_000_000


def test_both_ends_have_the_same_sas_and_nobody_else_does() -> None:
    _, devices = joined(3)
    seen: dict[tuple[IPv6Address, int], list[SecurityAssociation]] = {}
    for device in devices:
        for sa in pair_sas(device):
            assert device.address in (sa.source, sa.destination)
            seen.setdefault((sa.destination, sa.spi), []).append(sa)
    assert len(seen) == 6
    for one, other in seen.values():
        assert one.key == other.key
        assert {one.direction, other.direction} == {"in", "out"}
    assert len({sas[0].key for sas in seen.values()}) == 6
    assert {sa.reqid for sas in seen.values() for sa in sas} == {GROUP.reqid + 1}


def test_policies_name_the_peer_as_source() -> None:
    _, (a, b, _) = joined(3)
    to_b = [
        p
        for p in a.backend.dump_policies()
        if b.address in (p.template_source, p.template_destination)
    ]
    inward = [p for p in to_b if p.direction is not PolicyDirection.OUT]
    outward = [p for p in to_b if p.direction is PolicyDirection.OUT]
    red, control = ip_network("fd00:2::/64"), ip_network(link_local(b.address))
    assert {(p.direction.value, p.selector.source) for p in inward} == {
        ("in", control),
        ("in", red),
        ("fwd", red),
    }
    assert all(p.template_source == b.address for p in inward)
    assert {p.selector.destination for p in outward} == {control, red}
    spis = {sa.spi for sa in pair_sas(a) if sa.destination == b.address}
    assert {p.template_spi for p in outward} == spis


def pinned(device: Device, peer: Device) -> set[int]:
    """Return the SPIs that the outbound policies to a peer name."""
    return {
        policy.template_spi
        for policy in device.backend.dump_policies()
        if policy.template_destination == peer.address and policy.direction is PolicyDirection.OUT
    }


def test_rekey_makes_before_it_breaks() -> None:
    network, (a, b) = joined(2)
    network.run(2000)
    old = {sa.spi for sa in pair_sas(a)}
    keyed(network, 2, [a, b], 1400)
    assert {sa.spi for sa in pair_sas(a)} == old, "the group settles first"
    network.run(150)
    assert len(pair_sas(a)) == 4
    assert pinned(a, b) <= old
    network.run(500)
    moved = pinned(a, b)
    assert len(moved) == 1
    assert not moved & old
    assert len(pair_sas(a)) == 4
    network.run(1500)
    assert len(pair_sas(a)) == 2
    assert not {sa.spi for sa in pair_sas(a)} & old
    assert routes(a) == ["fd00:2::/64"]
    assert a.backend.errors == []


def test_rekeys_that_never_cease_do_not_keep_pairs_from_being_renewed() -> None:
    network, devices = joined(2)
    network.run(2000)
    old = {sa.spi for sa in pair_sas(devices[0])}
    for number in range(2, 8):
        keyed(network, number, devices, 400)
    assert not pinned(*devices) & old


def test_a_device_that_is_met_after_the_epoch_gets_its_sas_then() -> None:
    network = Network(2, GROUP, RED)
    a, b = network.devices
    b.connected = False
    a.start()
    b.start()
    keyed(network, 1, [a, b])
    assert pair_sas(a) == []
    b.connected = True
    network.run(1100)
    assert len(pair_sas(a)) == len(pair_sas(b)) == 2
    assert routes(a) == ["fd00:2::/64"]


def test_idp_26_leave_takes_everything_of_the_device() -> None:
    """IDP-26."""
    network, (a, b, c) = joined(3)
    c.connected = False
    network.run(3900)
    assert routes(a) == ["fd00:2::/64", "fd00:3::/64"]
    network.run(1100)
    assert routes(a) == ["fd00:2::/64"]
    assert len(pair_sas(a)) == 2
    about_c = [
        p
        for p in a.backend.dump_policies()
        if c.address in (p.template_source, p.template_destination)
    ]
    assert about_c == []
    # Nor does a device have SAs with one that is up but is no member.
    keyed(network, 2, [a, b])
    c.connected = True
    network.run(1200)
    assert peer(a, c)["state"] == "up"
    assert peer(a, c)["unicast"] == {"state": "none"}
    keyed(network, 3, [a, b, c])
    assert routes(a) == ["fd00:2::/64", "fd00:3::/64"]


def test_excluded_device_removes_its_pairs_at_once() -> None:
    network, (a, b, c) = joined(3)
    c.status_from_mike(2, [a, b])
    network.run(5)
    assert pair_sas(c) == []
    assert routes(c) == []
    assert {p.reqid for p in c.backend.dump_policies()} == {GROUP.reqid}


def test_who_comes_back_into_the_group_has_its_routes_without_a_word_from_anybody() -> None:
    network, (a, b, c) = joined(3)
    network.run(6000)
    before = routes(c)
    c.status_from_mike(2, [a, b])
    network.run(5)
    assert routes(c) == []
    # The others never lost c, and announce no more: all is quiet, and c knows their lists.
    keyed(network, 3, [a, b, c])
    assert routes(c) == before
    assert len(pair_sas(c)) == 4


def test_restart_gives_other_keys() -> None:
    network, (a, b) = joined(2)
    before = {sa.key for sa in pair_sas(a)}
    b.stop()
    assert b.backend.dump_sas() == []
    assert b.backend.dump_policies() == []
    assert routes(b) == []
    network.run(20)
    b.start()
    network.run(20)
    keyed(network, 2, [a, b], 3500)
    assert len(pair_sas(a)) == 2
    assert not before & {sa.key for sa in pair_sas(a)}
    assert routes(a) == ["fd00:2::/64"]
    assert routes(b) == ["10.1.0.0/24", "fd00:1::/64"]


def test_idp_27_an_epochs_sas_are_not_installed_twice_but_the_group_rejoined() -> None:
    """IDP-27."""
    network, (a, b) = joined(2)
    b.connected = False
    network.run(5000)
    b.connected = True
    network.run(1100)
    assert peer(a, b)["state"] == "up"
    assert a.counter("IDP-27") == 1
    assert pair_sas(a) == []
    own = [signal for signal in a.signals if signal == ("RESTORE", a.address)]
    network.run(4200)
    again = [signal for signal in a.signals if signal == ("RESTORE", a.address)]
    assert len(again) == len(own) + 1
    keyed(network, 2, [a, b])
    assert routes(a) == ["fd00:2::/64"]


@pytest.mark.parametrize(("key", "counted"), [("own", 1), ("low order", 1), ("none", 0)])
def test_idp_25_a_key_of_no_use_makes_no_sas(key: str, counted: int) -> None:
    """IDP-25."""
    network = Network(2, GROUP, RED)
    a, b = network.devices
    a.start()
    network.run(5)
    keys = {
        "own": a.engine.unicast.pair_key,
        "low order": bytes([1]) + bytes(31),
        "none": NO_PAIR_KEY,
    }
    identity = make_identities(2)[1]
    identity.begin(network.now.wall_ns)
    body = Hello(1000, 4, pair_key=keys[key]).encode()
    payload = identity.seal(PROTOCOL_IDP, MessageKind.HELLO, body, network.now)
    a.feed(DatagramReceived("group", b.address, payload))
    a.status_from_mike(1, [a, b])
    network.run(10)
    assert peer(a, b)["unicast"] == {"state": "none"}
    assert pair_sas(a) == []
    assert a.counter("IDP-25") == counted


def test_idp_28_an_spi_of_two_peers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """IDP-28: in mode psk nothing keeps two peers' SPIs apart."""

    def same(*_: object) -> int:
        return 0x12345

    monkeypatch.setattr(pairschedule, "draw_spi", same)
    _, (a, _, _) = started(3, PSK)
    assert len(pair_sas(a)) == 2
    assert a.counter("IDP-28") >= 1
    assert "is that of 2001:db8:b::" in next(log.text for log in a.logs if "IDP-28" in log.text)


def test_psk_needs_no_group_key() -> None:
    network, (a, b, c) = started(3, PSK)
    network.run(20)
    assert routes(a) == ["fd00:2::/64", "fd00:3::/64"]
    keys = {sa.key for sa in pair_sas(a)}
    keyed(network, 1, [a, b, c], 2000)
    assert {sa.key for sa in pair_sas(a)} == keys
    c.stop()
    network.run(5000)
    assert routes(a) == ["fd00:2::/64"]
    c.start()
    network.run(50)
    assert routes(a) == ["fd00:2::/64", "fd00:3::/64"]
    assert len({sa.key for sa in pair_sas(a)} - keys) == 2


def test_who_has_the_psk_alone_has_no_pair_s_keys() -> None:
    """What is on the wire and the file together give neither SAs nor announcements."""
    _, (a, b) = started(2, PSK)
    psk = a.engine.unicast._config.psk
    assert psk is not None
    ends = []
    for device in (a, b):
        startup = device.engine._startup_wall_ns.to_bytes(8, "big")
        public = device.engine.unicast.pair_key
        assert public != NO_PAIR_KEY
        ends.append((device.address, (startup, startup + public)))
    real = {sa.key for sa in pair_sas(a)}
    assert len(real) == 2
    for binding in (0, 1):
        for secret in (psk, psk + bytes(32)):
            one, other = (PairEnd(address, instances[binding]) for address, instances in ends)
            made = pairschedule.pair_sas(
                secret, psk_context(), one, other, suite=Suite.AES_GCM_128, reqid=8, if_id=66
            )
            assert not real & {sa.key for sa in made}


def test_without_the_same_psk_nothing_is_reached() -> None:
    network = Network(2, PSK, RED)
    a, b = network.devices
    object.__setattr__(b.engine.unicast._config, "psk", bytes(32))
    a.start()
    b.start()
    network.run(3000)
    assert routes(a) == routes(b) == []


@pytest.mark.parametrize("what", [AddSa, PutPolicy])
def test_a_batch_that_fails_once_is_repaired(what: type[AddSa | PutPolicy]) -> None:
    network, devices = started(2)
    a, b = devices
    failed: list[Any] = []

    def refuse(operation: Any) -> bool:
        ours = "2001:db8:b::2" in repr(operation) and isinstance(operation, what)
        if ours and "destination=IPv6Address('ff0e" not in repr(operation) and not failed:
            failed.append(operation)
            return True
        return False

    a.backend.refuse = refuse
    keyed(network, 1, devices)
    assert len(failed) == 1
    assert a.counter("IDP-14") == 1
    assert routes(a) == ["fd00:2::/64"]
    assert routes(b) == ["10.1.0.0/24", "fd00:1::/64"]


def test_what_fails_for_good_is_reported_and_not_tried_for_ever() -> None:
    network, devices = started(2)
    a, b = devices
    a.backend.refuse = lambda o: isinstance(o, AddSa) and not o.sa.destination.is_multicast
    keyed(network, 1, devices, 3000)
    batches = [label for label in a.labels if label.startswith("pairs")]
    assert len(batches) <= 6
    assert [log.level for log in a.logs if "pairs" in log.text][-1] == "error"
    assert not any(
        isinstance(o, DeleteSa) and o.id.destination.is_multicast
        for batch in a.batches
        for o in batch.operations
    )
    assert peer(a, b)["unicast"]["state"] in ("none", "new")


def test_stop_leaves_nothing_and_keys_are_nowhere_in_status() -> None:
    _, (a, _, _) = joined(3)
    text = repr(a.status()) + repr(a.engine.unicast) + repr(a.logs)
    for sa in a.backend.dump_sas():
        assert sa.key.encryption.hex() not in text
    a.stop()
    assert a.backend.dump_sas() == []
    assert a.backend.dump_policies() == []
    assert routes(a) == []
    assert [label for label in a.labels if label == "pairs:remove"] == ["pairs:remove"]
