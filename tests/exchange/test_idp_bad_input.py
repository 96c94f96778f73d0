"""Bad input, each kind: refused, counted, and logged once per peer and minute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from protocol.core.engine import DatagramReceived, SendDatagram
from protocol.idp.config import IdpConfig
from protocol.idp.documents import PARTS_MAX, Part
from protocol.idp.messages import Hello, MessageKind, PrefixAnnouncement
from protocol.idpmike import GroupStatus, LocalLink, Side
from protocol.ipsec.model import Suite
from tests.exchange import test_idp_policy as policies
from tests.exchange import test_idp_refusals as hellos
from tests.exchange import test_idp_strangers as certificates
from tests.support.coalition import policy
from tests.support.fakelink import LOOPBACK, Device, Network, epoch, networks
from tests.support.identities import address, make_identities, missigned
from tests.support.pairs import GROUP, announce, joined, keyed, routes, sealed, started

MINUTE_MS = 60_000


def refused_once_a_minute(
    network: Network, device: Device, rule: str, do: Callable[[], object], *, times: int = 5
) -> None:
    """Do it again and again, then once more a minute later; look at counter and log."""

    def lines() -> int:
        return sum(f"({rule})" in log.text for log in device.logs)

    assert (device.counter(rule), lines()) == (0, 0)
    for number in range(1, times + 1):
        do()
        assert device.counter(rule) >= number
        assert lines() == 1
    network.run(MINUTE_MS + 1000)
    do()
    network.run(1)
    assert lines() == 2


class Announcer:
    """Announces the same prefixes in one version after the other."""

    def __init__(self, network: Network, receiver: Device, prefixes: tuple[str, ...]) -> None:
        self._network, self._receiver, self._prefixes = network, receiver, prefixes
        self._version = 100

    def __call__(self) -> None:
        self._version += 1
        announce(self._network, 1, self._receiver, self._prefixes, version=self._version)


def test_stolen_prefix() -> None:
    """IDP-21."""
    network, (a, *_) = joined(3)
    before = routes(a)
    refused_once_a_minute(network, a, "IDP-21", Announcer(network, a, ("fd00:3::/65",)))
    assert not set(routes(a)) - set(before)


@pytest.mark.parametrize(
    "prefix", ["::/0", "0.0.0.0/0", "2001:db8:b::/64", "2001:db8::/32", "2001:db8:b::1/128"]
)
def test_default_route_or_black_network_that_a_careless_authority_authorised(prefix: str) -> None:
    """IDP-22."""
    network = Network(2, GROUP, {})
    for device in network.devices:
        known = make_identities(2)[1].me
        trusted = replace(known, prefixes=networks(("0.0.0.0/0", "::/0")))
        for found in device.engine._identity._devices.values():
            if found.peer.address == known.address:
                object.__setattr__(found, "peer", trusted)
        device.start()
    network.run(10)
    keyed(network, 1, network.devices)
    a = network.devices[0]
    refused_once_a_minute(network, a, "IDP-22", Announcer(network, a, (prefix,)))
    assert routes(a) == []


def test_ten_thousand_prefixes() -> None:
    """IDP-17."""
    network, (a, b) = joined(2)
    before = routes(a)
    head = PrefixAnnouncement(99, ()).encode()[:18]

    def flood() -> None:
        body = head + (10_000).to_bytes(2, "big") + bytes(6) * 1000
        a.feed(DatagramReceived("pair", b.address, sealed(b, a, body)))

    refused_once_a_minute(network, a, "IDP-17", flood)
    assert routes(a) == before


def test_chain_of_absurd_length() -> None:
    """IDP-54: at its first part, before anything is parsed."""
    network = certificates.strangers(1)
    (a,) = network.devices
    a.start()
    network.run(500)
    attacker = certificates.script(a, certificates.make_identity(1))
    attacker.hello()  # to be asked for its certificate
    part = Part(bytes(16), 0, PARTS_MAX, bytes(1024)).encode()
    refused_once_a_minute(
        network, a, "IDP-54", lambda: attacker.send(MessageKind.CERTIFICATE, part)
    )
    assert certificates.parsed(a) == 0
    assert (a.status()["peers"], a.signals[1:]) == ([], [])


def settled() -> tuple[Network, Device, Device]:
    """Two devices that know each other, and a third one's certificate."""
    network = Network(3)
    a, b, _ = network.devices
    a.start()
    b.start()
    network.run(6500)
    a.signals.clear()
    return network, a, b


def nothing_happened(a: Device) -> None:
    assert a.signals == []
    assert [(peer["name"], peer["state"]) for peer in a.status()["peers"]] == [("d2", "up")]


@pytest.mark.parametrize("victim", [1, 2], ids=["of one that is up", "of one that is not there"])
def test_forged_hello_cannot_create_or_restart(victim: int) -> None:
    """AUTH-9: as if just started, in the name of a device whose certificate is known."""
    network, a, _ = settled()

    def forge() -> None:
        network.run(1001)  # more in a second are not looked at (AUTH-19)
        good = hellos.stranger(victim, network.now, Hello(1000, 4).encode())
        hellos.feed(a, missigned(good), address(victim))

    refused_once_a_minute(network, a, "AUTH-9", forge)
    nothing_happened(a)


def test_replayed_hello_cannot_restart() -> None:
    """AUTH-10."""
    network, a, b = settled()
    refused_once_a_minute(
        network, a, "AUTH-10", lambda: hellos.feed(a, hellos.last(b, light=False))
    )
    nothing_happened(a)


def test_policy_downgrade() -> None:
    """IDP-58: the peer's own hellos say it again and again."""
    weak = replace(policies.CONFIG, suite=Suite.TDES_SHA1)
    old = policy(version=2, suites=["aes-gcm-128", "3des-sha1"], key_bits_min=112)
    made = policies.network(policy(), old, configs={1: weak})
    policies.start(made, MINUTE_MS - 5000)
    a, _ = made.devices
    assert a.counter("IDP-58") > 40
    assert policies.lines(a) == 1
    assert policies.version(a) == 3
    assert policies.up(a) == []
    made.run(10_000)
    assert policies.lines(a) == 2


@pytest.mark.parametrize("genuine_form", [True, False])
def test_datagram_on_the_local_interface_without_the_secret(genuine_form: bool) -> None:
    """LOCAL-1, LOCAL-3."""
    network, (a, _) = started(2, IdpConfig(sa_group=GROUP.sa_group, news_delay_ms=0))
    link = LocalLink(bytes(32), Side.MIKE)
    status = GroupStatus(0, epoch(9), "pointer", (address(0),), address(0))
    payloads = [
        effect.payload
        for effect in link.send(status, network.now)
        if isinstance(effect, SendDatagram)
    ]
    assert payloads

    def forge() -> None:
        for payload in payloads if genuine_form else [b"", bytes(3), bytes(40), bytes(2000)]:
            a.feed(DatagramReceived("local", LOOPBACK, payload))

    refused_once_a_minute(network, a, "LOCAL-3" if genuine_form else "LOCAL-1", forge)
    assert a.points("t_status") == []
