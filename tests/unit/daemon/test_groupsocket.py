"""Which of a channel's sockets are members of its group: each costs a copy of every datagram."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from ipaddress import IPv6Address
from typing import Any

import pytest

from protocol.core.errors import LocalError
from protocol.daemon import memberships
from protocol.daemon.config import ChannelSection
from protocol.daemon.groupsocket import GroupSocket

OWN = IPv6Address("::1")
OTHERS = [IPv6Address(f"2001:db8::{number}") for number in (2, 3)]


class Kernel:
    """Keeps the memberships instead of the kernel."""

    def __init__(self) -> None:
        self.members: set[int] = set()
        self.refuses = False

    def join(self, sock: socket.socket, *_: Any) -> None:
        if self.refuses:
            raise LocalError("cannot join")
        self.members.add(sock.fileno())

    def leave(self, sock: socket.socket, *_: Any) -> None:
        self.members.remove(sock.fileno())


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    fake = Kernel()
    monkeypatch.setattr(memberships, "join", fake.join)
    monkeypatch.setattr(memberships, "leave", fake.leave)
    return fake


@pytest.fixture(params=["ff02::1d0", "ff32::1d0"], ids=["any-source", "source-specific"])
def group(request: pytest.FixtureRequest, kernel: Kernel) -> Iterator[GroupSocket]:
    channel = ChannelSection(IPv6Address(request.param), free_port())
    made = GroupSocket("lo", OWN, channel, 1, lambda: OTHERS, asking=(1,))
    yield made
    made.close()


def free_port() -> int:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.bind(("::1", 0))
        return int(sock.getsockname()[1])


def expected(group: GroupSocket, *, suspects: bool) -> set[int]:
    assert group.strangers is not None
    members = {group.fileno()}
    if not memberships.is_source_specific(group._group):
        members.add(group.strangers.fileno())
    return members | ({sock.fileno() for sock in group.flooded} if suspects else set())


def test_the_suspects_socket_is_a_member_while_there_are_suspects(
    group: GroupSocket, kernel: Kernel
) -> None:
    group.know(OTHERS)
    group.join()
    assert kernel.members == expected(group, suspects=False)
    group.know(OTHERS, OTHERS[:1])
    assert kernel.members == expected(group, suspects=True)
    group.know(OTHERS, OTHERS)
    assert kernel.members == expected(group, suspects=True)
    group.know(OTHERS)
    assert kernel.members == expected(group, suspects=False)
    group.know(OTHERS, OTHERS[1:])
    group.leave()
    assert kernel.members == set()


def test_suspects_known_before_the_group_is_joined(group: GroupSocket, kernel: Kernel) -> None:
    group.know(OTHERS, OTHERS[:1])
    assert kernel.members == set()
    group.join()
    assert kernel.members == expected(group, suspects=True)


def test_a_refusal_by_the_kernel_is_counted(group: GroupSocket, kernel: Kernel) -> None:
    group.know(OTHERS)
    group.join()
    kernel.refuses = True
    group.know(OTHERS, OTHERS[:1])
    assert group.all_counters()["group.join_failed"] == 1
