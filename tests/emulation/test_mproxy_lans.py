"""Proxies between red LANs, with a plain bridge where IPsec has its tunnel."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from ipaddress import IPv6Address, ip_address
from pathlib import Path

import pytest

from protocol.daemon.control import ControlError
from protocol.daemon.mproxysockets import MldSocket
from protocol.mproxy import mld
from protocol.mproxy.messages import Record, RecordKind, Report
from tests.support.lans import (
    DEADLINE_S,
    PORT,
    SENDER,
    SENDER4,
    RedNetwork,
    red_network,
    until_heard,
)
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.emulation,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces"),
]

FENCE, FENCE4 = "ff0e::fe", "239.255.0.1"
"""Groups that c1 always listens to: what was sent before a packet of theirs has passed too."""

FAMILIES = [("ff0e::77", FENCE), ("239.1.2.3", FENCE4)]


class Red:
    """The network with all proxies, a sender, and a client that listens to the fences."""

    def __init__(self, network: RedNetwork) -> None:
        self.network = network
        self.senders = {version: network.hosts["sender"].udp(version) for version in (4, 6)}
        self.senders[6].bind((SENDER, 0))
        self.senders[4].bind((SENDER4, 0))
        self.fences = {group: network.hosts["c1"].listen(group) for group in (FENCE, FENCE4)}
        for group in self.fences:
            self.pass_fence(group)

    def sender(self, group: str) -> socket.socket:
        return self.senders[ip_address(group).version]

    def pass_fence(self, group: str) -> None:
        """Return when everything sent so far has passed the whole path."""
        until_heard(self.sender(group), self.fences[group], group, f"fence {os.urandom(4).hex()}")

    def send(self, group: str, text: str, count: int = 20) -> None:
        for _ in range(count):
            self.sender(group).sendto(text.encode(), (group, PORT))


@pytest.fixture(scope="module")
def shared_red(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Red]:
    with red_network(tmp_path_factory.mktemp("red")) as network:
        network.start_all()
        yield Red(network)


@pytest.fixture
def red(shared_red: Red) -> Red:
    return shared_red


@pytest.fixture
def own_red(tmp_path: Path) -> Iterator[Red]:
    """A network for tests that break it."""
    with red_network(tmp_path) as network:
        network.start_all()
        yield Red(network)


@pytest.mark.parametrize(("group", "fence"), FAMILIES)
def test_a_client_hears_what_it_joined_until_it_leaves(red: Red, group: str, fence: str) -> None:
    """Join, stream, leave: the other LANs' wires stay silent, this one's falls silent."""
    network = red.network
    lan, gamma = network.wire("c1", "eth0"), network.wire("c3", "eth0")
    red.send(group, "too early")
    red.pass_fence(fence)
    assert lan.saw("too early") == 0
    client = network.hosts["c1"].listen(group)
    assert until_heard(red.sender(group), client, group, "stream").startswith(b"stream")
    assert group in network.groups("b")
    red.pass_fence(fence)
    assert lan.saw("stream") > 0
    client.close()
    network.await_listener("r", group, gone=True)
    network.await_listener("b", group, gone=True)
    red.pass_fence(fence)
    lan.frames()
    red.send(group, "too late")
    red.pass_fence(fence)
    assert lan.saw("too late") == 0
    frames = gamma.frames()
    assert [word for word in (b"stream", b"too", b"fence") if any(word in f for f in frames)] == []


def test_a_nation_without_listeners_has_the_packets_at_its_device_only(red: Red) -> None:
    """Its tunnel end gets them; its LAN's wire does not."""
    network = red.network
    group = "ff0e::3"
    lan, tunnel = network.wire("c", "red0"), network.wire("c", "xfrm0")
    # While a flow has no route yet, the kernel keeps its first few packets only.
    for count, total in ((1, 1), (20, 21)):
        red.send(group, "not for gamma", count)
        wait_until(
            lambda: network.arrived("c", group),
            DEADLINE_S,
            "all are at gamma's device",
            accept=lambda packets, total=total: packets == total,  # type: ignore[misc]
        )
    assert tunnel.saw("not for gamma") == 21
    assert lan.saw("not for gamma") == 0


