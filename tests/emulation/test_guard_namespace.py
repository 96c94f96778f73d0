"""The guard in a namespace: what passes between red, tunnel and black, and what is counted.

A veth stands in for the xfrm interface; the real one is in tests/kernel.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from ipaddress import IPv6Address

import pytest

from protocol.guard.ruleset import GuardRules
from testbed import guard
from testbed.guard import GuardError
from testbed.namespaces import NetNamespace, write_sysctl
from testbed.wait import wait_until
from tests.support.mroute import StaticRouter
from tests.support.netns import Namespace, namespace, run

pytestmark = [
    pytest.mark.emulation,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces"),
]

BLACK, PEER = "2001:db8:b::1", "2001:db8:b::9"
RED, CLIENT = "fd00:1::1", "fd00:1::c"
ELSEWHERE = "fd00:2::c"
IDP, MIKE, CLOCK = 47500, 47510, 47503
IDP_GROUP, MIKE_GROUP, ESP_GROUP, RED_GROUP = "ff0e::1d0", "ff0e::319e", "ff0e::1", "ff0e::7e57"
MARK = b"this is red"
WAIT_S = 5.0

RULES = GuardRules(
    black_address=IPv6Address(BLACK),
    idp_port=IDP,
    mike_port=MIKE,
    idp_group=IPv6Address(IDP_GROUP),
    mike_group=IPv6Address(MIKE_GROUP),
    black_group=IPv6Address(ESP_GROUP),
    extra_udp_ports=(CLOCK,),
    echo=True,
)


@dataclass
class Place:
    """A namespace of the test and how to look into it."""

    made: Namespace
    inside: NetNamespace = field(init=False)
    opened: list[socket.socket] = field(default_factory=list)

    def __post_init__(self) -> None:
        descriptor = os.open(self.made.path, os.O_RDONLY | os.O_CLOEXEC)
        self.inside = NetNamespace(self.made.name, descriptor)

    def udp(self, source: str, sport: int, *, via: str = "") -> socket.socket:
        """A bound UDP socket; multicast leaves by ``via``."""
        with self.inside.entered():
            family = socket.AF_INET if "." in source else socket.AF_INET6
            sock = socket.socket(family, socket.SOCK_DGRAM)
            sock.settimeout(WAIT_S)
            sock.bind((source, sport))
            if via:
                index = socket.if_nametoindex(via)
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 8)
        return sock

    def wire(self, interface: str) -> socket.socket:
        """A packet socket that sees every frame of an interface."""
        with self.inside.entered():
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
            sock.bind((interface, 0))
        sock.settimeout(WAIT_S)
        self.opened.append(sock)
        return sock

    def close(self) -> None:
        self.inside.close()
        for sock in self.opened:
            sock.close()


@dataclass
class Bench:
    """A guarded device with a neighbour on each of its three interfaces."""

    device: Place
    black: Place
    red: Place
    tunnel: Place

    def drops(self) -> dict[str, int]:
        return {
            name: count for name, count in guard.read_drops(self.device.inside).items() if count
        }

    def black_frames_until_clock(self, wire: socket.socket) -> list[bytes]:
        """Send an open datagram to the black side and return all frames that came before it."""
        end = os.urandom(8)
        with self.device.udp(BLACK, 0) as sock:
            sock.sendto(end, (PEER, CLOCK))
        frames = []
        while end not in (frame := wire.recv(65536)):
            frames.append(frame)
        return frames


def join(sock: socket.socket, group: str, place: Place, interface: str) -> None:
    with place.inside.entered():
        index = struct.pack("@I", socket.if_nametoindex(interface))
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, IPv6Address(group).packed + index)


def ready(made: Namespace) -> bool:
    """Links run, and IPv6 has learnt it: a moment later than 'set up' (linkwatch)."""
    links = [link for link in json.loads(made.ip("-j link show")) if link["ifname"] != "lo"]
    routed = made.ip("-6 route show table local type multicast").count("ff00::/8")
    return all(link["operstate"] == "UP" for link in links) and routed == len(links)


@pytest.fixture
def bench() -> Iterator[Bench]:
    with ExitStack() as stack:
        device, black, red, tunnel = (stack.enter_context(namespace(x)) for x in "dbrt")
        place = Place(device)
        guard.install(place.inside, RULES)  # before there is an interface
        for name, far, own, neighbour in (
            ("black0", black, BLACK, PEER),
            ("red0", red, RED, CLIENT),
            ("xfrm0", tunnel, "fd00:f::1", "fd00:f::2"),
        ):
            device.ip(f"link add {name} type veth peer name eth0 netns {far.name}")
            far.ip(f"addr add {neighbour}/64 dev eth0 nodad")
            far.ip("link set eth0 up")
            device.ip(f"addr add {own}/64 dev {name} nodad")
            device.ip(f"link set {name} up")
        for made in (device, black, red, tunnel):
            wait_until(lambda made=made: ready(made), WAIT_S, f"{made.name}: a link is not up")
        red.ip(f"route add default via {RED}")
        tunnel.ip("route add default via fd00:f::1")
        black.ip(f"route add default via {BLACK}")
        with place.inside.entered():
            for family in ("ipv6", "ipv4"):
                write_sysctl(f"net/{family}/conf/all/forwarding", 1)
        made = Bench(place, Place(black), Place(red), Place(tunnel))
        yield made
        for one in (made.device, made.black, made.red, made.tunnel):
            one.close()


def test_the_daemons_and_the_clock_pass_both_ways(bench: Bench) -> None:
    ports = {IDP: IDP_GROUP, MIKE: MIKE_GROUP}
    for port, group in ports.items():
        with (
            bench.device.udp("::", port) as ours,
            bench.black.udp(PEER, port, via="eth0") as theirs,
        ):
            join(ours, group, bench.device, "black0")
            theirs.sendto(b"x" * 4000, (group, port))  # in three fragments
            assert ours.recv(8192) == b"x" * 4000
            theirs.sendto(b"unicast", (BLACK, port))
            assert ours.recv(8192) == b"unicast"
            join(theirs, group, bench.black, "eth0")
        with (
            bench.device.udp(BLACK, port, via="black0") as ours,
            bench.black.udp("::", port) as theirs,
        ):
            join(theirs, group, bench.black, "eth0")
            ours.sendto(b"y" * 4000, (group, port))
            assert theirs.recv(8192) == b"y" * 4000
    with bench.device.udp(BLACK, CLOCK) as server, bench.black.udp(PEER, 0) as client:
        client.sendto(b"ask", (BLACK, CLOCK))
        question, back = server.recvfrom(100)
        server.sendto(b"answer", back)
        assert (question, client.recv(100)) == (b"ask", b"answer")
    assert bench.drops() == {}


def test_nothing_else_comes_in_from_black(bench: Bench) -> None:
    with bench.device.udp("::", 5000) as ours, bench.black.udp(PEER, 5000) as theirs:
        for target in (BLACK, RED):
            theirs.sendto(b"probe", (target, 5000))
        theirs.sendto(b"to a client", (CLIENT, 5000))
        with bench.black.udp(PEER, 0) as clock, bench.device.udp(BLACK, CLOCK) as server:
            clock.sendto(b"end", (BLACK, CLOCK))
            assert server.recv(10) == b"end"
        ours.setblocking(False)
        with pytest.raises(BlockingIOError):
            ours.recv(100)
    assert bench.drops() == {"input_black": 2, "forward_from_black": 1}


def refused(send: Callable[[], object]) -> None:
    with pytest.raises(PermissionError):  # what nf_hook makes of a local packet that it drops
        send()


def test_no_red_packet_of_the_device_itself_leaves_on_black(bench: Bench) -> None:
    bench.device.made.ip(f"route add fd00:2::/64 via {PEER} dev black0")
    wire = bench.black.wire("eth0")
    with bench.device.udp(RED, 0, via="black0") as red:
        refused(lambda: red.sendto(MARK, (ELSEWHERE, 5000)))
        refused(lambda: red.sendto(MARK, (RED_GROUP, 5000)))
        refused(lambda: red.sendto(MARK, (IDP_GROUP, IDP)))
    with bench.device.udp(BLACK, IDP, via="black0") as black:
        refused(lambda: black.sendto(MARK, (ELSEWHERE, IDP)))
        refused(lambda: black.sendto(MARK, (RED_GROUP, IDP)))
        refused(lambda: black.sendto(MARK, (PEER, 5000)))
    frames = bench.black_frames_until_clock(wire)
    assert not [frame for frame in frames if MARK in frame]
    assert bench.drops() == {
        "output_source": 3,
        "output_red_destination": 1,
        "output_group": 1,
        "output_black": 1,
    }
    assert guard.red_drops(bench.device.inside) == 5


def test_forwarded_red_unicast_goes_to_the_tunnel_and_never_to_black(bench: Bench) -> None:
    wire = bench.black.wire("eth0")
    bench.device.made.ip("route add fd00:2::/64 dev xfrm0")
    bench.tunnel.made.ip(f"addr add {ELSEWHERE}/64 dev eth0 nodad")
    with bench.red.udp(CLIENT, 5000) as client, bench.tunnel.udp(ELSEWHERE, 5000) as far:
        client.sendto(MARK, (ELSEWHERE, 5000))
        assert far.recv(100) == MARK
        far.sendto(b"back", (CLIENT, 5000))
        assert client.recv(100) == b"back"
        assert bench.drops() == {}
        bench.device.made.ip(f"route replace fd00:2::/64 via {PEER} dev black0")
        client.sendto(MARK, (ELSEWHERE, 5000))
        assert not [f for f in bench.black_frames_until_clock(wire) if MARK in f]
    assert bench.drops() == {"forward_to_black": 1}


def test_forwarded_red_multicast_passes_the_forward_hook(bench: Bench) -> None:
    """What ip6mr forwards is filtered too: ip6mr_forward2 calls NF_INET_FORWARD."""
    wire = bench.black.wire("eth0")
    with (
        bench.device.inside.entered(),
        StaticRouter(["red0", "xfrm0", "black0"]) as router,
    ):
        router.forward(CLIENT, RED_GROUP, "red0", ["xfrm0", "black0"])
        with (
            bench.red.udp(CLIENT, 0, via="eth0") as sender,
            bench.tunnel.udp("::", 5000) as listener,
        ):
            join(listener, RED_GROUP, bench.tunnel, "eth0")
            for number in range(3):
                sender.sendto(MARK + b"%d" % number, (RED_GROUP, 5000))
                assert listener.recv(100) == MARK + b"%d" % number
            assert not [f for f in bench.black_frames_until_clock(wire) if MARK in f]
    assert bench.drops() == {"forward_to_black": 3}


def test_ipv4_never_touches_black(bench: Bench) -> None:
    for made, name, address in (
        (bench.device.made, "black0", "192.0.2.1"),
        (bench.black.made, "eth0", "192.0.2.9"),
        (bench.device.made, "red0", "10.1.1.1"),
        (bench.red.made, "eth0", "10.1.1.12"),
    ):
        made.ip(f"addr add {address}/24 dev {name}")
    bench.red.made.ip("route add default via 10.1.1.1")
    wire = bench.black.wire("eth0")
    with bench.device.udp("192.0.2.1", 0) as ours, bench.red.udp("10.1.1.12", 0) as client:
        refused(lambda: ours.sendto(MARK, ("192.0.2.9", 5000)))
        client.sendto(MARK, ("192.0.2.9", 5000))
        with bench.device.udp("10.1.1.1", 5000) as red:
            client.sendto(b"on the red side", ("10.1.1.1", 5000))
            assert red.recv(100) == b"on the red side"
    with bench.black.udp("192.0.2.9", 0) as prober:
        prober.sendto(b"who has you?", ("192.0.2.1", 5000))
    frames = bench.black_frames_until_clock(wire)
    ours_mac = bench.device.made.ip("-br link show black0").split()[2]
    answered = [f for f in frames if f[12:14] == b"\x08\x06" and f[6:12].hex(":") == ours_mac]
    assert not answered
    assert not [frame for frame in frames if MARK in frame]
    drops = bench.drops()
    assert (drops["output_ipv4"], drops["forward_to_black"]) == (1, 1)
    assert drops["arp_in"] >= 1


def test_it_is_loaded_once_and_read_back(bench: Bench) -> None:
    with pytest.raises(GuardError, match=r"cannot be installed or read.*File exists"):
        guard.install(bench.device.inside, RULES)
    with pytest.raises(GuardError, match="has no guard"):
        guard.read_drops(bench.black.inside)
    name = bench.device.made.name
    run("ip", "netns", "exec", name, "nft", "flush", "chain", "inet", "guard", "input")
    with pytest.raises(GuardError, match="chain inet input has 0 of"):
        guard._verify(bench.device.inside, [RULES])
