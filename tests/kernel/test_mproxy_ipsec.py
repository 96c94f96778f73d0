"""Red multicast from client to client through two proxies and the group's SAs."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import IPv6Address
from pathlib import Path

import pytest

from protocol.daemon.sockets import EspMembership
from protocol.ipsec.backend import AddSa, DeleteSa, IpsecBackend
from protocol.ipsec.grouppolicy import ALL_IPV4_MULTICAST, ALL_MULTICAST, GroupPath
from protocol.ipsec.model import Suite
from protocol.ipsec.schedule import sender_sas
from protocol.xfrm.backends import make_backend
from protocol.xfrm.namespace import in_namespace
from tests.support.lans import DEADLINE_S, ETH_P_ALL, Host, Proxies, Wire, until_heard
from tests.support.netns import bridged, namespace, require_esp
from tests.support.waiting import wait_until

pytestmark = pytest.mark.kernel

BLACK = [IPv6Address("2001:db8:b::1"), IPv6Address("2001:db8:b::2")]
GROUP = IPv6Address("ff0e::1")
IF_ID, REQID = 66, 7
RED_GROUPS = ["ff0e::77", "239.1.2.3"]
ESP = 50
IP_MTU_DISCOVER, IP_PMTUDISC_DONT = 10, 0


class Tunnelled(Proxies):
    """Two nations: a client each, behind a device with xfrm0 and a proxy."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        super().__init__(directory, stack)
        self.hosts: list[Host] = []
        self.backends: list[IpsecBackend] = []
        switch, spaces = stack.enter_context(bridged(BLACK))
        with in_namespace(switch.path):
            wire = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))
            wire.bind(("br0", ETH_P_ALL))
        stack.callback(wire.close)
        self.black = Wire(wire)
        for number, device in enumerate(spaces):
            self.spaces[f"d{number}"] = device
            client = stack.enter_context(namespace(f"c{number}"))
            self.hosts.append(Host(client, stack))
            for space in (device, client):
                with in_namespace(space.path):
                    for place in ("all", "default"):
                        Path(f"/proc/sys/net/ipv4/conf/{place}/rp_filter").write_text("0")
            device.ip(f"-6 route add multicast {GROUP}/128 dev black0 table local metric 1")
            device.ip(f"link add xfrm0 type xfrm dev black0 if_id {IF_ID}")
            device.ip("link set xfrm0 mtu 1380 multicast on up")
            device.ip(f"link add red0 type veth peer name eth0 netns {client.name}")
            device.ip("link set red0 up")
            client.ip("link set eth0 up")
            for space, interface, tail in ((device, "red0", 1), (client, "eth0", 5)):
                space.ip(f"addr add fd00:{number}::{tail}/64 dev {interface} nodad")
                space.ip(f"addr add 10.{number}.0.{tail}/24 dev {interface}")
            with in_namespace(device.path):
                membership = EspMembership("black0", BLACK[number], GROUP, lambda: ())
                membership.join()
            stack.callback(membership.leave)
            backend = make_backend("netlink", device.path)
            stack.callback(backend.close)
            self.backends.append(backend)
            path = self.path(number)
            assert all(outcome.ok for outcome in backend.apply(path.start_up()))
            run = self.run_directory(f"d{number}")
            self.spawn(
                f"d{number}",
                f"""
                [device]
                name = "d{number}"
                run_directory = "{run}"
                [mproxy]
                upstream = "xfrm0"
                signal_upstream = false
                never = ["{GROUP}"]
                last_listener_interval_ms = 200
                [[mproxy.downstream]]
                interface = "red0"
                prefixes = ["fd00:{number}::/64", "10.{number}.0.0/24"]
                """,
            )

    @staticmethod
    def path(number: int) -> GroupPath:
        destinations = (ALL_MULTICAST, ALL_IPV4_MULTICAST)
        return GroupPath(BLACK[number], GROUP, IF_ID, REQID, destinations)

    def install(self, epoch: int) -> None:
        """Write the SAs of an epoch on both devices and send with them."""
        for number, backend in enumerate(self.backends):
            sas = sender_sas(
                bytes(range(32)), epoch_number=epoch, epoch_tag=b"test", members=BLACK,
                group=GROUP, suite=Suite.AES_GCM_128, own=BLACK[number], reqid=REQID, if_id=IF_ID,
            )  # fmt: skip
            old = [DeleteSa(sa.id) for sa in backend.dump_sas()]
            own = next(sa for sa in sas if sa.source == BLACK[number])
            steps = [*old, *map(AddSa, sas), *self.path(number).switch(own.spi)]
            outcomes = backend.apply(steps)
            assert all(outcome.ok for outcome in outcomes), outcomes

    def protocols_on_black(self) -> set[int]:
        """Return the IP protocols of what has passed the black switch, ICMPv6 left out.

        IPv4 is given as 400 and its protocol.
        """
        found = set()
        for packet in self.black.frames():
            if packet[0] >> 4 == 4:
                found.add(400 + packet[9])
            elif packet[6] != socket.IPPROTO_ICMPV6 and packet[6] != 0:
                found.add(packet[6])
        return found


