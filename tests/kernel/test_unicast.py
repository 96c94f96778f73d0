"""Unicast between red LANs: real SAs, policies and routes, read back with iproute2."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import time
from contextlib import ExitStack
from ipaddress import IPv6Address, ip_network
from pathlib import Path
from typing import Any

import pytest

from protocol.ipsec.pairpolicy import link_local
from testbed import session
from testbed.device import RESPONDER_PORT
from testbed.fleet import Fleet, FleetOptions
from testbed.guard import BlackChannels
from testbed.leaks import LeakRules, check_leaks
from testbed.wait import wait_until
from testbed.wiring import Wiring
from tests.support.netns import require_esp
from topologies.families import coalition, star

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

WAIT_S = 120.0
MARK = b"unicast of the test "
PORT = 47800
HELLO_MS = 1000
UNICAST = {"unicast": "group", "activation_delay_ms": 200, "deactivation_delay_ms": 500}


@pytest.fixture(autouse=True)
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    require_esp()
    monkeypatch.setenv("TESTBED_RUN_BASE", str(tmp_path / "runs"))


def ip(fleet: Fleet, node: str, words: str) -> str:
    with fleet.network.namespace(node).entered():
        done = subprocess.run(["ip", *words.split()], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def routes(fleet: Fleet, device: str) -> set[str]:
    """Read our routes back."""
    found: set[str] = set()
    for family in ("-4", "-6"):
        listed = json.loads(ip(fleet, device, f"-j {family} route show proto 29") or "[]")
        assert all(route["dev"] == "xfrm0" for route in listed)
        found |= {route["dst"] for route in listed}
    return found


def sas_with(fleet: Fleet, device: str, peer: str) -> list[tuple[str, str]]:
    """Read source and SPI of the SAs between two devices back."""
    ours, theirs = fleet.addresses[device], fleet.addresses[peer]
    text = ip(fleet, device, "xfrm state list")
    found = re.findall(r"src (\S+) dst (\S+)\s+proto esp spi (0x\w+)", text)
    return [(src, spi) for src, dst, spi in found if {src, dst} == {ours, theirs}]


def policies_with(fleet: Fleet, device: str, peer: str) -> list[str]:
    """Read the selectors of the policies whose template names a peer back."""
    text = ip(fleet, device, "xfrm policy list")
    address = re.escape(fleet.addresses[peer])
    found = re.findall(r"(?m)^(src \S+ dst \S+)[^\n]*\n\s+dir (\w+)[^\n]*\n\s+tmpl (.*)$", text)
    return [
        f"{way} {selector}"
        for selector, way, tmpl in found
        if re.search(rf"\b{address}(\s|$)", tmpl)
    ]


def expected(fleet: Fleet, device: str) -> set[str]:
    wiring = Wiring(fleet.topology)
    others = [name for name in fleet.devices if name != device]
    return {str(prefix) for name in others for prefix in wiring.red_prefixes(name)}


def await_routes(fleet: Fleet, devices: tuple[str, ...] | list[str]) -> None:
    for device in devices:
        wait_until(
            lambda device=device: routes(fleet, device) == expected(fleet, device),
            WAIT_S,
            lambda device=device: f"{device} has {routes(fleet, device)}",
        )


def start_all(fleet: Fleet) -> None:
    for count, device in enumerate(fleet.devices, 1):
        fleet.start(device)
        fleet.await_members(fleet.devices[:count], deadline_s=WAIT_S)
    await_routes(fleet, fleet.devices)


def ping(fleet: Fleet, node: str, address: object) -> bool:
    with fleet.network.namespace(node).entered():
        words = ["ping", "-n", "-c", "3", "-i", "0.3", "-W", "5", str(address)]
        return subprocess.run(words, capture_output=True, check=False).returncode == 0


def send_udp(fleet: Fleet, source: str, target: str, version: int) -> bool:
    """Send one datagram from client to client; return whether it came."""
    nodes = {node.name: node for node in fleet.topology.nodes}
    ours = nodes[source].red if version == 6 else nodes[source].red4
    theirs = nodes[target].red if version == 6 else nodes[target].red4
    assert ours is not None
    assert theirs is not None
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    with fleet.network.namespace(target).entered():
        receiver = socket.socket(family, socket.SOCK_DGRAM)
    with fleet.network.namespace(source).entered():
        sender = socket.socket(family, socket.SOCK_DGRAM)
    with receiver, sender:
        receiver.bind((str(theirs.ip), PORT))
        receiver.settimeout(10)
        sender.bind((str(ours.ip), PORT))
        sender.sendto(MARK, (str(theirs.ip), PORT))
        payload, came_from = receiver.recvfrom(2048)
        return payload == MARK and came_from[0] == str(ours.ip)


def reach(fleet: Fleet) -> dict[str, bool]:
    """From each client to each other: ping and UDP, IPv6 and IPv4."""
    clients = fleet.topology.clients
    seen = {}
    for source in clients:
        for target in clients:
            if source is target:
                continue
            assert target.red is not None
            assert target.red4 is not None
            pair = f"{source.name}>{target.name}"
            seen[f"{pair} ping"] = ping(fleet, source.name, target.red.ip)
            seen[f"{pair} ping4"] = ping(fleet, source.name, target.red4.ip)
            seen[f"{pair} udp"] = send_udp(fleet, source.name, target.name, 6)
            seen[f"{pair} udp4"] = send_udp(fleet, source.name, target.name, 4)
    return seen


def test_lans(tmp_path: Path) -> None:
    """Every red LAN reaches every other; nothing red is on the black wire."""
    topology = coalition(3, 1, 1)

    def inside() -> dict[str, Any]:
        with Fleet(topology, FleetOptions(keep=tmp_path, capture=True, ipsec=UNICAST)) as fleet:
            start_all(fleet)
            seen: dict[str, Any] = {"reached": reach(fleet)}
            seen["sas"] = [len(sas_with(fleet, "d1", peer)) for peer in ("d2", "d3")]
            seen["policies"] = policies_with(fleet, "d1", "d2")
            seen["addresses"] = fleet.addresses
        return seen | {"captured": fleet.captured}

    seen = session.call(inside)
    assert len(seen["reached"]) == 6 * 4
    assert all(seen["reached"].values()), seen["reached"]
    assert seen["sas"] == [2, 2]
    control = link_local(IPv6Address(seen["addresses"]["d2"]))
    red = [
        ip_network(text)
        for text in ("10.2.0.0/24", "10.2.1.0/24", "fd00:2::/64", "fd00:2:0:1::/64")
    ]
    assert len(seen["policies"]) == 2 * (1 + len(red)) + len(red)
    assert f"in src {control}/128 dst ::/0" in seen["policies"]
    for prefix in red:
        anywhere = "::/0" if prefix.version == 6 else "0.0.0.0/0"
        for direction in ("in", "fwd"):
            assert f"{direction} src {prefix} dst {anywhere}" in seen["policies"]
        assert f"out src {anywhere} dst {prefix}" in seen["policies"]
    rules = LeakRules.of(topology, BlackChannels.of({}, {}), RESPONDER_PORT, (MARK,))
    report = check_leaks(seen["captured"], rules)
    assert report.ok, report.text()
    assert {"ESP", "IDP", "MIKE"} <= set(report.counts)


class Probe:
    """A receiver on a device's red address, and packets that claim what they like."""

    def __init__(self, fleet: Fleet, receiver: str, stack: ExitStack) -> None:
        self._fleet = fleet
        red = fleet.topology.node(receiver).red
        assert red is not None
        self.address = str(red.ip)
        self._namespace = fleet.network.namespace(receiver)
        with self._namespace.entered():
            self._socket = stack.enter_context(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
        self._socket.bind((self.address, PORT))
        self._socket.settimeout(WAIT_S)

    def send(self, device: str, source: str, payload: bytes) -> None:
        with self._fleet.network.namespace(device).entered():
            sender = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        with sender:
            sender.setsockopt(socket.IPPROTO_IPV6, 78, 1)  # IPV6_FREEBIND
            sender.bind((source, 0))
            sender.sendto(payload, (self.address, PORT))

    def receive(self) -> tuple[bytes, str]:
        payload, source = self._socket.recvfrom(2048)
        return payload, source[0]

    def statistic(self, name: str) -> int:
        with self._namespace.entered():
            lines = Path("/proc/thread-self/net/xfrm_stat").read_text().splitlines()
        return {word: int(count) for word, count in map(str.split, lines)}[name]


def forged(fleet: Fleet) -> dict[str, Any]:
    """Let d3 send to d1 with a source of its own, of d2's, and of nobody's."""
    with ExitStack() as stack:
        probe = Probe(fleet, "d1", stack)
        before = [probe.statistic(n) for n in ("XfrmInTmplMismatch", "XfrmInNoPols")]
        for number in range(3):
            probe.send("d3", "fd00:2::77", b"forged %d" % number)
            probe.send("d3", "fd00:7777::1", b"nobody %d" % number)
        probe.send("d3", "fd00:3::1", b"honest")
        first = probe.receive()

        def counted() -> list[int]:
            names = ("XfrmInTmplMismatch", "XfrmInNoPols")
            return [probe.statistic(n) - b for n, b in zip(names, before, strict=True)]

        wait_until(lambda: min(counted()) >= 3, WAIT_S, lambda: f"{counted()} dropped")
        return {"first": first, "dropped": counted()}


def forget(fleet: Fleet, device: str, peer: str) -> dict[str, float]:
    """Stop a peer; return when its SAs, policies and routes were gone, in ms after its last hello.

    The last hello is the peer's own: read from the trace of who heard it.
    """
    left = {"sas": sas_with, "policies": policies_with}
    prefix = str(Wiring(fleet.topology).red_prefixes(peer)[0])
    (entry,) = [p for p in fleet.status(device)["peers"] if p["name"] == peer]
    assert entry["prefixes"] == [prefix]
    fleet.processes.kill(f"{peer}/idpd")
    fleet.processes.kill(f"{peer}/miked")
    (entry,) = [p for p in fleet.status(device)["peers"] if p["name"] == peer]
    last_s = time.monotonic() - entry["last_hello_ms"] / 1000
    gone: dict[str, float] = {}

    def look() -> bool:
        for name, read in left.items():
            if name not in gone and not read(fleet, device, peer):
                gone[name] = (time.monotonic() - last_s) * 1000
        if "routes" not in gone and prefix not in routes(fleet, device):
            gone["routes"] = (time.monotonic() - last_s) * 1000
        return len(gone) == 3

    wait_until(look, 30, lambda: f"only {gone} are gone")
    return gone


def kernel_of(fleet: Fleet, device: str) -> dict[str, Any]:
    """Read everything back that a device may have in its kernel."""
    states = re.findall(r"proto esp spi (0x\w+)", ip(fleet, device, "xfrm state list"))
    policies = re.findall(r"(?m)^src .*\n.*dir \w+", ip(fleet, device, "xfrm policy list"))
    return {
        "states": sorted(states),
        "policies": sorted(policies),
        "routes": sorted(routes(fleet, device)),
    }


def test_life(tmp_path: Path) -> None:
    """Forged sources, a killed daemon, a peer that is forgotten."""

    def inside() -> dict[str, Any]:
        options = FleetOptions(keep=tmp_path, ipsec=UNICAST, idp={"hello_interval_ms": HELLO_MS})
        with Fleet(star(3), options) as fleet:
            start_all(fleet)
            seen: dict[str, Any] = {"forged": forged(fleet)}
            # kill -9 of idpd alone: the new one begins with a clean kernel.
            fleet.processes.kill("d1/idpd")
            seen["orphans"] = kernel_of(fleet, "d1")
            fleet.revive("d1")
            seen["parked"] = kernel_of(fleet, "d1")
            fleet.start_daemon("d1", "idpd")
            fleet.await_members(fleet.devices, deadline_s=WAIT_S)
            await_routes(fleet, fleet.devices)

            def settled() -> bool:
                return all(
                    len(sas_with(fleet, one, other)) == 2
                    for one in fleet.devices
                    for other in fleet.devices
                    if one != other
                )

            wait_until(settled, WAIT_S, "older SAs stay")
            seen["again"] = kernel_of(fleet, "d1")
            seen["reached"] = ping(fleet, "d1", "fd00:3::1")
            seen["gone"] = forget(fleet, "d1", "d3")
            fleet.await_members(["d1", "d2"], deadline_s=WAIT_S)
            seen["left"] = routes(fleet, "d1")
        return seen

    seen = session.call(inside)
    assert seen["forged"]["first"] == (b"honest", "fd00:3::1")
    assert seen["forged"]["dropped"] == [3, 3]
    assert seen["orphans"]["states"]
    assert seen["orphans"]["routes"] == ["fd00:2::/64", "fd00:3::/64"]
    assert seen["parked"] == {"states": [], "policies": [], "routes": []}
    # 3 SAs of the group and 2 for each peer; 3 policies of the group and 5 for each peer.
    assert len(seen["again"]["states"]) == 3 + 4
    assert len(seen["again"]["policies"]) == 3 + 2 * 5
    assert seen["again"]["routes"] == ["fd00:2::/64", "fd00:3::/64"]
    assert not set(seen["again"]["states"]) & set(seen["orphans"]["states"])
    assert seen["reached"]
    assert seen["left"] == {"fd00:2::/64"}
    for what, ms in seen["gone"].items():
        assert 4 * HELLO_MS <= ms <= 5 * HELLO_MS, (what, seen["gone"])
