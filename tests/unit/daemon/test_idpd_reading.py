"""What waits in idpd's sockets is read at once, and MIKE does not wait behind the network."""

from __future__ import annotations

from collections import Counter, deque
from ipaddress import IPv6Address
from types import SimpleNamespace
from typing import Any

from protocol.core.engine import DatagramReceived, Instant
from protocol.daemon.idpservice import READ_AT_ONCE, IdpService
from protocol.daemon.service import State
from protocol.daemon.sockets import Received
from protocol.idp.notice import PREAMBLE as NOTICE

PEER = IPv6Address("2001:db8:b::2")


class FakeSocket:
    def __init__(self, what: list[bytes]) -> None:
        self.waiting = deque(what)

    def receive(self) -> Any:
        return Received(self.waiting.popleft(), PEER, 0) if self.waiting else None


def service(group: list[bytes], local: list[bytes]) -> tuple[IdpService, list[DatagramReceived]]:
    """Return an idpd that is nothing but its reading."""
    idpd = IdpService.__new__(IdpService)
    seen: list[DatagramReceived] = []
    idpd.__dict__.update(
        group=FakeSocket(group),
        local=FakeSocket(local),
        state=State.RUNNING,
        _backend=SimpleNamespace(kernel=True),
        runtime=SimpleNamespace(deliver=seen.append),
        clock=SimpleNamespace(now=lambda: Instant(1000 * len(seen), 0)),
        _ignored=Counter(),
        identity=SimpleNamespace(trusts=1),
        _sorted=1,
    )
    return idpd, seen


def test_several_hellos_are_read_before_the_timers_have_their_turn() -> None:
    hellos = [b"\1\1\1%c" % number for number in range(READ_AT_ONCE + 3)]
    idpd, seen = service(hellos, [])
    idpd._group_readable()
    assert [event.payload for event in seen] == hellos[:READ_AT_ONCE]
    idpd._group_readable()
    assert [event.payload for event in seen] == hellos


def test_mikes_word_comes_after_one_hello_not_after_all() -> None:
    idpd, seen = service([b"\1\1\1a", b"\1\1\1b", b"\1\1\1c"], [])

    def deliver(event: DatagramReceived) -> None:
        if not seen:
            idpd.local.waiting.append(b"status")
        seen.append(event)

    idpd.runtime.deliver = deliver
    idpd._group_readable()
    assert [event.payload for event in seen] == [b"\1\1\1a", b"status", b"\1\1\1b", b"\1\1\1c"]
    assert seen[1].channel == "local"


def test_notices_are_handed_in_before_hellos_and_what_waited_for_them_says_so() -> None:
    notices = [NOTICE + b"a", NOTICE + b"b"]
    idpd, seen = service([b"\1\1\1a", notices[0], b"\1\1\1b", notices[1]], [])
    idpd._group_readable()
    assert [event.payload for event in seen] == [*notices, b"\1\1\1a", b"\1\1\1b"]
    assert [event.waited_ns for event in seen] == [0, 1000, 2000, 3000]
