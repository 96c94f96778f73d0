"""Red multicast of the devices themselves: sockets on the xfrm interface, for the kernel tests."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from ipaddress import IPv6Address

from testbed.namespaces import NetNamespace
from testbed.network import XFRM

GROUP, PORT = "ff0e::7e57", 47700
MARK = b"red stream of the test "


class RedPath:
    """A sender and a receiver of one device; both use the xfrm interface only."""

    def __init__(self, namespace: NetNamespace, red: IPv6Address) -> None:
        with namespace.entered():
            index = socket.if_nametoindex(XFRM)
            self.sender = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
            self.receiver = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        v6 = socket.IPPROTO_IPV6
        self.sender.bind((str(red), 0))
        self.sender.setsockopt(v6, socket.IPV6_MULTICAST_IF, index)
        self.sender.setsockopt(v6, socket.IPV6_MULTICAST_LOOP, 0)
        self.receiver.bind((GROUP, PORT, 0, index))
        membership = IPv6Address(GROUP).packed + struct.pack("@I", index)
        self.receiver.setsockopt(v6, socket.IPV6_JOIN_GROUP, membership)
        self.receiver.setblocking(False)
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        self.sent = 0

    def send(self, count: int) -> None:
        """Send so many packets now."""
        for _ in range(count):
            self.sender.sendto(MARK + b"%d" % self.sent, (GROUP, PORT))
            self.sent += 1

    def received(self) -> int:
        """Return how many of the stream's packets have come since the last call."""
        count = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                count += self.receiver.recv(2048).startswith(MARK)
        return count

    def stream(self, interval_s: float = 0.02) -> None:
        """Send in the background until closed, whatever becomes of the packets."""

        def run() -> None:
            while not self._end.wait(interval_s):
                with contextlib.suppress(OSError):
                    self.send(1)

        self._thread = threading.Thread(target=run, name="red-stream")
        self._thread.start()

    def close(self) -> None:
        """End the stream; idempotent."""
        self._end.set()
        if self._thread is not None:
            self._thread.join()
        self.sender.close()
        self.receiver.close()
