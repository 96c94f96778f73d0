"""Source-specific multicast (RFC 4607) over FRR: trees stand before the source's first word."""

from __future__ import annotations

import os
import socket
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

import pytest

from protocol.daemon import memberships
from testbed import session
from testbed.routing.programs import find_frr
from testbed.wait import wait_until
from tests.support.routers import PORT, RoutedNetwork, read_all, routed, wires

pytestmark = [
    pytest.mark.emulation,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces"),
    pytest.mark.skipif(find_frr() is None, reason="FRR is not built: run 'make setup'"),
]

GROUP = IPv6Address("ff3e::8000:77")
# Every two of three routers are neighbours; the rendezvous point, which has no part in it, is r4.
LAYOUT = wires("r1 r2", "r2 r3", "r1 r3", "r1 r4", "r1 h1", "r2 h2", "r3 h3")
HOSTS = ("h1", "h2", "h3")


def listener(network: RoutedNetwork, host: str, sources: list[IPv6Address]) -> socket.socket:
    """Return a socket that has joined the group as the daemons do."""
    with network.namespaces[host].entered():
        receiver = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        receiver.bind(("::", PORT))
        index = socket.if_nametoindex("eth0")
        memberships.join(receiver, index, GROUP, sources)
    return receiver


def test_the_very_first_packet_of_every_source_reaches_all_others(tmp_path: Path) -> None:
    def inside() -> dict[str, Any]:
        with routed(LAYOUT, "r4", tmp_path) as (network, routing, _):
            routing.wait_ready()
            addresses = {
                host: IPv6Address(wire.address(host).ip)
                for wire in network.layout
                for host in wire.nodes
                if host in HOSTS
            }
            receivers = {
                host: listener(network, host, [a for h, a in addresses.items() if h != host])
                for host in HOSTS
            }

            def missing() -> list[str]:
                """Each source's router must know two neighbours that want it."""
                gaps = []
                for host, address in addresses.items():
                    routes = routing.mroutes(f"r{host[1]}").get(str(GROUP), {})
                    out = routes.get(str(address), {}).get("oil", {})
                    wanted = {f"r{other[1]}" for other in HOSTS if other != host}
                    if len([name for name in out if name != "pimreg"]) < len(wanted):
                        gaps.append(f"{host} has the outgoing interfaces {sorted(out)}")
                return gaps

            wait_until(lambda: not missing(), 30, lambda: "; ".join(missing()))
            heard: dict[str, dict[str, list[int]]] = {}
            for number, host in enumerate(HOSTS):
                network.send(host, number.to_bytes(4, "big"), str(GROUP))
                others = {h: r for h, r in receivers.items() if h != host}
                got: dict[str, list[int]] = {h: [] for h in others}

                def all_heard(others: Any = others, got: Any = got) -> bool:
                    for name, receiver in others.items():
                        got[name] += read_all(receiver)
                    return all(got.values())

                wait_until(all_heard, 5, lambda got=got: f"of one packet arrived {got}")  # type: ignore[misc]
                heard[host] = got
            for receiver in receivers.values():
                receiver.close()
        return heard

    heard = session.call(inside)
    assert heard == {
        host: {other: [number] for other in HOSTS if other != host}
        for number, host in enumerate(HOSTS)
    }
