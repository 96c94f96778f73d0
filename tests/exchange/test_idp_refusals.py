"""What is forged, replayed, malformed or absurd: counted, dropped, no reply, nothing changed."""

from __future__ import annotations

import hashlib

import pytest

from protocol.core.engine import DatagramReceived, Instant
from protocol.identity import PROTOCOL_IDP, PROTOCOL_MIKE, Identity, KnownDevice, Peer
from protocol.idp.config import IdpConfig
from protocol.idp.lighthello import HEADER as LIGHT
from protocol.idp.messages import Hello, MessageKind
from tests.support.fakelink import MS, SA_GROUP, Device, Network
from tests.support.identities import address, known_device, make_identities, missigned, signing_key

A, B, C = address(0), address(1), address(2)


@pytest.fixture
def pair() -> tuple[Network, Device, Device]:
    """A runs and knows B, both quiet."""
    network = Network(3)
    a, b, _ = network.devices
    a.start()
    b.start()
    network.run(6500)
    a.signals.clear()
    a.sent.clear()
    return network, a, b


def feed(device: Device, payload: bytes, source: object = B) -> None:
    device.feed(DatagramReceived("group", source, payload))  # type: ignore[arg-type]


def stranger(
    index: int,
    now: Instant,
    body: bytes,
    *,
    protocol: int = PROTOCOL_IDP,
    startup_wall_ns: int | None = None,
) -> bytes:
    """Seal a message as the device with this index."""
    identity = make_identities(3)[index]
    identity.begin(now.wall_ns if startup_wall_ns is None else startup_wall_ns)
    return identity.seal(protocol, MessageKind.HELLO, body, now)


def untouched(network: Network, device: Device) -> None:
    """No reply, no signal, no new peer."""
    assert device.sent == []
    network.run(5)
    assert device.signals == []
    assert [peer["name"] for peer in device.status()["peers"]] == ["d2"]


def test_forged_hello(pair: tuple[Network, Device, Device]) -> None:
    network, a, _ = pair
    good = stranger(2, network.now, Hello(1000, 4).encode())
    feed(a, missigned(good), C)
    assert a.counter("AUTH-9") == 1
    untouched(network, a)
    assert a.status()["refused"][0]["peer"] == "d3"


def last(device: Device, *, light: bool) -> bytes:
    """Return the newest hello of the device that is light, or signed."""
    payloads = [hello.payload for hello in device.sent]
    return [payload for payload in payloads if payload.startswith(LIGHT) == light][-1]


@pytest.mark.parametrize(("light", "rule"), [(False, "AUTH-10"), (True, "IDP-33")])
def test_replayed_hello_does_not_keep_a_device_alive(
    pair: tuple[Network, Device, Device], light: bool, rule: str
) -> None:
    network, a, b = pair
    recorded = last(b, light=light)
    b.connected = False
    for _ in range(60):
        network.run(100)
        feed(a, recorded)
    assert a.counter(rule) == 60
    assert a.signals == [("LEAVE", B)]


@pytest.mark.parametrize(("light", "rule"), [(False, "AUTH-10"), (True, "IDP-32")])
def test_replay_of_the_instance_before_does_not_restart_it(
    pair: tuple[Network, Device, Device], light: bool, rule: str
) -> None:
    network, a, b = pair
    recorded = last(b, light=light)
    b.stop()
    b.start()
    network.run(10)
    assert a.signals == [("JOIN", B)]
    feed(a, recorded)
    network.run(10)
    assert a.signals == [("JOIN", B)]
    assert a.counter(rule) == 1


def test_hello_from_another_address(pair: tuple[Network, Device, Device]) -> None:
    network, a, _ = pair
    feed(a, stranger(2, network.now, Hello(1000, 4).encode()), B)
    assert a.counter("AUTH-8") == 1
    untouched(network, a)


def test_message_of_mike_on_our_port(pair: tuple[Network, Device, Device]) -> None:
    network, a, _ = pair
    feed(a, stranger(2, network.now, Hello(1000, 4).encode(), protocol=PROTOCOL_MIKE), C)
    assert a.counter("AUTH-2") == 1
    untouched(network, a)


def test_unknown_certificate(pair: tuple[Network, Device, Device]) -> None:
    network, a, _ = pair
    device = known_device(9)
    identity = Identity(device, signing_key(9), [device])
    identity.begin(network.now.wall_ns)
    payload = identity.seal(PROTOCOL_IDP, MessageKind.HELLO, Hello(1000, 4).encode(), network.now)
    feed(a, payload, device.peer.address)
    assert a.counter("AUTH-4") == 1
    untouched(network, a)


