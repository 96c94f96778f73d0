"""Red LANs of three nations behind proxies, with a plain bridge in the place of the tunnel.

::

    alpha: sender --- a [red0 xfrm0] ---+
                                        |
    beta: c1, c2 === r [eth1 eth0] --- b [red0 xfrm0] ---+--- tunnel (br0)
                                        |
    gamma: c3 ---------------- c [red0 xfrm0] -----------+

Proxies run in ``a``, ``b``, ``c`` (IPsec devices) and ``r`` (LAN router).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypeVar

from protocol.daemon.control import ControlError, request
from protocol.daemon.nursery import Nursery
from protocol.xfrm.namespace import in_namespace
from tests.support.netns import Namespace, namespace
from tests.support.waiting import wait_until

T = TypeVar("T")

ETH_P_ALL = 3
PORT = 7000
TUNNEL_MTU = 1380
DEADLINE_S = 20.0 if os.environ.get("TESTBED_GUEST") != "1" else 120.0

SENDER, SENDER4 = "fd00:1::5", "10.1.0.5"

PROXIES: dict[str, dict[str, Any]] = {
    "a": {"upstream": "xfrm0", "signal_upstream": False, "lans": {"red0": "1"}},
    "b": {"upstream": "xfrm0", "signal_upstream": False, "lans": {"red0": "2"}},
    "c": {"upstream": "xfrm0", "signal_upstream": False, "lans": {"red0": "3"}},
    "r": {"upstream": "eth0", "lans": {"eth1": "2"}},
}
SETTINGS: dict[str, Any] = {
    "never": ["ff0e::1/128"],
    "startup_response_ms": 200,
    "last_listener_interval_ms": 200,
    "sweep_interval_ms": 100,
}


@dataclass
class Host:
    """A client or sender: sockets of its own namespace, closed with the network."""

    space: Namespace
    stack: ExitStack

    def inside(self, make: Callable[[], T]) -> T:
        with in_namespace(self.space.path):
            return make()

    def udp(self, version: int) -> socket.socket:
        """A socket with the test's deadline, multicasting on eth0 with a hop limit of 8."""
        family = socket.AF_INET6 if version == 6 else socket.AF_INET
        sock = self.inside(lambda: socket.socket(family, socket.SOCK_DGRAM))
        self.stack.callback(sock.close)
        index = self.index("eth0")
        if version == 6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 8)
        else:
            place = struct.pack("@8xi", index)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, place)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 8)
        sock.settimeout(0.05)
        return sock

    def index(self, interface: str) -> int:
        return self.inside(lambda: socket.if_nametoindex(interface))

    def listen(self, group: str) -> socket.socket:
        """Join a group and return the socket that hears it; closing it leaves."""
        address = ip_address(group)
        sock = self.udp(address.version)
        place = (group, PORT) if address.version == 4 else (group, PORT, 0, self.index("eth0"))
        sock.bind(place)
        if address.version == 6:
            membership = address.packed + struct.pack("@I", self.index("eth0"))
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, membership)
        else:
            membership = address.packed + struct.pack("@4xi", self.index("eth0"))
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        return sock

    def listen_to(self, source: str, group: str) -> socket.socket:
        """Join one source of a group (MCAST_JOIN_SOURCE_GROUP, IPv6)."""
        sock = self.udp(6)
        sock.bind((group, PORT))
        addresses = [struct.pack("@HHI16sI", socket.AF_INET6, 0, 0, ip_address(text).packed, 0)
                     .ljust(128, b"\0") for text in (group, source)]  # fmt: skip
        place = struct.pack("@I4x", self.index("eth0"))
        sock.setsockopt(socket.IPPROTO_IPV6, 46, place + b"".join(addresses))
        return sock


@dataclass
class Wire:
    """Everything that passes an interface, both ways."""

    sock: socket.socket

    def frames(self) -> list[bytes]:
        """Return what has passed since the last call."""
        found = []
        self.sock.setblocking(False)
        while True:
            try:
                found.append(self.sock.recv(65536))
            except BlockingIOError:
                return found

    def saw(self, text: str) -> int:
        """Count the frames with these bytes since the last call."""
        return sum(text.encode() in frame for frame in self.frames())