def test_the_first_packet_of_a_flow_is_not_lost(red: Red) -> None:
    """It waits in each kernel until the proxy has answered."""
    network = red.network
    group = "ff0e::4"
    client = network.hosts["c1"].listen(group)
    network.await_listener("b", group)
    red.send(group, "the only one", count=1)
    client.settimeout(DEADLINE_S)
    assert client.recv(100) == b"the only one"
    points = [line for line in network.trace("r") if line["point"] == "mproxy.forward"]
    assert points[-1]["group"] == group
    assert points[-1]["outs"] == ["eth1"]
    client.close()


def test_a_client_that_asks_for_one_source_gets_only_that(red: Red) -> None:
    """Source-specific multicast, signalled upstream by the LAN router as such."""
    network = red.network
    group, wanted = "ff3e::8000:1", "fd00:1::55"
    network.spaces["sender"].ip(f"addr add {wanted}/64 dev eth0 nodad")
    client = network.hosts["c1"].listen_to(wanted, group)
    second = network.hosts["sender"].udp(6)
    second.bind((wanted, 0))
    assert until_heard(second, client, group, "wanted")
    joined = {item["group"]: item["sources"] for item in network.status("r")["upstream"]["joined"]}
    assert joined[group] == [wanted]
    wire = network.wire("c1", "eth0")
    red.send(group, "unwanted")
    red.pass_fence(FENCE)
    assert wire.saw("unwanted") == 0
    client.close()
    second.close()


@pytest.mark.parametrize("group", ["ff02::77", "ff0e::1", "224.0.0.77"])
def test_groups_that_must_not_pass_stay_on_the_lan(red: Red, group: str) -> None:
    """MPROXY-8: link-local groups and the black group, even with a listener."""
    network = red.network
    client = network.hosts["c1"].listen(group)
    home, tunnel = network.wire("sender", "eth0"), network.wire("tunnel", "br0")
    red.send(group, "local only")
    red.pass_fence(FENCE)
    red.pass_fence(FENCE4)
    assert home.saw("local only") == 20
    assert tunnel.saw("local only") == 0
    client.close()


def test_a_spoofed_source_is_refused(red: Red) -> None:
    """MPROXY-9: a host of alpha that speaks as one of beta."""
    network = red.network
    group, forged = "ff0e::9", "fd00:2::5"
    before = network.status("a")["counters"].get("MPROXY-9", 0)
    network.spaces["sender"].ip(f"addr add {forged}/128 dev eth0 nodad")
    liar = network.hosts["sender"].udp(6)
    liar.bind((forged, 0))
    client = network.hosts["c1"].listen(group)
    network.await_listener("b", group)
    home, tunnel = network.wire("sender", "eth0"), network.wire("tunnel", "br0")
    # The first packet is counted by the upcall, and then like each other by the kernel.
    for count, total in ((1, 2), (20, 22)):
        for _ in range(count):
            liar.sendto(b"I am beta", (group, PORT))
        wait_until(
            lambda: network.status("a")["counters"].get("MPROXY-9", 0) - before,
            DEADLINE_S,
            "every one is counted",
            accept=lambda counted, total=total: counted == total,  # type: ignore[misc]
        )
    red.pass_fence(FENCE)
    assert home.saw("I am beta") == 21
    assert tunnel.saw("I am beta") == 0
    network.spaces["sender"].ip(f"addr del {forged}/128 dev eth0")
    liar.close()
    client.close()


