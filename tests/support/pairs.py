"""Pairs of devices over the fake link: devices up, an epoch at all, what their kernels hold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from protocol.core.engine import DatagramReceived
from protocol.idp import pairseal
from protocol.idp.config import IdpConfig, Unicast
from protocol.idp.messages import PrefixAnnouncement
from protocol.ipsec.model import SecurityAssociation
from tests.support.fakelink import SA_GROUP, Device, Network, networks

RED = {0: ("fd00:1::/64", "10.1.0.0/24"), 1: ("fd00:2::/64",), 2: ("fd00:3::/64",)}
GROUP = IdpConfig(sa_group=SA_GROUP, news_delay_ms=0, triggered_hello_spread_ms=0)
PSK = replace(GROUP, unicast=Unicast.PSK, psk=bytes(range(32)))


def started(
    size: int, config: IdpConfig = GROUP, prefixes: dict[int, tuple[str, ...]] | None = None
) -> tuple[Network, list[Device]]:
    network = Network(size, config, RED if prefixes is None else prefixes)
    for device in network.devices:
        device.start()
    network.run(10)
    return network, network.devices


def keyed(network: Network, number: int, members: list[Device], ms: float = 30) -> None:
    """MIKE finishes an epoch at every member."""
    for device in members:
        device.status_from_mike(number, members)
    network.run(ms)


def joined(
    size: int, config: IdpConfig = GROUP, prefixes: dict[int, tuple[str, ...]] | None = None
) -> tuple[Network, list[Device]]:
    network, devices = started(size, config, prefixes)
    keyed(network, 1, devices)
    return network, devices


def pair_sas(device: Device) -> list[SecurityAssociation]:
    return [sa for sa in device.backend.dump_sas() if not sa.destination.is_multicast]


def routes(device: Device) -> list[str]:
    return sorted(map(str, device.routes))


def peer(device: Device, other: Device) -> dict[str, Any]:
    (found,) = [p for p in device.status()["peers"] if p["address"] == str(other.address)]
    return found


def sealed(sender: Device, receiver: Device, body: bytes, *, startup_wall_ns: int = 0) -> bytes:
    """Return a datagram with this content as the sender's idpd would send it next."""
    pairs = sender.engine.unicast
    pair = pairs._pairs[receiver.address]
    pairs._announced_count += 1
    return pairseal.seal(
        pairs._keys.announcements(pair.keys),
        sender.address,
        receiver.address,
        startup_wall_ns=startup_wall_ns or pairs._startup_wall_ns,
        sequence=pairs._announced_count,
        body=body,
    )


def announce(
    network: Network, sender: int, receiver: Device, prefixes: tuple[str, ...], version: int = 99
) -> list[Any]:
    """Feed an authentic announcement of a device, as if it had come through its SA."""
    device = network.devices[sender]
    body = PrefixAnnouncement(version, networks(prefixes)).encode()
    payload = sealed(device, receiver, body)
    before = len(receiver.logs)
    receiver.feed(DatagramReceived("pair", device.address, payload))
    network.run(0.01)
    return receiver.logs[before:]