class Proxies:
    """Proxies in namespaces, from one nursery.

    Attributes:
        nursery: where they come from.
        pids: their processes, by name.
        spaces: their namespaces, by name.
    """

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.spaces: dict[str, Namespace] = {}
        self.pids: dict[str, int] = {}
        self.nursery = stack.enter_context(Nursery(directory / "nursery.stderr"))
        self._directory = directory
        self._stack = stack

    def run_directory(self, name: str) -> Path:
        """Return a proxy's run directory, which exists."""
        run = self._directory / name / "run"
        run.mkdir(parents=True, exist_ok=True)
        return run

    def spawn(self, name: str, text: str) -> None:
        """Start a proxy with this file and wait until it answers."""
        config = self.run_directory(name).parent / "lan.toml"
        output = config.with_name("stderr")
        config.write_text(text)
        self.pids[name] = self.nursery.spawn(
            "mproxyd", config, namespace=self.spaces[name].path, output=output
        )

        def answers() -> bool:
            status = self.nursery.status(self.pids[name])
            assert status is None, f"{name} ended ({status}): {output.read_text()}"
            return bool(self.status(name)["ok"])

        wait_until(answers, DEADLINE_S, f"proxy {name} answers", tolerate=(ControlError,))

    def kill(self, name: str) -> None:
        """End a proxy as a crash does."""
        os.kill(self.pids[name], signal.SIGKILL)
        self.nursery.wait(self.pids[name], 10)

    def status(self, name: str) -> dict[str, Any]:
        return request(self._directory / name / "run" / "mproxyd.sock", {"cmd": "status"}, 10.0)

    def trace(self, name: str) -> list[dict[str, Any]]:
        run = self._directory / name / "run"
        request(run / "mproxyd.sock", {"cmd": "flush"}, 10.0)
        text = (run / "mproxyd.trace.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]

    def groups(self, name: str) -> set[str]:
        """Return the groups that listeners of a proxy want."""
        ports = self.status(name)["downstream"]
        return {item["group"] for port in ports for item in port["groups"]}

    def await_listener(self, name: str, group: str, *, gone: bool = False) -> None:
        """Wait until a proxy knows that somebody listens, or that nobody does."""
        wait_until(
            lambda: self.groups(name),
            DEADLINE_S,
            f"{name} {'forgets' if gone else 'learns of'} {group}",
            accept=lambda groups: (group in groups) is not gone,
        )

    # Looking.

    def wire(self, name: str, interface: str) -> Wire:
        """Return a look at an interface from now on."""
        with in_namespace(self.spaces[name].path):
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
            sock.bind((interface, ETH_P_ALL))
        self._stack.callback(sock.close)
        return Wire(sock)

    def routes(self, name: str) -> list[list[str]]:
        """Return the kernel's IPv6 multicast routes, word by word."""
        with in_namespace(self.spaces[name].path):
            lines = Path("/proc/thread-self/net/ip6_mr_cache").read_text().splitlines()
        return [line.split() for line in lines[1:]]

    def arrived(self, name: str, group: str) -> int:
        """Return how many IPv6 packets of a group a proxy's kernel has had in its hands."""
        full = ip_address(group).exploded
        return sum(int(words[3]) for words in self.routes(name) if words[0] == full)


class RedNetwork(Proxies):
    """The network of this module's drawing.

    Attributes:
        hosts: clients and sender by name.
    """

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        super().__init__(directory, stack)
        self.hosts: dict[str, Host] = {}
        for name in ("tunnel", "lan", "a", "b", "c", "r", "sender", "c1", "c2", "c3"):
            self.spaces[name] = stack.enter_context(namespace(name))
            with in_namespace(self.spaces[name].path):
                for place in ("all", "default"):
                    Path(f"/proc/sys/net/ipv4/conf/{place}/rp_filter").write_text("0")
        for bridge in ("tunnel", "lan"):
            self.spaces[bridge].ip("link add br0 type bridge mcast_snooping 0")
            self.spaces[bridge].ip("link set br0 up")
        for device in "abc":
            self._port("tunnel", device, "xfrm0")
            self.spaces[device].ip(f"link set xfrm0 mtu {TUNNEL_MTU}")
        self._wire("a", "red0", "sender", "eth0")
        self._wire("b", "red0", "r", "eth0")
        self._wire("c", "red0", "c3", "eth0")
        self._port("lan", "r", "eth1")
        self._port("lan", "c1", "eth0")
        self._port("lan", "c2", "eth0")
        for name, interface, tail, lan in (
            ("a", "red0", 1, "1"), ("sender", "eth0", 5, "1"),
            ("b", "red0", 1, "2:ffff"), ("r", "eth0", 2, "2:ffff"), ("r", "eth1", 1, "2"),
            ("c1", "eth0", 5, "2"), ("c2", "eth0", 6, "2"),
            ("c", "red0", 1, "3"), ("c3", "eth0", 5, "3"),
        ):  # fmt: skip
            self.spaces[name].ip(f"addr add fd00:{lan}::{tail}/64 dev {interface} nodad")
            subnet = lan.replace(":ffff", ".255") if ":" in lan else f"{lan}.0"
            self.spaces[name].ip(f"addr add 10.{subnet}.{tail}/24 dev {interface}")
        for name in ("sender", "c1", "c2", "c3"):
            self.hosts[name] = Host(self.spaces[name], stack)

    def _port(self, bridge: str, name: str, interface: str) -> None:
        self._wire(bridge, f"p-{name}", name, interface)
        self.spaces[bridge].ip(f"link set p-{name} master br0")

    def _wire(self, one: str, interface: str, other: str, peer: str) -> None:
        end = f"type veth peer name {peer} netns {self.spaces[other].name}"
        self.spaces[one].ip(f"link add {interface} {end}")
        self.spaces[one].ip(f"link set {interface} up")
        self.spaces[other].ip(f"link set {peer} up")

    def start(self, name: str, **settings: Any) -> None:
        """Start a proxy and wait until it answers."""
        self.spawn(name, proxy_toml(name, self.run_directory(name), {**SETTINGS, **settings}))

    def start_all(self) -> None:
        for name in PROXIES:
            self.start(name)


def proxy_toml(name: str, run_directory: Path, settings: dict[str, Any]) -> str:
    """The file of one proxy of this module's drawing."""
    proxy = PROXIES[name]
    values = {key: value for key, value in proxy.items() if key != "lans"} | settings
    lines = ["[device]", f'name = "{name}"', f'run_directory = "{run_directory}"', "[mproxy]"]
    lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    for interface, nation in proxy["lans"].items():
        prefixes = [f"fd00:{nation}::/32", f"10.{nation}.0.0/16"]
        if name == "r":
            prefixes = [f"fd00:{nation}::/64", f"10.{nation}.0.0/24"]
        lines += ["[[mproxy.downstream]]", f'interface = "{interface}"']
        lines.append(f"prefixes = {json.dumps(prefixes)}")
    return "\n".join(lines) + "\n"


@contextmanager
def red_network(directory: Path) -> Iterator[RedNetwork]:
    """The network, without proxies yet."""
    with ExitStack() as stack:
        yield RedNetwork(directory, stack)


def until_heard(sender: socket.socket, receiver: socket.socket, group: str, text: str) -> bytes:
    """Send numbered packets until the receiver has one of them; return it."""
    number = 0

    def once() -> bytes:
        nonlocal number
        number += 1
        sender.sendto(f"{text} {number}".encode(), (group, PORT))
        while True:
            heard = receiver.recv(65536)
            if heard.startswith(text.encode()):
                return heard

    return wait_until(once, DEADLINE_S, f"{text!r} to {group} is heard", tolerate=(TimeoutError,))
