from __future__ import annotations

import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

import pytest

from protocol.core.engine import DatagramReceived, Effect, Event, Instant, Report, Started
from protocol.daemon.clock import SystemClock
from protocol.daemon.link import carrier_changes
from protocol.daemon.logfile import LogFile
from protocol.daemon.reconcile import remove_own
from protocol.daemon.runtime import Runtime, recorded
from protocol.daemon.sockets import (
    LOCAL_BYTES_MAX,
    DatagramSocket,
    LocalSocket,
    Received,
    stamped_socket,
)
from protocol.daemon.trace import TraceWriter
from protocol.idp.config import IdpConfig
from protocol.idp.events import KeyFetched
from protocol.ipsec.backend import AddSa, PutPolicy
from protocol.ipsec.memory import MemoryBackend
from protocol.ipsec.model import (
    KeyMaterial,
    Policy,
    PolicyDirection,
    SecurityAssociation,
    Selector,
    Suite,
)
from tests.support.waiting import wait_until


@dataclass(frozen=True, slots=True)
class Asked(Effect):
    number: int


@dataclass(frozen=True, slots=True)
class Answered(Event):
    number: int


class ScriptedEngine:
    """Answers Started with two questions, and each answer with a report."""

    def __init__(self) -> None:
        self.seen: list[Event] = []

    def handle(self, event: Event, _now: Instant) -> Sequence[Effect]:
        self.seen.append(event)
        match event:
            case Started():
                return [Asked(1), Report("between"), Asked(2)]
            case Answered(number):
                return [Report(f"answer {number}")]
            case DatagramReceived(payload=b"crash"):
                raise ValueError("a fault of our own")
        raise AssertionError(event)

    def status(self, _now: Instant) -> dict[str, Any]:
        return {}


@pytest.fixture
def parts(tmp_path: Path) -> tuple[ScriptedEngine, Runtime, list[str], LogFile]:
    clock = SystemClock()
    trace = TraceWriter(tmp_path / "t", "d1", "idpd", clock)
    log = LogFile(tmp_path / "log", clock)
    engine = ScriptedEngine()
    runtime = Runtime(engine, clock, trace, log)
    order: list[str] = []

    def ask(effect: Asked) -> None:
        order.append(f"ask {effect.number}")
        runtime.deliver(Answered(effect.number))

    runtime.perform_with({Asked: ask, Report: lambda effect: order.append(effect.point)})
    return engine, runtime, order, log


def test_answers_wait_until_the_list_is_performed(
    parts: tuple[ScriptedEngine, Runtime, list[str], LogFile],
) -> None:
    _, runtime, order, _ = parts
    runtime.deliver(Started(1))
    assert order == ["ask 1", "between", "ask 2", "answer 1", "answer 2"]


def test_a_datagram_cannot_end_the_daemon(
    parts: tuple[ScriptedEngine, Runtime, list[str], LogFile], tmp_path: Path
) -> None:
    _, runtime, order, log = parts
    runtime.deliver(DatagramReceived("group", IPv6Address("::1"), b"crash"))
    assert runtime.counters == {"daemon.internal_error": 1}
    runtime.deliver(Started(1))
    assert order
    log.flush()
    text = (tmp_path / "log").read_text()
    assert "a fault of our own" in text
    assert text.count("\n") == 1


def test_another_fault_of_our_own_does(
    parts: tuple[ScriptedEngine, Runtime, list[str], LogFile],
) -> None:
    _, runtime, _, _ = parts
    with pytest.raises(AssertionError):
        runtime.deliver(Event())


def test_a_clock_that_was_set_is_told_once_and_small_steps_never(tmp_path: Path) -> None:
    clock = SystemClock()
    trace = TraceWriter(tmp_path / "t", "d1", "idpd", clock)
    runtime = Runtime(ScriptedEngine(), clock, trace, LogFile(tmp_path / "log", clock))
    steps: list[int] = []
    runtime.watch_clock(30_000_000_000, steps.append)
    runtime.perform_with({Asked: lambda _: None, Report: lambda _: None})
    for offset_s in (0, 29, -25, 40, 40, 0):
        clock.offset_ns = offset_s * 1_000_000_000
        runtime.deliver(Started(1))
    assert [round(step / 1e9) for step in steps] == [40, -40]
    clock.offset_ns = 10**18
    runtime.note_clock()
    runtime.deliver(Started(1))
    assert len(steps) == 2, "what it is now is right"