def test_idp_4_second_certificate_for_our_own_address() -> None:
    network = Network(2)
    (a, _) = network.devices
    twin = Peer(A, "d1", "alpha", hashlib.sha256(b"another certificate of d1").digest()[:16])
    other = KnownDevice(twin, signing_key(7).public_key())
    a.engine._identity.trust([known_device(1), other])
    a.start()
    thief = Identity(other, signing_key(7), [])
    thief.begin(network.now.wall_ns)
    payload = thief.seal(PROTOCOL_IDP, MessageKind.HELLO, Hello(1000, 4).encode(), network.now)
    feed(a, payload, A)
    network.run(5)
    assert a.counter("IDP-4") == 1
    assert a.signals == [("JOIN", A)]
    assert a.status()["peers"] == []


@pytest.mark.parametrize(
    ("rule", "body"),
    [
        ("IDP-1", b""),
        ("IDP-1", Hello(1000, 4).encode()[:-1]),
        ("IDP-1", Hello(1000, 4).encode() + b"\0"),
        ("IDP-1", bytes.fromhex("000003e8 04 80" + "00" * 70)),
        ("IDP-1", bytes.fromhex("000003e8 04 00 0001" + "00" * 68)),
        ("IDP-1", bytes.fromhex("000003e8 04 00 0000 0000000000000001" + "00" * 60)),
        ("IDP-1", Hello(1000, 4, policy_version=1).encode()),
        ("IDP-1", Hello(1000, 4, policy_digest=bytes(7) + b"1").encode()),
        ("IDP-2", Hello(49, 4).encode()),
        ("IDP-2", Hello(60_001, 4).encode()),
        ("IDP-2", Hello(0xFFFFFFFF, 4).encode()),
        ("IDP-3", Hello(1000, 1).encode()),
        ("IDP-3", Hello(1000, 255).encode()),
    ],
)
def test_absurd_hello_of_a_known_device(
    pair: tuple[Network, Device, Device], rule: str, body: bytes
) -> None:
    network, a, _ = pair
    feed(a, stranger(2, network.now, body), C)
    assert a.counter(rule) == 1
    assert a.status()["refused"][0]["rule"] == rule
    assert [log.level for log in a.logs] == ["warning"]
    untouched(network, a)
    # the log gets one line a minute, the counter all
    feed(a, stranger(2, network.now, body, startup_wall_ns=network.now.wall_ns + 1), C)
    assert a.counter(rule) == 2
    assert len(a.logs) == 1


def test_idp_6_full_table() -> None:
    config = IdpConfig(sa_group=SA_GROUP, max_peers=1, news_delay_ms=0)
    network = Network(3, config)
    a, b, c = network.devices
    a.start()
    b.start()
    network.run(500)
    a.signals.clear()
    c.start()
    network.run(5)
    assert a.counter("IDP-6") == 1
    assert a.signals == []
    # B is lost: its place goes to C, and B has to join again when it is back.
    # (C has heard A, so most of its hellos are light, and only a signed one makes an entry.)
    b.connected = False
    network.run(18_000)
    assert a.signals == [("LEAVE", B), ("JOIN", C)]
    assert [peer["name"] for peer in a.status()["peers"]] == ["d3"]


def test_rubbish_on_both_sockets(pair: tuple[Network, Device, Device]) -> None:
    network, a, _ = pair
    for length in (0, 1, 61, 62, 126, 200, 9000):
        feed(a, bytes(length), C)
        a.feed(DatagramReceived("local", A, bytes(length)))
    counters = a.status()["counters"]
    assert counters["AUTH-1"] == 7
    assert sum(amount for rule, amount in counters.items() if rule.startswith("LOCAL-")) == 7
    untouched(network, a)


def test_signal_from_a_process_without_the_secret(
    pair: tuple[Network, Device, Device],
) -> None:
    from protocol.idpmike import GroupStatus, LocalLink, Side
    from tests.support.fakelink import LOOPBACK, epoch

    network, a, _ = pair
    link = LocalLink(bytes(32), Side.MIKE)
    status = GroupStatus(0, epoch(1), "pointer", (A,), A)
    for effect in link.send(status, network.now):
        payload = getattr(effect, "payload", None)
        if payload is not None:
            a.feed(DatagramReceived("local", LOOPBACK, payload))
    assert a.points("t_status") == []
    assert sum(v for k, v in a.status()["counters"].items() if k.startswith("LOCAL")) == 2
    assert network.now.mono_ns > MS
