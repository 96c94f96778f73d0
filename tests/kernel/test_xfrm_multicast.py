"""Multicast ESP between three devices on a bridge, through xfrm interfaces."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv6Address

import pytest

from protocol.ipsec.backend import AddSa, DeleteSa, IpsecBackend
from protocol.ipsec.grouppolicy import GroupPath
from protocol.ipsec.model import SecurityAssociation, Suite
from protocol.ipsec.schedule import sender_sas, shared_sa
from protocol.xfrm.backends import make_backend
from protocol.xfrm.namespace import in_namespace
from tests.support.netns import Namespace, bridged, require_esp

pytestmark = pytest.mark.kernel
BLACK = [IPv6Address("2001:db8:b::") + index for index in (1, 2, 3)]
GROUP = IPv6Address("ff0e::1")
RED_GROUP = IPv6Address("ff05::1234")
NOBODYS_GROUP = IPv6Address("ff05::4321")
PORT, MARKER_PORT = 7000, 7001
IF_ID, REQID = 66, 7
DEADLINE_S = 20
ETH_P_IPV6 = 0x86DD
ESP = 50


@dataclass
class Device:
    """One IPsec device of the test: its backend, and sockets behind its xfrm interface."""

    space: Namespace
    black: IPv6Address
    backend: IpsecBackend
    path: GroupPath
    sender: socket.socket
    receiver: socket.socket
    black_join: socket.socket

    def install(self, sas: list[SecurityAssociation]) -> None:
        outcomes = self.backend.apply([AddSa(sa) for sa in sas])
        assert all(outcome.ok for outcome in outcomes), outcomes

    def send(self, text: str, group: IPv6Address = RED_GROUP) -> None:
        try:
            self.sender.sendto(text.encode(), (str(group), PORT))
        except OSError as error:
            # Without an SA the kernel may say so at once; the wire is what the test looks at.
            print(f"send: {error}")

    def receive(self) -> str:
        return self.receiver.recv(2000).decode()

    def nothing_more(self) -> bool:
        """True if nothing is queued now; ask only after a later packet has arrived."""
        self.receiver.setblocking(False)
        try:
            self.receiver.recv(2000)
        except BlockingIOError:
            return True
        finally:
            self.receiver.settimeout(DEADLINE_S)
        return False


@dataclass
class Network:
    """Three devices and a look at every frame on their switch."""

    devices: list[Device]
    wire: socket.socket

    def packets_until(self, marker: str) -> list[bytes]:
        """Return each IPv6 packet to the groups on the wire up to a clear marker.

        Device 0 sends the marker past IPsec, after everything the test asked it to send. Beside
        the test's own packets there may be the kernel's, such as MLD reports of the xfrm interface.
        Those leave with whatever SA is used at that moment, so a test that looks for the SPIs of a
        new one first lets go all before a marker of its own (``forget_until``).
        """
        with in_namespace(self.devices[0].space.path):
            clear = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
            index = socket.if_nametoindex("black0")
        clear.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        clear.sendto(marker.encode(), (str(GROUP), MARKER_PORT))
        clear.close()
        found: list[bytes] = []
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            packet = self.wire.recv(4000)
            if packet[24:40] not in (GROUP.packed, RED_GROUP.packed):
                continue
            if packet.endswith(marker.encode()):
                return found
            found.append(packet)
        pytest.fail(f"marker not seen, but {len(found)} packets")

    def forget_until(self, marker: str) -> None:
        """Let go what was on the wire until now, such as reports in an SA that is used no more."""
        self.packets_until(marker)

    def spis_until(self, marker: str) -> set[int]:
        """Return the SPIs on the wire up to a clear marker; everything must be ESP."""
        packets = self.packets_until(marker)
        assert [packet[6] for packet in packets] == [ESP] * len(packets)
        return {int.from_bytes(packet[40:44], "big") for packet in packets}


def udp(space: Namespace) -> tuple[socket.socket, int]:
    """A UDP socket in a namespace with the deadline, and the index of its xfrm interface."""
    with in_namespace(space.path):
        made = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        index = socket.if_nametoindex("xfrm0")
    made.settimeout(DEADLINE_S)
    return made, index


def join(sock: socket.socket, group: IPv6Address, index: int) -> None:
    request = group.packed + struct.pack("@I", index)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, request)


def make_device(space: Namespace, number: int) -> Device:
    space.ip(f"-6 route add multicast {GROUP}/128 dev black0 table local metric 1")
    space.ip(f"link add xfrm0 type xfrm dev black0 if_id {IF_ID}")
    space.ip("link set xfrm0 mtu 1380 multicast on up")
    space.ip(f"addr add fd00:66::{number + 1}/64 dev xfrm0 nodad")
    sender, index = udp(space)
    sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
    sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 8)
    sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 0)
    receiver, _ = udp(space)
    receiver.bind((str(RED_GROUP), PORT))
    join(receiver, RED_GROUP, index)
    black_join, _ = udp(space)
    with in_namespace(space.path):
        join(black_join, GROUP, socket.if_nametoindex("black0"))
    path = GroupPath(BLACK[number], GROUP, IF_ID, REQID)
    backend = make_backend("netlink", space.path)
    return Device(space, BLACK[number], backend, path, sender, receiver, black_join)


@pytest.fixture(scope="module")
def shared_network() -> Iterator[Network]:
    require_esp()
    with bridged(BLACK) as (switch, spaces):
        with in_namespace(switch.path):
            wire = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_IPV6))
            wire.bind(("br0", ETH_P_IPV6))
        wire.settimeout(DEADLINE_S)
        devices = [make_device(space, number) for number, space in enumerate(spaces)]
        yield Network(devices, wire)
        wire.close()
        for device in devices:
            device.backend.close()
            for sock in (device.sender, device.receiver, device.black_join):
                sock.close()


@pytest.fixture
def network(shared_network: Network) -> Network:
    """The network with an empty SAD, the policies of a start, and nothing left to receive."""
    for device in shared_network.devices:
        old = [DeleteSa(sa.id) for sa in device.backend.dump_sas()]
        outcomes = device.backend.apply([*old, *device.path.start_up()])
        assert all(outcome.ok for outcome in outcomes)
        while not device.nothing_more():
            pass
    shared_network.forget_until("marker of the start")
    return shared_network


def epoch(device: Device, number: int, directions: bool = True) -> list[SecurityAssociation]:
    """The SAs of one epoch on one device."""
    return sender_sas(
        bytes(range(32)), epoch_number=number, epoch_tag=b"test", members=BLACK, group=GROUP,
        suite=Suite.AES_GCM_128, own=device.black, reqid=REQID, if_id=IF_ID, directions=directions,
    )  # fmt: skip


def own_spi(device: Device, number: int) -> int:
    return next(sa.spi for sa in epoch(device, number) if sa.source == device.black)


def own_spis(network: Network, number: int) -> set[int]:
    return {own_spi(device, number) for device in network.devices}


def everybody_hears(network: Network, label: str) -> None:
    """Each device sends once; each other receives exactly that."""
    for number, sender in enumerate(network.devices):
        sender.send(f"{label} {number}")
        for other in network.devices:
            if other is not sender:
                assert other.receive() == f"{label} {number}"


def test_without_an_sa_nothing_leaves(network: Network) -> None:
    first = network.devices[0]
    dropped = first.space.statistic("XfrmOutNoStates")
    first.send("must not leave")
    assert network.packets_until("marker one") == []
    assert first.space.statistic("XfrmOutNoStates") > dropped


def test_per_sender_sas_carry_multicast_to_all_others_and_not_back(network: Network) -> None:
    for device in network.devices:
        device.install(epoch(device, 1))
        assert device.backend.apply(device.path.switch(own_spi(device, 1)))[0].ok
    everybody_hears(network, "per sender")
    assert network.spis_until("marker two") == own_spis(network, 1)
    assert all(device.nothing_more() for device in network.devices)


@pytest.mark.parametrize("directions", [True, False])
def test_the_direction_keeps_a_sender_from_hearing_its_own_esp(
    network: Network, directions: bool
) -> None:
    first, second, _ = network.devices
    refused = first.space.statistic("XfrmInStateDirError")
    for device in network.devices:
        device.install(epoch(device, 1, directions))
    first.send("echo")
    assert second.receive() == "echo"
    # A router that serves senders and members on one link sends the packet back where it came from.
    echoes = [p for p in network.packets_until("marker five") if p[8:24] == first.black.packed]
    for packet in echoes:
        network.wire.sendto(packet, ("p0", ETH_P_IPV6, 0, 0, b"\x33\x33" + GROUP.packed[-4:]))
    second.send("last")
    heard = [first.receive()]
    while heard[-1] != "last":
        heard.append(first.receive())
    assert heard == (["last"] if directions else ["echo", "last"])
    assert first.space.statistic("XfrmInStateDirError") - refused == (
        len(echoes) if directions else 0
    )


def test_make_before_break_switches_by_the_policy_alone(network: Network) -> None:
    for device in network.devices:
        device.install(epoch(device, 1))
        device.backend.apply(device.path.switch(own_spi(device, 1)))
    everybody_hears(network, "old")
    for device in network.devices:
        device.install(epoch(device, 2))
    everybody_hears(network, "both")
    assert network.spis_until("marker three") == own_spis(network, 1)
    network.devices[1].send("as the kernel's reports", NOBODYS_GROUP)
    for device in network.devices:
        assert device.backend.apply(device.path.switch(own_spi(device, 2)))[0].ok
    network.forget_until("marker of the switch")
    everybody_hears(network, "new")
    for device in network.devices:
        outcomes = device.backend.apply([DeleteSa(sa.id) for sa in epoch(device, 1)])
        assert all(outcome.ok for outcome in outcomes)
    everybody_hears(network, "after")
    assert network.spis_until("marker four") == own_spis(network, 2)


@pytest.mark.parametrize("suite", [Suite.AES_CBC_SHA256, Suite.TDES_SHA1])
def test_the_papers_shared_sa_serves_all_senders(network: Network, suite: Suite) -> None:
    def install(number: int) -> int:
        for device in network.devices:
            sa = shared_sa(
                bytes(range(32)), epoch_number=number, epoch_tag=b"test", group=GROUP, suite=suite,
                own=device.black, reqid=REQID, if_id=IF_ID,
            )  # fmt: skip
            old = [DeleteSa(sa.id) for sa in device.backend.dump_sas()]
            assert all(outcome.ok for outcome in device.backend.apply([*old, AddSa(sa)]))
        return sa.spi

    for number in (1, 2):
        network.devices[1].send("as the kernel's reports", NOBODYS_GROUP)
        spi = install(number)
        network.forget_until(f"marker of installation {number}")
        everybody_hears(network, f"epoch {number}")
        assert network.spis_until(f"marker of epoch {number}") == {spi}
