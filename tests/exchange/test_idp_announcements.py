"""Prefix announcements: repeated until heard, quiet without a change, refused where not allowed."""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import IPv6Address, ip_network
from pathlib import Path

import pytest

from protocol.core.engine import DatagramReceived
from protocol.core.errors import LocalError
from protocol.idp.config import Unicast
from protocol.idp.events import PrefixAdded, PrefixRemoved
from protocol.idp.messages import PrefixAnnouncement
from protocol.idp.pairseal import Sealed
from protocol.ipsec.pairschedule import PairEnd, announcement_key
from tests.support.fakelink import Network, networks
from tests.support.identities import make_identities
from tests.support.pairs import (
    GROUP,
    announce,
    joined,
    keyed,
    peer,
    routes,
    sealed,
    started,
)

DOCUMENT = (Path(__file__).parents[2] / "docs" / "idp.md").read_text()


def test_lost_announcements_are_repeated_until_heard() -> None:
    network, devices = started(2)
    a, b = devices
    for device in devices:
        device.status_from_mike(1, devices)
    network.run(0.9)
    a.connected = b.connected = False
    network.run(500)
    assert routes(a) == []
    a.connected = b.connected = True
    network.run(900)
    assert routes(a) == ["fd00:2::/64"]
    assert routes(b) == ["10.1.0.0/24", "fd00:1::/64"]


def test_idp_24_announcing_stops_and_starts_again_on_change() -> None:
    """IDP-24."""
    network, (a, b) = joined(2)
    network.run(6000)
    quiet = len(a.announced)
    assert 4 <= quiet <= 12
    network.run(5000)
    assert len(a.announced) == quiet
    a.feed(PrefixAdded(ip_network("fd00:1:0:1::/64")))
    network.run(10)
    assert routes(b) == ["10.1.0.0/24", "fd00:1:0:1::/64", "fd00:1::/64"]
    assert len(a.announced) > quiet
    a.feed(PrefixRemoved(ip_network("fd00:1::/64")))
    network.run(10)
    assert routes(b) == ["10.1.0.0/24", "fd00:1:0:1::/64"]
    network.run(6000)
    quiet = len(a.announced)
    network.run(5000)
    assert len(a.announced) == quiet


def test_idp_18_only_the_instance_that_is_up_and_only_inside_its_sa() -> None:
    """IDP-18."""
    _, (a, b, _) = joined(3)
    body = PrefixAnnouncement(9, networks(("fd00:2:9::/64",))).encode()
    payload = sealed(b, a, body, startup_wall_ns=b.status()["startup_wall_ns"] + 1)
    a.feed(DatagramReceived("group", b.address, payload))
    assert a.counter("IDP-18") == 0
    a.feed(DatagramReceived("pair", b.address, payload))
    a.feed(DatagramReceived("pair", IPv6Address("2001:db8:b::99"), payload))
    assert a.counter("IDP-18") == 2
    assert routes(a) == ["fd00:2::/64", "fd00:3::/64"]


def test_idp_45_only_the_other_end_of_the_pair_and_only_once() -> None:
    """IDP-45."""
    network, (a, b, c) = joined(3)
    body = PrefixAnnouncement(9, networks(("fd00:2:9::/64",))).encode()
    good = sealed(b, a, body)
    started_at = b.status()["startup_wall_ns"]
    for payload, source in (
        (sealed(c, a, body, startup_wall_ns=started_at), b),  # another member's key
        (sealed(b, c, body), b),  # for another receiver
        (good[:-1] + bytes((good[-1] ^ 1,)), b),
        (good[:20] + bytes((good[20] ^ 1,)) + good[21:], b),
        (good[:16], b),
        (b"\1\1\1\0" + good[4:], b),
    ):
        a.feed(DatagramReceived("pair", source.address, payload))
    assert a.counter("IDP-45") == 6
    assert "fd00:2:9::/64" not in routes(a)
    a.feed(DatagramReceived("pair", b.address, good))
    network.run(1)
    assert "fd00:2:9::/64" in routes(a)
    # The same once more, as ESP's replay window would not let through.
    a.feed(DatagramReceived("pair", b.address, good))
    assert a.counter("IDP-45") == 7


