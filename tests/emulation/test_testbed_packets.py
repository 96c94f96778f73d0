"""The packet check's sockets in a red LAN without IPsec: two clients, IPv6 and IPv4."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest

from testbed.isolation import call_isolated
from testbed.lanwire import LanWire
from testbed.network import Network
from testbed.packets import RedEndpoint, check
from testbed.wait import wait_until
from topologies.families import coalition

pytestmark = [
    pytest.mark.emulation,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces"),
]


@pytest.mark.parametrize("version", [6, 4])
def test_clients_of_one_lan_hear_each_other_while_they_listen(version: int) -> None:
    def inside() -> dict[str, Any]:
        network = Network(coalition(1), with_xfrm=False)
        network.build()
        try:
            ends = {}
            for client in network.topology.clients:
                own = client.red if version == 6 else client.red4
                assert own is not None
                ends[client.name] = RedEndpoint(network.namespace(client.name), own.ip, "eth0")
            names = list(ends)
            both = check(ends, names, 5)
            ends[names[1]].leave()
            after = check(ends, names[:1], 0.5)
            ends[names[1]].join()
            again = check(ends, names[:1], 5)
            for end in ends.values():
                end.close()
            return {"both": both.reason, "after": after.ok, "again": again.reason}
        finally:
            network.stop()

    assert call_isolated(inside) == {"both": "", "after": False, "again": ""}


def test_arrivals_are_stamped_by_the_kernel_and_seen_on_the_wire() -> None:
    """A listener's stamp lies between sending and reading; a wire shows packets to nobody too."""

    def inside() -> dict[str, Any]:
        network = Network(coalition(1), with_xfrm=False)
        network.build()
        try:
            one, other = network.topology.clients
            assert one.red is not None
            assert other.red is not None
            sender = RedEndpoint(network.namespace(one.name), one.red.ip, "eth0")
            receiver = RedEndpoint(
                network.namespace(other.name), other.red.ip, "eth0", listening=False
            )
            wire = LanWire(network.namespace(other.name), "eth0")
            frames: list[bytes] = []

            def on_wire(text: bytes) -> bool:
                frames.extend(wire.frames())
                return any(text in frame for frame in frames)

            assert sender.send(b"to nobody") == ""
            wait_until(lambda: on_wire(b"to nobody"), 5, "the wire shows nothing")
            unheard = receiver.receive_stamped()
            receiver.join()
            before = time.time_ns()
            sender.send(b"to one")
            arrived = wait_until(receiver.receive_stamped, 5, "nothing arrives")
            after = time.time_ns()
            for end in (sender, receiver, wire):
                end.close()
            return {"unheard": unheard, "arrived": arrived, "between": (before, after)}
        finally:
            network.stop()

    seen = call_isolated(inside)
    assert seen["unheard"] == []
    ((stamp, payload),) = seen["arrived"]
    assert payload == b"to one"
    assert seen["between"][0] <= stamp <= seen["between"][1]
