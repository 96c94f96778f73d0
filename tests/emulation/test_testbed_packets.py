"""The packet check's sockets in a red LAN without IPsec: two clients, IPv6 and IPv4."""

from __future__ import annotations

import os
from typing import Any

import pytest

from testbed.isolation import call_isolated
from testbed.network import Network
from testbed.packets import RedEndpoint, check
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