def test_device_that_one_side_has_lost_is_understood_as_soon_as_it_is_back() -> None:
    """Only B loses A: A's pair lives on, B's is made anew."""
    network, (a, b) = joined(2)
    for _ in range(20):  # each has said much
        for change in (PrefixAdded, PrefixRemoved):
            b.feed(change(ip_network("fd00:2:0:1::/64")))
            network.run(50)
    network.run(5000)
    network.drops = lambda sender, receiver: sender is a
    network.run(5000)
    assert peer(b, a)["state"] == "lost"
    assert peer(a, b)["state"] == "up"
    network.drops = lambda sender, receiver: False
    network.run(1500)
    keyed(network, 2, [a, b], 5000)
    assert routes(a) == ["fd00:2::/64"]
    assert routes(b) == ["10.1.0.0/24", "fd00:1::/64"]
    assert a.counter("IDP-45") == b.counter("IDP-45") == 0


def test_vector_of_the_document() -> None:
    found = re.search(r"Vector: secret 32 times `05`.*?`([0-9a-f]{60,})`", DOCUMENT, re.DOTALL)
    assert found is not None
    one, other = (PairEnd(IPv6Address(f"2001:db8:b::{n}"), bytes([n]) * 32) for n in (1, 2))
    key = announcement_key(b"\x05" * 32, other, one)
    datagram = bytes.fromhex(found[1])
    taken = Sealed.decode(datagram)
    taken.check(key, one.address, other.address, (0, 0))
    assert (taken.startup_wall_ns, taken.sequence) == (9, 1)
    assert PrefixAnnouncement.decode(taken.body).version == 3


def test_idp_17_ten_thousand_prefixes_are_refused_at_their_number() -> None:
    """IDP-17."""
    _, (a, b) = joined(2)
    head = PrefixAnnouncement(9).encode()[:18]
    body = head + (10_000).to_bytes(2, "big") + b"\x06\x40" * 3000
    for _ in range(5):
        payload = sealed(b, a, body)
        a.feed(DatagramReceived("pair", b.address, payload))
    assert a.counter("IDP-17") == 5
    (line,) = [log.text for log in a.logs if "IDP-17" in log.text]
    assert "10000 elements, not 0 to 256" in line
    assert routes(a) == ["fd00:2::/64"]


def test_idp_19_an_older_list_changes_nothing() -> None:
    """IDP-19."""
    network, (a, _) = joined(2)
    announce(network, 1, a, ("fd00:2:9::/64",), version=7)
    assert routes(a) == ["fd00:2:9::/64"]
    announce(network, 1, a, ("fd00:2:8::/64",), version=6)
    assert routes(a) == ["fd00:2:9::/64"]
    assert a.counter("IDP-19") >= 1


def test_idp_20_a_flood_of_announcements_costs_no_signature_check() -> None:
    """IDP-20."""
    network, (a, _) = joined(2)
    network.run(7000)
    for version in range(100, 140):
        announce(network, 1, a, (f"fd00:2:{version:x}::/64",), version=version)
    assert a.counter("IDP-20") == 40 - 16
    assert len([log for log in a.logs if "IDP-20" in log.text]) == 1
    assert len(routes(a)) == 1


REFUSED = [
    ("IDP-21", "fd00:3::/64"),
    ("IDP-21", "10.3.0.0/24"),
    ("IDP-21", "fd00::/16"),
    ("IDP-21", "::/0"),
    ("IDP-21", "ff0e::/16"),
    ("IDP-21", "2001:db8:b::/64"),
]


@pytest.mark.parametrize(("rule", "prefix"), REFUSED)
def test_idp_21_theft_is_refused_and_the_rest_accepted(rule: str, prefix: str) -> None:
    """IDP-21."""
    network, (a, _, _) = joined(3)
    logs = announce(network, 1, a, ("fd00:2:5::/64", prefix))
    assert "fd00:2:5::/64" in routes(a)
    assert prefix not in routes(a) or prefix == "fd00:3::/64"
    assert a.counter(rule) == 1
    assert [log.text for log in logs if rule in log.text] == [
        f"refused a message of d2: its certificate does not authorise {prefix} ({rule})"
    ]
    announce(network, 1, a, ("fd00:2:6::/64", prefix), version=100)
    assert a.counter(rule) == 2
    assert len([log for log in a.logs if rule in log.text]) == 1