@pytest.fixture(scope="module")
def tunnelled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tunnelled]:
    require_esp()
    with ExitStack() as stack:
        yield Tunnelled(tmp_path_factory.mktemp("tunnelled"), stack)


@pytest.mark.parametrize("group", RED_GROUPS)
def test_without_sas_red_waits_at_home(tunnelled: Tunnelled, group: str) -> None:
    """Fail closed: the proxy forwards into xfrm0, and nothing leaves."""
    sender = tunnelled.hosts[0].udp(6 if ":" in group else 4)
    device = tunnelled.spaces["d0"]
    before = device.statistic("XfrmOutNoStates")
    tunnelled.black.frames()

    def refused() -> int:
        sender.sendto(b"not yet", (group, 7000))
        return device.statistic("XfrmOutNoStates") - before

    wait_until(refused, DEADLINE_S, "the kernel finds no SA", accept=lambda count: count >= 3)
    assert tunnelled.protocols_on_black() == set()


@pytest.mark.parametrize("group", RED_GROUPS)
def test_a_red_client_hears_a_red_client_of_another_nation(
    tunnelled: Tunnelled, group: str
) -> None:
    """IPv6 and IPv4 in the same SAs over the IPv6 black network; only ESP is on its wire."""
    tunnelled.install(1)
    tunnelled.black.frames()
    version = 6 if ":" in group else 4
    for one, other in ((0, 1), (1, 0)):
        listener = tunnelled.hosts[other].listen(group)
        heard = until_heard(tunnelled.hosts[one].udp(version), listener, group, f"from {one}")
        assert heard.startswith(f"from {one}".encode())
        listener.close()
        tunnelled.await_listener(f"d{other}", group, gone=True)
    assert tunnelled.protocols_on_black() == {ESP}


@pytest.mark.parametrize("group", RED_GROUPS)
def test_the_switch_to_a_new_epoch_moves_both_families(tunnelled: Tunnelled, group: str) -> None:
    """Policies of both families follow; afterwards the old SAs are gone."""
    version = 6 if ":" in group else 4
    listener = tunnelled.hosts[1].listen(group)
    sender = tunnelled.hosts[0].udp(version)
    for epoch in (2, 3):
        tunnelled.install(epoch)
        assert until_heard(sender, listener, group, f"epoch {epoch}")
    listener.close()


def test_large_datagrams_pass_the_smaller_mtu(tunnelled: Tunnelled) -> None:
    """IPv6: the device tells the sender by ICMPv6, which then fragments. IPv4: routers fragment."""
    tunnelled.install(1)
    for group in RED_GROUPS:
        listener = tunnelled.hosts[1].listen(group)
        sender = tunnelled.hosts[0].udp(6 if ":" in group else 4)
        heard = until_heard(sender, listener, group, "large " + "x" * 2000)
        assert len(heard) > 2000
        listener.close()


def test_ipv4_between_the_two_mtus_needs_a_sender_that_allows_fragments(
    tunnelled: Tunnelled,
) -> None:
    """No router answers a too large IPv4 multicast packet with DF (RFC 1112): it is lost.

    Linux sets DF by default on what fits the LAN's MTU; IP_PMTUDISC_DONT leaves it out.
    """
    tunnelled.install(1)
    group = RED_GROUPS[1]
    listener = tunnelled.hosts[1].listen(group)
    sender = tunnelled.hosts[0].udp(4)
    text = "medium " + "x" * 1400
    assert until_heard(sender, listener, group, "the way is open")
    for _ in range(5):
        sender.sendto(text.encode(), (group, 7000))
    sender.sendto(b"after it", (group, 7000))
    listener.settimeout(DEADLINE_S)
    heard = [listener.recv(2000)]
    while heard[-1] != b"after it":
        heard.append(listener.recv(2000))
    listener.settimeout(0.05)
    assert [packet[:6] for packet in heard if packet.startswith(b"medium")] == []
    sender.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DONT)
    assert len(until_heard(sender, listener, group, text)) > 1400
    listener.close()
