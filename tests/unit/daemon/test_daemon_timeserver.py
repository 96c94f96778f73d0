from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from ipaddress import IPv6Address

import pytest

from protocol.core.errors import LocalError
from protocol.daemon.timeserver import (
    TimeServer,
    ntp_from_unix_ns,
    request_defect,
    unix_ns_from_ntp,
)
from tests.support.waiting import wait_until

LOCALHOST = IPv6Address("::1")
OFFSET_NS = 123_456_789_000


@pytest.fixture
def server() -> Iterator[TimeServer]:
    opened = TimeServer(LOCALHOST, 0, OFFSET_NS)
    yield opened
    opened.close()


@pytest.fixture
def client(server: TimeServer) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.connect(("::1", server.port))
        yield sock


def request(transmit: int, version: int = 4, mode: int = 3) -> bytes:
    head = struct.pack("!BBbb", version << 3 | mode, 0, -6, 0)
    return head + bytes(36) + transmit.to_bytes(8, "big")


def test_four_stamps_show_the_injected_offset(server: TimeServer, client: socket.socket) -> None:
    t1_ns = time.time_ns()
    client.send(request(ntp_from_unix_ns(t1_ns)))
    server.readable()
    answer = client.recv(100)
    t4_ns = time.time_ns()
    assert len(answer) == 48
    head, stratum, poll, _, _, _, _, _, origin, receive, transmit = struct.unpack(
        "!BBbb4s4s4sQQQQ", answer
    )
    assert head == 4 << 3 | 4
    assert (stratum, poll) == (1, -6)
    assert origin == ntp_from_unix_ns(t1_ns)
    t2_ns, t3_ns = unix_ns_from_ntp(receive), unix_ns_from_ntp(transmit)
    assert t1_ns <= t2_ns - OFFSET_NS <= t3_ns - OFFSET_NS <= t4_ns
    assert server.counters == {"ntp.answered": 1}


def test_the_receive_stamp_is_the_kernels(server: TimeServer, client: socket.socket) -> None:
    def stamped_on_arrival() -> bool:
        client.send(request(1))
        deadline_ns = time.time_ns() + 20_000_000
        while time.time_ns() < deadline_ns:
            pass
        server.readable()
        receive = int.from_bytes(client.recv(100)[32:40], "big")
        return unix_ns_from_ntp(receive) - OFFSET_NS < deadline_ns - 10_000_000

    # The kernel switches its stamps on a moment after a socket asked for them.
    wait_until(stamped_on_arrival, 5.0, "the kernel stamps datagrams")


@pytest.mark.parametrize(
    ("datagram", "defect"),
    [
        (b"", "truncated"),
        (request(5)[:47], "truncated"),
        (request(5) + b"x", "oversized"),
        (request(5) * 100, "oversized"),
        (request(5, mode=4), "not_a_client"),
        (request(5, mode=6), "not_a_client"),
        (request(5, version=1), "version"),
        (request(0), "no_transmit_stamp"),
    ],
)
def test_anything_else_is_counted_and_not_answered(
    server: TimeServer, client: socket.socket, datagram: bytes, defect: str
) -> None:
    client.send(datagram)
    server.readable()
    assert server.counters == {f"ntp.{defect}": 1}
    client.setblocking(False)
    with pytest.raises(BlockingIOError):
        client.recv(100)
    assert request_defect(datagram[:49]) == defect


@pytest.mark.parametrize("wall_ns", [0, 1, 999_999_999, 1_795_478_412_872_114_540, 2**60])
def test_stamps_survive_the_format(wall_ns: int) -> None:
    assert abs(unix_ns_from_ntp(ntp_from_unix_ns(wall_ns)) - wall_ns) <= 1


def test_the_epoch_of_rfc_5905() -> None:
    assert ntp_from_unix_ns(0) == 2_208_988_800 << 32


def test_an_address_that_is_not_ours() -> None:
    with pytest.raises(LocalError, match="cannot open port"):
        TimeServer(IPv6Address("2001:db8::dead"), 0)