def contested() -> Network:
    """Return three devices; the second has a prefix that the third is authorised for too."""
    network = Network(3, GROUP, {1: ("fd00:2:1::/64",)})
    shared = networks(("fd00:2::/32",))
    for device in network.devices:
        for index in (1, 2):
            known = make_identities(3)[index].me
            trusted = replace(known, prefixes=shared)
            for found in device.engine._identity._devices.values():
                if found.peer.address == known.address:
                    object.__setattr__(found, "peer", trusted)
    for device in network.devices:
        device.start()
    network.run(10)
    keyed(network, 1, network.devices)
    assert routes(network.devices[0]) == ["fd00:2:1::/64"]
    return network


def test_idp_23_who_restarts_without_a_prefix_has_let_go_of_it() -> None:
    """IDP-23: nobody looked again at what another device was refused (seed 2025405)."""
    network = contested()
    a, b, c = network.devices
    announce(network, 2, a, ("fd00:2:1::/64",), version=50)
    assert peer(a, c)["prefixes"] == []
    b.stop()
    b.engine.unicast._announcer.prefixes = networks(("fd00:2:9::/64",))
    b.start()
    network.run(500)
    keyed(network, 2, network.devices)
    network.run(500)
    assert peer(a, b)["prefixes"] == ["fd00:2:9::/64"]
    assert peer(a, c)["prefixes"] == ["fd00:2:1::/64"]
    assert routes(a) == ["fd00:2:1::/64", "fd00:2:9::/64"]


def test_idp_23_overlap_is_refused_until_the_other_lets_go() -> None:
    """IDP-23."""
    network = contested()
    a, b, c = network.devices
    for version, theft in enumerate(("fd00:2:1::/64", "fd00:2::/32", "fd00:2:1::8/125"), 50):
        logs = announce(network, 2, a, (theft,), version=version)
        assert peer(a, c)["prefixes"] == []
    assert a.counter("IDP-23") == 3
    assert logs == []
    assert [log.text for log in a.logs if "IDP-23" in log.text] == [
        f"refused a message of d3: fd00:2:1::/64 overlaps a prefix of {b.address} (IDP-23)"
    ]
    b.connected = False
    network.run(5000)
    assert peer(a, c)["prefixes"] == ["fd00:2:1::8/125"]
    assert routes(a) == ["fd00:2:1::8/125"]


def test_idp_29_prefixes_of_all_devices_are_bounded() -> None:
    """IDP-29."""
    network, (a, _) = joined(2, replace(GROUP, max_routes=40), {})
    announce(network, 1, a, tuple(f"fd00:2:{n:x}::/64" for n in range(200)))
    assert len(routes(a)) == 40
    assert a.counter("IDP-29") == 160
    assert len([log for log in a.logs if "IDP-29" in log.text]) == 1


def test_our_own_prefixes_must_be_authorised() -> None:
    _, (a, _) = joined(2)
    for prefix, why in (
        ("fd00:2:7::/64", "does not authorise"),
        ("::/0", "does not authorise"),
    ):
        with pytest.raises(LocalError, match=why):
            a.engine.unicast.check_addition(ip_network(prefix))
    a.engine.unicast.check_addition(ip_network("fd00:1:7::/64"))
    with pytest.raises(LocalError, match="is not announced"):
        a.engine.unicast.check_removal(ip_network("fd00:1:7::/64"))
    with pytest.raises(LocalError, match="cannot announce fd00:9::/64"):
        Network(1, GROUP, {0: ("fd00:9::/64",)})
    off = Network(1, replace(GROUP, unicast=Unicast.OFF)).devices[0]
    with pytest.raises(LocalError, match='unicast = "off"'):
        off.engine.unicast.check_addition(ip_network("fd00:1::/64"))
