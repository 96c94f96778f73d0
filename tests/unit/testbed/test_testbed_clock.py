"""The NTP on-wire exchange against responders whose clocks are known to be wrong."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv6Address

import pytest

from testbed.clock import ClockError, Offset, best, combine, from_ntp, measure, to_ntp
from testbed.namespaces import NetNamespace

LOOPBACK = IPv6Address("::1")
MS = 1_000_000


@contextmanager
def responder(offset_ns: int = 0, spoil: str = "") -> Iterator[int]:
    """An NTP server whose clock is ``offset_ns`` ahead; yields its port."""
    server = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    server.bind(("::1", 0))
    stop = threading.Event()

    def serve() -> None:
        server.settimeout(0.05)
        while not stop.is_set():
            try:
                request, client = server.recvfrom(100)
            except TimeoutError:
                continue
            origin = int.from_bytes(request[40:48], "big")
            stamp = to_ntp(time.time_ns() + offset_ns)
            if spoil == "silent":
                continue
            if spoil == "foreign":
                server.sendto(struct.pack("!BBbb12sQQQQ", 36, 1, 0, 0, b"", 0, 1, 2, 3), client)
                server.sendto(b"short", client)
            answer = struct.pack("!BBbb12sQQQQ", 36, 1, 0, -20, b"", 0, origin, stamp, stamp)
            server.sendto(answer, client)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield server.getsockname()[1]
    finally:
        stop.set()
        thread.join()
        server.close()


@pytest.fixture
def here() -> Iterator[NetNamespace]:
    """Our own namespace; skips where entering it needs rights we lack."""
    namespace = NetNamespace.current()
    try:
        with namespace.entered():
            pass
    except PermissionError:
        pytest.skip("entering a namespace needs root")
    yield namespace
    namespace.close()


def test_the_four_stamps() -> None:
    # The device is 1000 ahead; 30 out, 10 inside, 30 back.
    offset = combine(100, 1130, 1140, 170)
    assert (offset.offset_ns, offset.delay_ns, offset.bound_ns) == (1000, 60, 30)


def test_an_asymmetric_path_stays_within_the_bound() -> None:
    offset = combine(0, 90, 90, 100)  # 90 out, 10 back, true offset 0
    assert abs(offset.offset_ns) <= offset.bound_ns


def test_the_quickest_sample_wins() -> None:
    samples = [Offset(9, 100, 50, 1), Offset(1, 10, 5, 1), Offset(7, 80, 40, 1)]
    assert best(samples) == Offset(1, 10, 5, 3)
    with pytest.raises(ClockError):
        best([])


def test_ntp_stamps_round_trip() -> None:
    for wall_ns in (0, 1, 999_999_999, 1_795_000_000_123_456_789):
        assert from_ntp(to_ntp(wall_ns)) == wall_ns


@pytest.mark.parametrize("injected_ms", [0, 25, -4000])
def test_an_injected_offset_is_found(here: NetNamespace, injected_ms: int) -> None:
    with responder(injected_ms * MS) as port:
        found = measure(here, LOOPBACK, {"d1": (LOOPBACK, port)}, samples=8)["d1"]
    assert found.samples == 8
    assert abs(found.offset_ns - injected_ms * MS) <= found.bound_ns + 1000
    assert found.bound_ns < 100 * MS


def test_the_monitors_own_shift_is_taken_off(here: NetNamespace) -> None:
    with responder(5 * MS) as port:
        targets = {"d1": (LOOPBACK, port)}
        found = measure(here, LOOPBACK, targets, samples=8, shift_ns=5 * MS)["d1"]
    assert abs(found.offset_ns) <= found.bound_ns + 1000


def test_answers_to_other_questions_are_ignored(here: NetNamespace) -> None:
    with responder(MS, spoil="foreign") as port:
        found = measure(here, LOOPBACK, {"d1": (LOOPBACK, port)}, samples=4)["d1"]
    assert abs(found.offset_ns - MS) <= found.bound_ns + 1000


def test_silence_is_an_error_that_names_the_device(here: NetNamespace) -> None:
    with responder(spoil="silent") as port, pytest.raises(ClockError, match=r"^d7: no clock"):
        measure(here, LOOPBACK, {"d7": (LOOPBACK, port)}, samples=8, timeout_s=0.02)


def test_a_closed_port_is_an_error(here: NetNamespace) -> None:
    with responder() as port:
        pass
    with pytest.raises(ClockError, match="responder_port"):
        measure(here, LOOPBACK, {"d1": (LOOPBACK, port)}, samples=8, timeout_s=0.05)
