"""Pairs of devices over the fake link: devices up, an epoch at all, what their kernels hold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from protocol.core.engine import DatagramReceived
from protocol.identity import PROTOCOL_IDP
from protocol.idp.config import IdpConfig, Unicast
from protocol.idp.messages import MessageKind, PrefixAnnouncement
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


def announce(
    network: Network, sender: int, receiver: Device, prefixes: tuple[str, ...], version: int = 99
) -> list[Any]:
    """Feed a validly signed announcement of a device, as if it had come through its SA."""
    device = network.devices[sender]
    identity = device.engine._identity
    body = PrefixAnnouncement(version, networks(prefixes)).encode()
    payload = identity.seal(PROTOCOL_IDP, MessageKind.PREFIXES, body, network.now)
    before = len(receiver.logs)
    receiver.feed(DatagramReceived("pair", device.address, payload))
    network.run(0.01)
    return receiver.logs[before:]