def test_large_packets_reach_the_client(red: Red) -> None:
    """The tunnel's MTU is smaller than the LAN's: the sender learns it, or routers fragment."""
    for group in ("ff0e::20", "239.1.2.20"):
        client = red.network.hosts["c1"].listen(group)
        red.network.await_listener("b", group)
        heard = until_heard(red.sender(group), client, group, "large " + "x" * 2000)
        assert len(heard) > 2000
        client.close()


def test_a_client_that_floods_groups_harms_itself_only(red: Red) -> None:
    """MPROXY-6, MPROXY-7."""
    network = red.network
    flooder, address = network.hosts["c2"], _link_local(network, "c2")
    sock = flooder.inside(lambda: MldSocket(["eth0"]))
    flooder.stack.callback(sock.close)
    for first in range(0, 20_000, 50):
        records = tuple(
            Record(RecordKind.TO_EXCLUDE, IPv6Address("ff0e::1:0") + first + number)
            for number in range(50)
        )
        sock.send("eth0", address, mld.ALL_MLDV2_ROUTERS, mld.encode(Report(records, 2)))
    wait_until(
        lambda: network.status("r")["counters"].get("MPROXY-6", 0),
        DEADLINE_S,
        "the flood is refused",
    )
    group = "ff0e::30"
    client = network.hosts["c1"].listen(group)
    assert until_heard(red.sender(group), client, group, "still served")
    ports = network.status("r")["downstream"]
    hosts = [item["host"] for port in ports for item in port["groups"]]
    assert hosts.count(str(address)) == 64
    assert sock.counters == {}
    client.close()


def _link_local(network: RedNetwork, name: str) -> IPv6Address:
    words = network.spaces[name].ip("-6 addr show dev eth0 scope link").split()
    return IPv6Address(words[words.index("inet6") + 1].partition("/")[0])


def test_a_killed_proxy_forwards_nothing_and_recovers_by_itself(own_red: Red) -> None:
    """MPROXY-14: the routes go with the process; a new one asks, and knows its listeners."""
    network = own_red.network
    group = "ff0e::77"
    client = network.hosts["c1"].listen(group)
    assert until_heard(own_red.sender(group), client, group, "before")
    network.kill("b")
    assert network.routes("b") == []
    lan, tunnel = network.wire("c1", "eth0"), network.wire("b", "xfrm0")
    own_red.send(group, "in between")
    wait_until(lambda: tunnel.saw("in between"), DEADLINE_S, "the packets are at beta's device")
    assert lan.saw("in between") == 0
    network.start("b")
    assert until_heard(own_red.sender(group), client, group, "after")


def test_a_stopped_proxy_leaves_nothing(own_red: Red) -> None:
    """MPROXY-14: in order, upstream is told."""
    network = own_red.network
    network.await_listener("b", FENCE)
    os.kill(network.pids["r"], 15)
    assert network.nursery.wait(network.pids["r"], 10) == 0
    assert network.routes("r") == []
    network.await_listener("b", FENCE, gone=True)


def test_an_interface_that_goes_ends_the_proxy_with_a_sentence(own_red: Red) -> None:
    network = own_red.network
    network.spaces["c"].ip("link del xfrm0")
    assert network.nursery.wait(network.pids["c"], 10) == 1
    with pytest.raises(ControlError, match="no such socket"):
        network.status("c")


def test_two_proxies_in_one_namespace_are_refused(own_red: Red, tmp_path: Path) -> None:
    network = own_red.network
    config = tmp_path / "a" / "lan.toml"
    (tmp_path / "run2").mkdir()
    second = tmp_path / "second.toml"
    second.write_text(
        config.read_text().replace(str(tmp_path / "a" / "run"), str(tmp_path / "run2"))
    )
    output = tmp_path / "second.stderr"
    pid = network.nursery.spawn(
        "mproxyd", second, namespace=network.spaces["a"].path, output=output
    )
    assert network.nursery.wait(pid, 10) == 1
    assert "another program routes multicast in this network namespace" in output.read_text()
    assert output.read_text().count("\n") == 1
