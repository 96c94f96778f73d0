"""Many datagrams by one call: what came, from whom, and when, is as from the call for one."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from ipaddress import IPv6Address

import pytest

from protocol.daemon.floodedsocket import READ_AT_ONCE, FloodedSocket
from protocol.daemon.sockets import DATAGRAM_BYTES_MAX, stamped_socket

OWN = IPv6Address("::1")


@pytest.fixture
def way() -> Iterator[tuple[FloodedSocket, socket.socket]]:
    flooded = FloodedSocket(stamped_socket("", OWN, 0), "suspects")
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender:
        sender.connect(flooded._socket.getsockname())
        yield flooded, sender
    flooded.close()


def read(flooded: FloodedSocket) -> list[bytes]:
    return [received.payload for received in flooded.receive_many()]


def test_an_empty_socket_gives_nothing(way: tuple[FloodedSocket, socket.socket]) -> None:
    flooded, _ = way
    assert read(flooded) == []
    assert flooded.counters == {}


def test_order_lengths_source_and_waiting(way: tuple[FloodedSocket, socket.socket]) -> None:
    flooded, sender = way
    sent = [bytes([number]) * (number * 7) for number in range(5)] + [bytes(DATAGRAM_BYTES_MAX)]
    for payload in sent:
        sender.send(payload)
    found = list(flooded.receive_many())
    assert [received.payload for received in found] == sent
    assert {received.source for received in found} == {OWN}
    assert all(0 < received.waited_ns < 10_000_000_000 for received in found)


def test_more_than_one_call_reads(way: tuple[FloodedSocket, socket.socket]) -> None:
    flooded, sender = way
    sent = [b"%d" % number for number in range(READ_AT_ONCE + 3)]
    for payload in sent:
        sender.send(payload)
    assert read(flooded) == sent[:READ_AT_ONCE]
    assert read(flooded) == sent[READ_AT_ONCE:]


def test_what_is_too_long_is_counted(way: tuple[FloodedSocket, socket.socket]) -> None:
    flooded, sender = way
    for payload in (b"before", bytes(DATAGRAM_BYTES_MAX + 1), bytes(20_000), b"after"):
        sender.send(payload)
    assert read(flooded) == [b"before", b"after"]
    assert flooded.counters == {"suspects.oversized": 2}


def test_one_of_too_many_is_thrown_away_and_the_last_of_a_row_is_not(
    way: tuple[FloodedSocket, socket.socket],
) -> None:
    flooded, sender = way
    flooded.sheds = lambda payload, _mono_ns: payload.startswith(b"forged")
    for _ in range(3):
        sender.send(b"forged")
    sender.send(b"own")
    assert read(flooded) == [b"own"]
    for number in range(READ_AT_ONCE + 1):
        sender.send(b"forged %d" % number)
    assert read(flooded) == [b"forged %d" % (READ_AT_ONCE - 1)]
    assert read(flooded) == []


def test_a_closed_socket_is_counted(way: tuple[FloodedSocket, socket.socket]) -> None:
    flooded, _ = way
    flooded.close()
    assert read(flooded) == []
    assert flooded.counters == {"suspects.receive_failed.EBADF": 1}
