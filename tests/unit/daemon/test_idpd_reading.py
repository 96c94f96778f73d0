"""What waits in idpd's sockets is read at once, and MIKE does not wait behind the network."""

from __future__ import annotations

import socket
from collections import Counter, deque
from ipaddress import IPv6Address
from types import SimpleNamespace
from typing import Any, cast

import pytest

from protocol.core.engine import DatagramReceived, Instant
from protocol.daemon.idpservice import READ_AT_ONCE, IdpService
from protocol.daemon.service import State
from protocol.daemon.sockets import SHED_AT_ONCE, DatagramSocket, Received, udp_socket
from protocol.daemon.strangersreader import StrangersReader
from protocol.idp import lighthello, notice, pairseal
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
        identity=SimpleNamespace(shedding=SimpleNamespace(changes=1)),
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


def loopback() -> tuple[socket.socket, DatagramSocket]:
    """Return who sends, and who receives."""
    receiver = udp_socket()
    receiver.bind(("::1", 0))
    sender = udp_socket()
    sender.connect(receiver.getsockname()[:2])
    return sender, DatagramSocket(receiver, "test")


def test_one_of_too_many_is_handed_on_now_and_then_to_tell_how_long_it_waited() -> None:
    sender, receiver = loopback()
    receiver.sheds = lambda payload, mono_ns: payload.startswith(b"junk")
    for number in range(2 * SHED_AT_ONCE):
        sender.send(b"junk %d" % number)
    sender.send(b"good")
    found = []
    while (received := receiver.receive()) is not None:
        found.append(received.payload)
    ends = [b"junk %d" % (times * SHED_AT_ONCE - 1) for times in (1, 2)]
    assert found == [*ends, b"good"]
    sender.close()
    receiver.close()


def test_idpd_sheds_envelopes_and_light_hellos() -> None:
    idpd, _ = service([], [])
    idpd.__dict__["identity"] = SimpleNamespace(sheds=lambda payload, mono_ns: True)
    idpd.__dict__["_idp"] = SimpleNamespace(
        followers=SimpleNamespace(sheds=lambda payload, mono_ns: len(payload) > 50)
    )
    cheap = [lighthello.HEADER, notice.PREAMBLE, pairseal.PREAMBLE]
    assert [idpd.sheds(head + bytes(40), 0) for head in cheap] == [False] * 3
    assert idpd.sheds(lighthello.HEADER + bytes(60), 0)
    assert idpd.sheds(b"\1\1\1\2" + bytes(200), 0)


def test_auth_18_strangers_have_a_share_of_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    used_ns = [0, 3_000_000]
    monkeypatch.setattr("time.thread_time_ns", lambda: used_ns.pop(0))
    calls: list[Any] = []
    seen: list[bytes] = []
    strangers = FakeSocket([b"\1\1\1a", b"\1\1\1b"])
    strangers.fileno = lambda: 9  # type: ignore[attr-defined]
    loop = SimpleNamespace(
        add_reader=lambda fd, _callback: None,
        remove_reader=calls.append,
        set_timer=lambda name, at, _callback: calls.append(at),
    )
    clock = SimpleNamespace(now=lambda: Instant(1000, 0))
    reader = StrangersReader(
        cast(Any, strangers),
        cast(Any, loop),
        cast(Any, clock),
        lambda received: seen.append(received.payload),
        Counter(),
    )
    reader.read()
    assert seen == [b"\1\1\1a"]
    assert calls == [9, 1000 + 19 * 3_000_000]
