"""The kernel drops the kinds of message that the engine would drop, and nothing else."""

from __future__ import annotations

import select
import socket
import struct

import pytest

from protocol.daemon.mikeeffects import kind_filter
from protocol.identity.envelope import Envelope
from protocol.mike.messages import Kind
from tests.support.identities import address

SO_ATTACH_FILTER = 26


def datagram(kind: int, protocol: int = 2) -> bytes:
    unsigned = Envelope(
        protocol=protocol,
        kind=kind,
        sender=address(1),
        fingerprint=bytes(16),
        startup_wall_ns=1,
        sequence=0,
        sent_wall_ns=1,
        body=b"",
    ).encode_unsigned()
    return unsigned + bytes(64)


@pytest.mark.parametrize("kinds", [(), (2, 3, 4, 6, 7), tuple(Kind)])
def test_only_kinds_that_matter_pass(kinds: tuple[int, ...]) -> None:
    with (
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as receiver,
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind(("::1", 0))
        code = kind_filter(kinds)
        program = struct.pack("@HP", len(code), code.buffer_info()[0])
        receiver.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
        good = [datagram(kind) for kind in Kind]
        malformed = [b"", b"\x01\x02", bytes([1, 2, 1]), datagram(max(Kind) + 1), datagram(200)]
        malformed += [datagram(1, protocol=1), b"\x02" + datagram(1)[1:]]
        sent = good + malformed
        for payload in sent:
            sender.sendto(payload, receiver.getsockname())
        got = []
        while select.select([receiver], [], [], 0.1)[0]:
            got.append(receiver.recv(2048))
    assert got == [datagram(kind) for kind in kinds] + malformed
