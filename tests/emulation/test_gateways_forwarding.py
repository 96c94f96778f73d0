"""gatewayd and this machine's kernel: multicast routes, unicast routes, the guard; no IPsec.

Veth pairs stand for the xfrm interfaces of one gateway, whose legs' idpds have the memory backend.
"""

from __future__ import annotations

import dataclasses
import os
import socket
import struct
import subprocess
from contextlib import ExitStack
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

import pytest

from protocol.daemon.routes import GATEWAY_PROTOCOL
from testbed import session
from testbed.fleet import Fleet, FleetOptions
from testbed.guard import read_drops
from testbed.proxies import Proxy
from testbed.wait import wait_until
from tests.support import netlink
from tests.support.gatewayfleet import await_spoken, start_all
from topologies.families import partitions

pytestmark = [
    pytest.mark.emulation,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces"),
]

FAST = {"hello_interval_ms": 300, "triggered_hello_spread_ms": 50}
WAIT_S = 60.0
ETH_P_IPV6 = 0x86DD
MARK = b"across the gateway"
GROUP = IPv6Address("ff0e::77")
LOCAL_GROUP = IPv6Address("ff02::77")
IN_A, NOWHERE = IPv6Address("fd00:a::11"), IPv6Address("fd00:9::11")


@pytest.fixture(autouse=True)
def private_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESTBED_RUN_BASE", str(tmp_path / "runs"))


def frame(source: IPv6Address, group: IPv6Address) -> bytes:
    """Return a multicast datagram as it comes out of a tunnel."""
    udp = struct.pack("!HHHH", 1000, 1000, 8 + len(MARK), 1) + MARK
    packet = struct.pack("!IHBB", 6 << 28, len(udp), 17, 8) + source.packed + group.packed + udp
    return b"\x33\x33" + group.packed[-4:] + bytes.fromhex("020000000001") + b"\x86\xdd" + packet


def wire(interface: str, stack: ExitStack) -> socket.socket:
    """Open the far end of a tunnel."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_IPV6))
    stack.callback(sock.close)
    sock.bind((interface, ETH_P_IPV6))
    sock.setblocking(False)
    return sock


def hop_limits(sock: socket.socket) -> list[int]:
    """Return the hop limits of our datagrams that came out, without those we put in."""
    found = []
    while True:
        try:
            data, address = sock.recvfrom(2000)
        except BlockingIOError:
            return found
        if data.endswith(MARK) and address[2] != socket.PACKET_OUTGOING:
            found.append(data[21])


def with_tunnels(fleet: Fleet, gateway: Proxy) -> Proxy:
    """Start a gateway's gatewayd again, believing that its legs have a kernel backend."""
    config = gateway.config
    for leg in ("g1-a", "g1-b"):
        file = gateway.directory.parent / f"{leg}.toml"
        text = file.read_text(encoding="utf-8")
        kernel = file.with_name(f"kernel-{leg}.toml")
        kernel.write_text(text.replace('backend = "memory"', 'backend = "netlink"'))
        config = config.replace(str(file), str(kernel))
    fleet.processes.stop([gateway.process])
    again = dataclasses.replace(gateway, config=config)
    again.launch(fleet.network, fleet.processes)
    wait_until(again.is_up, WAIT_S, "gatewayd is up again")
    return again


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=True).stdout


def test_red_multicast_goes_from_tunnel_to_tunnel_and_routes_are_set() -> None:
    def inside() -> dict[str, Any]:
        seen: dict[str, Any] = {}
        with ExitStack() as stack:
            options = FleetOptions(sa_backend="memory", idp=FAST)
            fleet = stack.enter_context(Fleet(partitions(2), options))
            start_all(fleet, WAIT_S)
            inside_g1 = fleet.network.namespace("g1").entered
            with inside_g1():
                for number in range(2):
                    name, far_name = f"xfrm{number}", f"far{number}"
                    ip("link", "add", name, "type", "veth", "peer", "name", far_name)
                    ip("link", "set", name, "up")
                    ip("link", "set", far_name, "up")
            gateway = with_tunnels(fleet, fleet.surroundings.gateway("g1"))
            await_spoken(fleet, "g1", {"a": ["b"], "b": ["a"]}, WAIT_S)
            with inside_g1():
                seen["routes"] = netlink.routes(protocol=GATEWAY_PROTOCOL)
                far = [wire(f"far{number}", stack) for number in range(2)]

            proper = frame(IN_A, GROUP)

            def crossing(*frames: bytes) -> list[int]:
                """Put frames into the one tunnel until something comes out of the other."""
                for one in frames:
                    far[0].send(one)
                got: list[int] = []
                wait_until(lambda: got.extend(hop_limits(far[1])) or got, WAIT_S, "a packet")
                return got

            seen["proper"] = crossing(proper)
            seen["nowhere"] = crossing(frame(NOWHERE, GROUP), proper)
            seen["local"] = crossing(frame(IN_A, LOCAL_GROUP), proper)
            wait_until(
                lambda: gateway.status()["counters"].get("GATE-15"), WAIT_S, "GATE-15 is counted"
            )
            far[1].send(proper)  # from the wrong side
            crossing(proper)
            seen["stray"] = hop_limits(far[0])
            seen["drops"] = read_drops(fleet.network.namespace("g1"))
            fleet.processes.kill(gateway.process)
            with inside_g1():
                seen["after"] = ip("-6", "mroute", "show").strip()
        return seen

    seen = session.call(inside)
    assert {str(net): through for net, through in seen["routes"].items()} == {
        "fd00:a::/64": "xfrm0",
        "fd00:b::/64": "xfrm1",
    }
    assert seen["proper"] == [7]
    assert seen["nowhere"] == seen["local"] == [7]  # only the proper one behind it
    assert seen["stray"] == []
    assert seen["drops"]["forward_to_black"] == seen["drops"]["forward_other"] == 0
    assert seen["after"] == ""  # the routes of a gatewayd that died are gone