def test_recorded_events_hold_datagrams_and_no_keys() -> None:
    datagram = DatagramReceived("group", IPv6Address("2001:db8::1"), b"\x01\x02", 5)
    assert recorded(datagram) == {
        "type": "DatagramReceived",
        "channel": "group",
        "source": "2001:db8::1",
        "payload": "0102",
        "waited_ns": 5,
    }
    assert recorded(KeyFetched("p", b"key")) == {"type": "KeyFetched", "pointer": "p"}


def test_local_socket_counts_what_it_drops() -> None:
    local = LocalSocket(0, 9)
    port = local._socket.getsockname()[1]
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as other:
        other.sendto(b"x" * (LOCAL_BYTES_MAX + 1), ("::1", port))
        other.sendto(b"", ("::1", port))
        other.sendto(b"y" * LOCAL_BYTES_MAX, ("::1", port))
    assert local.receive() is None
    assert local.counters == {"local.oversized": 1}
    assert local.receive() == Received(b"", IPv6Address("::1"))
    received = local.receive()
    assert received is not None
    assert len(received.payload) == LOCAL_BYTES_MAX
    assert local.receive() is None
    local.close()


def test_stamped_socket_tells_how_long_a_datagram_waited_also_when_the_clock_is_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stamped = stamped_socket("", IPv6Address("::1"), 0)
    reader = DatagramSocket(stamped, "group")
    ahead_h = 0
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + ahead_h * 3_600_000_000_000)
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as other:

        def waited_ns(ms: int = 30) -> int:
            other.sendto(b"datagram", stamped.getsockname()[:2])
            sent_ns = time.monotonic_ns()
            while time.monotonic_ns() < sent_ns + ms * 1_000_000:
                pass
            received = reader.receive()
            assert received is not None
            return received.waited_ns

        # The kernel begins to stamp a moment after it was asked to (net_enable_timestamp).
        wait_until(lambda: waited_ns(1) >= 1_000_000, 10, "datagrams without stamps")
        begin_ns = time.monotonic_ns()
        assert 30_000_000 <= waited_ns() <= time.monotonic_ns() - begin_ns
        ahead_h = 5  # not for longer than since the one before it was read
        assert 30_000_000 <= waited_ns() <= time.monotonic_ns() - begin_ns
        ahead_h = -5
        assert 0 <= waited_ns() <= time.monotonic_ns() - begin_ns
    reader.close()


def netlink(index: int, flags: int, kind: int = 16) -> bytes:
    return struct.pack("=IHHIIBxHiII", 32, kind, 0, 0, 0, 0, 1, index, flags, 0)


def test_carrier_in_rtnetlink_messages() -> None:
    up, no_carrier = 0x10043, 0x1003
    batch = netlink(3, up) + netlink(4, no_carrier) + netlink(3, no_carrier) + netlink(3, up, 17)
    assert carrier_changes(batch, 3) == [True, False, False]
    assert carrier_changes(batch, 5) == []


@pytest.mark.parametrize("cut", range(32))
def test_cut_rtnetlink_messages_are_ignored(cut: int) -> None:
    assert carrier_changes(netlink(3, 0x10043)[:cut], 3) == []
    assert carrier_changes(b"\x00" * cut, 3) == []


def test_only_what_carries_our_marks_is_removed() -> None:
    config = IdpConfig(IPv6Address("ff0e::1"), if_id=66, reqid=7)
    here, group = IPv6Address("2001:db8::1"), IPv6Address("ff0e::1")
    key = KeyMaterial(bytes(20))
    backend = MemoryBackend()

    def sa(spi: int, reqid: int, if_id: int | None) -> AddSa:
        return AddSa(
            SecurityAssociation(here, group, spi, Suite.AES_GCM_128, key, reqid=reqid, if_id=if_id)
        )

    def policy(if_id: int | None, reqid: int) -> PutPolicy:
        return PutPolicy(
            Policy(Selector(), PolicyDirection.OUT, here, group, reqid=reqid, if_id=if_id)
        )

    outcomes = backend.apply(
        [
            sa(300, 7, 66),
            sa(301, 9, 66),
            sa(302, 7, 67),
            sa(303, 7, None),
            policy(66, 7),
            policy(67, 7),
        ]
    )
    assert all(outcome.ok for outcome in outcomes)
    assert remove_own(backend, config) == 2
    assert [entry.spi for entry in backend.dump_sas()] == [301, 302, 303]
    assert [entry.if_id for entry in backend.dump_policies()] == [67]
    assert remove_own(backend, config) == 0
